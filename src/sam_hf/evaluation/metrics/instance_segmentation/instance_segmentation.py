"""Accuracy, panoptic quality and average precision of all masks of images as a module of `evaluate`."""

from typing import Any

import evaluate
from datasets import Features, List, Value

# As a module: evaluate takes the first metric that it finds among the names of this file.
import sam_hf.evaluation.metrics.stored_inputs as stored_inputs
from sam_hf.evaluation.metrics.instances import InstanceImage, instance_scores

DESCRIPTION = """
How well the masks of an image, of no class and free to overlap, agree with its objects: accuracy TP / (TP + FP + FN)
as mean over images (average precision for Cellpose, mSA for micro-sam) and of all images together (StarDist),
precision, recall and F1, panoptic quality, and COCO's average precision and recall where masks have scores.
"""

INPUTS = """
Args:
    predictions: of every image its masks, bool [K, H, W], or a list of run lengths {"size": [h, w], "counts": str}.
    references: of every image its objects, in one of these forms.
    scores: of every image what ranks its predictions, [K]; can be left out, without average precision then.
    crowds: of every image regions that nobody divided into objects, in the form of masks; can be left out.
        Predictions of which more than half lies there and which fit no object are left out.

Returns:
    image_accuracy_50, image_accuracy_75, image_accuracy: mean over images of TP / (TP + FP + FN), where an IoU of at
        least 0.5, or 0.75, is a match; and mean over 0.5, 0.55, ... 0.95. An image without objects and without
        predictions counts 1.
    pooled_accuracy_50, pooled_accuracy_75, pooled_accuracy: the same of the counts of all images together.
    precision_50, recall_50, f1_50, precision_75, recall_75, f1_75: of all images together.
    panoptic_quality, segmentation_quality, recognition_quality: of all images together; an IoU above 0.5 is a match.
    coco_ap, coco_ap_50, coco_ap_75, coco_ar_100, coco_ar_1000: COCO's average precision of the best 100 masks of each
        image, and average recall of the best 100 and 1000.
    num_images, num_empty_images, num_predictions, num_references

Example:
    >>> import numpy as np
    >>> from sam_hf.evaluation.metrics import InstanceSegmentation
    >>> masks = np.zeros((3, 10, 10), dtype=bool)
    >>> masks[0, :4], masks[1, :3], masks[2, 6:] = True, True, True
    >>> metric = InstanceSegmentation()
    >>> metric.add(prediction=masks[1:2], reference=masks[[0, 2]], scores=[0.9])
    >>> results = metric.compute()
    >>> results["image_accuracy_50"], results["precision_75"], results["segmentation_quality"], results["coco_ar_100"]
    (0.5, 1.0, 0.75, 0.3)
"""

CITATION = """
@inproceedings{schmidt2018stardist,
  title = {Cell Detection with Star-Convex Polygons},
  author = {Schmidt, Uwe and Weigert, Martin and Broaddus, Coleman and Myers, Gene},
  booktitle = {MICCAI},
  year = {2018}
}
@inproceedings{kirillov2019panoptic,
  title = {Panoptic Segmentation},
  author = {Kirillov, Alexander and He, Kaiming and Girshick, Ross and Rother, Carsten and Doll{\\'a}r, Piotr},
  booktitle = {CVPR},
  year = {2019}
}
@inproceedings{lin2014coco,
  title = {Microsoft {COCO}: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and others},
  booktitle = {ECCV},
  year = {2014}
}
"""


class InstanceSegmentation(stored_inputs.StoredInputs):
    """Numbers of `instances.instance_scores`."""

    optional = ("scores", "crowds")

    def _info(self) -> evaluate.MetricInfo:
        masks = List(stored_inputs.RUN_LENGTHS)
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=Features(
                {"predictions": masks, "references": masks, "scores": List(Value("float64")), "crowds": masks}
            ),
        )

    def stored(self, **example: Any) -> dict[str, Any]:
        names = ("predictions", "references", "crowds")
        masks = {name: stored_inputs.all_run_lengths(example.get(name, ())) for name in names}
        scores = example.get("scores")
        scores = None if scores is None else [float(score) for score in scores]
        # Says here, and not after all images, what is wrong.
        InstanceImage(**masks, scores=scores)
        return {**masks, "scores": scores}

    def _compute(
        self,
        predictions: list[list[dict[str, Any]]],
        references: list[list[dict[str, Any]]],
        scores: list[list[float] | None],
        crowds: list[list[dict[str, Any]]],
    ) -> dict[str, Any]:
        images = zip(predictions, references, crowds, scores, strict=True)
        return instance_scores([InstanceImage(*image) for image in images])


__all__ = ["InstanceSegmentation"]
