"""Check and convert data sets, and measure how fast they load.

    python -m sam_hf.data check my/folder
    python -m sam_hf.data convert my/folder my/parquet
    python -m sam_hf.data speed my/folder

`check` reads every record, prints counts and problems with their names, and draws some records with their objects.
Its exit status is 0 if every record can be used, 1 if some cannot, 2 if the data set cannot be opened. `convert`
writes all sound records as Parquet; its exit status is 1 if some were left out. `speed` makes training batches.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
from tqdm import tqdm
from transformers import HfArgumentParser

from ..training.loading_speed import measure_loader, training_collator
from .check import check_dataset, sample_sheet
from .data_options import From, ReaderOptions, refuse_one_split
from .description import as_text, describe
from .faults import left_out
from .overlap import shared_images
from .parquet import write_parquet
from .schema import Record, Records
from .splits import SPLIT_NAMES, split_aliases

__all__ = ["main"]

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "check": {
        "picture": {"type": Path, "default": Path("check.png"), "help": "where to draw samples"},
        "samples": {"type": int, "default": 12, "help": "how many records to draw"},
        "limit": {"type": int, "help": "that many evenly spaced records of each split"},
        "image_size": {"type": int, "default": 1024, "help": "longest side of the model input"},
    },
    "convert": {
        "records_per_shard": {"type": int, "default": 500, "help": "records of one file"},
        "limit": {"type": int, "help": "that many evenly spaced records of each split"},
    },
    "speed": {
        "image_size": {"type": int, "default": 1024, "help": "longest side of the model input"},
        "crop_size": {"type": int, "help": "side of the crops; half of image_size if not given"},
        "max_objects": {"type": int, "default": 8, "help": "objects per image"},
        "batch_size": {"type": int, "default": 4, "help": "images per batch"},
        "batches": {"type": int, "default": 20, "help": "batches to measure"},
        "num_workers": {"type": int, "nargs": "+", "default": [0, 2], "help": "numbers of worker processes to try"},
    },
}


def _unlimited(name: str, value: float) -> Any:
    return field(default=value, metadata=ReaderOptions.__dataclass_fields__[name].metadata)


@dataclass
class CommandOptions(ReaderOptions):
    """Those of training, but that all objects are looked at."""

    min_area: Annotated[int, From("taste", 0)] = _unlimited("min_area", 0)
    max_share: Annotated[float, From("taste", 1e-6, 1)] = _unlimited("max_share", 1.0)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    datasets.disable_progress_bars()  # those of reading Parquet would break ours
    try:
        options = CommandOptions(**{item.name: getattr(arguments, item.name) for item in fields(CommandOptions)})
        splits = _open_splits(arguments.path, arguments.split, options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return arguments.run(splits, arguments)


def check(splits: dict[str, Records], arguments: argparse.Namespace) -> int:
    """Report on every split, and draw records of the first."""
    status = 0
    train, validation = (split_aliases(name)[0] for name in (arguments.train_split, arguments.eval_split))
    shared = shared_images(splits.get(train), splits.get(validation))
    shown: list[Record] = []
    for split, dataset in splits.items():
        report = check_dataset(dataset, _progress(dataset, split, arguments.limit))
        if split == validation and shared:
            report.errors["image(s) are training images too, so that the evaluation is worthless"] = shared
        print(f"\n{as_text(describe(**{split: dataset}))}\n{report.text(arguments.image_size)}", flush=True)
        status = max(status, int(bool(report.errors)))
        places = np.linspace(0, len(report.sound) - 1, min(arguments.samples, len(report.sound)))
        shown += [] if shown else [dataset[report.sound[round(place)]] for place in places]
    if shown:
        sample_sheet(shown).save(arguments.picture)
        print(f"\n{arguments.picture}: {len(shown)} records with their objects")
    return status


def convert(splits: dict[str, Records], arguments: argparse.Namespace) -> int:
    """Write every split as Parquet."""
    parts = {split: (dataset, _progress(dataset, split, arguments.limit)) for split, dataset in splits.items()}
    try:
        counts, faults = write_parquet(parts, arguments.out, arguments.records_per_shard)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    # Each once: what belongs to no image is passed over in every split.
    faults += dict.fromkeys(fault for dataset in splits.values() for fault in left_out(dataset))
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    print(f"{arguments.out}: {', '.join(f'{count} of {split}' for split, count in counts.items())}")
    return int(bool(faults))


def speed(splits: dict[str, Records], arguments: argparse.Namespace) -> int:
    """Make training batches of the first split."""
    split, dataset = next(iter(splits.items()))
    size = arguments.image_size
    collator = training_collator(size, arguments.crop_size or size // 2, arguments.max_objects)
    print(f"{split} ({type(dataset).__name__})\nworkers  images/s  objects/s")
    for workers in arguments.num_workers:
        images, objects = measure_loader(dataset, collator, arguments.batch_size, workers, arguments.batches)
        print(f"{workers:7}{images:10.1f}{objects:11.1f}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sam_hf.data", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, parser_class=HfArgumentParser)
    descriptions = {
        check: "validate a data set and draw samples",
        convert: "write it as Parquet",
        speed: "images and objects per second of the loader",
    }
    for run, description in descriptions.items():
        command = commands.add_parser(run.__name__, help=description, dataclass_types=CommandOptions)
        command.set_defaults(run=run)
        command.add_argument("path", help="whatever open_dataset takes")
        if run is convert:
            command.add_argument("out", type=Path, help="folder to write, which must not exist")
        command.add_argument("--split", help="one split alone")
        for name, options in OPTIONS[run.__name__].items():
            command.add_argument(f"--{name}", **options)
    return parser


def _open_splits(path: str, split: str | None, options: CommandOptions) -> dict[str, Records]:
    """Every split of a data set by name, or the one asked for; "all" records if none of the usual splits is there.

    Raises:
        ValueError: if nothing can be opened.
    """
    if split is not None:
        return {split: options.open(path, split)}
    refuse_one_split(options.train_split, options.eval_split)
    splits = {}
    given = (options.train_split, options.eval_split, *(names[0] for names in SPLIT_NAMES))
    for name in dict.fromkeys(split_aliases(name)[0] for name in given):
        try:
            splits[name] = options.open(path, name)
        except ValueError as error:
            print(f"no split {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return splits or {"all": options.open(path, None)}


def _progress(dataset: Records, split: str, limit: int | None) -> Iterator[int]:
    """Evenly spaced indices; the bar appears with the first."""
    count = min(limit or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    yield from tqdm(indices, desc=split, unit="image")


if __name__ == "__main__":
    sys.exit(main())
