"""Prints the bytes that one piece of work takes at its peak; `measuring.peak_memory` starts it in its own process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from click_sampling import click_functions
from decoding import DECODERS
from models import Setup, random_prompts

WORK: dict[str, Callable[[Setup, str], Callable]] = {
    "decode": lambda setup, who: DECODERS[who](setup, random_prompts(setup, setup.prompts, setup.dtype)),
    "clicks": lambda setup, who: click_functions(setup)[who],
}


def main() -> None:
    work, who, size, prompts, masks, mask_side, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setup = Setup(
        device=torch.device(device),
        dtype=torch.float32,
        compile=False,
        size=size,
        training_size=size,
        prompts=int(prompts),
        masks=int(masks),
        mask_side=int(mask_side),
        points_per_side=1,
        image=None,
        seconds=0,
    )
    function = WORK[work](setup, who)
    print(json.dumps(peak_on_cuda(function) if device == "cuda" else peak_on_cpu(function)))


def peak_on_cuda(function: Callable) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(function: Callable) -> int:
    """Linux only: the kernel's high-water mark of resident memory, started anew."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
