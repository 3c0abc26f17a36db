"""The object score against objects as a module of `evaluate`."""

from typing import Any

import evaluate
from datasets import Features, Value

from sam_hf.evaluation.metrics.calibration import object_score_numbers

DESCRIPTION = """
How well the object score of a model tells clicks on objects from clicks on nothing: AUROC, and what is rejected by a
logit of 0 or less.
"""

INPUTS = """
Args:
    predictions: of every prompt the object score, a logit.
    references: of every prompt 1 where there is an object, 0 where there is none.

Returns:
    auroc: how probably an object has a higher score than no object, a tie is half. None where a class is missing.
    rejected_negatives: share of what is no object with a logit of 0 or less; None without any.
    rejected_positives: the same of objects.
    num_positives, num_negatives

Example:
    >>> from sam_hf.evaluation.metrics import ObjectScore
    >>> ObjectScore().compute(predictions=[2.0, -1.0, -1.0, -3.0], references=[1, 1, 0, 0])
    {'auroc': 0.875, 'rejected_negatives': 1.0, 'rejected_positives': 0.5, 'num_positives': 2, 'num_negatives': 2}
"""

CITATION = """
@article{mann1947test,
  title = {On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other},
  author = {Mann, Henry B. and Whitney, Donald R.},
  journal = {The Annals of Mathematical Statistics},
  year = {1947}
}
"""


class ObjectScore(evaluate.Metric):
    """Numbers of `calibration.object_score_numbers`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features({"predictions": Value("float64"), "references": Value("int64")}),
        )

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, Any]:
        return object_score_numbers(predictions, references)


__all__ = ["ObjectScore"]
