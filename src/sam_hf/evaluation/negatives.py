"""What a model says of images that show nothing of what it is trained for."""

import zlib

import numpy as np
import torch

from ..data.schema import Record, rgb_array
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor


@torch.no_grad()
def score_negative(model: SamHfModel, processor: SamHfProcessor, record: Record) -> float | None:
    """The object score, as a logit, of a click on an image without objects; right is at most 0.

    Args:
        model: in eval mode, on its device.
        processor: the model's own.
        record: see `data.schema`; its `image_id` decides where the click is.

    Returns:
        None for a model without object score.
    """
    if not model.config.mask_decoder_config.use_object_score:
        return None
    image = rgb_array(record["image"], stretch_contrast=bool(processor.image_processor.do_stretch_contrast))
    height, width = image.shape[:2]
    x, y = np.random.default_rng(zlib.crc32(record["image_id"].encode())).random(2) * (width, height)
    inputs = processor(
        images=image, input_points=[[float(x), float(y)]], return_tensors="pt", do_stretch_contrast=False
    )
    return model(**inputs.to(model.device)).object_score_logits[0, 0, 0].item()


__all__ = ["score_negative"]
