"""Folders of labelme: `<name>.json` with shapes beside each image."""

import base64
import io
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .listing import glob_visible
from .reader import IMAGE_SUFFIXES, ImageSource, RecordReader
from .rle import encode_segmentation
from .schema import SegmentedObject, decode_masks, objects_from_masks, objects_from_rles
from .splits import Problems, select_split

__all__ = ["LabelmeFolder", "is_labelme"]

IGNORE_LABEL = "__ignore__"
CIRCLE_CORNERS = 72


class LabelmeFolder(RecordReader):
    """Polygons, rectangles, circles and masks of labelme; other shapes have no area and are passed over.

    Shapes of one label and `group_id` are one object. The label `__ignore__` marks regions to ignore. The image is the
    file that `imagePath` names, one of the JSON file's own name, or what is embedded in it.
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
        files = {path.stem: path for path in sorted(glob_visible(root, "*.json"))}
        problems: Problems = {}
        ids = select_split(root, sorted(files), split, problems)
        images = {name: image for name in ids if (image := _image_of(files[name])) is not None}
        missing = [files[name].name for name in ids if name not in images]
        problems["JSON file(s) are not labelme's, or have no image"] = missing
        super().__init__(root, list(images), problems, strict, **filters)
        if not self.ids:
            raise ValueError(f"{root} holds no .json file of labelme with an image")
        self._files = [(files[name], images[name]) for name in self.ids]

    def image_source(self, index: int) -> ImageSource:
        file, image = self._files[index]
        content = _load(file)
        embedded = base64.b64decode(content["imageData"]) if image == file else None
        size = content.get("imageHeight"), content.get("imageWidth")
        return ImageSource(embedded or image, (int(size[0]), int(size[1])) if all(size) else None)

    def places(self) -> list[Path]:
        """The file of the image of each record, or of the JSON that embeds it."""
        return [image.resolve() for _, image in self._files]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        size = self.image_source(index).read_size()
        groups: dict[Any, list[dict[str, Any]]] = {}
        for number, shape in enumerate(_load(self._files[index][0])["shapes"]):
            group = shape.get("group_id")
            groups.setdefault(number if group is None else (shape["label"], group), []).append(shape)
        objects: list[SegmentedObject] = []
        for shapes in groups.values():
            parts = [part for shape in shapes for part in _parts(shape, size)]
            if len(parts) > 1:
                parts = objects_from_masks(np.logical_or.reduce(decode_masks(parts))[None])
            objects += [{**item, "iscrowd": int(shapes[0]["label"] == IGNORE_LABEL)} for item in parts]
        return objects


def is_labelme(content: Any) -> bool:
    """Whether parsed JSON has the form of labelme."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _load(file: Path) -> Any:
    return json.loads(file.read_bytes())


def _image_of(file: Path) -> Path | None:
    """The image of a JSON file; the file itself if the image is embedded; None without one."""
    try:
        content = _load(file)
    except ValueError:
        return None
    if not is_labelme(content):
        return None
    name = str(content["imagePath"]).replace("\\", "/")
    named = [file.parent / unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    for path in (file.parent / name, *named, *(file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)):
        if path.is_file():
            return path
    return file if content.get("imageData") else None


def _parts(shape: dict[str, Any], size: tuple[int, int]) -> list[SegmentedObject]:
    """The mask of one shape, or nothing for a shape without area."""
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=float).reshape(-1, 2)
    if kind == "mask":
        return [_mask_object(shape, points, size)]
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind == "circle":
        angles = np.linspace(0, 2 * math.pi, CIRCLE_CORNERS, endpoint=False)
        points = points[0] + np.hypot(*(points[1] - points[0])) * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    elif kind not in ("polygon", "oriented_rectangle"):
        return []
    return objects_from_rles([encode_segmentation([points.ravel().tolist()], size)])


def _mask_object(shape: dict[str, Any], points: np.ndarray, size: tuple[int, int]) -> SegmentedObject:
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        part = np.asarray(image.convert("L")) > 0
    left, top = points.min(axis=0).round().astype(int)
    mask = np.zeros(size, dtype=bool)
    inside = mask[top : top + part.shape[0], left : left + part.shape[1]]
    if left < 0 or top < 0 or inside.shape != part.shape:
        raise ValueError(
            f"a mask of (height, width) {list(part.shape)} at row {top}, column {left} leaves the image {list(size)}"
        )
    inside |= part
    return objects_from_masks(mask[None])[0]
