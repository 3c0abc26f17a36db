"""Folders of labelme: `<name>.json` with shapes beside each image. X-AnyLabeling and AnyLabeling write the same."""

import base64
import io
import math
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .annotated import AnnotatedImages, Entry, NoMask, Shape
from .annotation_files import load_json, stated_size
from .listing import glob_visible
from .outlines import ellipse, paste_mask, polygon, rectangle
from .reader import IMAGE_SUFFIXES
from .rle import check_pixels
from .splits import Problems, select_split

__all__ = ["LabelmeFolder", "is_labelme"]

IGNORE_LABEL, HOLE_LABEL = "__ignore__", "_background_"
POLYGONS = ("polygon", "quadrilateral", "rotation", "oriented_rectangle")
WITHOUT_AREA = ("line", "linestrip", "point", "points", "cuboid")


class LabelmeFolder(AnnotatedImages):
    """Polygons, rectangles, circles, ellipses and masks of labelme; other shapes have no area and are passed over.

    Shapes of one label and `group_id` are one object. The label `_background_` cuts holes into what was drawn before,
    `__ignore__` marks regions to ignore. The image is the file that `imagePath` names, one of the JSON file's own
    name, or what is embedded in it.
    """

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: folder of the JSON files.
            split: None for all images; else see `select_split`.
            strict: whether JSON files of another form or without an image are an error; else they are left out and
                listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no file of labelme, or some are not (`strict`); if the split is unknown or empty.
        """
        root = Path(root)
        files = {path.stem: path for path in sorted(glob_visible(root, "*.json")) if path.is_file()}
        problems: Problems = {}
        ids = select_split(root, sorted(files), split, problems)
        entries = {name: entry for name in ids if (entry := _read(files[name])) is not None}
        missing = [files[name].name for name in ids if name not in entries]
        problems["JSON file(s) are not labelme's, or have no image"] = missing
        super().__init__(root, entries, problems, strict=strict, **filters)
        if not self.ids:
            raise ValueError(f"{root} holds no .json file of labelme with an image")

    def encoded(self, image: Path) -> Path | bytes:
        return base64.b64decode(load_json(image)["imageData"]) if image.suffix == ".json" else image

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        kind, label, group = written.get("shape_type") or "polygon", str(written["label"]), written.get("group_id")
        if kind in WITHOUT_AREA:
            raise NoMask(f"are a {kind}, which has no area")
        segmentation: Any
        if kind == "mask":
            segmentation = _mask(written, size)
        elif kind in POLYGONS:
            segmentation = polygon(written["points"])
        elif kind == "rectangle":
            segmentation = rectangle(written["points"])
        elif kind == "circle":
            (x, y), (end_x, end_y) = written["points"]
            segmentation = ellipse(x, y, *[math.hypot(end_x - x, end_y - y)] * 2)
        elif kind == "ellipse":
            segmentation = _ellipse(written["points"])
        else:
            raise NoMask(f"are of an unknown kind, {kind}")
        key = None if group is None else f"{label} {group}"
        return Shape(segmentation, key, cuts=label == HOLE_LABEL, ignored=label == IGNORE_LABEL)


def is_labelme(content: Any) -> bool:
    """Whether parsed JSON has the form of labelme."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read(file: Path) -> tuple[Path, Entry] | None:
    """The image of a JSON file, which is the file itself if it is embedded, and its shapes; None without an image."""
    try:
        content = load_json(file)
    except ValueError:
        return None
    if not is_labelme(content):
        return None
    size = stated_size(content.get("imageHeight"), content.get("imageWidth"))
    entry = Entry(file.name, size, content["shapes"])
    name = str(content["imagePath"]).replace("\\", "/")
    named = [file.parent / unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    for path in (file.parent / name, *named, *(file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)):
        if os.path.isfile(path):  # Path.is_file raises for names that are too long
            return path, entry
    return (file, entry) if isinstance(content.get("imageData"), str) else None


def _ellipse(points: Any) -> list[list[float]]:
    """By opposite corners of the box around it; or by its centre and the ends of both half axes."""
    (x, y), (end_x, end_y), *more = points
    if not more:
        return ellipse((x + end_x) / 2, (y + end_y) / 2, abs(end_x - x) / 2, abs(end_y - y) / 2)
    ((side_x, side_y),) = more
    radii = math.hypot(end_x - x, end_y - y), math.hypot(side_x - x, side_y - y)
    return ellipse(x, y, *radii, math.degrees(math.atan2(end_y - y, end_x - x)))


def _mask(written: Any, size: tuple[int, int]) -> dict[str, Any]:
    with Image.open(io.BytesIO(base64.b64decode(written["mask"]))) as image:
        check_pixels((image.height, image.width))
        part = np.asarray(image.convert("L")) > 0
    left, top = np.min(written["points"], axis=0).round().astype(int).tolist()
    return paste_mask(part, left, top, size)
