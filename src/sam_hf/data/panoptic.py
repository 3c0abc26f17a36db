"""COCO panoptic: a JSON file for many images, and a folder of PNG files whose colours are the numbers of segments.

Source: cocodataset.org/#format-data, section 4; `panopticapi/utils.py` for the colours.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .annotated import Entry
from .annotation_files import AnnotationFile, load_json, mentions, stated_size
from .image_places import written_name
from .listing import visible_folders
from .reader import UNREADABLE, unreadable
from .schema import SegmentedObject, objects_from_label_map
from .splits import Problems

__all__ = ["CocoPanoptic"]

VOID = 0


class CocoPanoptic(AnnotationFile):
    """Segments of COCO panoptic: one object each; `iscrowd` marks regions to ignore.

    Where `categories` tell things from stuff (`isthing`), stuff such as sky is no object, but background; without
    that, every segment is one. Pixels without a segment (void, black in the PNG file) are ignored, as nobody said what
    is there. The PNG files lie in a folder beside the JSON file that has its name, or one called `panoptic...`.
    """

    kind = "COCO panoptic"
    pattern = "*.json"

    def __init__(
        self, annotations: str | Path, split: str | None = None, *, take_stuff: bool = False, **options: Any
    ) -> None:
        """As for the base class, and:

        Args:
            take_stuff: whether segments of stuff are objects, too.
        """
        self.take_stuff = take_stuff
        super().__init__(annotations, split, **options)
        self.guesses["stuff"] = "objects" if take_stuff else "background, where categories tell it from things"

    @classmethod
    def is_written_in(cls, file: Path) -> bool:
        return mentions(file, b'"segments_info"', b'"annotations"')

    def entries(self, file: Path) -> Iterable[Entry]:
        content = load_json(file)
        things = {item["id"]: bool(item.get("isthing", True)) for item in content.get("categories", [])}
        annotated = {item["image_id"]: item for item in content["annotations"]}
        folder = _folder_of(file, [item["file_name"] for item in annotated.values()])
        self.mask_folders = (folder,)
        for image in content["images"]:
            size = stated_size(image.get("height"), image.get("width"))
            if image["id"] not in annotated:
                continue
            annotation = annotated[image["id"]]
            segments = {
                str(item["id"]): [things.get(item.get("category_id"), True), bool(item.get("iscrowd"))]
                for item in annotation["segments_info"]
            }
            yield Entry(written_name(image["file_name"]), size, [str(folder / annotation["file_name"]), segments])

    def prepare(self, entry: Entry, size: tuple[int, int], passed_over: Problems) -> list[Any]:
        return list(entry.shapes)

    def draw(self, prepared: list[Any], size: tuple[int, int]) -> list[SegmentedObject]:
        file, segments = prepared
        numbers = _read_numbers(Path(file), size)
        labels = np.unique(numbers).tolist()
        unknown = [label for label in labels if label != VOID and str(label) not in segments]
        if unknown:
            raise ValueError(
                f"{file} has {len(unknown)} segment(s) that `segments_info` lacks, such as {unknown[:5]}; a segment "
                "is the number red + 256 green + 65536 blue"
            )
        objects = []
        for label, item in zip(labels, objects_from_label_map(numbers, background=None), strict=True):
            is_thing, is_crowd = segments[str(label)] if label != VOID else (True, True)
            if is_thing or is_crowd or self.take_stuff:
                objects.append(SegmentedObject(**{**item, "iscrowd": int(is_crowd)}))
        return objects


def _folder_of(file: Path, names: list[str]) -> Path:
    """The folder of the PNG files."""
    near = [folder for folder in visible_folders(file.parent) if folder.name.startswith("panoptic")]
    for folder in (file.with_suffix(""), *near):
        if any((folder / name).is_file() for name in names[:20]):
            return folder
    raise ValueError(
        f"no PNG file of segments found, such as {names[0] if names else '<image>.png'}: put them in "
        f"{file.with_suffix('').name}/ beside the JSON file"
    )


def _read_numbers(file: Path, size: tuple[int, int]) -> np.ndarray:
    """The number of the segment of every pixel, int64 [H, W]."""
    try:
        with Image.open(file) as image:
            if (image.height, image.width) != size:
                raise ValueError(
                    f"{file} has the size {[image.height, image.width]}, its image {list(size)} (height, width)"
                )
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(f"{file} has the mode {image.mode!r}: expected RGB, whose colours are numbers")
            return np.asarray(image.convert("RGB")).astype(np.int64) @ (1, 256, 65536)
    except UNREADABLE as error:
        raise unreadable(str(file), error) from error
