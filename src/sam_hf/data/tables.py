"""Tables of the `datasets` library: records in Parquet, and data sets with a column of images and one of masks."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from sam_hf.data.reader import UNREADABLE, ImageSource, RecordReader
from sam_hf.data.schema import SegmentedObject, objects_from_label_map, objects_from_masks
from sam_hf.data.splits import select_split, split_aliases

__all__ = ["ImageMaskTable", "RecordTable", "load_table", "open_table"]

MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "label_map")
ID_NAMES = ("image_id", "id", "file_name", "filename", "name")
RECORD_COLUMNS = {"image", "objects", "image_id"}


class _Table(RecordReader):
    """Rows of a table; images stay encoded until they are read."""

    def __init__(self, table: datasets.Dataset, split: str | None, image_column: str, **options: Any) -> None:
        names = _row_names(table)
        rows = {name: row for row, name in enumerate(names)}
        doubles = [name for name, count in Counter(names).items() if count > 1]
        ids = select_split(None, list(rows), split)
        super().__init__(Path("table"), ids, {"image_id(s) are those of several rows": doubles}, **options)
        self.table = table
        self._images = _encoded(table, image_column)
        self._rows = [rows[name] for name in ids]

    def image_source(self, index: int) -> ImageSource:
        return ImageSource(_file_of(_cell(self._images, self._rows[index])))


class RecordTable(_Table):
    """A table with the columns `image`, `objects` and `image_id` of `FEATURES`, such as `data convert` writes."""

    def __init__(self, table: datasets.Dataset, split: str | None = None, **options: Any) -> None:
        """
        Args:
            table: with the columns of `FEATURES`.
            split: None for all rows; else drawn by a hash of `image_id`.
            options: `strict`, and those of `ObjectFilter`.

        Raises:
            ValueError: if a column is absent.
        """
        if RECORD_COLUMNS - set(table.column_names):
            raise ValueError(f"a table of records has the columns {sorted(RECORD_COLUMNS)}, got {table.column_names}")
        super().__init__(table, split, "image", **options)
        self._objects = table.select_columns("objects")

    def image_source(self, index: int) -> ImageSource:
        # The file is stored as it was; whether it is shown upright is for the objects to say, as when it was read.
        objects = self.read_objects(index)
        size = tuple(objects[0]["segmentation"]["size"]) if objects else None
        return ImageSource(super().image_source(index).file, size)

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return self._objects[self._rows[index]]["objects"] or []


class ImageMaskTable(_Table):
    """A table with a column of images and one of masks: a picture of labels, or a list of binary masks, per row.

    An `image_id` comes from a column of that kind (`image_id`, `id`, `file_name`, ...), or is the number of the row.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        split: str | None = None,
        *,
        image_column: str | None = None,
        mask_column: str | None = None,
        background: int | None = 0,
        **options: Any,
    ) -> None:
        """
        Args:
            table: such as `datasets.load_dataset` gives.
            split: None for all rows; else drawn by a hash of the ids.
            image_column, mask_column: names of the columns; found by type and usual names if not given.
            background: the label that is no object in a label map; None when every label is one.
            options: `strict`, and those of `ObjectFilter`.

        Raises:
            ValueError: if the columns are not there or cannot be told apart.
        """
        self.background = background
        image_column, mask_column = _columns(table.features, image_column, mask_column)
        super().__init__(table, split, image_column, **options)
        self._masks = _encoded(table, mask_column)
        self._many = not isinstance(table.features[mask_column], datasets.Image)

    def read_objects(self, index: int) -> list[SegmentedObject]:
        cell = _cell(self._masks, self._rows[index])
        if self._many:
            return [item for entry in cell for item in objects_from_masks(_foreground(_pixels(entry))[None])]
        return objects_from_label_map(_labels(_pixels(cell)), self.background)


def open_table(table: datasets.Dataset, split: str | None = None, **options: Any) -> RecordTable | ImageMaskTable:
    """The reader that fits the columns of a table; options are the reader's."""
    reader = ImageMaskTable if RECORD_COLUMNS - set(table.column_names) else RecordTable
    return reader(table, split, **options)


def load_table(tables: Any, split: str | None) -> tuple[datasets.Dataset, str | None]:
    """One table of what `datasets` loaded, and the split that is still to be drawn from it.

    A `DatasetDict` with the split has been split by its makers; of one that has a single table, or of a bare table,
    the split is drawn from the rows. None takes all tables.

    Raises:
        ValueError: if there are several tables and none of that split.
    """
    if isinstance(tables, datasets.Dataset):
        return tables, split
    if split is None:
        return datasets.concatenate_datasets(list(tables.values())), None
    for alias in split_aliases(split):
        if alias in tables and (len(tables) > 1 or alias != "train"):
            return tables[alias], None
    if len(tables) > 1:
        raise ValueError(f"split {split!r} is none of those of the data set: {sorted(tables)}")
    return next(iter(tables.values())), split


def _columns(features: datasets.Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """Names of the columns of images and masks."""
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


def _encoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """The column alone, with files in place of pictures; a cast of lists of pictures would write all of them anew."""
    return table.select_columns(column).with_format("arrow")


def _cell(column: datasets.Dataset, row: int) -> Any:
    return column[row].column(0)[0].as_py()


def _row_names(table: datasets.Dataset) -> list[str]:
    for name in ID_NAMES:
        if name in table.column_names and getattr(table.features[name], "dtype", None) in ("string", "int64", "int32"):
            return [str(value) for value in table[name]]
    return [f"{row:08d}" for row in range(len(table))]


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
        raise OSError(f"mask cannot be read: {error}") from error


def _labels(pixels: np.ndarray) -> np.ndarray:
    """One number per pixel; pictures with equal channels are taken for grey ones."""
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _foreground(pixels: np.ndarray) -> np.ndarray:
    """A binary mask of 0 and 1 or of 0 to 255, which is cut in the middle."""
    pixels = _labels(pixels)
    return pixels.astype(bool) if pixels.dtype == bool or pixels.max() <= 1 else pixels >= 128
