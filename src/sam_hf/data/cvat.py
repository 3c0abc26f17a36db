"""CVAT's own XML ("CVAT for images 1.1"): one file for many images.

Source: docs.cvat.ai, "XML annotation format".
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .annotated import Entry, NoMask, Shape
from .annotation_files import AnnotationFile, mentions, stated_size
from .image_places import written_name
from .outlines import ellipse, paste_mask, polygon, unpack_runs

__all__ = ["CvatFile"]

WITHOUT_AREA = {"box": "are boxes, which are no masks", "tag": "are tags of the whole image"}


class CvatFile(AnnotationFile):
    """Polygons, ellipses and masks of CVAT; boxes are no masks, and lines and points have no area.

    Shapes of one label and `group_id` are one object. An image may tell its split by `subset`.
    """

    kind = "CVAT"
    pattern = "*.xml"

    @classmethod
    def is_written_in(cls, file: Path) -> bool:
        return mentions(file, b"<annotations", b"<image ")

    def entries(self, file: Path) -> Iterable[Entry]:
        for image in _parse(file).iter("image"):
            size = stated_size(image.get("height"), image.get("width"))
            shapes = [{**shape.attrib, "kind": shape.tag} for shape in image]
            yield Entry(written_name(image.get("name", "")), size, shapes, image.get("subset"))

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        kind = written["kind"]
        segmentation: Any
        if kind == "polygon":
            segmentation = polygon(point.split(",") for point in written["points"].split(";"))
        elif kind == "ellipse":
            turn = written.get("rotation", 0)
            segmentation = ellipse(written["cx"], written["cy"], written["rx"], written["ry"], turn)
        elif kind == "mask":
            left, top, width, height = (int(float(written[key])) for key in ("left", "top", "width", "height"))
            runs = [int(run) for run in written["rle"].split(",")]
            segmentation = paste_mask(unpack_runs(runs, width, height, size), left, top, size)
        else:
            raise NoMask(WITHOUT_AREA.get(kind, f"are a {kind}, which has no area"))
        group = written.get("group_id", "0")
        return Shape(segmentation, None if group in ("", "0") else f"{written.get('label')} {group}")


def _parse(file: Path) -> ElementTree.Element:
    text = file.read_bytes().decode("utf-8-sig")
    # Declarations of a document can make gigabytes of a few lines; CVAT writes none.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a DOCTYPE or ENTITY is nothing that CVAT writes; take it out of the file")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error
