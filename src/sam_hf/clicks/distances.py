"""Exact Euclidean distances of many masks at once, on any device."""

import numpy as np
import torch
from torch import Tensor


def squared_distances(region: Tensor) -> Tensor:
    """Squared distance from each pixel to the nearest pixel outside its region; outside lies around the image, too.

    The nearest outside pixel of a pixel is that of some pixel in its row along their column, so that distances along
    columns are enough to know, and rows need to be searched no further than the largest distance. That is at most the
    one along rows or columns, which is looked at once: it waits for the device.

    Args:
        region: bool [..., H, W].

    Returns:
        int32 [..., H, W], 0 outside.
    """
    if not region.numel():
        return torch.zeros_like(region, dtype=torch.int32)
    width = region.shape[-1]
    along_columns = column_distances(region)
    furthest = int(torch.minimum(along_columns, column_distances(region.mT).mT).max())
    along_columns = along_columns.square()
    squared = along_columns.clone()
    for step in range(1, min(furthest, width) + 1):
        # One pixel beyond either border is outside, the others of the shifted rows do not matter.
        torch.minimum(squared[..., step:], along_columns[..., :-step] + step**2, out=squared[..., step:])
        torch.minimum(squared[..., :-step], along_columns[..., step:] + step**2, out=squared[..., :-step])
        squared[..., step - 1].clamp_(max=step**2)
        squared[..., width - step].clamp_(max=step**2)
    return squared


def depth_in_box(region: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The bounding box of a region, bool [H, W], and in it the distance to the nearest pixel outside, float64 [h, w].

    Outside lies around the image, too. The box of an empty region is empty.
    """
    from scipy.ndimage import distance_transform_edt  # only the "train" extra brings scipy

    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if rows.size == 0:
        return (slice(0), slice(0)), np.zeros((0, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # No outside pixel is nearer than the ring around the bounding box: the transform of the box is exact.
    return box, distance_transform_edt(np.pad(region[box], 1))[1:-1, 1:-1]


def column_distances(region: Tensor) -> Tensor:
    """Distance along the column to the nearest pixel outside: int32 [..., H, W]."""
    height = region.shape[-2]
    rows = torch.arange(height, dtype=torch.int32, device=region.device)[:, None]
    before = torch.where(region, -1, rows).cummax(-2).values
    after = torch.where(region, height, rows).flip(-2).cummin(-2).values.flip(-2)
    return torch.minimum(rows - before, after - rows)


def is_in_host_memory(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


__all__ = ["depth_in_box", "is_in_host_memory", "squared_distances"]
