"""How sure a mean over objects is: the images are what was drawn, and objects of an image are alike."""

from collections.abc import Sequence

import numpy as np

DRAWS, LEVEL = 1000, 0.95


def bootstrap(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over all objects, and its interval of 95 % by `DRAWS` draws of images with replacement.

    Args:
        values: for each image, float [N, P] of its N objects.

    Returns:
        mean, low and high: float64 [P].
    """
    sums = np.stack([value.sum(axis=0, dtype=np.float64) for value in values])
    counts = np.array([len(value) for value in values], dtype=np.float64)
    rng = np.random.default_rng(0)
    # How often each image is drawn: float64 [draws, images].
    drawn = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=DRAWS).astype(np.float64)
    means = drawn @ sums / (drawn @ counts)[:, None]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return sums.sum(axis=0) / counts.sum(), low, high


__all__ = ["bootstrap"]
