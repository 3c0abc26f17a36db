"""Which images are for training and which for validation."""

import csv
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

from .damage import refusing_damage
from .listing import normalized

__all__ = [
    "SPLIT_NAMES",
    "Problems",
    "is_in_split",
    "refuse",
    "select_split",
    "split_aliases",
    "split_in_name",
    "split_of_name",
    "splits_table",
]

# Names of one and the same split.
SPLIT_NAMES = (("train", "training"), ("validation", "val", "valid"), ("test", "testing"))
# What is wrong with the files of a data set, and the names of those files.
Problems = dict[str, list[str]]


def split_aliases(split: str) -> tuple[str, ...]:
    """All names of a split, in lower case, the one of this package first."""
    split = split.strip().lower()
    return next((names for names in SPLIT_NAMES if split in names), (split,))


def split_of_name(stem: str) -> str:
    """The split that the first word of a file name tells, "train" if it is none."""
    word = re.split(r"[-_.\d]", stem.lower(), maxsplit=1)[0]
    return next((names[0] for names in SPLIT_NAMES if word in names), "train")


def split_in_name(name: str) -> str | None:
    """The one split that a word of a name tells, wherever it stands; None if there is none or there are several.

    Without such a word its beginning or end counts, as in `minitrain2017`; the middle does not, as in `constrained`.
    """
    words = re.findall("[^\\W\\d_]+", name.lower())
    whole = {names[0] for names in SPLIT_NAMES for alias in names if alias in words}
    found = whole or {
        names[0]
        for names in SPLIT_NAMES
        for alias in names
        if any(word.startswith(alias) or word.endswith(alias) for word in words)
    }
    return found.pop() if len(found) == 1 else None


def select_split(
    root: Path | None,
    ids: list[str],
    split: str | None,
    problems: Problems,
    *,
    usable: Container[str] | None = None,
    alike: Mapping[str, str] | None = None,
) -> list[str]:
    """The ids of one split, by `root/splits.csv` (columns `id` and `split`), or without it by a hash of the ids.

    About one in ten is then "validation", the others are "train"; from two images on, each has at least one. A single
    image serves as both, with a warning. A `split` of None gives all ids. Where table and ids differ, that is added to
    `problems`; an id that is not in the table is in no split.

    Args:
        root: folder of the data, None for a table.
        ids: unique names of the images.
        split: name of the split.
        problems: where to add.
        usable: ids that are not going to be left out, if not all are; a split of others would be empty.
        alike: by id, the id whose split it has to share, as both are the same picture.

    Raises:
        ValueError: if the table lacks the columns, or the split is unknown or empty.
    """
    if split is None:
        return ids
    source: Path | str
    wanted = split_aliases(split)[0]
    table = None if root is None else splits_table(root)
    if table is not None:
        splits = _matched(_read_splits(table), ids)
        problems["id(s) in splits.csv have no image"] = sorted(set(splits) - set(ids))
        problems["image(s) are not in splits.csv"] = sorted(set(ids) - set(splits))
        source = table
    else:
        splits = _drawn_splits(ids, usable, alike or {})
        source = f"{root or 'the table'} (no splits.csv: drawn by hash as train or validation)"
        if wanted in ("train", "validation") and sum(usable is None or name in usable for name in ids) == 1:
            warnings.warn(
                f"{root or 'the table'} has a single image: {ids[0]} serves for training and for validation, so the "
                "evaluation tells nothing about other images. Add images for a fair one",
                stacklevel=2,
            )
            return ids
    chosen = [name for name in ids if splits.get(name) == wanted]
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


def splits_table(root: Path) -> Path | None:
    """`splits.csv` in a folder, its name in any case; None if there is none."""
    found = [root / "splits.csv"] if (root / "splits.csv").is_file() else []
    found = found or [path for path in sorted(root.glob("*.[cC][sS][vV]")) if path.name.lower() == "splits.csv"]
    return found[0] if found else None


def _read_splits(table: Path) -> dict[str, str]:
    """Split by id as it is written.

    Raises:
        ValueError: if a column or a value is absent, or one id is in two splits.
    """
    with refusing_damage(table), table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"id", "split"} <= set(reader.fieldnames):
            raise ValueError(f"{table} must have the columns id and split, it has {reader.fieldnames}")
        splits: dict[str, str] = {}
        for row in reader:
            name, split = ((row[column] or "").strip() for column in ("id", "split"))
            if not name or not split:
                raise ValueError(f"{table}, line {reader.line_num}: an id and a split are needed, got {row}")
            _assign(table, splits, name, split_aliases(split)[0])
    return splits


def _assign(table: Path | None, splits: dict[str, str], name: str, split: str) -> None:
    if splits.setdefault(name, split) != split:
        raise ValueError(
            f"{table or 'splits.csv'}: {name} is in the splits {splits[name]!r} and {split!r}; leave one of its lines"
        )


def _matched(written: dict[str, str], ids: list[str]) -> dict[str, str]:
    """The table by ids of images, where it has these with another Unicode form, or with a suffix, such as `a.png`."""
    names = {normalized(name): name for name in ids}
    splits: dict[str, str] = {}
    for entry, split in written.items():
        name = normalized(entry.replace("\\", "/").removeprefix("./"))
        stem = re.sub(r"\.[A-Za-z]\w{1,4}$", "", name)
        _assign(None, splits, names.get(name) or names.get(stem) or entry, split)
    return splits


def _drawn_splits(ids: list[str], usable: Container[str] | None, alike: Mapping[str, str]) -> dict[str, str]:
    """Split by id, by hash; where one split would be empty, the image at the end of the other that is next moves."""
    splits = {name: _hash_split(alike.get(name, name)) for name in ids}
    movable = sorted({alike.get(name, name) for name in ids if usable is None or name in usable})
    found = {splits[name] for name in movable}
    if len(movable) > 1 and len(found) == 1:
        moved = movable[-1] if found == {"train"} else movable[0]
        other = "validation" if found == {"train"} else "train"
        splits |= {name: other for name in ids if alike.get(name, name) == moved}
    return splits


def _hash_split(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"
