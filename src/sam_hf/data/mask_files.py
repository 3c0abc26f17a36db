"""Mask files to values: one integer per pixel, whatever the format, upright, of one page; and values to objects."""

import io
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..image_files import decode_image, frame_sizes
from .mask_meaning import Evidence, Meaning, described, evidence_of
from .reader import UNREADABLE, unreadable
from .schema import SegmentedObject, objects_from_label_map

__all__ = ["MASK_SUFFIXES", "binary_mask", "label_map_objects", "mask_size", "read_mask_values"]

MASK_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".npz", ".png", ".tif", ".tiff")
ARRAY_MAGIC, ZIP_MAGIC, JPEG_MAGIC = b"\x93NUMPY", b"PK", b"\xff\xd8\xff"
BLACK_AND_WHITE = ([0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0])
# A RuntimeError is of a member that has a password, or is packed in a way that Python does not know.
DAMAGED = (*UNREADABLE, zipfile.BadZipFile, zlib.error, RuntimeError)
HALF_OF_16_BITS = 1 << 15


def read_mask_values(source: Path | bytes, meaning: Meaning | None = None) -> np.ndarray:
    """The values of a mask file as they are.

    Of a palette image these are the indices, unless its colours are black and white. JPEG changes values, so that only
    binary masks survive it: they are given as 0 and 255.

    Args:
        source: a file of `MASK_SUFFIXES`, or its content; the content tells the format.
        meaning: of the mask, if it is known: labels in a JPEG file are refused unseen, and a binary mask is just cut.

    Returns:
        Integers [H, W], upright.

    Raises:
        OSError: if the file is absent or damaged.
        ValueError: if it has colours, several pages or several arrays, or values that are no whole numbers; or is
            JPEG, but not of a binary mask. Both name the file.
    """
    name = _name_of(source)
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        if content.startswith((ARRAY_MAGIC, ZIP_MAGIC)):
            return _whole_numbers(_read_array(content))
        values = _whole_numbers(_decoded(content))
        return _without_loss(values, meaning) if content.startswith(JPEG_MAGIC) else values
    except DAMAGED as error:
        raise unreadable(name, error) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def binary_mask(values: np.ndarray) -> np.ndarray:
    """Foreground of a binary mask, bool [H, W]: 1 of 0 and 1, else the upper half of 8 or 16 bits.

    Raises:
        ValueError: if the values are in no such range.
    """
    low, top = int(values.min()), int(values.max())
    if low >= 0 and (top in (0, 1) or 128 <= top <= 255):
        return values >= (1 if top == 1 else 128)
    if low >= 0 and HALF_OF_16_BITS <= top < 2 * HALF_OF_16_BITS:
        return values >= HALF_OF_16_BITS
    raise ValueError(
        f"a binary mask has the values 0 and 1, 0 and 255, or 0 and 65535, this one has {described(values)}; multiply "
        'it, or say masks="labels" (--masks labels) if they are labels'
    )


def label_map_objects(
    values: np.ndarray,
    background: int | None = 0,
    ignored: frozenset[int] = frozenset(),
    smallest: int | None = None,
) -> list[SegmentedObject]:
    """Every label of a label map as an object, in the order of the labels.

    Args:
        values: integers [H, W].
        background: the label that is no object; None when every label is one.
        ignored: labels of regions to ignore (`iscrowd`).
        smallest: labels below it, if they are not `ignored`, are no objects either.
    """
    if smallest is None and not ignored:
        return objects_from_label_map(values, background)
    labels = np.unique(values)
    is_kept = np.isin(labels, list(ignored))
    is_kept |= (labels != background) & (smallest is None or labels >= smallest)
    numbers = np.zeros(len(labels), dtype=np.int64)
    numbers[is_kept] = np.arange(1, is_kept.sum() + 1)
    objects = objects_from_label_map(numbers[np.searchsorted(labels, values)])
    kept = labels[is_kept].tolist()
    return [{**item, "iscrowd": int(label in ignored)} for item, label in zip(objects, kept, strict=True)]


def mask_size(path: Path) -> tuple[int, int]:
    """(height, width) of a mask file, upright, from its head.

    Raises:
        OSError: if it is absent or no such file.
        ValueError: if it is no array [H, W].
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _array_size(_array_shape(file))
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive, archive.open(_only_array(archive)) as member:
                return _array_size(_array_shape(member))
        with Image.open(path) as image:
            return frame_sizes(image)[0]
    except DAMAGED as error:
        raise unreadable(str(path), error) from error


def _name_of(source: Path | bytes) -> str:
    return "mask" if isinstance(source, bytes) else str(source)


def _decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as header:
        frames = getattr(header, "n_frames", 1)
        if header.format != "TIFF" and frames > 1:
            raise ValueError(f"the file has {frames} frames, expected one: save each as a mask of its own")
    image = decode_image(content)
    if isinstance(image, Image.Image):
        if image.mode == "P":
            return _palette_values(image)
        if image.mode == "YCbCr":
            image = image.convert("RGB")
    return _one_channel(np.asarray(image), image.mode if isinstance(image, Image.Image) else "RGB;16", content)


def _palette_values(image: Image.Image) -> np.ndarray:
    indices = np.asarray(image)
    is_black_and_white = indices.max() <= 1 and (image.getpalette("RGB") or [])[:6] in BLACK_AND_WHITE
    return np.asarray(image.convert("L")) if is_black_and_white else indices


def _one_channel(pixels: np.ndarray, mode: str, content: bytes) -> np.ndarray:
    """A picture with equal channels is a grey one."""
    if pixels.ndim == 2:
        return pixels
    colours, alpha = (pixels[..., :1], pixels[..., 1:]) if mode == "LA" else (pixels[..., :3], pixels[..., 3:])
    # JPEG stores colours beside the light, each with its own loss.
    tolerance = 3 if content.startswith(JPEG_MAGIC) else 0
    if mode == "CMYK" or (np.ptp(colours.astype(np.int32), axis=-1) > tolerance).any():
        raise ValueError(
            f"a mask has one number per pixel, this file has colours (mode {mode!r}): a colour picture of labels has "
            "to become numbers first"
        )
    if alpha.size and alpha.min() != alpha.max() and colours.min() == colours.max():
        raise ValueError(f"the mask is in the alpha channel of the file (mode {mode!r}): save that alone")
    return pixels[..., 0]


def _whole_numbers(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)  # PIL keeps 255 in it
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all()):
            raise ValueError(
                f"a mask holds whole numbers, this one has fractions or NaN among its {pixels.dtype} values: cut "
                "probabilities, such as by values > 0.5, and save that"
            )
        return pixels.astype(np.int64)
    if pixels.dtype.kind not in "iu":
        raise ValueError(f"a mask holds whole numbers, this one is of dtype {pixels.dtype}")
    return pixels


def _without_loss(values: np.ndarray, meaning: Meaning | None) -> np.ndarray:
    top = int(values.max())
    is_black = top < 128 and top == values.min()  # one value where there is no border, if not always 0
    is_cut = top >= 128 if meaning == "binary" else evidence_of(values, lossy=True) is Evidence.BINARY
    if meaning == "labels" or not (is_black or is_cut):
        raise ValueError(
            f"JPEG changes values, so that it can hold a binary mask of 0 and 255, but no labels; here are "
            f"{described(values)}. Save masks as PNG, from where they were made"
        )
    return np.where(values >= 128, np.uint8(255), np.uint8(0))


def _read_array(content: bytes) -> np.ndarray:
    """An array of a .npy or .npz file; what its head says is judged before any memory is taken."""
    if content.startswith(ARRAY_MAGIC):
        _array_size(_array_shape(io.BytesIO(content)))
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = _only_array(archive)
            with archive.open(name) as member:
                _array_size(_array_shape(member))
            with archive.open(name) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
    return array.reshape(_array_size(array.shape))


def _only_array(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if len(names) != 1:
        found = ", ".join(Path(name).stem for name in names[:5]) or "none"
        raise ValueError(f"a mask is one array, the file has {len(names)}: {found}; save one alone")
    return names[0]


def _array_shape(file: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, dtype = readers.get(version, np.lib.format.read_array_header_2_0)(file)
    except Exception as error:  # it is an expression of Python, which can be wrong in many ways
        raise ValueError(f"the head of the array is damaged: {error}") from error
    if dtype.hasobject:
        raise ValueError(
            "the array holds Python objects, which are not read as they could run code; for a _seg.npy of Cellpose "
            "save the masks as PNG or TIFF there"
        )
    return tuple(shape)


def _array_size(shape: tuple[int, ...]) -> tuple[int, int]:
    sides = shape
    if len(sides) == 3 and 1 in (sides[0], sides[-1]):
        sides = sides[1:] if sides[0] == 1 else sides[:-1]
    limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # as of pictures
    if len(sides) != 2 or not 0 < math.prod(sides) <= limit:
        raise ValueError(f"a mask is an array [H, W] of at most {limit:.0f} values, this one is {list(shape)}")
    return sides[0], sides[1]
