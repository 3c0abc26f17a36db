"""COCO instances: one JSON file for many images, with polygons or RLE. LVIS and many exports have the same form."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .packed_json import PackedJson
from .reader import ImageSource, RecordReader
from .rle import encode_segmentation
from .schema import SegmentedObject, objects_from_rles
from .splits import select_split, split_aliases

__all__ = ["CocoInstances", "find_instances", "is_instances", "objects_from_annotations"]

NUM_PROBED_IMAGES = 20


class CocoInstances(RecordReader):
    """The images of an annotation file, with polygons, RLE and compressed RLE; `iscrowd` marks regions to ignore.

    An `image_id` is the `file_name` without its suffix. Images are looked for beside the annotation file and in the
    folders there, one level up, and in the folders there: that covers the layouts of COCO, LVIS and most exports.
    """

    def __init__(
        self,
        annotations: str | Path,
        split: str | None = None,
        *,
        images: str | Path | None = None,
        strict: bool = True,
        **filters: Any,
    ) -> None:
        """
        Args:
            annotations: JSON file with the lists `images` and `annotations`.
            split: None for all images; else see `select_split`, with `splits.csv` beside the file.
            images: folder of the images, if it is elsewhere.
            strict: whether annotations without an image and images without a file are an error; else they are left
                out and listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if the file is no such file, images are not found, or the split is unknown or empty.
        """
        file = Path(annotations)
        content = _load(file)
        if not is_instances(content):
            raise ValueError(
                f"{file} is no COCO instances file: it must hold the lists `images` and `annotations`, whose items "
                f"have a `segmentation`; found {_outline(content)}"
            )
        lacking = [entry for entry in content["images"] if not {"id", "height", "width"} <= set(entry)]
        if lacking:
            raise ValueError(f"{file}: {len(lacking)} image(s) lack id, height or width, such as {lacking[0]}")
        entries = {_image_id(entry): entry for entry in content["images"]}
        doubles = [name for name, count in Counter(map(_image_id, content["images"])).items() if count > 1]
        problems = {"image(s) are listed more than once": doubles}
        ids = select_split(file.parent, sorted(entries), split, problems)
        self.images = Path(images) if images else _find_images(file, [_file_name(entries[name]) for name in ids])
        present = {path.relative_to(self.images).as_posix() for path in _listing(self.images, entries.values())}
        missing = [_file_name(entries[name]) for name in ids if _file_name(entries[name]) not in present]
        known = {entry["id"] for entry in content["images"]}
        problems |= {
            f"image(s) have no file in {self.images}": missing,
            "annotation(s) belong to no image": [
                str(item.get("id")) for item in content["annotations"] if item.get("image_id") not in known
            ],
        }
        ids = [name for name in ids if _file_name(entries[name]) not in set(missing)]
        super().__init__(file, ids, problems, strict, **filters)
        annotations_of = defaultdict(list)
        for item in content["annotations"]:
            annotations_of[item.get("image_id")].append(_needed(item))
        self._entries = PackedJson([entries[name], annotations_of[entries[name]["id"]]] for name in ids)

    def image_source(self, index: int) -> ImageSource:
        entry, _ = self._entries[index]
        return ImageSource(self.images / _file_name(entry), _size(entry))

    def read_objects(self, index: int) -> list[SegmentedObject]:
        entry, annotations = self._entries[index]
        return objects_from_annotations(annotations, _size(entry))


def objects_from_annotations(annotations: list[dict[str, Any]], size: tuple[int, int]) -> list[SegmentedObject]:
    """Objects of COCO annotations of one image of (height, width) `size`; areas and boxes are those of the masks.

    Raises:
        ValueError: naming the annotation whose `segmentation` is malformed.
    """
    rles = []
    for item in annotations:
        try:
            rles.append(encode_segmentation(item.get("segmentation"), size))
        except ValueError as error:
            raise ValueError(f"annotation {item.get('id')}: {error}") from error
    return objects_from_rles(rles, [bool(item.get("iscrowd")) for item in annotations])


def is_instances(content: Any) -> bool:
    """Whether parsed JSON is a COCO instances file. Captions and panoptic files have no `segmentation`."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and isinstance(content.get("annotations"), list)
        and all(isinstance(item, dict) and "segmentation" in item for item in content["annotations"][:1])
    )


def find_instances(root: Path, split: str | None) -> tuple[Path, str | None]:
    """The annotation file of a split in a folder or its `annotations/`, and which split of that file to take.

    Files named like `instances_train2017.json` are told apart by the name of the split; a single file holds all
    splits.

    Raises:
        ValueError: if there is none, or there are several and no single one has the split in its name.
    """
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    files = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.name[0] != "."]
    # By name where COCO's own names are used: captions and key points lie beside, and each file takes long to read.
    files = [path for path in files if path.name.startswith("instances_")] or [
        path for path in files if len(files) == 1 or is_instances(_load(path))
    ]
    if len(files) == 1:
        named = split is not None and _names_split(files[0], split)
        return files[0], None if named else split
    chosen = [path for path in files if split is not None and _names_split(path, split)]
    if len(chosen) == 1:
        return chosen[0], None
    raise ValueError(
        f"{root} has {len(files)} COCO annotation files, {len(chosen)} of them for split {split!r}: "
        f"{', '.join(path.name for path in files[:5])}. Give the file instead of the folder"
    )


def _names_split(path: Path, split: str) -> bool:
    return any(alias in path.stem.lower() for alias in split_aliases(split))


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def _outline(content: Any) -> str:
    return f"the keys {sorted(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"


def _needed(item: dict[str, Any]) -> dict[str, Any]:
    # Some exports mark regions to ignore as VOC does.
    crowd = bool(item.get("iscrowd") or item.get("ignore"))
    return {"id": item.get("id"), "segmentation": item.get("segmentation"), "iscrowd": crowd}


def _file_name(entry: dict[str, Any]) -> str:
    # LVIS has the URL alone, whose last folder tells train2017 from val2017.
    name = entry.get("file_name") or "/".join(entry["coco_url"].split("/")[-2:])
    return name.replace("\\", "/").removeprefix("./")


def _image_id(entry: dict[str, Any]) -> str:
    return str(Path(_file_name(entry)).with_suffix(""))


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    return int(entry["height"]), int(entry["width"])


def _listing(images: Path, entries: Any) -> list[Path]:
    """The files in all folders that hold images: one look-up for each would take long on a network."""
    folders = {(images / _file_name(entry)).parent for entry in entries}
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]


def _find_images(file: Path, names: list[str]) -> Path:
    """The folder in which most of the first images are."""
    folders = [
        folder
        for parent in (file.parent, file.absolute().parent.parent)
        for folder in (parent, *sorted(path for path in parent.iterdir() if path.is_dir()))
    ]
    probed = names[:NUM_PROBED_IMAGES]
    found = [sum((folder / name).is_file() for name in probed) for folder in folders]
    if not max(found):
        raise ValueError(
            f"{file}: no image found: looked for {probed[0]} in {file.parent}, its parent, and the folders of both. "
            "Name the folder by images="
        )
    return folders[found.index(max(found))]
