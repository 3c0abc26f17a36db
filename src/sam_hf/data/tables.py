"""Tables of the `datasets` library: records in Parquet, and data sets with a column of images and one of masks."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow
from PIL import Image

from ..image_files import orientation
from .mask_files import binary_mask, label_map_objects, read_mask_values
from .mask_meaning import MaskMeaning, Meaning, guess_meaning, stated_meaning
from .overlap import encoded_cells, picture_keys
from .reader import UNREADABLE, ImageSource, RecordReader
from .schema import SegmentedObject, objects_from_masks
from .splits import select_split, split_aliases

__all__ = ["TableColumns", "TableRecords", "load_table", "row_name"]

MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "label_map")
ID_NAMES = ("image_id", "id", "file_name", "filename", "name")
ID_TYPES = ("string", "int64", "int32")
RECORD_COLUMNS = {"image", "objects", "image_id"}


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold images and objects, and how to read a cell of them.

    Args:
        image, objects, name: names of columns. Without a column of names, a row is named by its number.
        kind: of a cell of objects: "objects" of `FEATURES`, "mask" (a picture) or "masks" (a list of pictures).
        background: the label that is no object in a label map; None when every label is one.
        ignore_label: the label of a region to ignore, if there is one.
        meaning: of the values of pictures.
    """

    image: str
    objects: str
    name: str | None
    kind: Literal["objects", "mask", "masks"]
    background: int | None = 0
    ignore_label: int | None = None
    meaning: MaskMeaning = MaskMeaning("labels")

    @classmethod
    def find(
        cls,
        features: datasets.Features,
        image_column: str | None = None,
        mask_column: str | None = None,
        background: int | None = 0,
        ignore_label: int | None = None,
    ) -> "TableColumns":
        """Columns by the given names, or else by their types and usual names.

        Raises:
            ValueError: if the columns are not there or cannot be told apart.
        """
        name = next(iter(_name_columns(features)), None)
        if set(features) >= RECORD_COLUMNS and mask_column is None:
            return cls("image", "objects", "image_id", "objects")
        image, mask = _image_and_mask(features, image_column, mask_column)
        kind: Literal["mask", "masks"] = "mask" if isinstance(features[mask], datasets.Image) else "masks"
        return cls(image, mask, name, kind, background, ignore_label)

    def told(self, masks: str | None, names: Sequence[str], cell: Callable[[int], Any]) -> "TableColumns":
        """With the meaning of masks: as `masks` says, or as rows prove it.

        Args:
            masks: "labels", "binary" or None.
            names: of the rows.
            cell: of objects, by the number of a row.

        Raises:
            ValueError: if rows contradict each other or prove nothing, or there is nothing to tell.
        """
        if self.kind == "objects":
            if masks is not None or self.ignore_label is not None:
                raise ValueError(
                    f"the column {self.objects!r} holds objects, as `python -m sam_hf.data convert` writes them, and "
                    "no masks whose values could mean anything: leave out masks and ignore_label"
                )
            return self
        if self.ignore_label is not None and masks == "binary":
            raise ValueError(f"ignore_label {self.ignore_label} is a label, and binary masks have none: leave out one")
        if masks is None and self.ignore_label is not None:
            masks = "labels"
        if masks is not None:
            return replace(self, meaning=stated_meaning(masks))
        nothing = (0 if self.background is None else self.background,)
        rows = [f"row {name}, column {self.objects!r}" for name in names]
        return replace(self, meaning=guess_meaning(rows, lambda row: self._proof(cell(row)), nothing))

    @property
    def guesses(self) -> dict[str, str]:
        """What was taken for what."""
        guesses = {"image_column": self.image, "mask_column": self.objects}
        return guesses if self.kind == "objects" else guesses | {"masks": self.meaning.text()}

    def read_objects(self, cell: Any) -> list[SegmentedObject]:
        if self.kind == "objects":
            return cell or []
        return [item for picture in self._pictures(cell) for item in self._objects_of(picture)]

    def image_source(self, cell: Any, size: Sequence[int] | None) -> ImageSource:
        """The image of a cell, which has to have the (height, width) of the objects of its row."""
        return ImageSource(_file_of(cell, self.image), (size[0], size[1]) if size else None)

    def size_of(self, cell: Any) -> tuple[int, int] | None:
        """(height, width) of the objects of a row, from the head of the file; None if it has none."""
        if self.kind == "objects":
            return tuple(cell[0]["segmentation"]["size"]) if cell else None
        pictures = self._pictures(cell)
        return ImageSource(_file_of(pictures[0], self.objects)).read_size() if pictures else None

    def _pictures(self, cell: Any) -> list[Any]:
        return (cell or []) if self.kind == "masks" else [cell]

    def _proof(self, cell: Any) -> np.ndarray:
        """The first mask of a row that is not empty."""
        values = np.zeros((1, 1), dtype=np.uint8)
        for picture in self._pictures(cell):
            values = self._values(picture, None)
            if values.any():
                break
        return values

    def _objects_of(self, picture: Any) -> list[SegmentedObject]:
        values = self._values(picture, self.meaning.kind)
        self.meaning.check(f"column {self.objects!r}", values)
        if self.meaning.kind == "binary":
            found = objects_from_masks(binary_mask(values)[None])
            # An empty cell is no object; an empty mask of a list is one that is reported.
            return found if self.kind == "masks" else [item for item in found if item["area"]]
        ignored = frozenset() if self.ignore_label is None else frozenset([self.ignore_label])
        return label_map_objects(values, self.background, ignored)

    def _values(self, picture: Any, meaning: Meaning | None) -> np.ndarray:
        file = _file_of(picture, self.objects)
        try:
            return read_mask_values(file, meaning)
        except (OSError, ValueError) as error:
            raise type(error)(f"column {self.objects!r}: {error}") from error


class TableRecords(RecordReader):
    """Rows of a table of the `datasets` library; images stay encoded until they are read.

    The table has the columns `image`, `objects` and `image_id` of `FEATURES`, such as `python -m sam_hf.data convert`
    writes; or a column of images and one of masks, each a picture or a list of pictures, whose values are labels or
    binary masks. An `image_id` then comes from a column of that kind (`image_id`, `id`, `file_name`, ...) whose values
    all differ, or is the row's number.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        split: str | None = None,
        *,
        image_column: str | None = None,
        mask_column: str | None = None,
        masks: str | None = None,
        background: int | None = 0,
        ignore_label: int | None = None,
        strict: bool = True,
        **options: Any,
    ) -> None:
        """
        Args:
            table: such as `datasets.load_dataset` gives.
            split: None for all rows; else drawn by a hash of the ids.
            image_column, mask_column: names of the columns; found by type and usual names if not given.
            masks: "labels" (a number for each object) or "binary" (one object for each picture); told by the values of
                several rows if not given.
            background: the label that is no object in a label map; None when every label is one.
            ignore_label: the label of a region to ignore, which makes masks label maps.
            strict: as for other readers; no rows are left out of a table.
            options: `exif` of `RecordReader`, and those of `ObjectFilter`.

        Raises:
            ValueError: if the columns are not there or cannot be told apart, or masks do not tell what they mean.
        """
        columns = TableColumns.find(table.features, image_column, mask_column, background, ignore_label)
        # Each column alone, and as files: a cast of lists of pictures would write all of them anew.
        self._images = table.select_columns(columns.image).with_format("arrow")
        self._objects = table.select_columns(columns.objects).with_format("arrow")
        names, name_column = _row_names(table)
        rows = {name: row for row, name in enumerate(names)}
        ids = select_split(None, names, split, {}, alike=self._alike(names) if split else None)
        super().__init__(Path("table"), ids, {}, strict, **options)
        self._rows = [rows[name] for name in self.ids]
        self.columns = columns.told(masks, names, lambda row: _cell(self._objects, row))
        self.guesses |= self.columns.guesses | {"ids": name_column or "numbers of rows"}
        self.settle_frame(self._turned(names))

    def image_source(self, index: int) -> ImageSource:
        return self._source(self._rows[index])

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return self.columns.read_objects(_cell(self._objects, self._rows[index]))

    def places(self) -> list[Hashable]:
        """What tells the image of each record from all others: the picture itself, as tables may be copied.

        One that several records have, such as a blank one, counts as another each time.
        """
        keys = picture_keys(self._images)
        found = [keys[row] for row in self._rows]
        counts = Counter(found)
        table = self._images._fingerprint
        return [key if counts[key] == 1 else (table, row) for key, row in zip(found, self._rows, strict=True)]

    def _source(self, row: int) -> ImageSource:
        return self.columns.image_source(_cell(self._images, row), self.columns.size_of(_cell(self._objects, row)))

    def _turned(self, names: list[str]) -> Iterator[tuple[str, ImageSource]]:
        """The images that EXIF turns, of all rows; of the others no more than the head is read."""
        for row, (content, path) in enumerate(encoded_cells(self._images)):
            if not (content.is_valid or path.is_valid):
                continue
            file = pyarrow.BufferReader(content.as_buffer()) if content.is_valid else path.as_py()
            try:
                with Image.open(file) as image:
                    is_turned = orientation(image) != 1
                if is_turned:
                    yield names[row], self._source(row)
            except (*UNREADABLE, ValueError):
                continue  # whoever reads the record says what is wrong

    def _alike(self, names: list[str]) -> dict[str, str]:
        """By name of a row, the first row with the same picture, if there are several pictures at all."""
        keys = picture_keys(self._images)
        first: dict[Hashable, str] = {}
        for name, key in zip(names, keys, strict=True):
            first.setdefault(key, name)
        return {} if len(first) == 1 else {name: first[key] for name, key in zip(names, keys, strict=True)}


def load_table(tables: Any, split: str | None) -> tuple[datasets.Dataset, str | None]:
    """One table of what `datasets` loaded, and the split that is still to be drawn from it.

    A `DatasetDict` with the split has been split by its makers; of one that has a single table, or of a bare table,
    the split is drawn from the rows. One for validation alone is never trained on. None takes all tables.

    Raises:
        ValueError: if there are several tables and none of that split.
    """
    if isinstance(tables, datasets.Dataset | datasets.IterableDataset):
        return tables, split
    if split is None:
        return datasets.concatenate_datasets(list(tables.values())), None
    splits = {split_aliases(name)[0]: table for name, table in reversed(tables.items())}
    wanted = split_aliases(split)[0]
    if wanted in splits and (len(tables) > 1 or wanted != "train"):
        return splits[wanted], None
    if len(tables) > 1 or (wanted == "train" and "validation" in splits):
        raise ValueError(
            f"split {split!r} is none of those of the data set: {sorted(tables)}. Name two by --train_split and "
            f"--eval_split{_example(tables, wanted)}; or give a single table, not of validation alone, of which both "
            "are drawn"
        )
    return next(iter(tables.values())), split


def _example(tables: Any, wanted: str) -> str:
    others = [name for name in sorted(tables) if split_aliases(name)[0] != "train"]
    return f", such as --eval_split {others[0]}" if wanted == "validation" and others else ""


def _name_columns(features: datasets.Features) -> list[str]:
    return [name for name in ID_NAMES if getattr(features.get(name), "dtype", None) in ID_TYPES]


def _row_names(table: datasets.Dataset) -> tuple[list[str], str | None]:
    """Unique names of all rows, and their column: one that repeats itself, such as of classes or patients, is none."""
    for column in _name_columns(table.features):
        values = table[column][:]
        if None not in values and len(set(values)) == len(values):
            return [str(value) for value in values], column
    return [row_name(row) for row in range(len(table))], None


def row_name(row: int) -> str:
    """The `image_id` of a row in a table without any column of names."""
    return f"{row:08d}"


def _image_and_mask(features: datasets.Features, image: str | None, mask: str | None) -> tuple[str, str]:
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    lists = [
        name for name, feature in features.items() if isinstance(getattr(feature, "feature", None), datasets.Image)
    ]
    masks = [name for name in (*pictures, *lists) if name.lower() in MASK_NAMES] if mask is None else [mask]
    images = [name for name in pictures if name not in masks] if image is None else [image]
    if len(images) != 1 or len(masks) != 1 or images[0] not in pictures or masks[0] not in (*pictures, *lists):
        raise ValueError(
            f"one column of images and one of masks (pictures, or lists of them) are needed, found {images} for "
            f"images and {masks} for masks among {dict(features)}. Name them by image_column= and mask_column="
        )
    return images[0], masks[0]


def _cell(column: datasets.Dataset, row: int) -> Any:
    return column[row].column(0)[0].as_py()


def _file_of(cell: Any, column: str) -> bytes | Path:
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError(f"the row has no picture in the column {column!r}; fill it in, or drop the row")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
