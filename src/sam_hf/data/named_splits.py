"""Splits that folders or annotation files name."""

from collections.abc import Container, Mapping
from pathlib import Path, PurePath

from .splits import Problems, select_split, split_aliases, split_in_name, splits_table

__all__ = ["select_named_split", "split_of_folders"]


def split_of_folders(path: PurePath) -> str | None:
    """The split that a folder of a path, relative to the root of the data, has in its name, such as `train2017`."""
    words = filter(None, map(split_in_name, path.parts[:-1]))
    return next(words, None)


def select_named_split(
    root: Path,
    splits: Mapping[str, str | None],
    split: str | None,
    problems: Problems,
    usable: Container[str],
) -> tuple[list[str], str]:
    """The ids of a split where folders or files name the split of images, and how it was told.

    Where no image is named as validation, those of train, or else those without a split, are drawn by `select_split`;
    so are all where a `splits.csv` lies beside them, or no split is named.

    Args:
        splits: by id, the name of its split or None.

    Raises:
        ValueError: if the split is unknown or empty.
    """
    known = {name: split_aliases(word)[0] if word else None for name, word in splits.items()}
    words = set(known.values()) - {None}
    is_listed = splits_table(root) is not None
    drawn = "by splits.csv" if is_listed else "one image in ten is for validation, by a hash of its name"
    if split is None:
        return list(known), "all"
    if not words or is_listed:
        return select_split(root, list(known), split, problems, usable=usable), drawn
    wanted = split_aliases(split)[0]
    parts = {word: [name for name in known if known[name] == word] for word in words if word}
    if "train" not in words and (rest := [name for name in known if known[name] is None]):
        parts["train"] = rest
    if wanted in ("train", "validation") and "validation" not in words and "train" in parts:
        return select_split(root, parts["train"], split, problems, usable=usable), f"{drawn}, of those for training"
    if not parts.get(wanted):
        raise ValueError(
            f"{root}: split {split!r} has no image; there are {', '.join(sorted(parts))}. Give one of these, or write "
            "splits.csv (columns id and split)"
        )
    return parts[wanted], f"as named: {', '.join(sorted(parts))}"
