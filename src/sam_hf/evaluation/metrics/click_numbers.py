"""What the IoU of objects, click after click, amounts to: means, clicks that are needed, and how often IoU falls.

All takes `iou`, float [objects, clicks], after 1, 2, ... clicks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Those of tables in the literature, RITM's first three.
TARGETS = (0.80, 0.85, 0.90, 0.95)


def checked_iou(iou: Any) -> np.ndarray:
    """`iou` as float64 [objects, clicks].

    Raises:
        ValueError: if it has another shape, no object or no click, or anything but numbers from 0 to 1.
    """
    values = np.asarray(iou, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"iou has the shape {list(values.shape)}, expected [objects, clicks] with at least one of each: a row for "
            "every object, all with the same number of clicks"
        )
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"iou of object {row} after click {column + 1} is {values[row, column]}, expected 0 to 1; the IoU of two "
            "empty masks is 1, and clicks that an object did not need repeat its last IoU"
        )
    return values


def clicks_needed(iou: Any, target: float) -> np.ndarray:
    """The first click after which the IoU is at least `target`, int64 [objects]; 0 for objects that never get there.

    An object that gets there and falls again has got there, as for RITM. IoU in float32 meets a target in float32: 9
    of 10 pixels are 0.9 there, too.

    Raises:
        ValueError: as `checked_iou`.
    """
    is_single = getattr(iou, "dtype", None) == np.float32
    reached = checked_iou(iou) >= (np.float32(target) if is_single else target)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0)


def number_of_clicks(iou: Any, target: float) -> dict[str, float]:
    """NoC, by both rules for objects that never reach the target, which papers do not always tell apart.

    Returns:
        `noc`: mean of the clicks needed, a failure counts as the clicks that were made (20 for RITM: Sofiiuk et al.
        2021, `isegm/inference/utils.py:compute_noc_metric`; and for SimpleClick and FocSAM).
        `noc_failures_plus_one`: the same, but a failure counts as one more click than was made (21).
        `failures`: how many objects never reach the target; `failure_rate`: their share (NoF over objects).
        `at_limit`: how many objects have a `noc` of all clicks, those that succeed with the last one included: RITM's
        column ">=20".

    Raises:
        ValueError: as `checked_iou`.
    """
    needed, limit = clicks_needed(iou, target), checked_iou(iou).shape[1]
    failed = needed == 0
    return {
        "noc": float(np.where(failed, limit, needed).mean()),
        "noc_failures_plus_one": float(np.where(failed, limit + 1, needed).mean()),
        "failures": int(failed.sum()),
        "failure_rate": float(failed.mean()),
        "at_limit": int((failed | (needed == limit)).sum()),
    }


def iou_drops(iou: Any) -> dict[str, float]:
    """How often a further click makes the mask worse, which FocSAM (Huang et al. 2024) shows of SAM.

    Returns:
        `drop_rate`: of all steps from one click to the next, the share in which the IoU falls; NaN for one click.
        `mean_drop`: by how much it falls in these, above 0; 0 if it never does.

    Raises:
        ValueError: as `checked_iou`.
    """
    steps = np.diff(checked_iou(iou), axis=1)
    falls = -steps[steps < 0]
    return {
        "drop_rate": falls.size / steps.size if steps.size else float("nan"),
        "mean_drop": float(falls.mean()) if falls.size else 0.0,
    }


def click_scores(iou: Any, targets: Sequence[float] = TARGETS) -> dict[str, Any]:
    """All of the above.

    Returns:
        `iou_per_click`: mean IoU after 1, 2, ... clicks, a list; `drop_rate`, `mean_drop`; of every target what
        `number_of_clicks` tells, as `noc_90`, `failures_90`, ...; `num_objects`.

    Raises:
        ValueError: as `checked_iou`.
    """
    values = checked_iou(iou)
    scores: dict[str, Any] = {"iou_per_click": values.mean(axis=0).tolist(), **iou_drops(values)}
    for target in targets:
        numbers = number_of_clicks(iou, target)
        scores |= {f"{name}_{100 * target:g}": number for name, number in numbers.items()}
    return scores | {"num_objects": len(values)}


__all__ = [
    "TARGETS",
    "checked_iou",
    "click_scores",
    "clicks_needed",
    "iou_drops",
    "number_of_clicks",
]
