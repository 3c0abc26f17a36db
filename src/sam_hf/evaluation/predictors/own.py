"""Models of this package as predictors."""

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from ...automatic import MaskGenerator
from ...clicks import FEEDBACK_LIMIT
from ...masks import best_masks
from ...modeling_sam_hf import SamHfModel
from ...processing_sam_hf import SamHfProcessor
from ...prompted import Answers, PromptedImage
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
        answers = self.answer(prompts)
        scores = answers.object_scores
        return Prediction(
            masks=self.image.to_pixels(answers.logits, answers.views),
            scores=answers.iou_scores[0].float(),
            state=(best_masks(answers.logits, answers.iou_scores), answers.views),
            object_scores=None if scores is None else scores[0, :, 0].float(),
        )

    def answer(self, prompts: Prompts) -> Answers:
        """What the model says, its logits as it may get them back."""
        is_single_click = prompts.state is None and prompts.boxes is None
        given = prompts.points, prompts.labels, prompts.boxes, prompts.state
        answers = self.image.predict(*given, multimask_output=is_single_click)
        return replace(answers, logits=answers.logits.clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT))

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
