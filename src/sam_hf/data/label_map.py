"""All objects of a record in one picture: the label map that instance decoders learn from."""

from collections.abc import Sequence

import numpy as np

from ..loss_points import IGNORED
from .rle import run_lengths
from .schema import SegmentedObject

__all__ = ["label_map_from_objects", "resize_labels"]


def label_map_from_objects(objects: Sequence[SegmentedObject], size: tuple[int, int]) -> np.ndarray:
    """Paint objects over each other, small ones on top: int32 [H, W], 0 is none, and `IGNORED` in crowd regions.

    Of an object no more is read than its runs, so that hundreds in a large image take milliseconds.

    Args:
        objects: of an image of (height, width) `size`; the k-th has the label k + 1.

    Raises:
        ValueError: for run lengths that are none.
    """
    labels = np.zeros(size[0] * size[1], dtype=np.int32)
    for index in sorted(range(len(objects)), key=lambda index: -objects[index]["area"]):
        runs = run_lengths(objects[index]["segmentation"]["counts"])
        if runs is None:
            raise ValueError(f"object {index} has malformed run lengths: check the record by data.schema.check_record")
        ends = np.cumsum(runs)
        label = IGNORED if objects[index]["iscrowd"] else index + 1
        # COCO's runs are of background and object in turn, and go down the columns.
        for start, end in zip(ends[0::2], ends[1::2], strict=False):
            labels[start:end] = label
    return labels.reshape(size, order="F")


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels [h, w] on another grid of (height, width) `size`: a cell has the label of its middle."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]
