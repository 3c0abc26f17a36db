"""Masks of an image on their way to become records."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Candidates:
    """K masks of an image before duplicates are removed.

    Args:
        scores, stability: float32 [K].
        boxes, crop_boxes: int64 [K, 4], (x1, y1, x2, y2) in pixels of the image.
        points: float64 [K, 2], the click (x, y) in pixels of the image.
        changes: K masks, as in `TracedMasks`.
    """

    scores: Tensor
    stability: Tensor
    boxes: Tensor
    crop_boxes: Tensor
    points: Tensor
    changes: list[Tensor]

    def __getitem__(self, index: Tensor) -> "Candidates":
        return Candidates(
            scores=self.scores[index],
            stability=self.stability[index],
            boxes=self.boxes[index],
            crop_boxes=self.crop_boxes[index],
            points=self.points[index],
            changes=[self.changes[i] for i in index.tolist()],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Candidates"]) -> "Candidates":
        return cls(
            scores=torch.cat([part.scores for part in parts]),
            stability=torch.cat([part.stability for part in parts]),
            boxes=torch.cat([part.boxes for part in parts]),
            crop_boxes=torch.cat([part.crop_boxes for part in parts]),
            points=torch.cat([part.points for part in parts]),
            changes=[changes for part in parts for changes in part.changes],
        )

    @classmethod
    def none(cls) -> "Candidates":
        """No mask: K is 0."""
        boxes = torch.zeros(0, 4, dtype=torch.int64)
        return cls(torch.zeros(0), torch.zeros(0), boxes, boxes, torch.zeros(0, 2, dtype=torch.float64), [])


__all__ = ["Candidates"]
