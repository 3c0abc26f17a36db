"""Connected regions of masks, and small ones to fill or to drop: pixels touch by sides and corners."""

import numpy as np
import torch
from torch import Tensor

CLEAR_LOGIT = 10.0  # of what is filled or dropped, from the threshold


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number connected regions from 1, in the order of their first pixels, row by row.

    The nodes of the graph are runs of pixels in rows, so that its size is that of outlines and not of areas.

    Args:
        mask: bool [H, W].

    Returns:
        int64 [H, W], 0 outside, and the area of each number, 0 included.
    """
    height, width = mask.shape
    below = width + 1  # from a pixel to the one under it; background between the rows ends their runs
    pixels = np.zeros(height * below + 1, dtype=bool)
    pixels[1:].reshape(height, below)[:, :width] = mask
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    starts, ends = changes[::2], changes[1::2]
    # Runs of the next row that touch a run: they end at its left corner or later, and begin at its right or before.
    first = np.searchsorted(ends, starts + below)
    counts = np.searchsorted(starts, ends + below, side="right") - first
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    roots, numbers = np.unique(connected(len(starts), upper, lower), return_inverse=True)
    areas = np.bincount(numbers, weights=ends - starts, minlength=len(roots)).astype(np.int64)
    values = np.zeros(len(changes) + 1, dtype=np.int64)
    values[1::2] = numbers + 1
    labels = np.repeat(values, np.diff(changes, prepend=0, append=height * below))
    return labels.reshape(height, below)[:, :width], np.concatenate([[mask.size - areas.sum()], areas])


def connected(num_nodes: int, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The smallest node that each node is connected to, by edges between `upper` and `lower` nodes."""
    roots = np.arange(num_nodes)
    while True:
        ends = roots[upper], roots[lower]
        smaller, larger = np.minimum(*ends), np.maximum(*ends)
        if (smaller == larger).all():
            return roots
        np.minimum.at(roots, larger, smaller)
        while (roots[roots] != roots).any():
            roots = roots[roots]


def clean_logits(logits: Tensor, threshold: float, max_hole_area: float, max_sprinkle_area: float) -> Tensor:
    """Fill holes of masks and drop islands, of up to so many cells each; sam2's `SAM2Transforms.postprocess_masks`.

    Args:
        logits: float [..., h, w]; a mask is where they are above `threshold`.

    Returns:
        logits, which are `CLEAR_LOGIT` from the threshold in what was filled or dropped.
    """
    planes = []
    for plane in logits.flatten(0, -3):
        mask = (plane > threshold).cpu().numpy()
        holes = torch.from_numpy(small_regions(~mask, max_hole_area)).to(plane.device)
        sprinkles = torch.from_numpy(small_regions(mask, max_sprinkle_area)).to(plane.device)
        plane = torch.where(holes, threshold + CLEAR_LOGIT, plane)
        planes.append(torch.where(sprinkles, threshold - CLEAR_LOGIT, plane))
    return torch.stack(planes).view_as(logits)


def small_regions(mask: np.ndarray, max_area: float) -> np.ndarray:
    """The regions of at most `max_area` pixels: bool [H, W]."""
    labels, areas = label_regions(mask)
    is_small = areas <= max_area
    is_small[0] = False
    return is_small[labels]


__all__ = ["clean_logits", "label_regions"]
