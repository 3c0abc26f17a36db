"""Small holes and islands of masks, which automatic masks often have and objects do not."""

import numpy as np

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def remove_small_regions(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """Fill holes and then drop islands of fewer than `min_area` pixels; of islands alone, the largest stays.

    Pixels touch by sides and corners, in holes and islands alike.

    Args:
        mask: bool [H, W].

    Returns:
        the mask, and whether it has such regions.
    """
    holes, areas = label_regions(~mask)
    is_small_hole = areas < min_area
    is_small_hole[0] = False
    islands, areas = label_regions(mask | is_small_hole[holes])
    is_large_island = areas >= min_area
    is_large_island[0] = False
    changed = is_small_hole.any() or not is_large_island[1:].all()
    if len(areas) > 1 and not is_large_island.any():
        is_large_island[1 + areas[1:].argmax()] = True
    return is_large_island[islands], bool(changed)


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number connected regions from 1: int [H, W], 0 outside, and the area of each number, 0 included."""
    from scipy.ndimage import label  # only the "train" extra brings scipy

    regions, count = label(mask, EIGHT_NEIGHBOURS)
    return regions, np.bincount(regions.ravel(), minlength=count + 1)


__all__ = ["label_regions", "remove_small_regions"]
