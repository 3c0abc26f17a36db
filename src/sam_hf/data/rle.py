"""COCO's three ways to write a mask, polygons and two run-length encodings (RLE), brought to the compressed RLE."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

__all__ = ["check_pixels", "check_segmentation", "encode_segmentation", "rle_fault", "run_lengths"]


def encode_segmentation(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Bring the `segmentation` of a COCO annotation to compressed RLE; no mask is decoded.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...] in pixels, whose union is the mask; or `{"size",
            "counts"}` with counts as a list of run lengths or as compressed string. Polygons of fewer than three
            points cover nothing; without any other the mask is empty.
        size: (height, width) of the image.

    Raises:
        ValueError: if it is none of these, or does not belong to an image of that size. The runs of compressed
            counts are not added up here, but where they are decoded: see `rle_fault`.
    """
    check_pixels(size)
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, size)
    if isinstance(segmentation, list | tuple):
        return _from_polygons(segmentation, size)
    raise ValueError(
        "segmentation must be polygons [[x1, y1, x2, y2, ...], ...] or RLE {'size', 'counts'}, got "
        f"{str(segmentation)[:60]}"
    )


def check_segmentation(segmentation: Any, size: tuple[int, int]) -> None:
    """Raise the ValueError of `encode_segmentation`, without drawing polygons, which takes long."""
    if isinstance(segmentation, list | tuple):
        check_pixels(size)
        list(_polygons(segmentation, size))
    else:
        encode_segmentation(segmentation, size)


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse an annotation whose image would have more pixels than are read, before memory is taken for them.

    Raises:
        ValueError: if (height, width) `size` is above twice `PIL.Image.MAX_IMAGE_PIXELS`, or not positive.
    """
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)
    if min(size) < 1 or size[0] * size[1] > limit:
        raise ValueError(
            f"an image of (height, width) {list(size)} is expected to have 1 to {limit} pixels; correct the size in "
            "the annotation, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def rle_fault(rle: Any, size: Sequence[int]) -> str | None:
    """What is wrong with a compressed RLE as a mask of an image of (height, width) `size`, or None.

    pycocotools decodes too short a string without complaint and leaves the rest of the mask uninitialised.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= set(rle):
        return f"segmentation must be a COCO RLE {{'size', 'counts'}}, got {str(rle)[:60]}"
    if list(rle["size"]) != list(size):
        return f"mask size {list(rle['size'])} differs from image size {list(size)} (height, width)"
    if not isinstance(rle["counts"], str | bytes):
        return "counts must be a compressed RLE string; convert a list with pycocotools.mask.frPyObjects"
    runs = run_lengths(rle["counts"])
    if runs is None or runs.sum() != size[0] * size[1] or runs.min() < 0:
        covered = "no whole number" if runs is None else int(runs.sum())
        return f"malformed RLE: its runs cover {covered} of {size[0] * size[1]} pixels"
    return None


def _from_runs(rle: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    counts = rle.get("counts")
    if list(rle.get("size", ())) != list(size):
        raise ValueError(f"RLE has the size {rle.get('size')}, its image has (height, width) {list(size)}")
    if isinstance(counts, str | bytes):
        return {"size": list(size), "counts": counts if isinstance(counts, str) else counts.decode("ascii")}
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or runs.min() < 0 or runs.sum() != size[0] * size[1]:
        raise ValueError(
            f"RLE counts must be run lengths that add up to {size[0] * size[1]} pixels, got {str(counts)[:60]}"
        )
    encoded = coco.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def _from_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> dict[str, Any]:
    # Four numbers would be taken for a box.
    drawn = [polygon for polygon in _polygons(polygons, size) if len(polygon) >= 6]
    if not drawn:
        return {"size": list(size), "counts": _empty_counts(size)}
    return {"size": list(size), "counts": coco.merge(coco.frPyObjects(drawn, *size))["counts"].decode("ascii")}


def _polygons(polygons: Sequence[Any], size: tuple[int, int]) -> Iterator[list[float]]:
    """Each polygon as [x1, y1, x2, y2, ...], of any form that is written; malformed ones are a ValueError."""
    if polygons and not isinstance(polygons[0], list | tuple):
        polygons = [polygons]  # one polygon that was not wrapped
    if len(polygons) >= 3 and all(isinstance(point, list | tuple) and len(point) == 2 for point in polygons):
        polygons = [[value for point in polygons for value in point]]  # one, of points as pairs
    for polygon in polygons:
        numbers = isinstance(polygon, list | tuple) and all(isinstance(value, int | float) for value in polygon)
        # pycocotools walks along the edges, so that one point far away takes gigabytes.
        if not numbers or not all(abs(value) <= 4 * max(size) for value in polygon):
            raise ValueError(
                f"a polygon must be [x1, y1, x2, y2, ...] in pixels of an image of (height, width) {list(size)}, got "
                f"{str(polygon)[:60]}"
            )
        if len(polygon) % 2:
            raise ValueError(f"a polygon must have as many x as y, got {len(polygon)} numbers")
        yield list(polygon)


def _empty_counts(size: tuple[int, int]) -> str:
    return coco.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)["counts"].decode("ascii")


def run_lengths(counts: str | bytes) -> np.ndarray | None:
    """Unpack compressed counts: six bits a character, each run from the third on as difference to the last but one.

    Returns:
        int64 [R], or None for characters that are no counts.
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not codes.size or codes.min() < 0 or codes.max() > 63 or ends.size == 0 or ends[-1] != codes.size - 1:
        return None
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 12:
        return None  # no 60 bits for a number of pixels
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= (codes[ends] & 16 != 0) * (np.int64(1) << (5 * lengths))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
