"""Predicted against true IoU as a module of `evaluate`."""

from typing import Any

import evaluate
from datasets import Features, Value

from sam_hf.evaluation.metrics.calibration import calibration_scores

DESCRIPTION = """
How well a model predicts the IoU of its own masks: error, bias, expected calibration error over 10 bins, correlation,
and the reliability curve.
"""

INPUTS = """
Args:
    predictions: of every mask the IoU that the model predicts.
    references: of every mask its IoU with the object, 0 to 1.

Returns:
    mean_absolute_error
    bias: mean of predicted minus true, above 0 for a model that thinks too well of itself.
    expected_calibration_error: mean over masks of the distance between mean predicted and mean true IoU of their bin.
    correlation: Pearson's; NaN where one side is the same for all masks.
    curve: lists, one entry per bin, centers, predicted and true (means, NaN in bins without masks), and counts.
    num_masks

Example:
    >>> from sam_hf.evaluation.metrics import IouCalibration
    >>> results = IouCalibration().compute(predictions=[0.5, 1.0, 1.0], references=[0.5, 0.75, 0.5])
    >>> results["mean_absolute_error"], results["bias"], results["curve"]["counts"]
    (0.25, 0.25, [0, 0, 0, 0, 0, 1, 0, 0, 0, 2])
"""

CITATION = """
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {ICML},
  year = {2017}
}
"""


class IouCalibration(evaluate.Metric):
    """Numbers of `calibration.calibration_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("float64")}),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, Any]:
        return calibration_scores(predictions, references)


__all__ = ["IouCalibration"]
