"""Shapes that people draw, as polygons of COCO, and masks of a part of an image, as its run lengths."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .rle import check_pixels, encode_segmentation

__all__ = ["ellipse", "paste_mask", "polygon", "rectangle", "unpack_runs"]

NUM_CORNERS = 72


def polygon(points: Iterable[Sequence[Any]]) -> list[list[float]]:
    """The segmentation of corners (x, y), which may be text.

    Raises:
        ValueError: if they are fewer than three.
    """
    corners = [(float(x), float(y)) for x, y in points]
    if len(corners) < 3:
        raise ValueError(f"an area has three corners or more, got {len(corners)}")
    return [[value for corner in corners for value in corner]]


def rectangle(points: Iterable[Sequence[Any]]) -> list[list[float]]:
    """The smallest upright rectangle around points, such as two opposite corners."""
    across, down = zip(*((float(x), float(y)) for x, y in points), strict=True)
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    if left == right or top == bottom:
        raise ValueError(f"a rectangle has two opposite corners, got x {left} to {right} and y {top} to {bottom}")
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(x: Any, y: Any, radius_x: Any, radius_y: Any, degrees: Any = 0) -> list[list[float]]:
    """An ellipse around (x, y), turned clockwise as seen; all in pixels, and may be text."""
    x, y, radius_x, radius_y, degrees = map(float, (x, y, radius_x, radius_y, degrees))
    if not (radius_x > 0 and radius_y > 0):
        raise ValueError(f"the radii must be positive, got {radius_x} and {radius_y}")
    angles = np.linspace(0, 2 * math.pi, NUM_CORNERS, endpoint=False)
    along, aside, turn = radius_x * np.cos(angles), radius_y * np.sin(angles), math.radians(degrees)
    corners = (
        x + along * math.cos(turn) - aside * math.sin(turn),
        y + along * math.sin(turn) + aside * math.cos(turn),
    )
    return polygon(np.stack(corners, axis=1).tolist())


def unpack_runs(runs: Sequence[int], width: int, height: int, size: tuple[int, int]) -> np.ndarray:
    """Lengths of runs along the rows, of background first, as bool [height, width].

    Raises:
        ValueError: if they do not fill it, or it is larger than the image of (height, width) `size`.
    """
    lengths = np.asarray(runs)
    is_whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and lengths.size and lengths.min() >= 0
    if not (0 < width <= size[1] and 0 < height <= size[0]) or not is_whole or lengths.sum() != width * height:
        raise ValueError(
            f"run lengths must fill a mask of {width} x {height} pixels in an image of (height, width) {list(size)}, "
            f"got {str(runs)[:60]}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(height, width)


def paste_mask(part: np.ndarray, left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of an image of (height, width) `size` with a mask, bool [h, w], at row `top` and column `left`.

    Raises:
        ValueError: if the mask leaves the image.
    """
    check_pixels(size)
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise ValueError(
            f"a mask of (height, width) {list(part.shape)} at row {top}, column {left} leaves the image {list(size)}"
        )
    # The image as a whole is never decoded: places of foreground in COCO's order, which is along the columns.
    columns, rows = np.nonzero(part.T)
    places = (left + columns) * size[0] + top + rows
    starts = places[np.diff(places, prepend=-2) != 1]
    ends = places[np.diff(places, append=-2) != 1] + 1
    counts = np.diff(np.stack((starts, ends), axis=1).ravel(), prepend=0, append=size[0] * size[1])
    return encode_segmentation(
        {"size": list(size), "counts": counts[: len(counts) - (counts[-1] == 0)].tolist()}, size
    )
