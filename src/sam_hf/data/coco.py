"""COCO instances: one JSON file for many images, with polygons or RLE. LVIS and many exports have the same form."""

import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .annotation_files import choose_file, load_json, stated_size
from .image_places import image_ids, locate_images, written_name
from .listing import glob_visible
from .packed_json import PackedJson
from .reader import ImageSource, RecordReader
from .rle import encode_segmentation
from .schema import SegmentedObject, objects_from_rles
from .splits import Problems, select_split

__all__ = ["CocoInstances", "find_instances", "is_instances", "objects_from_annotations"]


class CocoInstances(RecordReader):
    """The images of an annotation file, with polygons, RLE and compressed RLE; `iscrowd` marks regions to ignore.

    An `image_id` is the `file_name` without its suffix, or with it where `a.jpg` stands beside `a.png`. Images are
    looked for beside the annotation file and in the folders there, then one level up and in the folders there, then in
    the folders of those: that covers the layouts of COCO, LVIS and most exports. Names of another computer, such as
    `C:\\data\\a.png`, are looked for by their last part.

    Attributes:
        passed_over: what the file holds and no record can have, such as annotations without a `segmentation`.
    """

    def __init__(
        self,
        annotations: str | Path,
        split: str | None = None,
        *,
        images: str | Path | None = None,
        strict: bool = True,
        crowd_as_objects: bool = False,
        **filters: Any,
    ) -> None:
        """
        Args:
            annotations: JSON file with the lists `images` and `annotations`.
            split: None for all images; else see `select_split`, with `splits.csv` beside the file.
            images: folder of the images, if it is elsewhere.
            strict: whether annotations without an image and images without a file are an error; else they are left
                out and listed in `problems`; so are images that share an id, as their objects cannot be told apart.
            crowd_as_objects: whether `iscrowd` and `ignore` mean nothing, as in files whose tool marks every RLE.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if the file is no such file, images are not found, or the split is unknown or empty.
        """
        file = Path(annotations)
        content = load_json(file)
        if not is_instances(content):
            raise ValueError(
                f"{file} is no COCO instances file: it must hold the lists `images` and `annotations`, whose items "
                f"have a `segmentation`; found {_outline(content)}"
            )
        lacking = [entry for entry in content["images"] if not _has_name_and_id(entry)]
        if lacking:
            raise ValueError(
                f"{file}: {len(lacking)} image(s) lack id, or file_name and coco_url, such as {str(lacking[0])[:99]}; "
                "give each an id of its own and the path of its file"
            )
        sharing, doubles = _share_id(content["images"]), _listed_twice(content["images"])
        files = {_written_name(entry): entry for entry in content["images"]}
        self.images, found = locate_images(file, Path(images) if images else None, list(files))
        entries = dict(zip(image_ids(list(files)), files.items(), strict=True))
        shared = {name for names in sharing.values() for name in names}
        usable = {name for name, (written, _) in entries.items() if written in found and written not in shared}
        problems: Problems = {
            "image(s) are listed more than once": doubles,
            "image(s) share an id with another, so that no one knows whose objects are whose": [
                f"{name} (id {number})" for number, names in sharing.items() for name in names
            ],
        }
        ids = select_split(file.parent, sorted(entries), split, problems, usable=usable)
        known = {entry["id"] for entry in content["images"]}
        problems |= {
            f"image(s) have no file in {self.images}": [
                entries[name][0] for name in ids if entries[name][0] not in found
            ],
            "annotation(s) belong to no image": [
                str(item.get("id")) for item in content["annotations"] if _image_id(item) not in known
            ],
        }
        ids = [name for name in ids if name in usable]
        super().__init__(file, ids, problems, strict, **filters)
        self.guesses["images"] = str(self.images)
        self.passed_over = _passed_over(file, content["annotations"], crowd_as_objects)
        annotations_of = defaultdict(list)
        for item in content["annotations"]:
            if item.get("segmentation") is not None:
                annotations_of[_image_id(item)].append(_needed(item, crowd_as_objects))
        self._files = [found[entries[name][0]] for name in ids]
        chosen = [entries[name][1] for name in ids]
        self._entries = PackedJson([_size(entry), annotations_of[entry["id"]]] for entry in chosen)
        everything = ((name, *entries[name]) for name in sorted(usable))  # so that all splits agree
        self.settle_frame((name, self._source(found[written], entry)) for name, written, entry in everything)

    def _source(self, file: str, entry: dict[str, Any]) -> ImageSource:
        return ImageSource(self.images / file, _size(entry))

    def image_source(self, index: int) -> ImageSource:
        size, _ = self._entries[index]
        return ImageSource(self.images / self._files[index], size and tuple(size))

    def read_objects(self, index: int) -> list[SegmentedObject]:
        _, annotations = self._entries[index]
        return objects_from_annotations(annotations, self.framed_source(index).read_size())

    def places(self) -> list[Path]:
        """The file of the image of each record."""
        return [(self.images / name).resolve() for name in self._files]


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    return stated_size(entry.get("height"), entry.get("width"))


def objects_from_annotations(annotations: list[dict[str, Any]], size: tuple[int, int]) -> list[SegmentedObject]:
    """Objects of COCO annotations of one image of (height, width) `size`; areas and boxes are those of the masks.

    Raises:
        ValueError: naming the annotation whose `segmentation` is malformed. One that has none is passed over.
    """
    annotations = [item for item in annotations if item.get("segmentation") is not None]
    rles = []
    for item in annotations:
        try:
            rles.append(encode_segmentation(item["segmentation"], size))
        except ValueError as error:
            raise ValueError(f"annotation {item.get('id')}: {error}") from error
    return objects_from_rles(rles, [_is_true(item.get("iscrowd")) for item in annotations])


def is_instances(content: Any) -> bool:
    """Whether parsed JSON is a COCO instances file. Captions and panoptic files have no `segmentation`."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("images"), list)
        and isinstance(content.get("annotations"), list)
        and all(isinstance(item, dict) for item in content["annotations"])
        and (not content["annotations"] or any(item.get("segmentation") for item in content["annotations"]))
    )


def find_instances(root: Path, split: str | None) -> tuple[Path, str | None]:
    """The annotation file of a split in a folder or its `annotations/`, and which split of that file to take.

    Files named like `instances_train2017.json` are told apart by the words of their names. A single file, whatever it
    is called, holds train and validation, except that one for validation alone is never trained on.

    Raises:
        ValueError: if there is none, or there are several and no single one has the split in its name.
    """
    folders = [folder for folder in (root, root / "annotations") if folder.is_dir()]
    files = [path for folder in folders for path in sorted(glob_visible(folder, "*.json")) if path.is_file()]
    # By name where COCO's own names are used: captions and key points lie beside, and each file takes long to read.
    files = [path for path in files if path.name.startswith("instances_")] or [
        path for path in files if len(files) == 1 or is_instances(load_json(path))
    ]
    return choose_file(root, files, split, "COCO")


def _outline(content: Any) -> str:
    return f"the keys {sorted(content)[:10]}" if isinstance(content, dict) else f"a {type(content).__name__}"


def _needed(item: dict[str, Any], crowd_as_objects: bool) -> dict[str, Any]:
    return {
        "id": item.get("id"),
        "segmentation": item.get("segmentation"),
        "iscrowd": not crowd_as_objects and _is_crowd(item),
    }


def _is_crowd(item: dict[str, Any]) -> bool:
    # Some exports mark regions to ignore as VOC does.
    return _is_true(item.get("iscrowd")) or _is_true(item.get("ignore"))


def _is_true(value: Any) -> bool:
    return (
        value.strip().lower() not in ("", "0", "0.0", "false", "no", "none") if isinstance(value, str) else bool(value)
    )


def _passed_over(file: Path, annotations: list[dict[str, Any]], crowd_as_objects: bool) -> Problems:
    """What is not used, by kind; said once if it is much."""
    lacking = [str(item.get("id")) for item in annotations if item.get("segmentation") is None]
    if lacking:
        warnings.warn(
            f"{file}: {len(lacking)} annotation(s) of {len(annotations)} have no segmentation and are passed over: "
            f"{', '.join(lacking[:5])}",
            stacklevel=3,
        )
    if annotations and not crowd_as_objects and all(map(_is_crowd, annotations)):
        warnings.warn(
            f"{file}: all {len(annotations)} annotations are marked `iscrowd` or `ignore`, which makes them regions "
            "to ignore and leaves no object. If they are objects, as in RLE exports of CVAT, open the file with "
            "crowd_as_objects=True, or set iscrowd to 0",
            stacklevel=3,
        )
    return {"annotation(s) have no segmentation": lacking} if lacking else {}


def _written_name(entry: dict[str, Any]) -> str:
    # LVIS has the URL alone, whose last folder tells train2017 from val2017.
    name = entry.get("file_name") or "/".join(str(entry.get("coco_url") or "").split("/")[-2:])
    return written_name(str(name))


def _has_name_and_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int | float | str) and bool(_written_name(entry))


def _image_id(annotation: dict[str, Any]) -> Any:
    number = annotation.get("image_id")
    return number if isinstance(number, int | float | str) else None


def _share_id(entries: list[dict[str, Any]]) -> dict[Any, list[str]]:
    """Names of images by the id that they share."""
    names: dict[Any, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        names[entry["id"]][_written_name(entry)] = None
    return {number: list(found) for number, found in names.items() if len(found) > 1}


def _listed_twice(entries: list[dict[str, Any]]) -> list[str]:
    counts = Counter(map(_written_name, entries))
    return [str(Path(name).with_suffix("")) for name, count in counts.items() if count > 1]
