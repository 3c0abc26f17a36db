"""Label maps with known objects, which several test files find again."""

import numpy as np


def discs(
    count: int, size: tuple[int, int], radii: tuple[float, float], gap: float = 0.0, seed: int = 0
) -> np.ndarray:
    """At most `count` discs that do not overlap, int [H, W]; with a negative gap later ones lose what others have."""
    rng, labels, placed = np.random.default_rng(seed), np.zeros(size, dtype=int), []
    rows, columns = np.ogrid[: size[0], : size[1]]
    for _ in range(200 * count):
        radius, row, column = rng.uniform(*radii), rng.uniform(0, size[0]), rng.uniform(0, size[1])
        if all(np.hypot(row - y, column - x) > radius + other + gap for y, x, other in placed):
            placed.append((row, column, radius))
            labels[(np.hypot(rows - row, columns - column) < radius) & (labels == 0)] = len(placed)
        if len(placed) == count:
            break
    return labels


def touching_grid(side: int, count: int) -> np.ndarray:
    """Squares that leave nothing free, count * count of them: all borders are shared."""
    numbers = np.arange(count * count).reshape(count, count) + 1
    return np.kron(numbers, np.ones((side, side), dtype=int))


def rings() -> np.ndarray:
    """Three rings, one with a disc inside that does not touch it."""
    labels = np.zeros((120, 160), dtype=int)
    rows, columns = np.ogrid[:120, :160]
    for label, (row, column, outer, inner) in enumerate([(40, 40, 35, 22), (90, 110, 25, 15), (30, 120, 28, 20)], 1):
        away = np.hypot(rows - row, columns - column)
        labels[(away < outer) & (away >= inner)] = label
    labels[np.hypot(rows - 40, columns - 40) < 12] = 4
    return labels


def thin() -> np.ndarray:
    """Lines and arcs of one to three pixels that do not touch."""
    labels = np.zeros((100, 140), dtype=int)
    labels[10, 5:100] = 1
    labels[20:22, 8:60] = 2
    labels[30:95, 7:10] = 3
    for step in range(50):
        labels[30 + step, 20 + 2 * step : 22 + 2 * step] = 4
    rows, columns = np.ogrid[:100, :140]
    away = np.hypot(rows - 95, columns - 40)
    labels[(away >= 18) & (away < 20)] = 5
    return labels


def best_ious(labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of each object of a label map the IoU with the object of another that it shares most pixels with."""
    ious = []
    for label in range(1, labels.max() + 1):
        inside = labels == label
        shared = np.bincount(found[inside], minlength=2)
        shared[0] = 0
        other = found == shared.argmax() if shared.any() else np.zeros_like(inside)
        ious.append((inside & other).sum() / (inside | other).sum())
    return np.array(ious)
