"""Layouts of folders: where images and their masks lie, how their names go together, and what is known of the masks.

`LAYOUTS` is the table: a new layout is a row. Patterns are of paths without suffix below `image_folder` and
`mask_folder`: `{id}` is a name, in sub-folders too, which then are part of the `image_id`; `{part}` is any name, and
`{k}` a number. Capitals count in an `{id}` only.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePath, PurePosixPath

from .damage import refusing_damage
from .listing import is_visible, normalized
from .mask_files import MASK_SUFFIXES
from .mask_meaning import Meaning
from .reader import IMAGE_SUFFIXES
from .splits import SPLIT_NAMES, split_aliases

__all__ = ["LAYOUTS", "Layout", "PairedFiles", "find_layout", "has_layout", "told_splits"]

# A mask is named as its image, with a number or a word more, or lies in a folder of that name.
WORDS = ("mask", "masks", "seg", "segmentation", "gt", "label", "labels", "cp_masks", "instance", "instances")
AFFIXED = tuple(f"{{id}}_{word}" for word in WORDS) + tuple(
    f"{word}_{{id}}" for word in ("mask", "seg", "gt", "label")
)
MASK_NAMES = ("{id}", "{id}_{k}", "{id}/{part}", *AFFIXED)


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Args:
        name: for people.
        image_folder, mask_folder: in the root, "" for the root itself.
        image_name: pattern of images.
        mask_names: patterns of masks, tried in this order.
        meaning: of masks, if the layout tells it.
        ignored: labels of regions to ignore.
        smallest: labels below it, if they are not `ignored`, are no objects.
        split_lists: files in the root that list the images, or their folders, of the split of the file's name.
        is_whole: whether an image without a mask is a mistake; else it is no data.
    """

    name: str
    image_folder: str
    mask_folder: str
    image_name: str = "{id}"
    mask_names: tuple[str, ...] = MASK_NAMES
    meaning: Meaning | None = None
    ignored: frozenset[int] = frozenset()
    smallest: int | None = None
    split_lists: str | None = None
    is_whole: bool = True

    @property
    def is_beside(self) -> bool:
        """Whether images and masks are told apart by their names alone."""
        return not self.image_folder and not self.mask_folder


def _folders(images: str, masks: str) -> Layout:
    return Layout(f"{images}/ and {masks}/", images, masks)


def _beside(*names: str, image: str = "{id}") -> Layout:
    shown = image.replace("{id}", "a"), names[0].replace("{id}", "a")
    more = *names, *(f"{name}{form}" for name in names for form in ("_{k}", "{k}"))
    return Layout(f"{shown[0]} and {shown[1]} in one folder", "", "", image, more)


LAYOUTS = (
    *(
        _folders(images, masks)
        for images, masks in product(
            ("images", "image", "imgs", "img"), ("masks", "mask", "labels", "label", "ground_truth", "gt")
        )
    ),
    Layout(
        "Pascal VOC (JPEGImages/ and SegmentationObject/)",
        "JPEGImages",
        "SegmentationObject",
        mask_names=("{id}",),
        meaning="labels",
        ignored=frozenset({255}),  # the border of objects, and what is too difficult
        split_lists="ImageSets/Segmentation/*.txt",
        is_whole=False,  # most images have boxes alone
    ),
    Layout(
        "Cityscapes (leftImg8bit/ and gtFine/)",
        "leftImg8bit",
        "gtFine",
        "{id}_leftImg8bit",
        ("{id}_gtFine_instanceIds",),
        "labels",
        # Below 1000 is the class of what has no instances; of these classes that is a group, such as of cars.
        ignored=frozenset(range(24, 34)),
        smallest=1000,
        is_whole=False,  # train_extra has coarse masks alone
    ),
    Layout(
        "DAVIS (JPEGImages/480p/ and Annotations/480p/)",
        "JPEGImages/480p",
        "Annotations/480p",
        mask_names=("{id}",),
        meaning="labels",
        split_lists="ImageSets/2017/*.txt",
        is_whole=False,  # of test sequences the first frame alone has one
    ),
    Layout(
        "DSB2018 as it is distributed (a/images/a and a/masks/)",
        "",
        "",
        "{id}/images/{id}",
        ("{id}/masks/{part}",),
        "binary",
    ),
    _beside("{id}_masks", image="{id}_img"),
    *(_beside(f"{{id}}_{word}") for word in WORDS),
    *(_beside(f"{word}_{{id}}") for word in ("mask", "seg", "gt", "label")),
)


@dataclass(frozen=True)
class PairedFiles:
    """The files of a layout.

    Args:
        layout: the row.
        images: the file of every id.
        masks: its mask files, in the order of their names and numbers; none for some.
        orphans: masks of no image, relative to the root.
        doubles: ids of more than one image.
    """

    layout: Layout
    images: dict[str, Path]
    masks: dict[str, list[Path]]
    orphans: list[str]
    doubles: list[str]

    @property
    def num_paired(self) -> int:
        return sum(map(bool, self.masks.values()))


def has_layout(root: Path, images: str | Path | None = None) -> bool:
    """Whether the folders of a layout are there, with masks in them, or an image with its mask beside it.

    Args:
        root: the folder.
        images: folder of the images in place of that of the layout, as for `find_layout`.
    """
    listed = _Listed()
    return root.is_dir() and any(_is_there(root, row, listed) for row in _rows(root, images))


def find_layout(root: Path, images: str | Path | None = None, layout: str | None = None) -> PairedFiles:
    """The files of the layout that fits most images; folders go before names in one folder.

    Args:
        root: the folder.
        images: folder of the images, in `root` or elsewhere, in place of that of the layout.
        layout: name of a row, where several fit.

    Raises:
        ValueError: if none fits, or two fit equally well.
    """
    rows = [row for row in _rows(root, images) if layout in (None, row.name)]
    if not rows:
        raise ValueError(
            f"layout is {layout!r}, expected one of: {'; '.join(row.name for row in _rows(root, images))}"
        )
    listed = _Listed()
    there = [row for row in rows if root.is_dir() and not row.is_beside and _is_there(root, row, listed)]
    there = there or [row for row in rows if root.is_dir() and row.is_beside and _is_there(root, row, listed)]
    found = [_pair(root, row, listed) for row in there]
    most = max((files.num_paired for files in found), default=0)
    best = [files for files in found if files.num_paired == most]
    if not best:
        names = sorted(path.name for path in root.iterdir())[:10] if root.is_dir() else "no such folder"
        raise ValueError(
            f"{root} must hold the folders images/ and masks/, or be in another layout of docs/data.md, found: "
            f"{names}. Another folder of images is named by images= (--images)"
        )
    if len(best) > 1:
        raise ValueError(
            f"{root} is in two layouts, which fit {most} image(s) each: {best[0].layout.name}, or "
            f"{best[1].layout.name}. Say which by layout={best[0].layout.name!r} (--layout), or rename what is "
            "not meant: a name that begins with a dot is passed over"
        )
    return best[0]


def told_splits(root: Path, files: PairedFiles) -> tuple[dict[str, str], str]:
    """The split of every id that lists of the layout or the names of folders tell, and what told it.

    Raises:
        ValueError: if an id is in two lists.
    """
    pattern = files.layout.split_lists
    lists = [path for path in sorted(root.glob(pattern)) if _is_split(path.stem)] if pattern else []
    if lists:
        return _listed_splits(lists, list(files.images)), ", ".join(
            path.relative_to(root).as_posix() for path in lists
        )
    folders = {name: PurePosixPath(name).parts[0] for name in files.images if "/" in name}
    if len(folders) == len(files.images) and any(map(_is_split, folders.values())):
        told = {name: split_aliases(folder)[0] for name, folder in folders.items()}
        return told, f"the folders {', '.join(sorted({*folders.values()}))}"
    return {}, ""


class _Listed(dict[Path, list[tuple[str, Path]]]):
    """Visible files below a folder, walked through once: their paths in it without suffix, `a_2` before `a_10`."""

    def __missing__(self, folder: Path) -> list[tuple[str, Path]]:
        self[folder] = sorted(_walk(folder), key=lambda item: _zero_filled(item[0]))
        return self[folder]


def _rows(root: Path, images: str | Path | None) -> list[Layout]:
    """The table, with another folder of images if there is one."""
    if images is None:
        return list(LAYOUTS)
    folder = _folder(root, str(images)) or Path(images).absolute()
    if not folder.is_dir():
        raise ValueError(f"the folder of images {str(images)!r} is neither in {root} nor a path of its own")
    # Rows that differ in nothing but their folder of images become one.
    rows = {row.mask_folder: row for row in reversed(LAYOUTS) if row.mask_folder}
    return [
        replace(row, name=f"{images} and {masks}/", image_folder=str(folder)) for masks, row in reversed(rows.items())
    ]


def _is_there(root: Path, row: Layout, listed: _Listed) -> bool:
    if row.is_beside:
        return _pair(root, row, listed).num_paired > 0
    folders = [_folder(root, name) for name in (row.image_folder, row.mask_folder)]
    # There is no other use of these names, so that it is better said than passed over if nothing is there.
    if folders[0] and (row.image_folder, row.mask_folder) == ("images", "masks"):
        return folders[1] is not None
    return None not in folders and any(
        _is_mask(path) for folder in folders[1:] if folder for _, path in listed[folder]
    )


def _pair(root: Path, row: Layout, listed: _Listed) -> PairedFiles:
    """Images and masks of one layout by their names."""
    image_folder, mask_folder = (_folder(root, name) or root for name in (row.image_folder, row.mask_folder))
    images = [
        (name, path)
        for written, path in listed[image_folder]
        if path.suffix.lower() in IMAGE_SUFFIXES and (name := _id_in(row.image_name, written))
    ]
    if not row.is_beside and mask_folder.is_relative_to(image_folder):
        images = [(name, path) for name, path in images if not path.is_relative_to(mask_folder)]
    ids = {normalized(name): name for name, _ in images}
    masks: dict[str, list[Path]] = {name: [] for name, _ in images}
    orphans = []
    for written, path in listed[mask_folder]:
        if _is_mask(path):
            owners = (ids.get(normalized(_id_in(pattern, written) or "")) for pattern in row.mask_names)
            if owner := next(filter(None, owners), None):
                masks[owner].append(path)
            elif any(_id_in(pattern, written) for pattern in row.mask_names):
                orphans.append(path)
    if row.is_beside:  # where all files look like images
        taken = {path for paths in masks.values() for path in paths}
        images = [(name, path) for name, path in images if path not in taken]
        named = {path for _, path in images}
        orphans = [path for path in orphans if path not in named]
    images = [(name, path) for name, path in images if masks[name] or row.is_whole]
    counts = Counter(normalized(name) for name, _ in images)
    return PairedFiles(
        row,
        dict(images),
        {name: masks[name] for name, _ in images},
        [path.relative_to(root).as_posix() for path in orphans],
        [name for name in counts if counts[name] > 1],
    )


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() in MASK_SUFFIXES


def _folder(root: Path, name: str) -> Path | None:
    """A folder below `root`, its name in any case."""
    folder = root
    for part in PurePath(name).parts:
        if not (folder / part).is_dir():
            alike = [path for path in folder.iterdir() if path.name.lower() == part.lower() and path.is_dir()]
            if len(alike) != 1:
                return None
            part = alike[0].name
        folder = folder / part
    return folder


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if is_visible(PurePath(name))]
        inside = Path(place).relative_to(folder)
        for name in names:
            if is_visible(PurePath(name)):
                yield (inside / name).with_suffix("").as_posix(), Path(place, name)


def _zero_filled(name: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(12), name)


def _id_in(pattern: str, name: str) -> str | None:
    """The id in a path, by a pattern of the table."""
    # Most paths are told without the expression, which takes long for many files and rows.
    if pattern == "{id}":
        return name
    lower = name.lower()
    if not all(literal in lower for literal in _literals(pattern)):
        return None
    found = _compiled(pattern).fullmatch(name)
    return found and found["folder"] + found["name"]


@lru_cache
def _literals(pattern: str) -> list[str]:
    return re.sub(r"\{\w+\}", "\n", pattern).lower().split()


@lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    before, after = map(re.escape, pattern.split("{id}", 1))
    for name, expression in (("id", "(?P=name)"), ("part", "[^/]+"), ("k", r"\d+")):
        after = after.replace(rf"\{{{name}\}}", expression)
    return re.compile(f"(?P<folder>(?:.+/)?){before}(?P<name>[^/]+){after}", re.IGNORECASE)


def _is_split(name: str) -> bool:
    return any(name.lower() in names for names in SPLIT_NAMES)


def _listed_splits(lists: list[Path], ids: list[str]) -> dict[str, str]:
    """Split by id; a line names an image, or a folder of images."""
    told: dict[str, str] = {}
    for path in lists:
        split = split_aliases(path.stem)[0]
        with refusing_damage(path):
            lines = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
        for name in ids:
            if (
                not lines.isdisjoint({name, *map(str, PurePosixPath(name).parents)})
                and told.setdefault(name, split) != split
            ):
                raise ValueError(f"{path} lists {name}, which is in the split {told[name]!r} too: leave one of them")
    return told
