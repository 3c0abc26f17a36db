"""Which images are for training and which for validation."""

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

__all__ = ["SPLIT_NAMES", "Problems", "is_in_split", "refuse", "select_split", "split_aliases", "split_of_name"]

# Names of one and the same split.
SPLIT_NAMES = (("train", "training"), ("validation", "val", "valid"), ("test", "testing"))
# What is wrong with the files of a data set, and the names of those files.
Problems = dict[str, list[str]]


def split_aliases(split: str) -> tuple[str, ...]:
    """All names of a split, the one of this package first."""
    return next((names for names in SPLIT_NAMES if split in names), (split,))


def split_of_name(stem: str) -> str:
    """The split that the first word of a file name tells, "train" if it is none."""
    word = re.split(r"[-_.\d]", stem.lower(), maxsplit=1)[0]
    return next((names[0] for names in SPLIT_NAMES if word in names), "train")


def select_split(root: Path | None, ids: list[str], split: str | None, problems: Problems) -> list[str]:
    """The ids of one split, by `root/splits.csv` (columns `id` and `split`), or without it by a hash of the ids.

    About one in ten is then "validation", the others are "train". A `split` of None gives all ids. Where table and ids
    differ, that is added to `problems`; an id that is not in the table is in no split.

    Raises:
        ValueError: if the table lacks the columns, or the split is unknown or empty.
    """
    if split is None:
        return ids
    source: Path | str
    table = None if root is None else root / "splits.csv"
    if table is not None and table.is_file():
        splits = _read_splits(table)
        problems["id(s) in splits.csv have no image"] = sorted(set(splits) - set(ids))
        problems["image(s) are not in splits.csv"] = sorted(set(ids) - set(splits))
        source = table
    else:
        splits = {name: _hash_split(name) for name in ids}
        source = f"{root or 'the table'} (no splits.csv: drawn by hash as train or validation)"
    chosen = [name for name in ids if splits.get(name) == split_aliases(split)[0]]
    if not chosen:
        raise ValueError(f"split {split!r} has no image; {source} gives {dict(Counter(splits.values()))}")
    return chosen


def is_in_split(name: str, split: str) -> bool:
    """Whether an id is in the split that a hash of it gives, for ids that are not known beforehand."""
    return _hash_split(name) == split_aliases(split)[0]


def refuse(root: Path, problems: Problems) -> None:
    """Raise a ValueError for the first kind of problem, with the number of files and the first names."""
    for what, names in problems.items():
        if names:
            more = " ..." if len(names) > 5 else ""
            raise ValueError(f"{root}: {len(names)} {what}: {', '.join(names[:5])}{more}")


def _read_splits(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"id", "split"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} must have the columns id and split, it has {reader.fieldnames}")
        return {row["id"]: split_aliases(row["split"])[0] for row in reader}


def _hash_split(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"
