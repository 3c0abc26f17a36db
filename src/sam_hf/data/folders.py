"""Read folders of images with masks as records.

Layout, for `root`:

- `root/images/<id>.{png,jpg,tif,...}`, one image per id;
- `root/masks/`, in one of two forms:
    - label maps (`LabelMapFolder`): `<id>.png`, one number per pixel and object, 8 or 16 bit, palette
      allowed; or several maps of one image, `<id>_<k>.png`, for example one per annotator;
    - binary masks (`MaskFolder`): one file per object, `<id>/*.png` or `<id>_<k>.png` (or one `<id>.png`), 0
      and 255;
- `root/splits.csv`, optional: see `sam_hf.data.splits`.

Images are shown upright (EXIF orientation applied), and masks have the size of the upright image.
"""

import re
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .listing import glob_visible, normalized, visible_folders
from .reader import IMAGE_SUFFIXES, UNREADABLE, ImageSource, RecordReader, unreadable
from .schema import SegmentedObject, objects_from_label_map, objects_from_masks
from .splits import Problems, refuse, select_split

__all__ = ["LabelMapFolder", "MaskFolder", "list_images", "list_masks"]

# Nothing lossy: JPEG turns the border of a mask into other labels.
MASK_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")


class _ImageFolder(RecordReader):
    """Pairs images with mask files and reads them lazily; subclasses say what a mask file means."""

    def __init__(self, root: str | Path, split: str | None = None, *, strict: bool = True, **filters: Any) -> None:
        """
        Args:
            root: folder with `images/` and `masks/`.
            split: name of a split, or None for all images.
            strict: whether images without masks, masks without images and masks of another size are an error; else
                they are left out and listed in `problems`.
            filters: see `ObjectFilter`.

        Raises:
            ValueError: if folders are absent, files do not fit (`strict`), or the split is unknown or empty. Counts
                and first names are in the message.
        """
        root = Path(root)
        images = list_images(root)
        masks, problems = _pair(root, images)
        usable = images if strict else {name for name in images if masks[name]}
        ids = select_split(root, sorted(images), split, problems, usable=usable)
        ids = [name for name in ids if name in usable]
        wrong = {name: faults for name in ids if (faults := _wrong_sizes(images[name], masks[name]))}
        problems["mask(s) differ from their image in (width, height)"] = list(chain(*wrong.values()))
        super().__init__(root, [name for name in ids if name not in wrong], problems, strict, **filters)
        self._files = [(images[name], masks[name]) for name in self.ids]

    def image_source(self, index: int) -> ImageSource:
        return ImageSource(self._files[index][0])

    def read_objects(self, index: int) -> list[SegmentedObject]:
        return self._decode(self._files[index][1])

    def places(self) -> list[Path]:
        """The file of the image of each record."""
        return [image.resolve() for image, _ in self._files]

    def _decode(self, mask_files: list[Path]) -> list[SegmentedObject]:
        raise NotImplementedError


class LabelMapFolder(_ImageFolder):
    """Images with label maps: every label except `background` is an object.

    Several maps of an image make one record with the objects of all of them, as SA-1B has whole and part side
    by side. `variant` picks one map instead, for evaluation against a single annotator.

    `background=0` is also right for maps that have no background value, as long as they do not use 0: in such
    a map every label is an object.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        background: int | None = 0,
        variant: int | None = None,
        **options: Any,
    ) -> None:
        """As for the base class, and:

        Args:
            background: the label that is no object; None when every label, 0 included, is one.
            variant: None for all maps of an image, or k for the k-th, counted modulo the number of maps it
                has.
        """
        self.background = background
        self.variant = variant
        super().__init__(root, split, **options)

    def _decode(self, mask_files: list[Path]) -> list[SegmentedObject]:
        if self.variant is not None:
            mask_files = [mask_files[self.variant % len(mask_files)]]
        return [item for path in mask_files for item in objects_from_label_map(read_label_map(path), self.background)]


class MaskFolder(_ImageFolder):
    """Images with one file per mask, foreground from 128 up (so soft edges are cut in the middle)."""

    def _decode(self, mask_files: list[Path]) -> list[SegmentedObject]:
        return [item for path in mask_files for item in objects_from_masks(_read_mask(path)[None])]


def list_images(root: Path) -> dict[str, Path]:
    """Map id (file name without suffix) to image file.

    Raises:
        ValueError: if there is no image or one id has two files.
    """
    if not (root / "images").is_dir() or not (root / "masks").is_dir():
        found = sorted(path.name for path in root.iterdir())[:10] if root.is_dir() else "no such folder"
        raise ValueError(f"{root} must hold the folders images/ and masks/, found: {found}")
    files = _files_in(root / "images", IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{root / 'images'} holds no image; readable suffixes: {', '.join(IMAGE_SUFFIXES)}")
    counts = Counter(normalized(path.stem) for path in files)
    refuse(root, {"id(s) name more than one image": [name for name in counts if counts[name] > 1]})
    return {path.stem: path for path in files}


def list_masks(root: Path) -> list[Path]:
    """All mask files: those in `masks/` in the order of their numbers, then those in its sub-folders."""
    folder = root / "masks"
    files = [path for place in (folder, *visible_folders(folder)) for path in _files_in(place, MASK_SUFFIXES)]
    if not files:
        raise ValueError(f"{folder} holds no mask; readable suffixes: {', '.join(MASK_SUFFIXES)}")
    return files


@contextmanager
def _decoded(path: Path) -> Iterator[Image.Image]:
    """A mask file as a whole; one that is damaged is an OSError that names it."""
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except UNREADABLE as error:
        raise unreadable(str(path), error) from error


def read_label_map(path: Path) -> np.ndarray:
    """Read a label map as integers [H, W]; of a palette image the indices, not the colours."""
    with _decoded(path) as image:
        if len(image.getbands()) > 1 or image.mode == "F":
            raise ValueError(
                f"{path}: a label map has one integer per pixel, this file has mode {image.mode!r}. For one "
                "binary mask per file use MaskFolder; a colour picture of labels has to become numbers first"
            )
        return np.asarray(image)


def _read_mask(path: Path) -> np.ndarray:
    with _decoded(path) as image:
        values = np.asarray(image if image.mode in ("1", "I", "F") else image.convert("L"))
    if values.dtype == bool:
        return values
    if 0 < values.max() < 128:
        raise ValueError(
            f"{path}: a binary mask has the values 0 and 255, the maximum here is {values.max()}; "
            "multiply it by 255, or use LabelMapFolder if the values are labels"
        )
    return values >= 128


def _pair(root: Path, images: dict[str, Path]) -> tuple[dict[str, list[Path]], Problems]:
    """The mask files of every image, and the files that have no partner."""
    masks: dict[str, list[Path]] = {name: [] for name in images}
    orphans = []
    ids = {normalized(name): name for name in images}
    for path in list_masks(root):
        name = ids.get(_owner(path.relative_to(root / "masks"), ids) or "")
        if name is None:
            orphans.append(str(path.relative_to(root)))
        else:
            masks[name].append(path)
    return masks, {
        "mask(s) belong to no file in images/": orphans,
        "image(s) have no file in masks/": [name for name in masks if not masks[name]],
    }


def _wrong_sizes(image_file: Path, mask_files: list[Path]) -> list[str]:
    """Masks of another size than their image; what cannot be opened is left to whoever reads it."""
    wrong = []
    try:
        size = ImageSource(image_file).read_size()[::-1]
        for path in mask_files:
            with Image.open(path) as mask:
                if mask.size != size:
                    wrong.append(f"{path.name} {mask.size} for an image of {size}")
    except UNREADABLE:
        pass
    return wrong


def _owner(path: Path, images: Container[str]) -> str | None:
    """Normalized image id of a file below `masks/`: its sub-folder, its stem, or its stem without `_<k>`."""
    name = normalized(path.parts[0] if len(path.parts) > 1 else path.stem)
    if len(path.parts) == 1 and name not in images:
        name = re.sub(r"_\d+$", "", name)
    return name if name in images else None


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these kinds, hidden ones left out, `a_2` before `a_10`."""
    files = [path for path in glob_visible(folder, "*") if path.suffix.lower() in suffixes]
    return sorted(files, key=lambda path: re.sub(r"\d+", lambda number: number[0].zfill(12), path.name))
