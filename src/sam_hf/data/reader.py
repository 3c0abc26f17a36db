"""What all readers of files share: records by index, images turned as their masks are, objects kept once read."""

import inspect
import io
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ..image_files import decode_image, frame_sizes, orientation
from .object_filter import ObjectFilter
from .schema import Record, SegmentedObject, image_shape
from .splits import Problems, refuse

__all__ = ["IMAGE_SUFFIXES", "UNREADABLE", "ExifFrame", "ImageSource", "RecordReader", "read_record", "unreadable"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ExifFrame = Literal["shown", "stored"]
# RLE objects are kept after the first read: some 100 MB in each process.
MAX_CACHED_OBJECTS = 200_000
# What PIL raises for files that are no images, damaged, or too large.
UNREADABLE = (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError, MemoryError)


def unreadable(name: str, error: Exception) -> OSError:
    """An error for one of `UNREADABLE` that says the same every time: PIL names a file in memory by its address."""
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image, or of an unknown format"
    return OSError(f"{name} cannot be read: {reason}")


@dataclass(frozen=True)
class ImageSource:
    """An encoded image, and what is known of the frame that its annotations are made for.

    Some tools annotate the image as its EXIF orientation shows it, others as it is stored.

    Args:
        file: where it is, or its content.
        size: (height, width) of the annotations, if they say so.
        exif: "shown" or "stored" says which frame it is; None goes by `size`, and where both frames have that size, or
            there is none, shows the image upright.
    """

    file: Path | bytes
    size: tuple[int, int] | None = None
    exif: ExifFrame | None = None

    @property
    def content(self) -> bytes:
        return self.file if isinstance(self.file, bytes) else self.file.read_bytes()

    def open(self) -> Image.Image | np.ndarray:
        """The whole image, decoded, with all values of the file; see `decode_image`.

        Raises:
            OSError: if the file is absent, damaged, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows.
            ValueError: if its size is not that of the annotations, or it is nothing that `rgb_array` takes.
        """
        try:
            content = self.content
            with _opened(content) as header:
                as_stored = self._is_stored(header)
            return self._decode(content, as_stored)
        except UNREADABLE as error:
            raise unreadable(self._name, error) from error

    def _decode(self, content: bytes, as_stored: bool) -> Image.Image | np.ndarray:
        try:
            image = decode_image(content, as_stored=as_stored)
            image_shape(image)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from error
        return image

    def read_size(self) -> tuple[int, int]:
        """(height, width) as `open` gives it, from the head of the file.

        Raises:
            OSError: as `open`.
        """
        if self.size is not None:
            return self.size
        try:
            with _opened(self.file) as image:
                shown, stored = frame_sizes(image)
                return stored if self.exif == "stored" else shown
        except UNREADABLE as error:
            raise unreadable(self._name, error) from error

    def possible_frames(self) -> list[ExifFrame]:
        """Which frames annotations may be made for: both where their size does not tell; none of an image that no
        orientation turns, or that does not fit.

        Raises:
            OSError: as `open`.
        """
        try:
            with _opened(self.file) as image:
                return self._fitting(image) if orientation(image) != 1 else []
        except UNREADABLE as error:
            raise unreadable(self._name, error) from error

    def read_mode(self) -> str:
        """PIL's mode of the file, such as "RGB", "L" or "CMYK"."""
        with _opened(self.file) as image:
            return image.mode

    def _is_stored(self, image: Image.Image) -> bool:
        """Whether annotations are made for the frame as stored."""
        fitting = self._fitting(image)
        if not fitting:
            shown, stored = frame_sizes(image)
            raise ValueError(
                f"image size {list(stored if self.exif == 'stored' else shown)} differs from the size of its "
                f"annotations {list(self.size or ())} (height, width)"
            )
        return fitting[0] == "stored"

    def _fitting(self, image: Image.Image) -> list[ExifFrame]:
        shown, stored = frame_sizes(image)
        sizes: dict[ExifFrame, tuple[int, int]] = {"shown": shown, "stored": stored}
        return [
            frame
            for frame, size in sizes.items()
            if self.exif in (None, frame) and (self.size is None or tuple(self.size) == size)
        ]

    @property
    def _name(self) -> str:
        return "embedded image" if isinstance(self.file, bytes) else str(self.file)


def _opened(file: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except ValueError as error:  # by Pillow, of a remark that unpacks to too much
        raise OSError(str(error)) from error


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
        guesses: what was taken for what because nobody said so, by option, such as `exif` or `masks`.
        names_every_object: whether what is not in a mask is background, which an instance decoder learns from.
    """

    names_every_object = True

    def __init__(
        self,
        root: Path,
        ids: list[str],
        problems: Problems | None = None,
        strict: bool = True,
        exif: ExifFrame | None = None,
        **filters: Any,
    ) -> None:
        """
        Args:
            root: what error messages name.
            ids: unique names of the images.
            problems: files that do not belong together.
            strict: whether `problems` are an error.
            exif: which frame masks are made for, as in `ImageSource`; None for what `settle_frame` finds.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: for `problems` (`strict`), or an option that this reader does not have.
        """
        _refuse_options(type(self), set(filters) - {item.name for item in fields(ObjectFilter)})
        if exif not in (None, "shown", "stored"):
            raise ValueError(
                f'exif is {exif!r}: expected "shown" (masks are made for the image as its EXIF orientation shows it), '
                '"stored" (as viewers that pass EXIF over show it), or None for what the sizes say.'
            )
        self.exif: ExifFrame | None = exif
        self.guesses: dict[str, str] = {}
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

    def framed_source(self, index: int) -> ImageSource:
        """As `image_source`, in the frame that `exif` says."""
        source = self.image_source(index)
        return source if self.exif is None else replace(source, exif=self.exif)

    def settle_frame(self, images: Iterable[tuple[str, ImageSource]]) -> None:
        """Settle for which frame annotations are made, where EXIF turns images in a way that sizes do not tell.

        That is by 180 degrees, mirrored, or square. Images that are turned by 90 degrees tell it for them. It reads
        the head of every file: readers call it when they are opened.

        Args:
            images: name and source of all images of the set, of other splits too, as proof; sources have the size of
                the annotations.

        Raises:
            ValueError: if images contradict each other.
        """
        if self.exif is not None:
            return
        proofs, untold = _tell_frames(images)
        own = sorted({*untold} & {*self.ids})
        if not own:
            return
        named = f"{len(own)} image(s) that EXIF turns without a change of size ({', '.join(own[:5])})"
        if len(proofs) > 1:
            raise ValueError(
                f"{self.root}: {named} could be annotated as shown or as stored, and the sizes of others contradict "
                f"each other: {proofs['shown']} is annotated as EXIF shows it, {proofs['stored']} as it is stored. "
                "Turn the files themselves upright, with their masks, or say exif='shown' or 'stored' (--exif) and "
                "leave out those of the other kind"
            )
        for frame, proof in proofs.items():
            self.exif = frame
            self.guesses["exif"] = f"{frame}, for {named}, as the size of {proof} tells"
        if not proofs:
            self.guesses["exif"] = f"shown, for {named}, though nothing tells"
            warnings.warn(
                f"{self.root}: {named}: nothing tells whether their masks are made for the image as EXIF shows it, "
                "which is assumed, or as it is stored. Look at some, such as by python -m sam_hf.data check, and say "
                "exif='shown' or 'stored' (--exif)",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Raises what `read_record` raises."""
        return read_record(self.ids[index], lambda: self._filtered(index), lambda _: self.framed_source(index))

    def _filtered(self, index: int) -> list[SegmentedObject]:
        objects = self._cache.get(index)
        if objects is None:
            objects = self.object_filter(self.read_objects(index))
            if self._num_cached + len(objects) <= MAX_CACHED_OBJECTS:
                self._cache[index] = objects
                self._num_cached += len(objects)
        return objects


def _tell_frames(images: Iterable[tuple[str, ImageSource]]) -> tuple[dict[ExifFrame, str], list[str]]:
    """For each frame an image whose size proves it, and the images whose size proves nothing."""
    proofs: dict[ExifFrame, str] = {}
    untold = []
    for name, source in images:
        try:
            frames = source.possible_frames()
        except OSError:
            continue  # whoever reads it says what is wrong
        if len(frames) == 1:
            proofs.setdefault(frames[0], name)
        elif frames:
            untold.append(name)
    return proofs, untold


def _refuse_options(reader: type[RecordReader], names: set[str]) -> None:
    for name in sorted(names):
        having = sorted(other.__name__ for other in _subclasses() if name in _options_of(other))
        known = ", ".join(sorted({*_options_of(reader), *(item.name for item in fields(ObjectFilter))}))
        whose = f"it is one of {', '.join(having)}" if having else "no reader has it"
        raise ValueError(f"{reader.__name__} has no option {name!r}: {whose}. Options here: {known}")


def _subclasses(cls: type[RecordReader] = RecordReader) -> Iterator[type[RecordReader]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _options_of(reader: type[RecordReader]) -> set[str]:
    """Names of the options of a reader, its parents' included."""
    parents = [cls for cls in reader.__mro__ if issubclass(cls, RecordReader)]
    parameters = [item for cls in parents for item in inspect.signature(cls).parameters.values()]
    return {item.name for item in parameters if item.kind is item.KEYWORD_ONLY} | {"exif", "strict"}
