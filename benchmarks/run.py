"""Prints one table: the work that SAM does, in seconds, ours and of others with the same weights.

    python benchmarks/run.py --image photograph.jpg --write docs/performance.md
    python benchmarks/run.py --quick
    python benchmarks/run.py --device cuda --dtype bfloat16 --compile

Ours and theirs run in turns in one process, and numbers are medians; peak memory is of processes of their own.
The last column says which share of our time the machine would need for the arithmetic alone, at the speed of a large
matrix product that was measured before (for clicks: for reading the masks, at the speed of a copy).
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from automatic_masks import automatic_mask_rows, instance_rows
from click_sampling import click_rows
from decoding import decode_rows, memory_rows
from encoding import encode_rows
from evaluating import evaluation_rows
from late_adapters import adapter_rows
from measuring import Limits, Row, machine_limits
from models import Setup
from sam2 import sam2_rows
from training_step import training_rows

ROWS: dict[str, Callable[[Setup, Limits], Iterator[Row]]] = {
    "decode-many": lambda setup, limits: decode_rows(setup, limits, setup.prompts),
    "decode-one": lambda setup, limits: decode_rows(setup, limits, 1),
    "decode-memory": lambda setup, limits: memory_rows(setup),
    "encode": lambda setup, limits: encode_rows(setup, limits, torch.float32),
    "encode-bf16": lambda setup, limits: encode_rows(setup, limits, torch.bfloat16),
    "automatic": automatic_mask_rows,
    "instances": instance_rows,
    "clicks": click_rows,
    "evaluation": evaluation_rows,
    "training": training_rows,
    "sam2": sam2_rows,
    "late-adapters": lambda setup, limits: adapter_rows(setup),
}


HEADER = (
    "| work | peer | ours | peer's | ratio | largest difference | of the limit |",
    "|---|---|---|---|---|---|---|",
)
MARKS = "<!-- table -->", "<!-- end of table -->"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="minutes: fewer clicks for automatic masks, one run each")
    parser.add_argument("--tiny", action="store_true", help="seconds: a model so small that its numbers mean nothing")
    parser.add_argument("--image", help="photograph for automatic masks, instead of painted colours")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile encoders and decoders of all")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the marks of this page, too")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads")
    return parser.parse_args()


def setup_from(arguments: argparse.Namespace) -> Setup:
    return Setup(
        device=torch.device(arguments.device),
        dtype=getattr(torch, arguments.dtype),
        compile=arguments.compile,
        size="tiny" if arguments.tiny else "vit-b",
        training_size="tiny" if arguments.tiny else "small",
        prompts=8 if arguments.tiny else 64,
        masks=4 if arguments.tiny else 64,
        mask_side=64 if arguments.tiny else 1024,
        points_per_side=4 if arguments.tiny else 8 if arguments.quick else 32,
        image=arguments.image,
        seconds=0.1 if arguments.tiny else 5.0 if arguments.quick else 60.0,
    )


def machine(setup: Setup, limits: Limits) -> str:
    """Where the numbers come from, in a line."""
    name = torch.cuda.get_device_name() if setup.device.type == "cuda" else cpu_name()
    return (
        f"{name}, {torch.get_num_threads()} threads, {str(setup.dtype).removeprefix('torch.')}, "
        f"product {limits.flops / 1e9:.0f} GFLOP/s, copy {limits.bandwidth / 1e9:.1f} GB/s; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def command() -> str:
    return " ".join(["python", *map(shlex.quote, sys.argv)])


def write_between_marks(page: Path, table: str) -> None:
    """Replace what the page holds between `MARKS`."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}")


def cpu_name() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def format_row(row: Row) -> str:
    scale, digits = ("MB", 1e-6) if row.unit == "bytes" else ("ms", 1e3)
    ours, theirs = (f"{value * digits:.1f} {scale}" for value in (row.ours, row.theirs))
    limit = f"{row.limit / row.ours:.0%}" if row.limit else ""
    difference = row.note or ("" if row.difference is None else f"{row.difference:.0e}")
    ratio = f"{row.theirs / max(row.ours, 1e-12):.1f}x"
    return f"| {row.work} | {row.peer} | {ours} | {theirs} | {ratio} | {difference} | {limit} |"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    setup = setup_from(arguments)
    limits = machine_limits(setup)
    lines = [f"`{command()}` on {machine(setup, limits)}", "", *HEADER]
    print("\n".join(lines), flush=True)
    for name in arguments.rows:
        for row in ROWS[name](setup, limits):
            lines.append(format_row(row))
            print(lines[-1], flush=True)
    if arguments.write:
        write_between_marks(arguments.write, "\n".join(lines))


if __name__ == "__main__":
    main()
