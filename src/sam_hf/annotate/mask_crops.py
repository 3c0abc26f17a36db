"""Masks as crops with run lengths, the form of the page and of files; see `page/masks.js`.

`{"box": [x, y, width, height], "runs": [...]}`: what lies outside of the box is background. The runs are of 0 and 1 in
turn, down the columns of the box, as COCO's are of an image.
"""

from typing import Any, TypeGuard

import numpy as np
from pycocotools import mask as coco

MaskCrop = dict[str, list[int]]


def encode_crop(mask: np.ndarray) -> MaskCrop:
    """The crop of a mask, bool [H, W]."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not rows.size:
        return {"box": [0, 0, 0, 0], "runs": [0]}
    y, x, height, width = int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    values = mask[y : y + height, x : x + width].T.ravel()
    ends = [0] * bool(values[0]) + [*(np.flatnonzero(values[1:] != values[:-1]) + 1), values.size]
    return {"box": [x, y, width, height], "runs": np.diff(ends, prepend=0).tolist()}


def decode_crop(crop: Any, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a crop is in an image of (height, width) `size`, and what is there, bool [h, w].

    Raises:
        ValueError: if it is no crop of such an image.
    """
    box, runs = map(crop.get, ("box", "runs")) if isinstance(crop, dict) else (None, None)
    if not _are_counts(box) or not _are_counts(runs) or len(box) != 4:
        raise ValueError(
            f'a mask is {str(crop)[:80]}, expected {{"box": [x, y, width, height], "runs": [...]}} of whole numbers'
        )
    x, y, width, height = box
    if x + width > size[1] or y + height > size[0] or sum(runs) != width * height:
        raise ValueError(
            f"a mask has the box {box} and runs of {sum(runs)} pixels, expected a box in the image, which is "
            f"{size[1]} x {size[0]}, and runs of all its {width * height} pixels"
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return (slice(y, y + height), slice(x, x + width)), values.reshape(width, height).T


def decode_mask(crop: MaskCrop, size: tuple[int, int]) -> np.ndarray:
    """The whole mask, bool [H, W]; raises what `decode_crop` does."""
    mask = np.zeros(size, dtype=bool)
    place, values = decode_crop(crop, size)
    mask[place] = values
    return mask


def coco_annotation(crop: MaskCrop, size: tuple[int, int]) -> dict[str, Any]:
    """`segmentation`, `area` and `bbox` as COCO has them."""
    rle = coco.encode(np.asfortranarray(decode_mask(crop, size), dtype=np.uint8))
    return {
        "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
        "area": sum(crop["runs"][1::2]),
        "bbox": crop["box"],
    }


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


__all__ = ["MaskCrop", "coco_annotation", "decode_crop", "decode_mask", "encode_crop"]
