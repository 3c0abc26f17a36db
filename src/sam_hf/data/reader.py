"""What all readers of files share: records by index, images turned as their masks are, objects kept once read."""

import io
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from .object_filter import ObjectFilter
from .schema import Record, SegmentedObject, rgb_array
from .splits import Problems, refuse

__all__ = ["IMAGE_SUFFIXES", "UNREADABLE", "ImageSource", "RecordReader", "read_record", "unreadable"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# RLE objects are kept after the first read: some 100 MB in each process.
MAX_CACHED_OBJECTS = 200_000
# What PIL raises for files that are no images, damaged, or too large.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def unreadable(name: str, error: Exception) -> OSError:
    """An error for one of `UNREADABLE` that says the same every time: PIL names a file in memory by its address."""
    reason = "it is no image, or of an unknown format" if isinstance(error, UnidentifiedImageError) else error
    return OSError(f"{name} cannot be read: {reason}")


@dataclass(frozen=True)
class ImageSource:
    """An encoded image, and the (height, width) that its annotations are made for, if they say so.

    Some tools annotate the image as its EXIF orientation shows it, others as it is stored. The size tells which; where
    it does not, the image is shown upright.
    """

    file: Path | bytes
    size: tuple[int, int] | None = None

    @property
    def content(self) -> bytes:
        return self.file if isinstance(self.file, bytes) else self.file.read_bytes()

    def open(self) -> Image.Image:
        """The whole image, decoded, as RGB.

        Raises:
            OSError: if the file is absent, damaged, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows.
            ValueError: if its size is not that of the annotations.
        """
        try:
            with self._opened() as image:
                turned = self._fits(_upright_size(image))
                if not turned and not self._fits((image.height, image.width)):
                    raise ValueError(
                        f"image size {[image.height, image.width]} differs from the size of its annotations "
                        f"{list(self.size or ())} (height, width)"
                    )
                # Only where needed, as it copies.
                upright = ImageOps.exif_transpose(image) if turned and _orientation(image) != 1 else image
                return Image.fromarray(rgb_array(upright))
        except UNREADABLE as error:
            raise unreadable(self._name, error) from error

    def read_size(self) -> tuple[int, int]:
        """(height, width) as `open` gives it, from the head of the file.

        Raises:
            OSError: as `open`.
        """
        if self.size is not None:
            return self.size
        try:
            with self._opened() as image:
                return _upright_size(image)
        except UNREADABLE as error:
            raise unreadable(self._name, error) from error

    def read_mode(self) -> str:
        """PIL's mode of the file, such as "RGB", "L" or "CMYK"."""
        with self._opened() as image:
            return image.mode

    def _opened(self) -> Image.Image:
        return Image.open(io.BytesIO(self.file) if isinstance(self.file, bytes) else self.file)

    def _fits(self, size: tuple[int, int]) -> bool:
        return self.size is None or tuple(self.size) == size

    @property
    def _name(self) -> str:
        return "embedded image" if isinstance(self.file, bytes) else str(self.file)


def read_record(
    name: str,
    read_objects: Callable[[], Sequence[SegmentedObject]],
    image_source: Callable[[Sequence[SegmentedObject]], ImageSource],
) -> Record:
    """Read the objects of an image, then the image.

    Raises:
        OSError: if a file is absent or damaged.
        ValueError: if its content is not what it should be. Both name the record.
    """
    try:
        objects = read_objects()
        image = image_source(objects).open()
    except OSError as error:
        raise OSError(f"record {name!r}: {error}") from error
    except Exception as error:
        # Other people's files can be wrong in more ways than anyone lists, such as a key that is absent.
        what = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"record {name!r}: {what}") from error
    return {"image": image, "objects": list(objects), "image_id": name}


class RecordReader(Dataset, ABC):
    """Records by index; subclasses say where an image is and read its objects.

    Attributes:
        ids: the `image_id` of every record.
        problems: what was wrong with files that are left out, with their names; empty unless `strict` is False.
    """

    def __init__(
        self, root: Path, ids: list[str], problems: Problems | None = None, strict: bool = True, **filters: Any
    ) -> None:
        """
        Args:
            root: what error messages name.
            ids: unique names of the images.
            problems: files that do not belong together.
            strict: whether `problems` are an error.
            filters: see `ObjectFilter`.
        """
        self.problems = {what: names for what, names in (problems or {}).items() if names}
        if strict:
            refuse(root, self.problems)
        self.root = root
        self.ids = ids
        self.object_filter = ObjectFilter(**filters)
        self._cache: dict[int, list[SegmentedObject]] = {}
        self._num_cached = 0

    @abstractmethod
    def image_source(self, index: int) -> ImageSource:
        """The image of a record, not yet decoded."""

    @abstractmethod
    def read_objects(self, index: int) -> list[SegmentedObject]:
        """All objects of a record, before the filter."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Raises what `read_record` raises."""
        return read_record(self.ids[index], lambda: self._filtered(index), lambda _: self.image_source(index))

    def _filtered(self, index: int) -> list[SegmentedObject]:
        objects = self._cache.get(index)
        if objects is None:
            objects = self.object_filter(self.read_objects(index))
            if self._num_cached + len(objects) <= MAX_CACHED_OBJECTS:
                self._cache[index] = objects
                self._num_cached += len(objects)
        return objects


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
