"""All prompts of an object at once, answered as if given one after the other: for tools that keep no state."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.image_utils import ImageInput

from ..masks import best_masks
from ..modeling_sam_hf import SamHfModel
from ..pixels import read_image
from ..processing_sam_hf import SamHfProcessor
from .image import PromptedImage


def open_image(model: SamHfModel, processor: SamHfProcessor, image: ImageInput) -> PromptedImage:
    """Read an image of any kind that `read_image` takes, as the model wants it.

    Args:
        model: in eval mode, on its device.
        processor: its own.
    """
    pixels = read_image(image, stretch_contrast=bool(processor.image_processor.do_stretch_contrast))
    return PromptedImage(model, processor, pixels.permute(1, 2, 0).contiguous().numpy())


def answer_in_turn(
    image: PromptedImage, points: Sequence[Sequence[float]], labels: Sequence[int], box: Sequence[float] | None = None
) -> tuple[np.ndarray, float]:
    """The mask of one object after its box and then each of its clicks; the model gets back what it answered before.

    So it was trained, and is evaluated. What is answered depends on nothing but the arguments.

    Args:
        points: (x, y) indices of pixels of the image, in the order of the clicks.
        labels: 1 on the object, 0 beside it, of each.
        box: (x1, y1, x2, y2), as the points.

    Returns:
        The mask, bool [H, W], and its predicted IoU.

    Raises:
        ValueError: without a click and a box.
    """
    if box is None and not len(points):
        raise ValueError("there is no prompt, expected a click or a box.")
    clicks = torch.tensor(points, dtype=torch.float32).reshape(1, -1, 2)
    meanings = torch.tensor(labels, dtype=torch.long).reshape(1, -1)
    boxes = None if box is None else torch.tensor([box], dtype=torch.float32)
    state = None
    for count in range(int(box is None), len(points) + 1):
        answers = image.predict(clicks[:, :count], meanings[:, :count], boxes, state)
        shown = best_masks(answers.logits, answers.iou_scores)
        state = shown, answers.views
    mask = image.to_pixels(shown[:, :, None], answers.views)[0, 0]
    return mask.cpu().numpy(), answers.iou_scores.max().item()


__all__ = ["answer_in_turn", "open_image"]
