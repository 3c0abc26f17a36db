"""Read folders of images with masks as records.

Layout, for `root`:

- `root/images/<id>.{png,jpg,tif,...}`, one image per id;
- `root/masks/`, in one of two forms:
    - label maps (`LabelMapFolder`): `<id>.png`, one number per pixel and object, 8 or 16 bit, palette
      allowed; or several maps of one image, `<id>_<k>.png`, for example one per annotator;
    - binary masks (`MaskFolder`): one file per object, `<id>/*.png` or `<id>_<k>.png` (or one `<id>.png`), 0
      and 255;
- `root/splits.csv`, optional, with the columns `id` and `split` ("val" is read as "validation"). Without it,
  a split that is asked for is drawn from a hash of the ids: about one in ten is "validation", the others are
  "train".

Images are shown upright (EXIF orientation applied), and masks have the size of the upright image.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset

from sam_hf.data.schema import (
    Record,
    SegmentedObject,
    filter_objects,
    objects_from_label_map,
    objects_from_masks,
    rgb_array,
)

__all__ = ["LabelMapFolder", "MaskFolder", "list_images", "list_masks"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Nothing lossy: JPEG turns the border of a mask into other labels.
MASK_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
SPLIT_ALIASES = {"val": "validation", "valid": "validation"}
# RLE objects are kept after the first read, for this many images: some 100 MB at 20 objects each.
MAX_CACHED_IMAGES = 10_000


class _ImageFolder(Dataset):
    """Pairs images with mask files and reads them lazily; subclasses say what a mask file means."""

    def __init__(
        self, root: str | Path, split: str | None = None, *, min_area: int = 10, max_share: float = 0.9
    ) -> None:
        """
        Args:
            root: folder with `images/` and `masks/`.
            split: name of a split, or None for all images.
            min_area: objects of fewer pixels are dropped.
            max_share: objects above this share of the image are dropped. 0.9 is SAM's; 0.6 suits maps that
                label every pixel, where the largest region is what others would call background.

        Raises:
            ValueError: if folders are absent, images lack masks or masks lack images, sizes differ, or the
                split is unknown or empty. Counts and first names are in the message.
        """
        self.root = Path(root)
        self.min_area = min_area
        self.max_share = max_share
        images = list_images(self.root)
        masks = self._pair(images)
        self.ids = sorted(images) if split is None else select_split(self.root, sorted(images), split)
        self._files = [(images[name], masks[name]) for name in self.ids]
        self._check_sizes()
        self._cache: dict[int, list[SegmentedObject]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        image_file, mask_files = self._files[index]
        objects = self._cache.get(index)
        if objects is None:
            objects = filter_objects(self._read_objects(mask_files), self.min_area, self.max_share)
            if len(self._cache) < MAX_CACHED_IMAGES:
                self._cache[index] = objects
        with Image.open(image_file) as image:
            pixels = Image.fromarray(rgb_array(ImageOps.exif_transpose(image)))
        return {"image": pixels, "objects": list(objects), "image_id": self.ids[index]}

    def _read_objects(self, mask_files: list[Path]) -> list[SegmentedObject]:
        raise NotImplementedError

    def _pair(self, images: dict[str, Path]) -> dict[str, list[Path]]:
        masks: dict[str, list[Path]] = {name: [] for name in images}
        orphans = []
        for path in list_masks(self.root):
            name = _owner(path.relative_to(self.root / "masks"), images)
            if name is None:
                orphans.append(str(path.relative_to(self.root)))
            else:
                masks[name].append(path)
        _refuse(self.root, "mask(s) belong to no file in images/", orphans)
        _refuse(self.root, "image(s) have no file in masks/", [name for name in masks if not masks[name]])
        return masks

    def _check_sizes(self) -> None:
        wrong = []
        for image_file, mask_files in self._files:
            image_size = _upright_size(image_file)
            for path in mask_files:
                with Image.open(path) as mask:
                    if mask.size != image_size:
                        wrong.append(f"{path.name} {mask.size} for an image of {image_size}")
        _refuse(self.root, "mask(s) differ from their image in (width, height)", wrong)


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
        min_area: int = 10,
        max_share: float = 0.9,
    ) -> None:
        """As for the base class, and:

        Args:
            background: the label that is no object; None when every label, 0 included, is one.
            variant: None for all maps of an image, or k for the k-th, counted modulo the number of maps it
                has.
        """
        self.background = background
        self.variant = variant
        super().__init__(root, split, min_area=min_area, max_share=max_share)

    def _read_objects(self, mask_files: list[Path]) -> list[SegmentedObject]:
        if self.variant is not None:
            mask_files = [mask_files[self.variant % len(mask_files)]]
        return [item for path in mask_files for item in objects_from_label_map(read_label_map(path), self.background)]


class MaskFolder(_ImageFolder):
    """Images with one file per mask, foreground from 128 up (so soft edges are cut in the middle)."""

    def _read_objects(self, mask_files: list[Path]) -> list[SegmentedObject]:
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
    counts = Counter(path.stem for path in files)
    _refuse(root, "id(s) name more than one image", [name for name in counts if counts[name] > 1])
    return {path.stem: path for path in files}


def list_masks(root: Path) -> list[Path]:
    """All mask files: those in `masks/` in the order of their numbers, then those in its sub-folders."""
    folder = root / "masks"
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [path for place in (folder, *folders) for path in _files_in(place, MASK_SUFFIXES)]
    if not files:
        raise ValueError(f"{folder} holds no mask; readable suffixes: {', '.join(MASK_SUFFIXES)}")
    return files


def read_label_map(path: Path) -> np.ndarray:
    """Read a label map as integers [H, W]; of a palette image the indices, not the colours."""
    with Image.open(path) as image:
        if len(image.getbands()) > 1 or image.mode == "F":
            raise ValueError(
                f"{path}: a label map has one integer per pixel, this file has mode {image.mode!r}. For one "
                "binary mask per file use MaskFolder; a colour picture of labels has to become numbers first"
            )
        return np.asarray(image)


def select_split(root: Path, ids: list[str], split: str) -> list[str]:
    """The ids of one split, by `splits.csv` or, without it, by hash (see the module's text).

    Raises:
        ValueError: if the table does not fit the images, or the split is unknown or empty.
    """
    table = root / "splits.csv"
    splits = _read_splits(table, ids) if table.is_file() else {name: _hash_split(name) for name in ids}
    chosen = [name for name in ids if splits[name] == SPLIT_ALIASES.get(split, split)]
    if not chosen:
        source = table if table.is_file() else f"{root} (no splits.csv: drawn by hash as train or validation)"
        raise ValueError(f"split {split!r} has no image; {source} gives {dict(Counter(splits.values()))}")
    return chosen


def _read_splits(table: Path, ids: list[str]) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"id", "split"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} must have the columns id and split, it has {reader.fieldnames}")
        splits = {row["id"]: SPLIT_ALIASES.get(row["split"], row["split"]) for row in reader}
    _refuse(table.parent, "id(s) in splits.csv have no image", sorted(set(splits) - set(ids)))
    _refuse(table.parent, "image(s) are not in splits.csv", sorted(set(ids) - set(splits)))
    return splits


def _hash_split(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def _read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        values = np.asarray(image if image.mode in ("1", "I", "F") else image.convert("L"))
    if values.dtype == bool:
        return values
    if 0 < values.max() < 128:
        raise ValueError(
            f"{path}: a binary mask has the values 0 and 255, the maximum here is {values.max()}; "
            "multiply it by 255, or use LabelMapFolder if the values are labels"
        )
    return values >= 128


def _owner(path: Path, images: Container[str]) -> str | None:
    """Image id of a file below `masks/`: its sub-folder, its stem, or its stem without `_<k>`."""
    if len(path.parts) > 1:
        return path.parts[0] if path.parts[0] in images else None
    if path.stem in images:
        return path.stem
    stem = re.sub(r"_\d+$", "", path.stem)
    return stem if stem in images else None


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of these kinds, hidden ones left out, `a_2` before `a_10`."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    return sorted(files, key=lambda path: re.sub(r"\d+", lambda number: number[0].zfill(12), path.name))


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.size[::-1] if turned else image.size


def _refuse(root: Path, what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{root}: {len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
