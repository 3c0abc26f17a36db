"""Folders of images with `metadata.jsonl` or `metadata.csv`, as `datasets` reads them ("imagefolder").

A row has `file_name` and the mask or masks in a column such as `mask_file_name`, both as paths from the metadata file.
Source: huggingface.co/docs/datasets, "Create an image dataset".
"""

import csv
import json
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .annotated import AnnotatedImages, Entry
from .image_places import image_ids
from .listing import glob_visible
from .mask_files import MASK_SUFFIXES, binary_mask, label_map_objects, mask_size, read_mask_values
from .mask_meaning import guess_meaning, stated_meaning
from .named_splits import select_named_split, split_of_folders
from .schema import SegmentedObject, objects_from_masks
from .splits import Problems

__all__ = ["ImageMetadata", "has_mask_column"]

PATTERNS = tuple(f"{folder}metadata.{suffix}" for folder in ("", "*/", "*/*/") for suffix in ("jsonl", "csv"))
MASK_WORDS = ("mask", "segmentation", "label", "annotation")
NUM_PROBED = 20


class ImageMetadata(AnnotatedImages):
    """Images with mask files that a table names; splits are those of folders such as `train/`."""

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        mask_column: str | None = None,
        masks: str | None = None,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            root: the folder; the table lies in it, or in its folders, such as `train/metadata.jsonl`.
            split: None for all images; else by the names of folders, or see `select_split`.
            mask_column: the column of mask files, if several could be it.
            masks: "labels" or "binary", or None for what their values prove.
            strict: whether rows that are damaged, or without a file, are an error; else they are left out and listed
                in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no such column or several, or the split is unknown or empty.
        """
        root = Path(root)
        damaged: list[str] = []
        rows = list(_read(root, damaged))
        column = mask_column or _mask_column(root, [row for _, row in rows])
        entries: dict[Path, Entry] = {}
        problems: Problems = {"row(s) are damaged": damaged, "row(s) lack a file": [], "image(s) are listed twice": []}
        for file, row in rows:
            image = file.parent / str(row.get("file_name") or "")
            found = [file.parent / path for path in _paths(row.get(column))]
            name = f"{row.get('file_name')} ({column}: {row.get(column)})"
            if not found or not all(map(os.path.isfile, (image, *found))):
                problems["row(s) lack a file"].append(name)
            elif image in entries:
                problems["image(s) are listed twice"].append(name)
            else:
                try:
                    size = mask_size(found[0])
                except (OSError, ValueError) as error:
                    damaged.append(str(error))
                else:
                    entries[image] = Entry(
                        name, size, [str(path) for path in found], split_of_folders(Path(_within(image, root)))
                    )
        named = dict(zip(image_ids([_within(image, root) for image in entries]), entries.items(), strict=True))
        splits = {name: named[name][1].split for name in sorted(named)}
        ids, how = select_named_split(root, splits, split, problems, named)
        files = [Path(path) for name in sorted(named) for path in named[name][1].shapes]
        self.meaning = (
            stated_meaning(masks)
            if masks
            else guess_meaning([str(path) for path in files], lambda number: read_mask_values(files[number]))
        )
        super().__init__(root, {name: named[name] for name in ids}, problems, strict=strict, **filters)
        self.guesses |= {"masks": f"{self.meaning.text()}, in the column {column}", "split": how}

    def prepare(self, entry: Entry, size: tuple[int, int], passed_over: Problems) -> list[Any]:
        wrong = [f"{path} of {list(found)}" for path in entry.shapes if (found := mask_size(Path(path))) != size]
        if wrong:
            raise ValueError(f"masks differ in size: {entry.shapes[0]} of {list(size)}, {wrong[0]} (height, width)")
        return list(entry.shapes)

    def draw(self, prepared: list[Any], size: tuple[int, int]) -> list[SegmentedObject]:
        objects: list[SegmentedObject] = []
        for path in map(Path, prepared):
            values = read_mask_values(path, None if self.meaning.proof else self.meaning.kind)
            self.meaning.check(str(path), values)
            is_binary = self.meaning.kind == "binary"
            objects += objects_from_masks(binary_mask(values)[None]) if is_binary else label_map_objects(values)
        return objects


def has_mask_column(path: Path) -> bool:
    """Whether a table in a folder or in its folders has a column that may be of masks."""
    return path.is_dir() and any(_columns(row) for _, row in islice(_read(path, []), NUM_PROBED))


def _mask_column(root: Path, rows: list[dict[str, Any]]) -> str:
    """The column of masks: the only one with files, or the only one of these that has a word for masks in its name."""
    columns = sorted(set(chain.from_iterable(map(_columns, rows))))
    for words in ((), *((word,) for word in MASK_WORDS)):
        fitting = [name for name in columns if all(word in name.lower() for word in words)]
        if len(fitting) == 1:
            return fitting[0]
    raise ValueError(
        f"{root}: masks could be in the columns {columns}; say which by mask_column= (--mask_column)"
        if columns
        else f"{root}: no column of metadata names mask files, such as mask_file_name"
    )


def _columns(row: dict[str, Any]) -> list[str]:
    """Names of the columns that hold mask files: `..._file_name`, or with a word for masks."""
    return [
        name
        for name, value in row.items()
        if isinstance(name, str)
        and name != "file_name"
        and (name.endswith(("_file_name", "_file_names")) or any(word in name.lower() for word in MASK_WORDS))
        and (paths := _paths(value))
        and all(path.lower().endswith(MASK_SUFFIXES) for path in paths)
    ]


def _paths(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item.replace("\\", "/") for item in values if isinstance(item, str) and item]


def _read(root: Path, damaged: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows of all tables, and for each where it is from; what is none is added to `damaged`."""
    for file in (file for pattern in PATTERNS for file in sorted(glob_visible(root, pattern))):
        try:
            lines = file.read_text("utf-8-sig").splitlines()
            rows = csv.DictReader(lines) if file.suffix == ".csv" else map(_json_object, filter(str.strip, lines))
            for number, row in enumerate(rows, 1):
                if row is None:
                    damaged.append(f"{file}, row {number}")
                else:
                    yield file, row
        except (ValueError, csv.Error) as error:
            damaged.append(f"{file} ({error})")


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _within(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
