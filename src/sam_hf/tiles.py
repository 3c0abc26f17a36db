"""Overlapping tiles of an image that is larger than the model input: where they are, whose a prompt is, and blending.

Sizes are (height, width), points (x, y), boxes (x1, y1, x2, y2) in pixels of the image; T counts tiles. Tiles end
before x2 and y2, as crops do. Borders of a tile are inner ones where the image goes on.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_OVERLAP = 0.25

Box = tuple[int, int, int, int]


def check_tile_size(tile_size: int | None) -> None:
    """Raise a ValueError unless `tile_size` is None or a positive integer."""
    if tile_size is not None and (not isinstance(tile_size, int) or isinstance(tile_size, bool) or tile_size < 1):
        raise ValueError(
            f"tile_size is {tile_size!r}: expected the side of tiles in pixels of the image, a positive integer, or "
            "None, which resizes whole images."
        )


def tile_boxes(image_size: tuple[int, int], tile_size: int | None, overlap: float = TILE_OVERLAP) -> list[Box]:
    """The fewest whole tiles, evenly spaced, row by row; the whole image where it fits one, or `tile_size` is None.

    Args:
        image_size: (height, width) in pixels.
        tile_size: side in pixels of the image. A side of the image that is not longer has one span.
        overlap: of neighbours, at least, as a share of the side.

    Raises:
        ValueError: if `tile_size` is not positive or `overlap` is not in [0, 1).
    """
    check_tile_size(tile_size)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}: expected a share of the side of a tile in [0, 1).")
    rows, columns = (_spans(length, tile_size or length, overlap) for length in image_size)
    return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    step = max(side - math.ceil(side * overlap), 1)
    count = math.ceil((length - side) / step)
    return [(start, start + side) for start in (index * (length - side) // count for index in range(count + 1))]


def tile_room(prompts: Tensor, boxes: Sequence[Box]) -> Tensor:
    """How far each prompt is from the nearest inner border of each tile; negative where it sticks out.

    Args:
        prompts: points [n, 2] or boxes [n, 4], the centre of the first pixel at (0, 0); boxes hold their last pixels.
        boxes: T tiles that cover the image.

    Returns:
        float64 [n, T] in pixels of the image; infinite for a tile without inner borders.
    """
    tiles = torch.tensor(boxes, dtype=torch.float64, device=prompts.device)
    starts, ends = tiles[:, :2], tiles[:, 2:]
    first, last = prompts[:, None, :2].double(), prompts[:, None, -2:].double()
    before = (first - starts).masked_fill(starts == starts.amin(0), math.inf)
    behind = (ends - 1 - last).masked_fill(ends == ends.amax(0), math.inf)
    return torch.minimum(before, behind).amin(-1)


def central_tiles(prompts: Tensor, boxes: Sequence[Box]) -> Tensor:
    """The tile of each prompt: that which covers the most of it, and of these the one with the most room around it.

    Arguments as in `tile_room`; the first of equal tiles wins.

    Returns:
        int64 [n], indices of `boxes`.
    """
    tiles = torch.tensor(boxes, dtype=torch.float64, device=prompts.device)
    # Of the pixels that a prompt lies on, the tile ends behind the last, and so has to do the prompt.
    first, last = prompts[:, None, :2].double(), prompts[:, None, -2:].double() + 1
    covered = (torch.minimum(last, tiles[:, 2:]) - torch.maximum(first, tiles[:, :2])).clamp(min=0).prod(-1)
    covers_less = covered < covered.amax(1, keepdim=True)
    return tile_room(prompts, boxes).masked_fill(covers_less, -math.inf).argmax(1)


def blend_tiles(maps: Iterable[Tensor], boxes: Sequence[Box], image_size: tuple[int, int]) -> Tensor:
    """Maps of tiles as one map of the image: the mean, with weights that fall linearly to the inner borders of each.

    Neighbours fade into each other, so that there is no seam. A single tile is what it is resized to. An iterator that
    makes each map when it is asked for keeps one at a time in memory.

    Args:
        maps: T float maps [C, h, w], each of its whole tile and of nothing else (no padding), which they are resized
            to bilinearly.
        boxes: T tiles that cover the image.
        image_size: (height, width).

    Returns:
        float32 [C, *image_size].
    """
    blended: Tensor | None = None
    for tile, (x1, y1, x2, y2) in zip(maps, boxes, strict=True):
        if blended is None:
            blended, total = tile.new_zeros(len(tile), *image_size).float(), tile.new_zeros(image_size).float()
        resized = F.interpolate(tile[None].float(), (y2 - y1, x2 - x1), mode="bilinear")[0]
        rows, columns = _fade(y1, y2, image_size[0]), _fade(x1, x2, image_size[1])
        weights = torch.outer(rows, columns).to(tile.device)
        blended[:, y1:y2, x1:x2] += resized * weights
        total[y1:y2, x1:x2] += weights
    if blended is None:
        raise ValueError("maps is empty: expected a map for each tile.")
    return blended.div_(total)


def _fade(start: int, end: int, length: int) -> Tensor:
    """Distance of each pixel of a span to its nearest inner border, as a share of the span; 1 where it has none."""
    centers = torch.arange(end - start) + 0.5
    before = centers if start else torch.full_like(centers, end - start)
    behind = centers.flip(0) if end < length else torch.full_like(centers, end - start)
    return torch.minimum(before, behind) / (end - start)


__all__ = ["TILE_OVERLAP", "blend_tiles", "central_tiles", "check_tile_size", "tile_boxes", "tile_room"]
