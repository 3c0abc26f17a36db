"""Images with the shapes that people drew on them in some tool: what the readers of such annotations share."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .damage import fault_of
from .packed_json import PackedJson
from .reader import ImageSource, RecordReader
from .rle import check_pixels, check_segmentation, encode_segmentation
from .schema import SegmentedObject, decode_masks, objects_from_masks, objects_from_rles
from .splits import Problems

__all__ = ["AnnotatedImages", "Entry", "NoMask", "Shape"]


@dataclass(frozen=True)
class Entry:
    """What an annotation file tells of one image.

    Args:
        image: path of its file, as written.
        size: (height, width), None if the file does not tell.
        shapes: what was drawn, in the form of the tool.
        split: the name of its split, if the file or a folder tells.
    """

    image: str
    size: tuple[int, int] | None
    shapes: Sequence[Any]
    split: str | None = None


@dataclass(frozen=True)
class Shape:
    """One shape in pixels of its image.

    Args:
        segmentation: polygons or RLE, as in COCO.
        group: shapes of one group are one object; None for one of its own.
        cuts: whether it is a hole in all that was drawn before, and nothing itself.
        ignored: whether it is a region to ignore.
    """

    segmentation: Any
    group: str | None = None
    cuts: bool = False
    ignored: bool = False


class NoMask(Exception):
    """Raised for a shape without area; the message says what such shapes are."""


class AnnotatedImages(RecordReader):
    """Images with shapes; a subclass says how its tool writes a shape.

    Attributes:
        passed_over: shapes that are malformed or have no area, by kind; each costs itself and no other.
    """

    def __init__(
        self,
        root: Path,
        entries: Mapping[str, tuple[Path, Entry]],
        problems: Problems,
        *,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            root: what error messages name.
            entries: by id, the file of the image and what was drawn on it.
            problems: files that do not belong together.
            strict: whether `problems` and images that cannot be used are an error; else they are left out.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if no shape has an area.
        """
        passed_over: Problems = defaultdict(list)
        damaged = []
        packed: dict[str, tuple[Any, Any, list[Any]]] = {}
        for name, (image, entry) in entries.items():
            try:
                size = ImageSource(self.encoded(image), entry.size, filters.get("exif")).read_size()
                check_pixels(size)
                packed[name] = entry.size, size, self.prepare(entry, size, passed_over)
            except Exception as error:
                damaged.append(f"{name} ({fault_of(error)})")
        problems = {**problems, "image(s) cannot be used": damaged}
        super().__init__(root, list(packed), problems, strict, **filters)
        self._images = [entries[name][0] for name in self.ids]
        self.passed_over = _report(root, dict(passed_over), sum(len(prepared) for *_, prepared in packed.values()))
        self._packed = PackedJson(packed.values())
        self.settle_frame((name, self.image_source(index)) for index, name in enumerate(self.ids))

    def encoded(self, image: Path) -> Path | bytes:
        """The image, where `image` holds it."""
        return image

    def image_source(self, index: int) -> ImageSource:
        stated, *_ = self._packed[index]
        return ImageSource(self.encoded(self._images[index]), stated and tuple(stated))

    def places(self) -> list[Path]:
        """The file of the image of each record, or of the annotations that embed it."""
        return [image.resolve() for image in self._images]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        _, size, prepared = self._packed[index]
        return self.draw(prepared, tuple(size))

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        """Read one of the shapes of an `Entry`.

        Args:
            written: in the form of the tool.
            size: (height, width) of the image.

        Raises:
            NoMask: if it has no area.
            Exception: if it is malformed.
        """
        raise NotImplementedError

    def prepare(self, entry: Entry, size: tuple[int, int], passed_over: Problems) -> list[Any]:
        """What `draw` makes objects of, as JSON. Here it is per object its strokes, which add or cut one after the
        other, and whether it is a region to ignore.

        Args:
            entry: of one image.
            size: (height, width) of it.
            passed_over: where to add what is not used.
        """
        objects: dict[int | str, dict[str, Any]] = {}
        for number, written in enumerate(entry.shapes):
            name = f"{entry.image}, shape {number}"
            try:
                shape = self.shape(written, size)
                check_segmentation(shape.segmentation, size)
            except NoMask as reason:
                passed_over[f"shape(s) {reason}"].append(name)
            except Exception as error:
                passed_over["shape(s) are malformed"].append(f"{name}: {fault_of(error)}")
            else:
                key = number if shape.group is None else shape.group
                own = [] if shape.cuts else [objects.setdefault(key, {"strokes": [], "ignored": shape.ignored})]
                for item in objects.values() if shape.cuts else own:
                    item["strokes"].append([shape.cuts, shape.segmentation])
        return list(objects.values())

    def draw(self, prepared: list[Any], size: tuple[int, int]) -> list[SegmentedObject]:
        """The objects of an image, when it is read."""
        rles = [_drawn(item["strokes"], size) for item in prepared]
        return objects_from_rles(rles, [item["ignored"] for item in prepared])


def _drawn(strokes: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of strokes, each whether it cuts and its segmentation."""
    rles = [encode_segmentation(segmentation, size) for _, segmentation in strokes]
    if len(rles) == 1:
        return rles[0]
    mask = np.zeros(size, dtype=bool)
    for (cuts, _), rle in zip(strokes, rles, strict=True):
        mask[decode_masks(objects_from_rles([rle]))[0]] = not cuts
    return objects_from_masks(mask[None])[0]["segmentation"]


def _report(root: Path, passed_over: Problems, num_objects: int) -> Problems:
    """Say once what is not used; an error if nothing else is there."""
    if not passed_over:
        return passed_over
    told = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in passed_over.items())
    if not num_objects:
        raise ValueError(f"{root}: no shape has a mask: {told}. Draw polygons or masks, or make masks of the boxes")
    warnings.warn(f"{root}: passed over beside {num_objects} object(s): {told}", stacklevel=4)
    return passed_over
