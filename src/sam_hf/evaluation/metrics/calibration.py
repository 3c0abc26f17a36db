"""Whether a model knows how good it is: predicted IoU against true IoU, and object score against objects."""

from typing import Any

import numpy as np
from scipy.stats import rankdata

NUM_BINS = 10


def checked_pairs(predicted: Any, true: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N].

    Raises:
        ValueError: if they differ in shape, hold no pair, or anything but finite numbers, or a true IoU is not in 0
            to 1.
    """
    first, second = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(
            f"got predicted IoU {list(first.shape)} and true IoU {list(second.shape)}, expected [N] twice, N at least "
            "1: one pair for each mask"
        )
    if not np.isfinite(first).all() or not ((second >= 0) & (second <= 1)).all():
        raise ValueError(
            "got a predicted IoU that is not finite, or a true IoU outside of 0 to 1; leave out masks of models that "
            "predict no IoU (NaN)"
        )
    return first, second


def reliability_curve(predicted: Any, true: Any, num_bins: int = NUM_BINS) -> dict[str, np.ndarray]:
    """Predicted against true IoU in bins of equal width over predicted 0 to 1.

    A bin holds its lower edge, the last one 1 as well. Models without a sigmoid predict values outside of 0 to 1,
    which fall into the first and last bin.

    Args:
        predicted, true: [N], of the same masks.

    Returns:
        `centers`: float64 [bins]; `predicted` and `true`: float64 [bins], means of the masks of a bin, NaN where it
        has none; `counts`: int64 [bins].

    Raises:
        ValueError: as `checked_pairs`, or without bins.
    """
    first, second = checked_pairs(predicted, true)
    if num_bins < 1:
        raise ValueError(f"got num_bins {num_bins}, expected 1 or more, such as {NUM_BINS}")
    # By the edges themselves: 0.29 * 100 is below 29.
    edges = np.arange(1, num_bins) / num_bins
    places = np.searchsorted(edges, first, side="right")
    counts = np.bincount(places, minlength=num_bins)
    sums = (np.bincount(places, values, num_bins) for values in (first, second))
    means = [np.divide(total, counts, out=np.full(num_bins, np.nan), where=counts > 0) for total in sums]
    centers = (np.arange(num_bins) + 0.5) / num_bins
    return {"centers": centers, "predicted": means[0], "true": means[1], "counts": counts}


def expected_calibration_error(predicted: Any, true: Any, num_bins: int = NUM_BINS) -> float:
    """Mean over masks of the distance between the means of predicted and true IoU in their bin.

    That of Guo et al. 2017 (eq. 3) with IoU in the place of accuracy.

    Raises:
        ValueError: as `reliability_curve`.
    """
    curve = reliability_curve(predicted, true, num_bins)
    gaps = np.abs(curve["predicted"] - curve["true"])
    return float(np.nansum(gaps * curve["counts"]) / curve["counts"].sum())


def pearson_correlation(predicted: Any, true: Any) -> float:
    """Of predicted and true IoU, -1 to 1; NaN where one of them is the same for all masks.

    Raises:
        ValueError: as `checked_pairs`.
    """
    first, second = checked_pairs(predicted, true)
    # Not by their deviations, which rounding of the mean keeps from 0.
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def calibration_scores(predicted: Any, true: Any) -> dict[str, Any]:
    """How well a model predicts the IoU of its masks.

    Args:
        predicted, true: [N], of the same masks.

    Returns:
        `mean_absolute_error`; `bias`, the mean of predicted minus true, above 0 for a model that thinks too well of
        itself; `expected_calibration_error` over 10 bins; `correlation` (Pearson's); `curve`: the lists of
        `reliability_curve`; `num_masks`.

    Raises:
        ValueError: as `checked_pairs`.
    """
    first, second = checked_pairs(predicted, true)
    return {
        "mean_absolute_error": float(np.abs(first - second).mean()),
        "bias": float((first - second).mean()),
        "expected_calibration_error": expected_calibration_error(first, second),
        "correlation": pearson_correlation(first, second),
        "curve": {name: values.tolist() for name, values in reliability_curve(first, second).items()},
        "num_masks": len(first),
    }


def object_score_numbers(logits: Any, is_object: Any) -> dict[str, float | int | None]:
    """How well object scores tell clicks on objects from clicks on nothing.

    Args:
        logits: float [N], object scores; 0 or less says that there is nothing. Infinite ones are allowed.
        is_object: bool [N] or 0 and 1, whether there is an object.

    Returns:
        `auroc`: how probably an object has a higher score than no object, a tie is half; by the ranks of Mann and
        Whitney. `rejected_negatives`: share of what is no object with a logit of 0 or less, which is right;
        `rejected_positives`: share of objects, which is wrong. None where a class is missing. `num_positives`,
        `num_negatives`.

    Raises:
        ValueError: if they differ in shape, or hold NaN, or labels other than 0 and 1.
    """
    scores, labels = np.asarray(logits, dtype=np.float64), np.asarray(is_object)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(
            f"got logits {list(scores.shape)} and labels {list(labels.shape)}, expected [N] twice: one pair for each "
            "prompt"
        )
    if np.isnan(scores).any() or not np.isin(labels, (0, 1)).all():
        raise ValueError("got NaN as logit, or a label that is not 0 or 1; leave out what has no score or no label")
    positive = labels.astype(bool)
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    rejected = scores <= 0
    return {
        "auroc": _auroc(scores, positive) if num_positives and num_negatives else None,
        "rejected_negatives": float(rejected[~positive].mean()) if num_negatives else None,
        "rejected_positives": float(rejected[positive].mean()) if num_positives else None,
        "num_positives": num_positives,
        "num_negatives": num_negatives,
    }


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Of both classes: the wins of positives over negatives, by the sum of their ranks, as a share of all pairs."""
    num_positives = int(positive.sum())
    wins = rankdata(scores)[positive].sum() - num_positives * (num_positives + 1) / 2
    return float(wins / (num_positives * (len(scores) - num_positives)))


__all__ = [
    "NUM_BINS",
    "calibration_scores",
    "checked_pairs",
    "expected_calibration_error",
    "object_score_numbers",
    "pearson_correlation",
    "reliability_curve",
]
