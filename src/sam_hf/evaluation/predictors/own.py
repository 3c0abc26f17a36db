"""Models of this package as predictors."""

from copy import copy
from typing import Any

import numpy as np

from ...automatic import MaskGenerator
from ...masks import best_masks
from ...modeling_sam_hf import SamHfModel
from ...processing_sam_hf import SamHfProcessor
from ...prompted import PromptedImage
from .predictor import Prediction, Prompts


class SamHfPredictor:
    """A model of this package; `PromptedImage` says how it sees large images, whose tiles are encoded when prompted.

    Args:
        model: in eval mode, on its device.
        processor: its own.
        prompts: how `find_all` does it, as `MaskGenerator` takes it.
    """

    def __init__(self, model: SamHfModel, processor: SamHfProcessor, prompts: str | None = None):
        self.model, self.processor, self.prompts = model, processor, prompts
        self.stretch_contrast = bool(processor.image_processor.do_stretch_contrast)

    def set_image(self, image: np.ndarray) -> None:
        self.image = PromptedImage(self.model, self.processor, image)

    def predict(self, prompts: Prompts) -> Prediction:
        answers = self.image.predict(prompts.points, prompts.labels, prompts.boxes, prompts.state)
        scores = answers.object_scores
        return Prediction(
            masks=self.image.to_pixels(answers.logits, answers.views),
            scores=answers.iou_scores[0].float(),
            state=(best_masks(answers.logits, answers.iou_scores), answers.views),
            object_scores=None if scores is None else scores[0, :, 0].float(),
        )

    def find_all(self, image: np.ndarray) -> list[dict[str, Any]]:
        """See `AutomaticPredictor`; run lengths."""
        return self.mask_generator()(image)

    def mask_generator(self) -> MaskGenerator:
        """What `find_all` goes by.

        Raises:
            ValueError: if the model cannot be prompted so.
        """
        processor = copy(self.processor.image_processor)
        processor.do_stretch_contrast = False  # done already
        return MaskGenerator(self.model, processor, prompts=self.prompts, output_mode="coco_rle")


__all__ = ["SamHfPredictor"]
