"""Crops of an image and grids of clicks in them, for automatic masks (SAM paper, appendix B).

Sizes are (height, width), points (x, y), boxes (x1, y1, x2, y2); K counts masks. Boxes of crops end before x2 and y2;
those of masks hold their last pixel, as in SAM.
"""

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OVERLAP_RATIO = 512 / 1500
EDGE_TOLERANCE = 20.0


class Crop(NamedTuple):
    """A part of an image: layer 0 is the whole, layer i has 2**i by 2**i overlapping crops."""

    layer: int
    box: tuple[int, int, int, int]


def generate_crops(
    image_size: tuple[int, int], num_layers: int = 0, overlap_ratio: float = OVERLAP_RATIO
) -> list[Crop]:
    """The whole image, then the crops of every further layer, column by column.

    Args:
        image_size: (height, width) in pixels.
        num_layers: layers of crops besides the whole image.
        overlap_ratio: how far the crops of layer 1 overlap, as a share of the shorter side; halved with each layer.

    Raises:
        ValueError: if `num_layers` is negative or `overlap_ratio` is not in [0, 1).
    """
    if num_layers < 0 or not 0 <= overlap_ratio < 1:
        raise ValueError(
            f"expected num_layers >= 0 and overlap_ratio in [0, 1), but got {num_layers} and {overlap_ratio}."
        )
    height, width = image_size
    crops = [Crop(0, (0, 0, width, height))]
    for layer in range(1, num_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(image_size) * 2 / count)
        columns, rows = (_intervals(length, count, overlap) for length in (width, height))
        crops += [Crop(layer, (x1, y1, x2, y2)) for (x1, x2), (y1, y2) in product(columns, rows)]
    return crops


def _intervals(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """Intervals of one size that cover `length` pixels, with `overlap` between neighbours; `count` if so many fit."""
    size = math.ceil((length + overlap * (count - 1)) / count)
    starts = [(size - overlap) * index for index in range(count)]
    return [(start, min(start + size, length)) for start in starts if start < length]


def points_per_layer(points_per_side: int, num_layers: int = 0, downscale_factor: float = 1) -> list[int]:
    """Points per side of the click grids of the whole image and of the crops of each layer.

    Raises:
        ValueError: if a layer is left without points.
    """
    sides = [int(points_per_side / downscale_factor**layer) for layer in range(num_layers + 1)]
    if min(sides) < 1:
        raise ValueError(
            f"{points_per_side} points per side, divided by {downscale_factor} with each of {num_layers} layers, are "
            f"{sides}: start with more points or divide by less."
        )
    return sides


def click_grid(points_per_side: int) -> Tensor:
    """The centres of `points_per_side` squared cells of the unit square, row by row: float32 [P, 2]."""
    margin = 1 / (2 * points_per_side)
    along = torch.linspace(margin, 1 - margin, points_per_side)
    return torch.cartesian_prod(along, along).flip(-1)


def clicks_in_crop(grid: Tensor, crop_size: tuple[int, int], resized_size: tuple[int, int]) -> Tensor:
    """Scale a `click_grid` [P, 2] to a crop, and from there to the pixels of the resized crop: float32 [P, 2]."""
    scale = [new / old for new, old in zip(resized_size, crop_size, strict=True)]
    # In two steps, because that is how stock rounds.
    return grid * torch.tensor(crop_size[::-1]) * torch.tensor(scale[::-1])


def is_cut_by_crop(
    boxes: Tensor, crop_box: tuple[int, int, int, int], image_size: tuple[int, int], tolerance: float = EDGE_TOLERANCE
) -> Tensor:
    """Whether a mask ends where its crop does, within `tolerance` pixels, and the image goes on.

    Such a mask is likely a part of an object, which another crop shows whole.

    Args:
        boxes: [K, 4] in pixels of the image.

    Returns:
        bool [K].
    """
    height, width = image_size
    at_crop, at_image = (
        (boxes - boxes.new_tensor(edges)).abs() <= tolerance for edges in (crop_box, (0, 0, width, height))
    )
    return (at_crop & ~at_image).any(-1)


def paste_masks(masks: Tensor, crop_box: tuple[int, int, int, int], image_size: tuple[int, int]) -> Tensor:
    """Masks of a crop [K, H_crop, W_crop] as masks of the image [K, H_image, W_image]."""
    x1, y1, x2, y2 = crop_box
    height, width = image_size
    return F.pad(masks, (x1, width - x2, y1, height - y2))


__all__ = [
    "EDGE_TOLERANCE",
    "OVERLAP_RATIO",
    "Crop",
    "click_grid",
    "clicks_in_crop",
    "generate_crops",
    "is_cut_by_crop",
    "paste_masks",
    "points_per_layer",
]
