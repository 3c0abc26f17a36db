"""JSON of the VGG Image Annotator (VIA), versions 1 and 2: one file for many images, as project or as export."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .annotated import Entry, NoMask, Shape
from .annotation_files import AnnotationFile, load_json, mentions
from .image_places import written_name
from .outlines import ellipse, polygon

__all__ = ["ViaFile"]


class ViaFile(AnnotationFile):
    """Polygons, circles and ellipses of VIA; `rect` is a box, which is no mask, and lines and points have no area."""

    kind = "VIA"
    pattern = "*.json"

    @classmethod
    def is_written_in(cls, file: Path) -> bool:
        return mentions(file, b'"shape_attributes"', b'"filename"')

    def entries(self, file: Path) -> Iterable[Entry]:
        content = load_json(file)
        for image in content.get("_via_img_metadata", content).values():
            regions = image["regions"]
            shapes = list(regions.values()) if isinstance(regions, dict) else regions
            yield Entry(written_name(str(image["filename"])), None, shapes)

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        value = written["shape_attributes"]
        kind = value["name"]
        if kind == "polygon":
            return Shape(polygon(zip(value["all_points_x"], value["all_points_y"], strict=True)))
        if kind == "circle":
            return Shape(ellipse(value["cx"], value["cy"], value["r"], value["r"]))
        if kind == "ellipse":
            turn = math.degrees(value.get("theta", 0))
            return Shape(ellipse(value["cx"], value["cy"], value["rx"], value["ry"], turn))
        raise NoMask("are boxes, which are no masks" if kind == "rect" else f"are a {kind}, which has no area")
