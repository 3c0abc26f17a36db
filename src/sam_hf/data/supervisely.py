"""Projects of Supervisely: `<data set>/ann/<image>.json` beside `<data set>/img/<image>`.

Source: docs.supervisely.com, "Supervisely JSON format".
"""

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from .annotated import AnnotatedImages, Entry, NoMask, Shape
from .annotation_files import load_json, mentions, stated_size
from .damage import refusing_damage
from .listing import glob_visible
from .named_splits import select_named_split, split_of_folders
from .outlines import paste_mask, polygon
from .rle import check_pixels, encode_segmentation
from .splits import Problems

__all__ = ["SuperviselyProject", "is_supervisely"]

MAX_BITMAP_BYTES = 1 << 28
NUM_PROBED = 100


class SuperviselyProject(AnnotatedImages):
    """Polygons, with their holes, and bitmaps of Supervisely; other figures are boxes, or have no area.

    A data set with the name of a split, such as `train`, is that split.
    """

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: a project, or one data set of it.
            split: None for all images; else by the names of the data sets, or see `select_split`.
            strict: whether annotations that are damaged or have no image are an error; else they are left out and
                listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no annotation, or the split is unknown or empty.
        """
        root = Path(root)
        entries: dict[str, tuple[Path, Entry]] = {}
        damaged, lonely = [], []
        for file in _annotations(root):
            folder = file.parent.parent
            image = folder / "img" / file.stem
            name = (folder.relative_to(root) / file.stem).as_posix()
            try:
                entries[name] = image, _read(file, name, split_of_folders(Path(name)))
            except ValueError as error:
                damaged.append(str(error))
            if name in entries and not image.is_file():
                del entries[name]
                lonely.append(name)
        problems: Problems = {"JSON file(s) are damaged": damaged, "JSON file(s) have no image in img/": lonely}
        splits = {name: entry.split for name, (_, entry) in entries.items()}
        ids, how = select_named_split(root, splits, split, problems, entries)
        super().__init__(root, {name: entries[name] for name in ids}, problems, strict=strict, **filters)
        self.guesses["split"] = how

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        kind = written["geometryType"]
        if kind == "bitmap":
            left, top = map(int, written["bitmap"]["origin"])
            return Shape(paste_mask(_bitmap(written["bitmap"]["data"]), left, top, size))
        if kind == "polygon":
            return Shape(_with_holes(written["points"]["exterior"], written["points"].get("interior") or [], size))
        raise NoMask("are boxes, which are no masks" if kind == "rectangle" else f"are a {kind}, which has no area")


def is_supervisely(path: Path) -> bool:
    """Whether a folder holds such annotations."""
    return path.is_dir() and any(
        mentions(file, b'"geometryType"', b'"size"') for file in _annotations(path)[:NUM_PROBED]
    )


def _annotations(root: Path) -> list[Path]:
    files = (file for pattern in ("ann/*.json", "*/ann/*.json") for file in glob_visible(root, pattern))
    return sorted(file for file in files if file.is_file())


def _read(file: Path, name: str, split: str | None) -> Entry:
    with refusing_damage(file):
        content = load_json(file)
        return Entry(name, stated_size(content["size"]["height"], content["size"]["width"]), content["objects"], split)


def _with_holes(exterior: Any, interior: Any, size: tuple[int, int]) -> Any:
    """The RLE of a polygon of which others are cut; or itself, if there are none."""
    outline = polygon(exterior)
    if not interior:
        return outline
    holes = [hole for points in interior for hole in polygon(points)]
    mask = coco.decode([encode_segmentation(outline, size), encode_segmentation(holes, size)]).astype(bool)
    return paste_mask(mask[:, :, 0] & ~mask[:, :, 1], 0, 0, size)


def _bitmap(text: str) -> np.ndarray:
    """A PNG file, in zlib, in base64; it is the alpha channel, if it has one."""
    content = zlib.decompressobj().decompress(base64.b64decode(text), MAX_BITMAP_BYTES)
    with Image.open(io.BytesIO(content)) as image:
        check_pixels((image.height, image.width))
        return np.asarray(image.convert("RGBA").getchannel("A" if "A" in image.getbands() else "R")) > 0
