"""Read folders of images with masks as records.

How files lie and how their names go together is a row of `sam_hf.data.layouts`, such as

- `images/<id>.{png,jpg,tif,...}`, one image per id, which may lie in sub-folders;
- `masks/`, in one of two forms:
    - label maps (`LabelMapFolder`): `<id>.png`, one number per pixel and object, 8 or 16 bit, palette
      allowed; or several maps of one image, `<id>_<k>.png`, for example one per annotator;
    - binary masks (`MaskFolder`): one file per object, `<id>/*.png` or `<id>_<k>.png` (or one `<id>.png`), 0
      and 255, or 0 and 1;
- `splits.csv`, optional: see `sam_hf.data.splits`.

Which files hold masks, and how, is in `sam_hf.data.mask_files`; what they mean in `sam_hf.data.mask_meaning`. Images
are shown upright (EXIF orientation applied) unless `exif` says else, and masks have the size of the image.
"""

from collections import Counter
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..image_files import frame_sizes, orientation
from .layouts import PairedFiles, find_layout, told_splits
from .listing import normalized
from .mask_files import MASK_SUFFIXES, binary_mask, label_map_objects, mask_size, read_mask_values
from .mask_meaning import MaskMeaning, Meaning, guess_meaning, stated_meaning
from .reader import IMAGE_SUFFIXES, UNREADABLE, ImageSource, RecordReader
from .schema import SegmentedObject, objects_from_masks
from .splits import Problems, refuse, select_split, split_aliases, splits_table

__all__ = ["LabelMapFolder", "MaskFolder", "open_folder"]

# Options of label maps alone.
LABEL_OPTIONS = ("background", "ignore_label", "variant")


class _ImageFolder(RecordReader):
    """Pairs images with mask files and reads them lazily; subclasses say what a mask file means."""

    kind: Meaning

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        strict: bool = True,
        images: str | Path | None = None,
        layout: str | PairedFiles | None = None,
        masks: MaskMeaning | None = None,
        **filters: Any,
    ) -> None:
        """
        Args:
            root: folder with `images/` and `masks/`, or in another of `LAYOUTS`.
            split: name of a split, or None for all images.
            strict: whether images without masks, masks without images and masks of another size are an error; else
                they are left out and listed in `problems`. Images without masks are no problem then, but not annotated
                yet, as long as there is no mask without an image, which would tell that names do not fit.
            images: folder of the images, in `root` or elsewhere, if its name is not that of a layout.
            layout: name of a row of `LAYOUTS`, if several fit, or what `find_layout` has found.
            masks: what proved the meaning of masks, if the class is a guess; a mask that contradicts is an error.
            filters: see `ObjectFilter`, and `exif` of `RecordReader`.

        Raises:
            ValueError: if folders are absent, files do not fit (`strict`), or the split is unknown or empty. Counts
                and first names are in the message.
        """
        root = Path(root)
        files = _paired(root, images, layout)
        self.layout = files.layout
        self.meaning = masks or MaskMeaning(self.kind)
        problems = _without_partner(files)
        waiting = [] if strict or files.orphans else problems.pop(_without_mask(files))
        usable = files.images if strict else {name for name in files.images if files.masks[name]}
        ids, told_by = _select(root, files, split, problems, usable)
        exif = filters.get("exif")
        looks = {name: _look(files, name, exif) for name in ids if name in usable}
        problems["mask(s) differ from their image in (width, height)"] = [
            fault for look in looks.values() for fault in look.wrong
        ]
        super().__init__(root, [name for name in looks if not looks[name].wrong], problems, strict, **filters)
        self._sources = [ImageSource(files.images[name], looks[name].size) for name in self.ids]
        self._masks = [files.masks[name] for name in self.ids]
        # Several label maps of an image are several opinions.
        self.names_every_object = self.kind == "binary" or all(len(masks) == 1 for masks in self._masks)
        self.guesses["layout"] = self.layout.name
        if waiting:
            self.guesses["images without masks"] = f"{len(waiting)} of {len(files.images)}, taken as not annotated yet"
        if masks is not None:
            self.guesses["masks"] = masks.text()
        if split is not None:
            self.guesses["split"] = told_by
        if any(looks[name].hides_frame for name in self.ids):
            others = {name: looks.get(name) or _look(files, name, exif) for name in sorted(usable)}
            self.settle_frame((name, ImageSource(files.images[name], look.size)) for name, look in others.items())

    def image_source(self, index: int) -> ImageSource:
        return self._sources[index]

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return [item for path in self._mask_files(index) for item in self._objects(self._read(path))]

    def places(self) -> list[Path]:
        """The file of the image of each record."""
        return [source.file.resolve() for source in self._sources if isinstance(source.file, Path)]

    def _mask_files(self, index: int) -> list[Path]:
        return self._masks[index]

    def _read(self, path: Path) -> np.ndarray:
        values = read_mask_values(path, None if self.meaning.proof else self.kind)
        self.meaning.check(str(path), values)
        return values

    def _objects(self, values: np.ndarray) -> list[SegmentedObject]:
        raise NotImplementedError


class LabelMapFolder(_ImageFolder):
    """Images with label maps: every label except `background` is an object.

    Several maps of an image make one record with the objects of all of them, as SA-1B has whole and part side
    by side. `variant` picks one map instead, for evaluation against a single annotator.

    `background=0` is also right for maps that have no background value, as long as they do not use 0: in such
    a map every label is an object.
    """

    kind = "labels"

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        background: int | None = 0,
        ignore_label: int | None = None,
        variant: int | None = None,
        **options: Any,
    ) -> None:
        """As for the base class, and:

        Args:
            background: the label that is no object; None when every label, 0 included, is one.
            ignore_label: the label of a region to ignore, such as 255 for void; those of the layout are known.
            variant: None for all maps of an image, or k for the k-th, counted modulo the number of maps it
                has.
        """
        self.background = background
        self.ignore_label = ignore_label
        self.variant = variant
        super().__init__(root, split, **options)

    def _mask_files(self, index: int) -> list[Path]:
        files = super()._mask_files(index)
        return files if self.variant is None else [files[self.variant % len(files)]]

    def _objects(self, values: np.ndarray) -> list[SegmentedObject]:
        ignored = self.layout.ignored | ({self.ignore_label} if self.ignore_label is not None else set())
        return label_map_objects(values, self.background, ignored, self.layout.smallest)


class MaskFolder(_ImageFolder):
    """Images with one file per mask, foreground from the middle of the range up (so soft edges are cut in the
    middle)."""

    kind = "binary"

    def _objects(self, values: np.ndarray) -> list[SegmentedObject]:
        return objects_from_masks(binary_mask(values)[None])


def open_folder(
    root: Path,
    split: str | None = None,
    *,
    masks: str | None = None,
    images: str | Path | None = None,
    layout: str | None = None,
    **options: Any,
) -> LabelMapFolder | MaskFolder:
    """A folder in one of `LAYOUTS`, by the reader for what its masks mean.

    Args:
        root, split, images, layout, options: as for `LabelMapFolder` and `MaskFolder`.
        masks: "labels" or "binary"; None for what the layout tells, or else the values of the masks.

    Raises:
        ValueError: as those readers, and if masks contradict each other or prove no meaning.
    """
    if masks is None and options.get("ignore_label") is not None:
        masks = "labels"  # as binary masks have no label
    files = _paired(root, images, layout)
    meaning = _meaning_of(root, files, options) if masks is None else stated_meaning(masks)
    wrong = [name for name in LABEL_OPTIONS if name in options] if meaning.kind == "binary" else []
    if wrong:
        raise ValueError(
            f"{root}: {wrong[0]} is an option of label maps, but these masks are {meaning.text()}. Leave it out, or "
            'say masks="labels" (--masks labels)'
        )
    reader = MaskFolder if meaning.kind == "binary" else LabelMapFolder
    return reader(root, split, layout=files, masks=meaning, **options)


class _Look(NamedTuple):
    """What the heads of files tell of an image and its masks.

    Args:
        wrong: masks of another size than the image.
        size: (height, width) of the masks, if EXIF turns the image, so that it tells for which frame they are made.
        hides_frame: whether it does not tell.
    """

    wrong: list[str]
    size: tuple[int, int] | None
    hides_frame: bool


def _look(files: PairedFiles, name: str, exif: str | None) -> _Look:
    """What cannot be opened is left to whoever reads it."""
    try:
        with Image.open(files.images[name]) as image:
            shown, stored = frame_sizes(image)
            is_turned = orientation(image) != 1
        sizes = {path: mask_size(path) for path in files.masks[name]}
    except (*UNREADABLE, ValueError):
        return _Look([], None, False)
    frames = {"shown": [shown], "stored": [stored]}.get(exif or "", [shown, stored])
    # All masks of an image are made for one frame.
    expected = next((size for size in frames if size in sizes.values()), frames[0])
    named = {path: f"{path.name} {size[::-1]} for an image of {expected[::-1]}" for path, size in sizes.items()}
    wrong = [named[path] for path, size in sizes.items() if size != expected]
    return _Look(wrong, expected if is_turned else None, is_turned and shown == stored)


def _meaning_of(root: Path, files: PairedFiles, options: dict[str, Any]) -> MaskMeaning:
    if files.layout.meaning is not None:
        return MaskMeaning(files.layout.meaning, source=f"as in {files.layout.name}")
    pairs = [(name, path) for name, paths in files.masks.items() for path in paths]
    values = options.get("background", 0), options.get("ignore_label")
    nothing = tuple(value for value in values if value is not None)
    folder = next((path.parent.relative_to(root) for name, path in pairs if _is_of_one(path, name)), None)
    if folder is not None:
        return MaskMeaning("binary", f"{folder.as_posix()}/, a folder of masks for one image", nothing)
    names = [path.relative_to(root).as_posix() for _, path in pairs]
    return guess_meaning(names, lambda number: read_mask_values(pairs[number][1]), nothing)


def _is_of_one(path: Path, name: str) -> bool:
    """Whether a mask lies in a folder with the name of its image."""
    parts = PurePosixPath(normalized(name)).parts
    own = tuple(map(normalized, path.with_suffix("").parts))
    return own[-1 - len(parts) : -1] == parts and own[-len(parts) :] != parts


def _paired(root: Path, images: str | Path | None, layout: str | PairedFiles | None) -> PairedFiles:
    """The files of a folder, walked through once."""
    if isinstance(layout, PairedFiles):
        return layout
    files = find_layout(root, images, layout)
    _refuse_lack(root, files)
    return files


def _refuse_lack(root: Path, files: PairedFiles) -> None:
    layout = files.layout
    if not files.images:
        raise ValueError(
            f"{root / layout.image_folder} holds no image of the layout {layout.name}; readable suffixes: "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    if not (files.num_paired or files.orphans):
        raise ValueError(
            f"{root / layout.mask_folder} holds no mask of the layout {layout.name}; readable suffixes: "
            f"{', '.join(MASK_SUFFIXES)}"
        )
    stems = Counter(path.with_suffix("") for paths in files.masks.values() for path in paths)
    copies = [stem.relative_to(root).as_posix() for stem, count in stems.items() if count > 1]
    refuse(root, {"id(s) name more than one image": files.doubles})
    refuse(root, {"mask(s) are there in several formats, of which one should be kept": copies})


def _without_partner(files: PairedFiles) -> Problems:
    return {
        f"mask(s) belong to no file in {_folder_name(files.layout.image_folder)}": files.orphans,
        _without_mask(files): [name for name in files.masks if not files.masks[name]],
    }


def _without_mask(files: PairedFiles) -> str:
    return f"image(s) have no file in {_folder_name(files.layout.mask_folder)}"


def _folder_name(name: str) -> str:
    return f"{name}/" if name else "the folder"


def _select(
    root: Path, files: PairedFiles, split: str | None, problems: Problems, usable: Container[str]
) -> tuple[list[str], str]:
    """The ids of a split, and what told them: `splits.csv`, else the layout or names of folders, else a hash."""
    names = sorted(files.images)
    has_table = splits_table(root) is not None
    told, told_by = told_splits(root, files) if split and not has_table else ({}, "")
    if not split or not told:
        told_by = "splits.csv" if has_table else "drawn by a hash of the ids, about one in ten for validation"
        return select_split(root, names, split, problems, usable=usable), told_by
    wanted, found = split_aliases(split)[0], {*told.values()}
    if wanted in found and (wanted != "train" or "validation" in found):
        return [name for name in names if told.get(name) == wanted], told_by
    if wanted in ("train", "validation") and "train" in found:
        names = [name for name in names if told.get(name) == "train"]
        told_by = f"{told_by}, where none is for validation: about one in ten of train is, by a hash of the ids"
        return select_split(root, names, split, problems, usable=usable), told_by
    raise ValueError(f"split {split!r} has no image: {root} has {', '.join(sorted(found))}, by {told_by}")
