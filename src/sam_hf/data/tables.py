"""Tables of the `datasets` library: records in Parquet, and data sets with a column of images and one of masks."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import Image

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
        name = next((name for name in ID_NAMES if getattr(features.get(name), "dtype", None) in ID_TYPES), None)
        if set(features) >= RECORD_COLUMNS and mask_column is None:
            return cls("image", "objects", "image_id", "objects")
        image, mask = _image_and_mask(features, image_column, mask_column)
        is_label_map = isinstance(features[mask], datasets.Image)
        return cls(image, mask, name, "label map" if is_label_map else "masks", background)

    def read_objects(self, cell: Any) -> list[SegmentedObject]:
        if self.kind == "objects":
            return cell or []
        if self.kind == "masks":
            return [item for entry in cell or [] for item in objects_from_masks(_foreground(_pixels(entry))[None])]
        return objects_from_label_map(_labels(_pixels(cell)), self.background)

    def image_source(self, cell: Any, objects: Sequence[SegmentedObject]) -> ImageSource:
        """The image of a cell, which has to have the size of the objects of its row."""
        size = objects[0]["segmentation"]["size"] if objects else None
        return ImageSource(_file_of(cell), size and tuple(size))


class TableRecords(RecordReader):
    """Rows of a table of the `datasets` library; images stay encoded until they are read.

    The table has the columns `image`, `objects` and `image_id` of `FEATURES`, such as `python -m sam_hf.data convert`
    writes; or a column of images and one of masks, each a picture of labels or a list of binary masks. An `image_id`
    then comes from a column of that kind (`image_id`, `id`, `file_name`, ...), or is the number of the row.
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
            strict: whether several rows of one id are an error; else the last one counts.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if the columns are not there or cannot be told apart.
        """
        self.columns = TableColumns.find(table.features, image_column, mask_column, background)
        named = self.columns.name and table[self.columns.name]
        names = [str(name) for name in named] if named else [row_name(row) for row in range(len(table))]
        rows = {name: row for row, name in enumerate(names)}
        doubles = [name for name, count in Counter(names).items() if count > 1]
        problems = {"image_id(s) are those of several rows": doubles}
        super().__init__(Path("table"), select_split(None, list(rows), split, problems), problems, strict, **filters)
        self._rows = [rows[name] for name in self.ids]
        # Each column alone, and as files: a cast of lists of pictures would write all of them anew.
        self._images = table.select_columns(self.columns.image).with_format("arrow")
        self._objects = table.select_columns(self.columns.objects).with_format("arrow")

    def image_source(self, index: int) -> ImageSource:
        objects = self.read_objects(index) if self.columns.kind == "objects" else []
        return self.columns.image_source(_cell(self._images, self._rows[index]), objects)

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return self.columns.read_objects(_cell(self._objects, self._rows[index]))


def load_table(tables: Any, split: str | None) -> tuple[datasets.Dataset, str | None]:
    """One table of what `datasets` loaded, and the split that is still to be drawn from it.

    A `DatasetDict` with the split has been split by its makers; of one that has a single table, or of a bare table,
    the split is drawn from the rows. None takes all tables.

    Raises:
        ValueError: if there are several tables and none of that split.
    """
    if isinstance(tables, datasets.Dataset | datasets.IterableDataset):
        return tables, split
    if split is None:
        return datasets.concatenate_datasets(list(tables.values())), None
    for alias in split_aliases(split):
        if alias in tables and (len(tables) > 1 or alias != "train"):
            return tables[alias], None
    if len(tables) > 1:
        raise ValueError(f"split {split!r} is none of those of the data set: {sorted(tables)}")
    return next(iter(tables.values())), split


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


def _file_of(cell: Any) -> bytes | Path:
    if cell is None:
        raise ValueError("the row has no image")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def _pixels(cell: Any) -> np.ndarray:
    file = _file_of(cell)
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return np.asarray(image)
    except UNREADABLE as error:
        raise unreadable("mask", error) from error


def _labels(pixels: np.ndarray) -> np.ndarray:
    """One number per pixel; pictures with equal channels are taken for grey ones."""
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _foreground(pixels: np.ndarray) -> np.ndarray:
    """A binary mask of 0 and 1 or of 0 to 255, which is cut in the middle."""
    pixels = _labels(pixels)
    return pixels.astype(bool) if pixels.dtype == bool or pixels.max() <= 1 else pixels >= 128
