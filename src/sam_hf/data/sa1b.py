"""SA-1B as it is unpacked: `<name>.jpg` and `<name>.json` side by side."""

import json
from pathlib import Path
from typing import Any

from sam_hf.data.coco import objects_from_annotations
from sam_hf.data.reader import IMAGE_SUFFIXES, ImageSource, RecordReader
from sam_hf.data.schema import SegmentedObject
from sam_hf.data.splits import select_split

__all__ = ["Sa1bFolder", "is_sa1b", "parse_sa1b"]


class Sa1bFolder(RecordReader):
    """A folder of SA-1B, or of folders of it (`sa_000000/`, ...); a JSON file is read when its image is.

    Areas and boxes are those of the masks: the boxes in the files are one pixel narrower and lower.
    """

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: the folder.
            split: None for all images; else see `select_split`.
            strict: whether a JSON file without image or an image without JSON file is an error; else they are left out
                and listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no such file, files have no partner, or the split is unknown or empty.
        """
        root = Path(root)
        files = [path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.name[0] != "."]
        images = {_name(path, root): path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
        records = {_name(path, root): path for path in files if path.suffix.lower() == ".json"}
        problems = {
            "JSON file(s) have no image": sorted(set(records) - set(images)),
            "image(s) have no JSON file": sorted(set(images) - set(records)),
        }
        if not records:
            raise ValueError(f"{root} holds no .json file; SA-1B has one beside every image")
        ids = select_split(root, sorted(set(images) & set(records)), split)
        super().__init__(root, ids, problems, strict, **filters)
        self._files = [(images[name], records[name]) for name in ids]

    def image_source(self, index: int) -> ImageSource:
        image, record = self._files[index]
        return ImageSource(image, parse_sa1b(record.read_bytes())[0])

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return objects_from_annotations(
            parse_sa1b(self._files[index][1].read_bytes())[1], self.image_source(index).size
        )


def parse_sa1b(text: bytes) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """(height, width) and annotations of the JSON file of one image.

    Raises:
        ValueError: if it is no JSON or has another form.
    """
    content = json.loads(text)
    if not is_sa1b(content):
        raise ValueError("an SA-1B file must hold `image` with height and width, and the list `annotations`")
    return (int(content["image"]["height"]), int(content["image"]["width"])), content["annotations"]


def is_sa1b(content: Any) -> bool:
    """Whether parsed JSON has the form of SA-1B."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("image"), dict)
        and {"height", "width"} <= set(content["image"])
        and isinstance(content.get("annotations"), list)
    )


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()
