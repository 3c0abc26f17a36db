"""What an evaluation asks of a model, whoever made it, and this package's own behind that."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..clicks import FEEDBACK_LIMIT
from ..masks import best_masks
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor


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
    """

    masks: Tensor
    scores: Tensor
    state: Any = None
    object_scores: Tensor | None = None

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


class SamHfPredictor:
    """A model of this package.

    Args:
        model: in eval mode, on its device.
        processor: its own.
    """

    def __init__(self, model: SamHfModel, processor: SamHfProcessor):
        self.model, self.processor = model, processor
        self.stretch_contrast = bool(processor.image_processor.do_stretch_contrast)

    @torch.no_grad()
    def set_image(self, image: np.ndarray) -> None:
        inputs = self.processor(images=image, return_tensors="pt", do_stretch_contrast=False)  # done already
        self.sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        # (x, y) scale from image to model pixels, the processor's own.
        self.scale = (self.sizes[1][0] / self.sizes[0][0]).flip(0).to(self.model.device)
        self.embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.model.device))

    @torch.no_grad()
    def predict(self, prompts: Prompts) -> Prediction:
        device = self.model.device
        has_points, boxes = bool(prompts.points.shape[1]), prompts.boxes
        output = self.model(
            image_embeddings=self.embeddings,
            input_points=prompts.points.to(device)[None] * self.scale if has_points else None,
            input_labels=prompts.labels.to(device)[None] if has_points else None,
            input_boxes=None if boxes is None else boxes.to(device)[None] * self.scale.repeat(2),
            input_masks=prompts.state,
            multimask_output=prompts.state is None and boxes is None,
        )
        logits = output.pred_masks.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
        scores = getattr(output, "object_score_logits", None)
        return Prediction(
            masks=self.processor.post_process_masks(logits.float(), *self.sizes)[0],
            scores=output.iou_scores[0].float(),
            state=best_masks(logits, output.iou_scores),
            object_scores=None if scores is None else scores[0, :, 0].float(),
        )


__all__ = ["Prediction", "Predictor", "Prompts", "SamHfPredictor"]
