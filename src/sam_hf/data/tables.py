"""Tables of the `datasets` library: records in Parquet, and data sets with a column of images and one of masks."""

import io
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import Image

from .overlap import picture_keys
from .reader import UNREADABLE, ImageSource, RecordReader, unreadable
from .schema import SegmentedObject, objects_from_label_map, objects_from_masks
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
        kind: of a cell of objects: "objects" of `FEATURES`, "masks" (a list of binary ones) or "label map".
        background: the label that is no object in a label map; None when every label is one.
    """

    image: str
    objects: str
    name: str | None
    kind: Literal["objects", "masks", "label map"]
    background: int | None = 0

    @classmethod
    def find(
        cls,
        features: datasets.Features,
        image_column: str | None = None,
        mask_column: str | None = None,
        background: int | None = 0,
    ) -> "TableColumns":
        """Columns by the given names, or else by their types and usual names.

        Raises:
            ValueError: if the columns are not there or cannot be told apart.
        """
        name = next(iter(_name_columns(features)), None)
        if set(features) >= RECORD_COLUMNS and mask_column is None:
            return cls("image", "objects", "image_id", "objects")
        image, mask = _image_and_mask(features, image_column, mask_column)
        is_label_map = isinstance(features[mask], datasets.Image)
        return cls(image, mask, name, "label map" if is_label_map else "masks", background)

    def read_objects(self, cell: Any) -> list[SegmentedObject]:
        if self.kind == "objects":
            return cell or []
        if self.kind == "masks":
            return [
                item for entry in cell or [] for item in objects_from_masks(_foreground(self._pixels(entry))[None])
            ]
        return objects_from_label_map(_labels(self._pixels(cell)), self.background)

    def image_source(self, cell: Any, objects: Sequence[SegmentedObject]) -> ImageSource:
        """The image of a cell, which has to have the size of the objects of its row."""
        size = objects[0]["segmentation"]["size"] if objects else None
        return ImageSource(_file_of(cell, self.image), size and tuple(size))

    def _pixels(self, cell: Any) -> np.ndarray:
        file = _file_of(cell, self.objects)
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                return np.asarray(image)
        except UNREADABLE as error:
            raise unreadable("mask", error) from error


class TableRecords(RecordReader):
    """Rows of a table of the `datasets` library; images stay encoded until they are read.

    The table has the columns `image`, `objects` and `image_id` of `FEATURES`, such as `python -m sam_hf.data convert`
    writes; or a column of images and one of masks, each a picture of labels or a list of binary masks. An `image_id`
    then comes from a column of that kind (`image_id`, `id`, `file_name`, ...) whose values all differ, or is the row's
    number.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        split: str | None = None,
        *,
        image_column: str | None = None,
        mask_column: str | None = None,
        background: int | None = 0,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            table: such as `datasets.load_dataset` gives.
            split: None for all rows; else drawn by a hash of the ids.
            image_column, mask_column: names of the columns; found by type and usual names if not given.
            background: the label that is no object in a label map; None when every label is one.
            strict: as for other readers; no rows are left out of a table.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if the columns are not there or cannot be told apart.
        """
        self.columns = TableColumns.find(table.features, image_column, mask_column, background)
        # Each column alone, and as files: a cast of lists of pictures would write all of them anew.
        self._images = table.select_columns(self.columns.image).with_format("arrow")
        names = _row_names(table)
        rows = {name: row for row, name in enumerate(names)}
        ids = select_split(None, names, split, {}, alike=self._alike(names) if split else None)
        super().__init__(Path("table"), ids, {}, strict, **filters)
        self._rows = [rows[name] for name in self.ids]
        self._objects = table.select_columns(self.columns.objects).with_format("arrow")

    def image_source(self, index: int) -> ImageSource:
        objects = self.read_objects(index) if self.columns.kind == "objects" else []
        return self.columns.image_source(_cell(self._images, self._rows[index]), objects)

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
            f"split {split!r} is none of those of the data set: {sorted(tables)}. To train, it needs train and "
            "validation, or a single table of another name, of which both are drawn"
        )
    return next(iter(tables.values())), split


def _name_columns(features: datasets.Features) -> list[str]:
    return [name for name in ID_NAMES if getattr(features.get(name), "dtype", None) in ID_TYPES]


def _row_names(table: datasets.Dataset) -> list[str]:
    """Unique names of all rows: a column that repeats itself, such as one of classes or of patients, names none."""
    for column in _name_columns(table.features):
        values = table[column][:]
        if None not in values and len(set(values)) == len(values):
            return [str(value) for value in values]
    return [row_name(row) for row in range(len(table))]


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


def _labels(pixels: np.ndarray) -> np.ndarray:
    """One number per pixel; pictures with equal channels are taken for grey ones."""
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _foreground(pixels: np.ndarray) -> np.ndarray:
    """A binary mask of 0 and 1 or of 0 to 255, which is cut in the middle."""
    pixels = _labels(pixels)
    return pixels.astype(bool) if pixels.dtype == bool or pixels.max() <= 1 else pixels >= 128
