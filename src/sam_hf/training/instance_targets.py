"""What an instance decoder is trained to say: maps of foreground, distances and centres, from a label map."""

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects

from ..data.label_map import resize_labels
from ..loss_points import IGNORED


def instance_targets(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`instances.MAPS` of a label map, float32 [3, h, w], NaN where labels are `IGNORED`.

    In an object the distance is that of a cell to the nearest cell outside of it, as a share of the largest; where the
    label map cuts it off there is no border. Its centre is the (first) cell of the largest distance; the third map is
    1 there and falls to 0 at the cell that is the farthest from it. Both are 0 outside of objects.

    Args:
        label_map: integer [H, W], 0 is no object.
        size: (h, w) of the maps; a cell has the label of its middle.
    """
    labels = resize_labels(label_map, size)
    maps = np.zeros((3, *size), dtype=np.float32)
    for label, box in enumerate(find_objects(np.maximum(labels, 0)), start=1):
        if box is None:
            continue
        # With a margin, but for what lies beyond the label map.
        around = tuple(slice(max(span.start - 1, 0), span.stop + 1) for span in box)
        inside = labels[around] == label
        distance = distances_inside(inside)
        center = np.unravel_index(distance.argmax(), distance.shape)
        grid = np.ogrid[: distance.shape[0], : distance.shape[1]]
        to_center = np.hypot(grid[0] - center[0], grid[1] - center[1])
        nearness = 1 - to_center / max(to_center[inside].max(), 1)
        values = np.stack([inside, distance / distance.max(), nearness])
        maps[:, around[0], around[1]][:, inside] = values[:, inside]
    maps[:, labels == IGNORED] = np.nan
    return maps


def distances_inside(inside: np.ndarray) -> np.ndarray:
    """How far each cell of a mask, bool [h, w], is from the nearest outside; from the middle, if all are inside."""
    if inside.all():
        rows, columns = np.ogrid[: inside.shape[0], : inside.shape[1]]
        middle = (inside.shape[0] - 1) / 2, (inside.shape[1] - 1) / 2
        away = np.hypot(rows - middle[0], columns - middle[1])
        return away.max() - away + 1
    return distance_transform_edt(inside)


__all__ = ["instance_targets"]
