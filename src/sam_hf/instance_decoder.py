"""Instance decoder: what in an image is object, how far its border, where its centre, without prompts.

Foreground, and distances to border and centre, are what micro-sam (Archit et al. 2025) decodes beside the masks; here
from the features that the mask decoder gets, by a pyramid in place of UNETR's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_sam_hf import SamHfInstanceDecoderConfig
from .feature_pyramid import SamHfFeaturePyramid

# Of the maps, in this order.
MAPS = ("foreground", "distance", "center")


class SamHfInstanceDecoder(nn.Module):
    """Logits of three maps of an image from its features.

    Args:
        feature_widths: channels of the features, finest first, the embedding last.
    """

    def __init__(self, config: SamHfInstanceDecoderConfig, feature_widths: list[int]):
        super().__init__()
        *sides, embedding = feature_widths
        widths = config.hidden_size, 2 * config.hidden_size
        self.pyramid = SamHfFeaturePyramid(embedding, sides, widths, config.layer_norm_eps)
        self.head = nn.Conv2d(config.hidden_size, len(MAPS), kernel_size=1)

    def forward(self, image_embeddings: list[Tensor]) -> Tensor:
        """As `SamHfModel.get_image_embeddings` returns them, to logits [B, 3, h, w] of `MAPS`.

        Their sigmoids are in [0, 1]: the chance that there is an object; how far its border is, as a share of the
        farthest in the object; and how near its centre, where that is, 1, to the pixel that is the farthest from it.
        """
        *sides, embedding = image_embeddings
        return self.head(self.pyramid(embedding, sides)[0])


def instance_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each image, float32 [B]: cross-entropy and dice of foreground, and in it cross-entropy of the rest.

    Args:
        logits: [B, 3, h, w]; targets: float [B, 3, h, w] in [0, 1], NaN in pixels to ignore, which may be all.
    """
    logits, targets = logits.float(), targets.float()
    valid = targets[:, 0].isfinite().float()
    targets = targets.nan_to_num(0.0)
    errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    inside = targets[:, 0] * valid
    foreground = (errors[:, 0] * valid).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp(min=1)
    # What is left at the target is no loss.
    rest = F.binary_cross_entropy(targets, targets, reduction="none")
    others = ((errors - rest)[:, 1:].sum(dim=1) * inside).sum(dim=(-2, -1)) / inside.sum(dim=(-2, -1)).clamp(min=1)
    probability = logits[:, 0].sigmoid() * valid
    overlap, total = (probability * inside).sum(dim=(-2, -1)), (probability + inside).sum(dim=(-2, -1))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return foreground + dice * valid.flatten(1).any(dim=-1) + others


__all__ = ["MAPS", "SamHfInstanceDecoder", "instance_losses"]
