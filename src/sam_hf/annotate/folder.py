"""What was annotated, in files: `masks/<id>.png` to train on, and `masks/<id>.json` with what a label map cannot say.

The label map has k in pixels of the k-th object, later ones on top. The JSON file has all of them whole, with their
names and prompts:

    {"size": [height, width], "next_id": 3, "objects": [{"id": 1, "revision": 2, "name": "nucleus", "steps": [...],
     "score": 0.93, "mask": {"box": [x, y, width, height], "runs": [...]}}]}

An image without these files is not annotated yet; a label map of nothing says that there is no object in it.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.catalog import FOLDERS, find_format, open_dataset
from ..data.layouts import find_layout
from ..data.listing import glob_visible
from ..data.mask_files import label_map_objects, read_mask_values
from ..data.mask_meaning import NUM_PROOFS, Evidence, evidence_of
from ..data.reader import IMAGE_SUFFIXES
from ..data.schema import SegmentedObject, decode_masks
from ..data.splits import refuse
from ..image_files import frame_sizes
from .mask_crops import MaskCrop, coco_annotation, decode_crop, encode_crop

# Folders of images that readers of data sets know, so that masks may lie beside.
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MAX_OBJECTS = (1 << 16) - 1
MAX_NAME = 100
NUM_NEWEST = 50
REMEDY = "Give another folder for masks/ (--output FOLDER): what is annotated here is read, and left as it is"


class Conflict(Exception):
    """An object was changed by somebody else meanwhile."""


class AnnotationFolder:
    """Images, and the objects that were annotated in them. It may be used by several threads.

    Args:
        images: folder of the images, which may lie in sub-folders; or one that has them in `images/`.
        output: takes `masks/`; None is the parent of a folder `images`, or else that folder itself. Where it is
            another folder, annotations of any format that `open_dataset` reads are the start.

    Raises:
        ValueError: if there is no image, two have the same id, or what is annotated there is no label map of this
            form.
    """

    def __init__(self, images: str | Path, output: str | Path | None = None):
        folder = Path(images).absolute()
        nested = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), folder)
        self.images = nested
        # What readers of data sets are told, where masks do not lie beside a folder of a name that they know.
        named = None if nested.name in IMAGE_FOLDERS else nested
        home = nested if named else nested.parent
        self.output = home if output is None else Path(output).absolute()
        self.masks = self.output / "masks"
        self.files = _list_images(self.images, self.masks)
        self.ids = [path.relative_to(self.images).with_suffix("").as_posix() for path in self.files]
        self._lock = threading.Lock()
        self.is_beside = home == self.output and named is None
        _check_masks(self.output, None if self.is_beside else self.images, self.masks)
        self._existing: dict[Path, Callable[[], list[SegmentedObject]]] = {}
        if self.output != home and find_format(home, named) is not None:
            self._existing = _existing_objects(home, {"images": named} if named else {})

    @property
    def names(self) -> list[str]:
        """Paths of the images in their folder."""
        return [path.relative_to(self.images).as_posix() for path in self.files]

    @property
    def data_arguments(self) -> list[str]:
        """Arguments of `examples/train.py` for what was annotated."""
        return ["--dataset", str(self.output)] + ([] if self.is_beside else ["--images", str(self.images)])

    def is_annotated(self, index: int) -> bool:
        return self._path(index, ".png").is_file()

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image as it is shown."""
        with Image.open(self.files[index]) as image:
            return frame_sizes(image)[0]

    def objects(self, index: int) -> list[dict[str, Any]]:
        """The objects of an image, in the form of the JSON file.

        Raises:
            ValueError, OSError: if its files are damaged, or not of the size of the image.
        """
        with self._lock:
            return self._read(index)["objects"]

    def save(self, index: int, item: dict[str, Any]) -> dict[str, Any]:
        """Add an object, or replace the one of that `id`; both files are written.

        Returns:
            its `id`, and its `revision`, which counts its changes.

        Raises:
            Conflict: if the one to be replaced is not of the revision that is given, or no longer there.
            ValueError: if it is malformed.
        """
        with self._lock:
            content = self._read(index)
            fields = _checked(item, tuple(content["size"]))
            if item.get("id") is None:
                fields |= {"id": content["next_id"], "revision": 1}
                content["next_id"] += 1
                content["objects"].append(fields)
            else:
                place = _place(content, item["id"], item.get("revision"))
                fields |= {"id": item["id"], "revision": item["revision"] + 1}
                content["objects"][place] = fields
            self._write(index, content)
        return {name: fields[name] for name in ("id", "revision")}

    def remove(self, index: int, identity: int, revision: int) -> None:
        """Take an object away; without any, the image is not annotated.

        Raises:
            Conflict: as `save`.
        """
        with self._lock:
            content = self._read(index)
            del content["objects"][_place(content, identity, revision)]
            self._write(index, content)
            if not content["objects"]:
                self._path(index, ".png").unlink()

    def set_empty(self, index: int, is_empty: bool) -> None:
        """Say that there is no object in an image, or take that back.

        Raises:
            Conflict: if it has objects.
        """
        with self._lock:
            content = self._read(index)
            if content["objects"]:
                raise Conflict("there are objects in this image")
            self._write(index, content)
            if not is_empty:
                self._path(index, ".png").unlink()

    def classes(self) -> list[str]:
        """Names of objects, the most frequent of the newest files first."""
        files = [self._path(index, ".json") for index in range(len(self.ids))]
        times = {file: file.stat().st_mtime_ns for file in files if file.is_file()}
        counts: Counter[str] = Counter()
        for file in sorted(times, key=lambda file: -times[file])[:NUM_NEWEST]:
            with suppress(ValueError):  # who opens the image is told
                counts.update(item["name"] for item in _load(file)["objects"])
        return sorted(counts, key=lambda name: (-counts[name], name))

    def coco(self) -> dict[str, Any]:
        """All that was annotated, as COCO has it; objects are whole here, whatever lies on top of them."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        categories: dict[str, int] = {}
        for index, name in enumerate(self.names):
            if not self.is_annotated(index):
                continue
            with self._lock:
                content = self._read(index)
            height, width = content["size"]
            images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
            for item in content["objects"]:
                category = categories.setdefault(item["name"], len(categories) + 1)
                numbers = {"id": len(annotations) + 1, "image_id": len(images), "category_id": category, "iscrowd": 0}
                annotations.append({**numbers, **coco_annotation(item["mask"], (height, width))})
        named = [{"id": number, "name": name} for name, number in categories.items()]
        return {"images": images, "categories": named, "annotations": annotations}

    def _path(self, index: int, suffix: str) -> Path:
        return self.masks / f"{self.ids[index]}{suffix}"

    def _read(self, index: int) -> dict[str, Any]:
        size = self.size(index)
        told, labels = self._path(index, ".json"), self._path(index, ".png")
        content = _load(told) if told.is_file() else None
        if content is not None and tuple(content["size"]) != size:
            raise ValueError(f"{told} is of an image of {content['size']}, this one has {list(size)} (height, width)")
        if not labels.is_file():
            # Nothing of it counts, but numbers are not given twice.
            next_id = 1 if content is None else content["next_id"]
            objects = self._existing.get(self.files[index].resolve(), list)() if content is None else []
            return _content(size, objects, next_id)
        values = read_mask_values(labels, "labels")
        if values.shape != size:
            raise ValueError(f"{labels} has {list(values.shape)}, its image {list(size)} (height, width)")
        if content is not None:
            # A label map that is younger, and another, is by somebody else. Some disks count in seconds.
            is_younger = labels.stat().st_mtime_ns > told.stat().st_mtime_ns
            if not is_younger or np.array_equal(_label_map(content), values):
                return content
        return _content(size, label_map_objects(values), 1 if content is None else content["next_id"])

    def _write(self, index: int, content: dict[str, Any]) -> None:
        if len(content["objects"]) > MAX_OBJECTS:
            raise ValueError(f"an image can have {MAX_OBJECTS} objects")
        told, labels = self._path(index, ".json"), self._path(index, ".png")
        told.parent.mkdir(parents=True, exist_ok=True)
        # In this order, so that whatever ends it between the two, the JSON file is the younger one.
        text = json.dumps(content, separators=(",", ":"))
        _replace(told, lambda path: path.write_text(text, encoding="utf-8"))
        picture = Image.fromarray(_label_map(content))
        _replace(labels, lambda path: picture.save(path, format="PNG"))


def _list_images(folder: Path, masks: Path) -> list[Path]:
    files = [
        path
        for path in (glob_visible(folder, "**/*") if folder.is_dir() else ())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_relative_to(masks)
    ]
    if not files:
        raise ValueError(f"{folder} holds no image; readable suffixes: {', '.join(IMAGE_SUFFIXES)}")
    counts = Counter(path.relative_to(folder).with_suffix("").as_posix() for path in files)
    refuse(folder, {"id(s) name more than one image": sorted(name for name in counts if counts[name] > 1)})
    return sorted(files)


def _check_masks(root: Path, images: Path | None, masks: Path) -> None:
    """Refuse a folder whose annotations are no label maps of our form."""
    found = find_format(root, images) if root.is_dir() else None
    if found is None:
        return
    if found.open is not FOLDERS.open:
        raise ValueError(f"{root} is annotated already, in the format {found.name}. {REMEDY}")
    files = find_layout(root, images)
    refuse(root, {"mask(s) belong to no image": files.orphans})
    pairs = [(name, path) for name, paths in files.masks.items() for path in paths]
    other = next((path for name, path in pairs if path != masks / f"{name}.png"), None)
    if other is None:
        other = next((path for _, path in pairs[:NUM_PROOFS] if _is_binary(path)), None)
    if other is not None:
        raise ValueError(
            f"{root} has masks already, such as {other.relative_to(root)}, which are no label maps masks/<id>.png, a "
            f"number for each object. {REMEDY}"
        )


def _is_binary(path: Path) -> bool:
    return evidence_of(read_mask_values(path)) == Evidence.BINARY


def _existing_objects(root: Path, options: dict[str, Any]) -> dict[Path, Callable[[], list[SegmentedObject]]]:
    """What reads the objects of each image, by its file."""
    reader: Any = open_dataset(root, None, strict=False, **options)
    if not hasattr(reader, "places"):
        raise ValueError(f"{root}: annotations of {type(reader).__name__} are of no image files")

    def read(index: int) -> list[SegmentedObject]:
        return [item for item in reader.read_objects(index) if not item["iscrowd"]]

    return {path: partial(read, index) for index, path in enumerate(reader.places())}


def _content(size: tuple[int, int], objects: list[SegmentedObject], next_id: int) -> dict[str, Any]:
    found = []
    for number, item in enumerate(objects, next_id):
        crop: MaskCrop = encode_crop(decode_masks([item])[0])
        found.append({"id": number, "revision": 0, "name": "object", "steps": [], "score": None, "mask": crop})
    return {"size": list(size), "next_id": next_id + len(found), "objects": found}


def _checked(item: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    name, steps, score = item.get("name"), item.get("steps"), item.get("score")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= MAX_NAME:
        raise ValueError(f"the name of an object is {str(name)[:80]!r}, expected 1 to {MAX_NAME} characters")
    if not isinstance(steps, list) or not (score is None or (isinstance(score, int | float) and isfinite(score))):
        raise ValueError("an object has its prompts as a list `steps`, and its predicted IoU as `score`, or null")
    _, values = decode_crop(item.get("mask"), size)
    if not values.any():
        raise ValueError("the mask of an object is empty: remove the object instead")
    return {"name": name.strip(), "steps": steps, "score": score, "mask": item["mask"]}


def _place(content: dict[str, Any], identity: int, revision: int | None) -> int:
    for place, item in enumerate(content["objects"]):
        if item["id"] == identity:
            if item["revision"] != revision:
                raise Conflict(f"object {identity} was changed in another window")
            return place
    raise Conflict(f"object {identity} was removed in another window")


def _label_map(content: dict[str, Any]) -> np.ndarray:
    """uint8 or uint16 [H, W]."""
    size, objects = tuple(content["size"]), content["objects"]
    labels = np.zeros(size, dtype=np.uint8 if len(objects) < 256 else np.uint16)
    for number, item in enumerate(objects, 1):
        place, values = decode_crop(item["mask"], size)
        labels[place][values] = number
    return labels


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        return {name: content[name] for name in ("size", "next_id", "objects")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged: remove it, and the label map beside it counts alone ({error})"
        ) from error


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name first, so that there is never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    os.replace(partial, path)


__all__ = ["AnnotationFolder", "Conflict"]
