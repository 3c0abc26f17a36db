"""IoU click after click, and the number of clicks, as a module of `evaluate`."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

# As a module: evaluate takes the first metric that it finds among the names of this file.
import sam_hf.evaluation.metrics.stored_inputs as stored_inputs
from sam_hf.evaluation.metrics.click_numbers import TARGETS, click_scores

DESCRIPTION = """
How good the mask of an object is after 1, 2, ... clicks (mean IoU), how many clicks it takes to reach an IoU (NoC,
with failures counted as all clicks, as RITM does, and as one more), and how often a further click makes it worse.
"""

INPUTS = """
Args:
    predictions: of every object the IoU after each click, [clicks]; or its masks after each click, bool [clicks, H, W]
        or run lengths {"size": [h, w], "counts": str}. All objects have the same number of clicks.
    references: with masks, of every object its mask, bool [H, W] or run lengths.
    valid: of every object the pixels that count, bool [H, W] or run lengths; can be left out.
    targets (of compute): IoU to reach, by default 0.8, 0.85, 0.9 and 0.95.

Returns:
    iou_per_click: a list, mean over objects. Two empty masks have an IoU of 1.
    drop_rate, mean_drop: the share of clicks after the first that lower the IoU, and by how much these do.
    noc_90, noc_failures_plus_one_90: mean of the first click that reaches an IoU of 0.9. An object that never gets
        there counts as all clicks, or as one more.
    failures_90, failure_rate_90, at_limit_90: objects that never get there, as number and share; and with those that
        get there with the last click.
    num_objects

Example:
    >>> from sam_hf.evaluation.metrics import ClickIou
    >>> metric = ClickIou()
    >>> metric.add_batch(predictions=[[0.5, 0.75, 1.0], [0.5, 0.25, 0.5]])
    >>> results = metric.compute(targets=[0.75])
    >>> results["iou_per_click"], results["noc_75"], results["noc_failures_plus_one_75"], results["drop_rate"]
    ([0.5, 0.5, 0.75], 2.5, 3.0, 0.25)
"""

CITATION = """
@inproceedings{sofiiuk2022ritm,
  title = {Reviving Iterative Training with Mask Guidance for Interactive Segmentation},
  author = {Sofiiuk, Konstantin and Petrov, Ilya A. and Konushin, Anton},
  booktitle = {ICIP},
  year = {2022}
}
"""


class ClickIou(stored_inputs.StoredInputs):
    """Numbers of `click_numbers.click_scores`, for masks or their IoU."""

    required = ("predictions",)
    optional = ("references", "valid")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": List(Value("float64"))}),
        )

    def stored(self, **example: Any) -> dict[str, Any]:
        predictions = example["predictions"]
        if "references" in example:
            predictions = ious_with(predictions, example["references"], example.get("valid"))
        elif np.ndim(predictions) != 1 or not all(np.isscalar(value) for value in predictions):
            raise ValueError("got masks without references, expected the mask of every object there, or IoU [clicks]")
        return {"predictions": [float(value) for value in predictions]}

    def _compute(self, predictions: list[list[float]], targets: Any = TARGETS) -> dict[str, Any]:
        num_clicks = sorted({len(row) for row in predictions})
        if len(num_clicks) > 1:
            raise ValueError(
                f"objects have {num_clicks} clicks, expected as many for all; go on to click after a target is reached"
            )
        return click_scores(predictions, targets)


def ious_with(predictions: Any, reference: Any, valid: Any = None) -> list[float]:
    """IoU of the masks after each click with the one that is wanted."""
    wanted, found = (stored_inputs.all_run_lengths(masks) for masks in ([reference], predictions))
    sizes = {tuple(rle["size"]) for rle in (*wanted, *found)}
    if len(sizes) > 1:
        raise ValueError(f"masks of an object have the sizes (height, width) {sorted(sizes)}, expected one size")
    target = stored_inputs.pixels_of(wanted[0])
    counts = np.ones_like(target) if valid is None else stored_inputs.pixels_of(stored_inputs.run_lengths(valid))
    if counts.shape != target.shape:
        raise ValueError(f"valid is {list(counts.shape)}, expected the size of the mask, {list(target.shape)}")
    ious = []
    for mask in map(stored_inputs.pixels_of, found):
        union = np.count_nonzero((mask | target) & counts)
        ious.append(np.count_nonzero(mask & target & counts) / union if union else 1.0)
    return ious


__all__ = ["ClickIou", "ious_with"]
