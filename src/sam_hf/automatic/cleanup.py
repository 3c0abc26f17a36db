"""Small holes and islands of masks, which automatic masks often have and objects do not."""

import numpy as np

from ..regions import label_regions


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


__all__ = ["remove_small_regions"]
