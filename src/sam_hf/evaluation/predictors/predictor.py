"""What an evaluation asks of a model, whoever made it."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ...masks import best_masks


@dataclass(frozen=True)
class Prompts:
    """What a user has given so far for N objects of an image.

    Args:
        points: float32 [N, P, 2], (x, y) indices of pixels of the image; P may be 0.
        labels: int64 [N, P], 1 on the object, 0 beside it, and -10 for no click, where nothing was left to click.
        boxes: float32 [N, 4], (x1, y1, x2, y2) indices of the first and last pixels; None without boxes.
        state: of the prediction before, for the same objects; None for the first one.
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    state: Any = None

    def __getitem__(self, index: Tensor | slice) -> "Prompts":
        """Some of the objects, without the state."""
        return Prompts(self.points[index], self.labels[index], None if self.boxes is None else self.boxes[index])


@dataclass(frozen=True)
class Prediction:
    """What a model answers.

    Args:
        masks: bool [N, M, H, W] in pixels of the image, M candidates of each object.
        scores: float32 [N, M], their predicted IoU; the candidate of the highest is the answer. NaN where the model
            predicts none, which then has one candidate.
        state: what the model wants back with the next prompts, such as its logits.
        object_scores: float32 [N], logits of whether there is an object at all; None where the model has none.

    Raises:
        ValueError: for masks or scores of another dtype or shape.
    """

    masks: Tensor
    scores: Tensor
    state: Any = None
    object_scores: Tensor | None = None

    def __post_init__(self) -> None:
        masks, scores = self.masks, self.scores
        if masks.dtype != torch.bool or masks.dim() != 4 or scores.shape != masks.shape[:2]:
            raise ValueError(
                f"a prediction has masks {masks.dtype} {list(masks.shape)} and scores {list(scores.shape)}, expected "
                "bool [N, M, H, W] and [N, M]: N objects, M candidates of each; compare logits with 0 before."
            )

    @property
    def answers(self) -> Tensor:
        """bool [N, H, W], what a person is shown."""
        return best_masks(self.masks[None], self.scores[None].nan_to_num())[0]


class Predictor(Protocol):
    """A model that is clicked on. An evaluation gives it an image, and then prompts of its objects, again and again.

    Attributes:
        stretch_contrast: whether it wants images with their contrast stretched (`rgb_array`).
    """

    stretch_contrast: bool

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, uint8 [H, W, 3], and do what is needed once for it."""

    def predict(self, prompts: Prompts) -> Prediction:
        """Answer all prompts of N objects of that image."""


@runtime_checkable
class AutomaticPredictor(Predictor, Protocol):
    """A predictor that also finds masks without prompts. Not all do: `isinstance` tells."""

    def find_all(self, image: np.ndarray) -> list[dict[str, Any]]:
        """All masks of an image, uint8 [H, W, 3].

        Returns:
            records with `segmentation`, bool [H, W] or its run lengths as pycocotools has them, and `predicted_iou`.
        """


__all__ = ["AutomaticPredictor", "Prediction", "Predictor", "Prompts"]
