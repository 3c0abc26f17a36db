"""What a model says of images that show nothing of what it is trained for."""

import zlib

import numpy as np
import torch

from ..data.schema import Record, rgb_array
from .predictors import Predictor, Prompts


def score_negative(predictor: Predictor, record: Record, stretch_contrast: bool | None = None) -> float | None:
    """The object score, as a logit, of a click on an image without objects; right is at most 0.

    Args:
        record: see `data.schema`; its `image_id` decides where the click is.
        stretch_contrast: whether the model sees the image so; as it wants when None.

    Returns:
        None for a model without object score.
    """
    stretch = predictor.stretch_contrast if stretch_contrast is None else stretch_contrast
    image = rgb_array(record["image"], stretch_contrast=stretch)
    height, width = image.shape[:2]
    point = np.random.default_rng(zlib.crc32(record["image_id"].encode())).random(2) * (width, height)
    predictor.set_image(image)
    prompts = Prompts(torch.tensor(point, dtype=torch.float32)[None, None], torch.ones(1, 1, dtype=torch.long))
    scores = predictor.predict(prompts).object_scores
    return None if scores is None else scores[0].item()


__all__ = ["score_negative"]
