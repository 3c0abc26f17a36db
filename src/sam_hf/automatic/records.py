"""What a person gets of each mask that was found, as `segment_anything` gives it."""

from typing import Any

import numpy as np
from torch import Tensor

from ..masks import decode_rle
from .candidates import Candidates

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


def record(found: Candidates, index: int, rle: dict, output_mode: str) -> dict[str, Any]:
    """One of the records that `MaskGenerator.__call__` documents.

    Args:
        found: of which it is the mask `index`, whose uncompressed run lengths are `rle`.
        output_mode: one of `OUTPUT_MODES`.
    """
    return {
        "segmentation": segmentation(rle, output_mode),
        "area": sum(rle["counts"][1::2]),
        "bbox": corner_and_size(found.boxes[index]),
        "predicted_iou": found.scores[index].item(),
        "point_coords": [found.points[index].tolist()],
        "stability_score": found.stability[index].item(),
        "crop_box": corner_and_size(found.crop_boxes[index]),
    }


def segmentation(rle: dict, output_mode: str) -> np.ndarray | dict:
    """A mask in one of `OUTPUT_MODES`."""
    if output_mode == "binary_mask":
        return decode_rle(rle).numpy()
    if output_mode == "uncompressed_rle":
        return rle
    from pycocotools import mask as coco  # only the "train" extra brings pycocotools

    compressed = coco.frPyObjects(rle, *rle["size"])
    return {"size": rle["size"], "counts": compressed["counts"].decode()}  # bytes would not become JSON


def corner_and_size(box: Tensor) -> list[int]:
    """(x1, y1, x2, y2) as [x1, y1, x2 - x1, y2 - y1]."""
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


__all__ = ["OUTPUT_MODES", "record"]
