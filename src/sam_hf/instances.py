"""Objects from the maps of an instance decoder: a point in each, or a label map by watershed.

As in micro-sam (Archit et al. 2025), an object is sown where both its centre and its border say that this is its inner
part; what is seen of one object in two pieces by chance, at the very threshold, is not sown twice. H, W are pixels of
the image, points (x, y) indices of pixels; K counts seeds, n objects.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from .regions import label_regions

# Of an instance decoder, in this order.
MAPS = ("foreground", "distance", "center")
# Foreground that may be object, and nearness to the centre and away from the border that may be a seed.
FOREGROUND_THRESH, SEED_THRESH = 0.5, 0.5
# How far a seed must rise above its threshold, as a share of what lies above.
RISE = 0.2
MIN_AREA = 25


class Seeds(NamedTuple):
    """Inner parts of K objects: int64 [H, W], the k-th is k + 1; points int64 [K, 2] in them; scores float64 [K]."""

    labels: np.ndarray
    points: np.ndarray
    scores: np.ndarray


def find_centers(
    maps: Tensor | np.ndarray, foreground_thresh: float = FOREGROUND_THRESH, seed_thresh: float = SEED_THRESH
) -> tuple[np.ndarray, np.ndarray]:
    """A point in each object, in the order of their seeds row by row.

    Args:
        maps: float [3, H, W] in [0, 1], `instances.MAPS`.
        foreground_thresh, seed_thresh: see `find_seeds`.

    Returns:
        points: int64 [n, 2], where the seed is the farthest from the border of its object.
        scores: float64 [n], mean foreground of the seed.

    Raises:
        ValueError: for maps of another shape, or thresholds that are not in [0, 1).
    """
    seeds = find_seeds(as_maps(maps), foreground_thresh, seed_thresh)
    return seeds.points, seeds.scores


def watershed_instances(
    maps: Tensor | np.ndarray,
    foreground_thresh: float = FOREGROUND_THRESH,
    seed_thresh: float = SEED_THRESH,
    min_area: int = MIN_AREA,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide the foreground among the seeds, along the valleys of the distance to the border.

    Args:
        maps, foreground_thresh, seed_thresh: as for `find_centers`.
        min_area: smaller objects are dropped, in pixels.

    Returns:
        labels: int32 [H, W], the k-th object is k + 1, 0 is none; foreground without a seed is none, too.
        points: int64 [n, 2], in the objects, as of `find_centers`.
        scores: float64 [n], mean foreground of the object.

    Raises:
        ValueError: as `find_centers`.
        ImportError: without scikit-image.
    """
    try:
        from skimage.segmentation import watershed
    except ImportError as error:
        raise ImportError("watershed_instances needs scikit-image: pip install scikit-image") from error
    maps = as_maps(maps)
    foreground, distance, _ = maps
    seeds = find_seeds(maps, foreground_thresh, seed_thresh)
    # Pixels touch by sides and corners, as in seeds.
    labels = watershed(-distance, seeds.labels, connectivity=2, mask=foreground > foreground_thresh)
    areas = np.bincount(labels.ravel(), minlength=len(seeds.points) + 1)
    sums = np.bincount(labels.ravel(), weights=foreground.ravel(), minlength=len(areas))
    (kept,) = np.nonzero(areas[1:] >= max(min_area, 1))
    numbers = np.zeros(len(areas), dtype=np.int32)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    return numbers[labels], seeds.points[kept], sums[kept + 1] / areas[kept + 1]


def find_seeds(maps: np.ndarray, foreground_thresh: float, seed_thresh: float) -> Seeds:
    """Connected regions of the foreground whose pixels are near the centre and away from the border.

    Args:
        maps: float32 [3, H, W].
        foreground_thresh: a pixel of an object has more foreground.
        seed_thresh: a pixel of a seed has both more of `distance` and of `center`; one pixel of it at least, by
            `RISE`, still more.
    """
    for name, value in (("foreground_thresh", foreground_thresh), ("seed_thresh", seed_thresh)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}, expected a number in [0, 1).")
    foreground, distance, center = maps
    height = np.minimum(distance, center)
    labels, areas = label_regions((foreground > foreground_thresh) & (height > seed_thresh))
    pixels = np.flatnonzero(labels)
    of = labels.ravel()[pixels]
    summits = np.zeros(len(areas))
    np.maximum.at(summits, of, height.ravel()[pixels])
    is_seed = summits > seed_thresh + RISE * (1 - seed_thresh)
    # The farthest from the border; of equals the nearest to the centre, and then the first.
    order = np.lexsort([-pixels, center.ravel()[pixels], distance.ravel()[pixels], of])
    best = pixels[order[np.cumsum(areas[1:]) - 1]]
    scores = np.bincount(of, weights=foreground.ravel()[pixels], minlength=len(areas))[1:] / areas[1:]
    numbers = np.cumsum(is_seed) * is_seed
    points = np.stack([best % labels.shape[1], best // labels.shape[1]], axis=1)
    return Seeds(numbers[labels], points[is_seed[1:]], scores[is_seed[1:]])


def as_maps(maps: Tensor | np.ndarray) -> np.ndarray:
    """float32 [3, H, W] in host memory."""
    if maps.ndim != 3 or len(maps) != len(MAPS):
        raise ValueError(f"maps are {list(maps.shape)}, expected {list(MAPS)} of one image: [{len(MAPS)}, H, W].")
    if isinstance(maps, Tensor):
        maps = maps.detach().float().cpu().numpy()
    return np.asarray(maps, dtype=np.float32)


__all__ = ["FOREGROUND_THRESH", "MAPS", "MIN_AREA", "SEED_THRESH", "find_centers", "watershed_instances"]
