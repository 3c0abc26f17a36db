"""Models of this package as predictors."""

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...automatic import MaskGenerator
from ...clicks import FEEDBACK_LIMIT
from ...masks import best_masks
from ...modeling_sam_hf import SamHfModel
from ...processing_sam_hf import SamHfProcessor
from .predictor import Prediction, Prompts


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
            # One object at a time, for memory.
            masks=torch.cat([self.to_pixels(part) for part in logits.split(1, dim=1)]),
            scores=output.iou_scores[0].float(),
            state=best_masks(logits, output.iou_scores),
            object_scores=None if scores is None else scores[0, :, 0].float(),
        )

    def to_pixels(self, logits: Tensor) -> Tensor:
        """bool [1, M, H, W] in pixels of the image, of logits [1, 1, M, h, w]."""
        return self.processor.post_process_masks(logits.float(), *self.sizes)[0]

    def find_all(self, image: np.ndarray) -> list[dict[str, Any]]:
        """See `AutomaticPredictor`; run lengths."""
        processor = copy(self.processor.image_processor)
        processor.do_stretch_contrast = False  # done already
        return MaskGenerator(self.model, processor, output_mode="coco_rle")(image)


__all__ = ["SamHfPredictor"]
