"""Instance decoder: what in an image is object, how far its border is, and where its centre, without prompts.

Foreground and the distances to border and centre are what micro-sam (Archit et al. 2025) decodes beside the masks;
here they come by a small U-Net from the features that the mask decoder gets, and may guide it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_sam_hf import SamHfInstanceDecoderConfig
from .instances import MAPS
from .layers import LayerNorm2d

# Dimensions of a place: the first two are those of the mask grid, in steps of so many cells.
NUM_PLACES, CELLS_PER_PLACE = 8, 8
# Of random weights: the logit of a cell at its own place.
MARGIN = 2
# No logit of a proposal is larger.
PROPOSAL_LIMIT = 32.0


class SamHfResidualConvolutions(nn.Module):
    """Two convolutions that look at the neighbours: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = LayerNorm2d(width, eps=eps), LayerNorm2d(width, eps=eps)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in range(2))
        self.activation = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv1(self.activation(self.layer_norm1(features)))
        return features + self.conv2(self.activation(self.layer_norm2(inner)))


class SamHfInstanceDecoder(nn.Module):
    """Upscales the embedding to the mask grid, and joins the high-resolution features to it where there are some.

    Args:
        feature_widths: channels of the features of an image, finest first, the embedding last.
    """

    def __init__(self, config: SamHfInstanceDecoderConfig, feature_widths: list[int]):
        super().__init__()
        *high_res, embedding = feature_widths
        fine, middle = config.hidden_size, 2 * config.hidden_size
        self.upscale1 = nn.ConvTranspose2d(embedding, middle, kernel_size=2, stride=2)
        self.upscale0 = nn.ConvTranspose2d(middle, fine, kernel_size=2, stride=2)
        self.laterals = nn.ModuleList(
            nn.Conv2d(own, joined, kernel_size=1) for own, joined in zip(high_res, (fine, middle), strict=False)
        )
        self.block1 = SamHfResidualConvolutions(middle, config.layer_norm_eps)
        self.block0 = SamHfResidualConvolutions(fine, config.layer_norm_eps)
        self.head = nn.Conv2d(fine, len(MAPS), kernel_size=1)
        self.proposals = SamHfMaskProposals(fine) if config.proposes_masks else None
        # Start at zero (`SamHfPreTrainedModel._init_weights`).
        self.guides = nn.ModuleList()
        if config.guides_masks:
            self.guides.append(nn.Conv2d(fine, embedding, kernel_size=4, stride=4))
            self.guides.extend(nn.Conv2d(fine, width, kernel_size=1) for width in high_res[:1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of an image [..., embedding [B, C, h/4, w/4]] to these, guided, behind its own [B, C', h, w]."""
        *high_res, embedding = features
        middle = self.upscale1(embedding)
        middle = self.block1(middle + self.laterals[1](high_res[1]) if high_res else middle)
        fine = self.upscale0(middle)
        fine = self.block0(fine + self.laterals[0](high_res[0]) if high_res else fine)
        if self.guides:
            embedding = embedding + self.guides[0](fine)
            high_res = [feature + guide(fine) for feature, guide in zip(high_res, self.guides[1:], strict=False)] + (
                high_res[1:]
            )
        return [fine, *high_res, embedding]


class SamHfMaskProposals(nn.Module):
    """For prompts of an object the cells that belong to it: those that are alike to the cells that are prompted.

    Each cell has a place, which starts as where it is and learns to be the same all over an object, and a reach (Neven
    et al. 2019, where places are predicted centres).
    """

    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Conv2d(width, NUM_PLACES + 2, kernel_size=1)

    def forward(self, features: Tensor, foreground: Tensor, cells: Tensor, is_given: Tensor) -> Tensor:
        """Logits float32 [B, N, h, w], within `PROPOSAL_LIMIT`: of being alike, and of `foreground`, both.

        Args:
            features: float [B, C', h, w]; foreground: float32 [B, h, w], logits.
            cells: int64 [B, N, K, 2], (x, y) of the prompted cells; is_given: bool [B, N, K], those that an object
                has. Of several the most alike one counts.
        """
        height, width = features.shape[-2:]
        columns, rows = (torch.arange(side, device=features.device) / CELLS_PER_PLACE for side in (width, height))
        where = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        places, reach, margin = self.projection(features).float().split([NUM_PLACES, 1, 1], dim=1)
        places = torch.cat([places[:, :2] + where, places[:, 2:]], dim=1).flatten(2)  # [B, D, h * w]
        indices = (cells[..., 1] * width + cells[..., 0]).flatten(1)[:, None]  # [B, 1, N * K]
        prompted, reach, margin = (
            part.flatten(2).gather(2, indices.expand(-1, part.shape[1], -1)).transpose(1, 2)
            for part in (places, reach, margin)
        )  # [B, N * K, D], and twice [B, N * K, 1]
        alike = (MARGIN + margin - reach.exp() * squared_distances(prompted, places)).unflatten(1, cells.shape[1:3])
        alike = alike.masked_fill(~is_given[..., None], -PROPOSAL_LIMIT).amax(dim=2).unflatten(2, (height, width))
        foreground = foreground[:, None].expand_as(alike)
        # The logit of the product of both probabilities.
        terms = torch.stack([-alike, -foreground, -alike - foreground])
        # `logsumexp`, which asks for the number of prompts, so that torch 2.11 could not export it.
        largest = terms.detach().amax(dim=0)
        logits = -(largest + (terms - largest).exp().sum(dim=0).log())
        return logits.clamp(-PROPOSAL_LIMIT, PROPOSAL_LIMIT)


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Between float32 [B, L, D] and [B, D, K]: [B, L, K], in float32 whatever autocast says."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows.square().sum(-1, keepdim=True) - 2 * rows @ columns + columns.square().sum(1, keepdim=True)


def instance_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each image, float32 [B]: cross-entropy and dice of foreground, and in it cross-entropy of the rest.

    That of the distances is what is left of it at the targets, so that 0 is the least.

    Args:
        logits: [B, 3, h, w]; targets: float [B, 3, h, w] in [0, 1], NaN in pixels to ignore, which may be all.
    """
    logits, targets = logits.float(), targets.float()
    valid = targets[:, 0].isfinite().float()
    targets = targets.nan_to_num(0.0)
    inside = targets[:, 0] * valid
    errors = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    errors = errors + torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets)
    foreground = (errors[:, 0] * valid).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp(min=1)
    distances = (errors[:, 1:].sum(dim=1) * inside).sum(dim=(-2, -1)) / inside.sum(dim=(-2, -1)).clamp(min=1)
    probability = logits[:, 0].sigmoid() * valid
    overlap, total = (probability * inside).sum(dim=(-2, -1)), (probability + inside).sum(dim=(-2, -1))
    return foreground + distances + 1 - (2 * overlap + 1) / (total + 1)


__all__ = ["SamHfInstanceDecoder", "instance_losses"]
