"""YOLO's segmentation labels: `labels/<name>.txt` beside `images/<name>.jpg`, a row for each polygon.

A row is `class x1 y1 x2 y2 ...`, in shares of width and height. Source: docs.ultralytics.com, "Instance Segmentation
Datasets Overview"; the label of an image is where its path has `labels` for the last `images`.
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from .annotated import AnnotatedImages, Entry, NoMask, Shape
from .listing import glob_visible, normalized
from .named_splits import select_named_split, split_of_folders
from .outlines import polygon
from .reader import IMAGE_SUFFIXES
from .splits import SPLIT_NAMES, Problems

__all__ = ["YoloFolder", "is_yolo"]

FOLDERS = ("images", "images/*", "*/images", "images/*/*")
# Tools round, and some let polygons end a little outside.
TOLERANCE = 0.01
# Many, as those of images without objects are empty.
NUM_PROBED = 1000


class YoloFolder(AnnotatedImages):
    """Polygons of YOLO; rows of four numbers are boxes, which are no masks. An image without a label has no object.

    Splits are those that `data.yaml` names, or else those of the folders: `images/train` and `images/val` or, as of
    Roboflow, `train/images` and `valid/images`.
    """

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: the folder of `images/` and `labels/`, or of folders that hold these two.
            split: None for all images; else by the names of folders, or see `select_split`.
            strict: whether labels without image and damaged labels are an error; else they are left out and listed in
                `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if there is no image, or the split is unknown or empty.
        """
        root = Path(root)
        folders = [folder for pattern in FOLDERS for folder in sorted(glob_visible(root, pattern)) if folder.is_dir()]
        images = [
            path
            for folder in dict.fromkeys(folders)
            for path in sorted(glob_visible(folder, "*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not images:
            raise ValueError(f"{root} holds no image in images/, images/<split>/ or <split>/images/")
        named, source = _named_splits(root)
        splits = {_name(path, root): _split_of(path, root, named) for path in images}
        files = {_name(path, root): path for path in reversed(images)}
        labels = {normalized(str(path)): path for path in _labels(root)}
        own = {name: normalized(str(_label_of(path, root))) for name, path in files.items()}
        problems: Problems = {
            "label(s) have no image": [
                str(labels[name].relative_to(root)) for name in sorted(set(labels) - set(own.values()))
            ],
            "image(s) have the name of another": [str(path) for path in images if files[_name(path, root)] != path],
        }
        ids, how = select_named_split(root, splits, split, problems, files)
        entries, damaged = {}, []
        for name in ids:
            try:
                entries[name] = files[name], Entry(name, None, _rows(labels.get(own[name])))
            except (OSError, ValueError) as error:
                damaged.append(f"{labels[own[name]]} ({error})")
        problems["label(s) cannot be read"] = damaged
        super().__init__(root, entries, problems, strict=strict, **filters)
        self.guesses["split"] = f"{how} ({source})"

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        numbers = [float(value) for value in written.split()]
        if len(numbers) in (5, 6):  # with a confidence, if predicted
            raise NoMask("are boxes, which are no masks")
        if len(numbers) % 2 == 0:
            raise ValueError(f"a row is a class and as many x as y, got {len(numbers)} numbers")
        corners = list(zip(numbers[1::2], numbers[2::2], strict=True))
        outside = [value for value in numbers[1:] if not -TOLERANCE <= value <= 1 + TOLERANCE]
        if outside:
            raise ValueError(f"x and y must be shares of width and height, from 0 to 1, got {outside[0]}")
        return Shape(polygon((x * size[1], y * size[0]) for x, y in corners))


def is_yolo(path: Path) -> bool:
    """Whether a folder holds a label whose first row is a class and at least four numbers."""
    return path.is_dir() and any(map(_is_label, islice(_labels(path), NUM_PROBED)))


def _labels(root: Path) -> Iterator[Path]:
    for pattern in FOLDERS:
        files = glob_visible(root, f"{pattern.replace('images', 'labels')}/*.txt")
        yield from sorted(file for file in files if file.name != "classes.txt" and file.is_file())


def _is_label(file: Path) -> bool:
    try:
        return any(len([float(value) for value in row.split()]) >= 5 for row in _rows(file)[:1])
    except (OSError, ValueError):
        return False


def _rows(file: Path | None) -> list[str]:
    """The rows of a label that hold something."""
    return [row for row in file.read_text("utf-8-sig").splitlines() if row.strip()] if file else []


def _name(path: Path, root: Path) -> str:
    """`train/a` for `images/train/a.jpg` and `train/images/a.jpg`."""
    return "/".join(part for part in path.relative_to(root).with_suffix("").parts if part != "images")


def _label_of(path: Path, root: Path) -> Path:
    parts = list(path.relative_to(root).parent.parts)
    last = len(parts) - 1 - parts[::-1].index("images")
    return root.joinpath(*parts[:last], "labels", *parts[last + 1 :], f"{path.stem}.txt")


def _split_of(path: Path, root: Path, named: dict[Path, str]) -> str | None:
    if named:
        place = path.resolve()
        return next((named[folder] for folder in (place, *place.parents) if folder in named), None)
    return split_of_folders(path.relative_to(root))


def _named_splits(root: Path) -> tuple[dict[Path, str], str]:
    """The split of every folder and image that a file such as `data.yaml` lists and that is there; and its source."""
    for file in sorted(glob_visible(root, "*.y*ml")):
        try:
            content = yaml.safe_load(file.read_text("utf-8-sig"))
        except (ValueError, RecursionError, yaml.YAMLError):
            continue
        named: dict[Path, str] = {}
        for word in chain(*SPLIT_NAMES) if isinstance(content, dict) else ():
            value = content.get(word)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    named |= dict.fromkeys(_listed(root, content.get("path"), text), word)
        if named:
            return named, file.name
    return {}, "folders"


def _listed(root: Path, base: Any, text: str) -> list[Path]:
    """The folder of that name, or the images that a text file of that name lists; none if it is elsewhere."""
    bases = [root / base, root] if isinstance(base, str) else [root]
    # Roboflow writes ../train/images for what lies beside the file.
    places = [place / name for place in bases for name in (text, text.removeprefix("../"))]
    found = next((place for place in places if place.exists()), None)
    if found is None or found.is_dir() or found.suffix != ".txt":
        return [found.resolve()] if found else []
    lines = [line.strip() for line in found.read_text("utf-8-sig").splitlines()]
    return [(place / line).resolve() for place in bases for line in lines if line]
