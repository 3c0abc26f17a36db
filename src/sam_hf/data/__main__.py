"""Check and convert data sets.

    python -m sam_hf.data check my/folder
    python -m sam_hf.data convert my/folder my/parquet

`check` reads every record, prints counts and problems with their names, and draws some records with their objects. Its
exit status is 0 if every record can be used, 1 if some cannot, 2 if the data set cannot be opened. `convert` writes all
sound records as Parquet; its exit status is 1 if some were left out.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from sam_hf.data.catalog import open_dataset
from sam_hf.data.check import check_dataset, sample_sheet
from sam_hf.data.parquet import write_parquet
from sam_hf.data.splits import SPLIT_NAMES

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    datasets.disable_progress_bars()  # those of reading Parquet would break ours
    try:
        splits = _open_splits(arguments.path, arguments.split, _options(arguments))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return arguments.run(splits, arguments)


def check(splits: dict[str, Dataset], arguments: argparse.Namespace) -> int:
    """Report on every split, and draw records of the first."""
    status, shown = 0, []
    for split, dataset in splits.items():
        report = check_dataset(dataset, _progress(dataset, split, arguments.limit))
        print(f"\n{split} ({type(dataset).__name__})\n{report.text()}", flush=True)
        status = max(status, int(bool(report.errors)))
        places = np.linspace(0, len(report.sound) - 1, min(arguments.samples, len(report.sound)))
        shown += [] if shown else [dataset[report.sound[round(place)]] for place in places]
    if shown:
        sample_sheet(shown).save(arguments.picture)
        print(f"\n{arguments.picture}: {len(shown)} records with their objects")
    return status


def convert(splits: dict[str, Dataset], arguments: argparse.Namespace) -> int:
    """Write every split as Parquet."""
    parts = {split: (dataset, _progress(dataset, split, arguments.limit)) for split, dataset in splits.items()}
    left_out = [f"{len(n)} {what}: {', '.join(n)}" for data in splits.values() for what, n in _problems(data).items()]
    try:
        left_out += write_parquet(parts, arguments.out, arguments.records_per_shard)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for fault in left_out:
        print(f"left out: {fault}", file=sys.stderr)
    print(f"{arguments.out}: {', '.join(f'{len(dataset)} of {split}' for split, dataset in splits.items())}")
    return int(bool(left_out))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sam_hf.data", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    for run, description in ((check, "validate a data set and draw samples"), (convert, "write it as Parquet")):
        command = commands.add_parser(run.__name__, help=description)
        command.set_defaults(run=run)
        command.add_argument("path", help="whatever open_dataset takes")
        if run is convert:
            command.add_argument("out", type=Path, help="folder to write, which must not exist")
            command.add_argument("--records_per_shard", type=int, default=500, help="records of one file")
        else:
            command.add_argument("--picture", type=Path, default=Path("check.png"), help="where to draw samples")
            command.add_argument("--samples", type=int, default=12, help="how many records to draw")
        command.add_argument("--split", help="one split alone")
        command.add_argument("--limit", type=int, help="that many evenly spaced records of each split")
        command.add_argument("--min_area", type=int, default=0, help="leave out objects of fewer pixels")
        command.add_argument("--max_area", type=int, help="leave out objects of more pixels")
        command.add_argument(
            "--min_share", type=float, default=0.0, help="leave out objects below this share of the image"
        )
        command.add_argument(
            "--max_share", type=float, default=1.0, help="leave out objects above this share of the image"
        )
        command.add_argument(
            "--split_regions", action="store_true", help="make unconnected pieces objects of their own"
        )
        command.add_argument("--images", type=Path, help="folder of the images of a COCO file that is elsewhere")
        command.add_argument("--image_column", help="of a table with several columns of images")
        command.add_argument("--mask_column", help="of a table with several columns of images")
    return parser


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.path == "scenes":
        return {}
    always = {name: getattr(arguments, name) for name in ("min_area", "max_area", "min_share", "max_share")}
    given = {name: getattr(arguments, name) for name in ("images", "image_column", "mask_column")}
    given = {name: value for name, value in given.items() if value is not None}
    return {"strict": False, "split_regions": arguments.split_regions, **always, **given}


def _open_splits(path: str, split: str | None, options: dict[str, Any]) -> dict[str, Dataset]:
    """Every split of a data set by name, or the one asked for; "all" records if none of the usual splits is there.

    Raises:
        ValueError: if nothing can be opened.
    """
    if split is not None:
        return {split: open_dataset(path, split, **options)}
    splits = {}
    for name, *_ in SPLIT_NAMES:
        try:
            splits[name] = open_dataset(path, name, **options)
        except ValueError as error:
            print(f"no split {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return splits or {"all": open_dataset(path, None, **options)}


def _problems(dataset: Dataset) -> dict[str, list[str]]:
    return getattr(dataset, "problems", {})


def _progress(dataset: Dataset, split: str, limit: int | None) -> tqdm:
    count = min(limit or len(dataset), len(dataset))
    return tqdm(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist(), desc=split, unit="image")


if __name__ == "__main__":
    sys.exit(main())
