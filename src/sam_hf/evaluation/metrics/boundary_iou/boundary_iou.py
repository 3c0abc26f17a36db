"""Boundary IoU as a module of `evaluate`."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, List

# As a module: evaluate takes the first metric that it finds among the names of this file.
import sam_hf.evaluation.metrics.stored_inputs as stored_inputs
from sam_hf.evaluation.metrics.boundary import WIDTH_RATIO, boundary_ious

DESCRIPTION = """
Boundary IoU: the IoU of those parts of two masks that lie near their outlines, within 2% of the diagonal of the image.
It tells how exact an outline is, which the IoU of large objects hides.
"""

INPUTS = """
Args:
    predictions: of every object the mask that was found, bool [H, W] or run lengths {"size": [h, w], "counts": str}.
    references: of every object its mask, in one of these forms.
    valid: of every object the pixels that count, in one of these forms; can be left out.
    ratio (of compute): width of the boundary as a share of the diagonal, 0.02 by default.

Returns:
    boundary_iou: mean over objects. Two empty boundaries have an IoU of 1.
    num_objects

Example:
    >>> import numpy as np
    >>> from sam_hf.evaluation.metrics import BoundaryIou
    >>> square = np.zeros((20, 20), dtype=bool)
    >>> square[4:10, 4:10] = True
    >>> hollow = square.copy()
    >>> hollow[5:9, 5:9] = False
    >>> BoundaryIou().compute(predictions=[square, np.roll(square, 6, axis=0)], references=[hollow, square])
    {'boundary_iou': 0.5, 'num_objects': 2}
"""

CITATION = """
@inproceedings{cheng2021boundary,
  title = {Boundary {IoU}: Improving Object-Centric Image Segmentation Evaluation},
  author = {Cheng, Bowen and Girshick, Ross and Doll{\\'a}r, Piotr and Berg, Alexander C. and Kirillov, Alexander},
  booktitle = {CVPR},
  year = {2021}
}
"""


class BoundaryIou(stored_inputs.StoredInputs):
    """Mean of `boundary.boundary_ious`."""

    optional = ("valid",)

    def _info(self) -> evaluate.MetricInfo:
        mask = stored_inputs.RUN_LENGTHS
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            # A list, for it can be absent.
            features=Features({"predictions": mask, "references": mask, "valid": List(mask)}),
            reference_urls=["https://arxiv.org/abs/2103.16562"],
        )

    def stored(self, **example: Any) -> dict[str, Any]:
        masks = {name: stored_inputs.run_lengths(mask) for name, mask in example.items()}
        sizes = {name: rle["size"] for name, rle in masks.items()}
        if len({tuple(size) for size in sizes.values()}) > 1:
            raise ValueError(f"masks of an object have the sizes (height, width) {sizes}, expected one size")
        return {**masks, "valid": [masks["valid"]] if "valid" in masks else []}

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        valid: list[list[dict[str, Any]]],
        ratio: float = WIDTH_RATIO,
    ) -> dict[str, Any]:
        # One at a time: objects may be of images of any size.
        ious = [
            boundary_ious(
                stored_inputs.pixels_of(prediction)[None],
                stored_inputs.pixels_of(reference)[None],
                valid=stored_inputs.pixels_of(counted[0]) if counted else None,
                ratio=ratio,
            )[0]
            for prediction, reference, counted in zip(predictions, references, valid, strict=True)
        ]
        return {"boundary_iou": float(np.mean(ious)), "num_objects": len(ious)}


__all__ = ["BoundaryIou"]
