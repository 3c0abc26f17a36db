"""Prompt encoder: clicks, boxes and previous masks of every object to sparse tokens and a dense embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_sam_hf import SamHfPromptEncoderConfig
from .layers import LayerNorm2d, embedding_vectors

FOREGROUND = 1
BACKGROUND = 0
NOT_A_POINT = -1
PADDING = -10


class SamHfMaskEmbedding(nn.Module):
    """Previous mask logits to the grid of the image embedding: [*, 1, 4h, 4w] -> [*, C, h, w]."""

    def __init__(self, config: SamHfPromptEncoderConfig):
        super().__init__()
        channels = config.mask_input_channels
        self.conv1 = nn.Conv2d(1, channels // 4, kernel_size=2, stride=2)
        self.layer_norm1 = LayerNorm2d(channels // 4, eps=config.layer_norm_eps)
        self.conv2 = nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2)
        self.layer_norm2 = LayerNorm2d(channels, eps=config.layer_norm_eps)
        self.conv3 = nn.Conv2d(channels, config.hidden_size, kernel_size=1)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, masks: Tensor) -> Tensor:
        hidden_states = self.activation(self.layer_norm1(self.conv1(masks)))
        hidden_states = self.activation(self.layer_norm2(self.conv2(hidden_states)))
        return self.conv3(hidden_states)


class SamHfPromptEncoder(nn.Module):
    """Embeds the prompts of `N` objects in each of `B` images."""

    def __init__(self, config: SamHfPromptEncoderConfig):
        super().__init__()
        self.mask_embed = SamHfMaskEmbedding(config)
        self.no_mask_embed = nn.Embedding(1, config.hidden_size)
        # In SAM's order: background click, foreground click, first and second corner of a box.
        self.point_embed: Sequence[nn.Embedding] = nn.ModuleList(  # type: ignore[assignment]  # not generic
            nn.Embedding(1, config.hidden_size) for _ in range(config.num_point_embeddings)
        )
        self.not_a_point_embed = nn.Embedding(1, config.hidden_size)
        self.end_every_prompt = config.end_every_prompt

    def forward(
        self,
        point_positions: Tensor | None = None,
        input_labels: Tensor | None = None,
        corner_positions: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_input_masks: Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Embed prompts.

        Args:
            point_positions: float32 [B, N, P, C], `SamHfPositionalEmbedding` of the points; input_labels: int
                [B, N, P], one of FOREGROUND, BACKGROUND, NOT_A_POINT, PADDING.
            corner_positions: float32 [B, N, 2, C], of two corners of a box; NaN for an object without box.
            input_masks: float [B, N or 1, h, w] logits; has_input_masks: bool [B, N], None means all.
            device: where to answer, that of the image.

        Returns:
            tokens: [B, N, T, C], or None without points and boxes; of a model that ends every prompt never None, and
                [1, 1, 2, C] without any prompt.
            token_mask: bool [B, N, T], False for tokens that must not be attended to; None when all count.
            dense: [B, N or 1, C, h/4, w/4], or [1, 1, C, 1, 1] without masks.
        """
        tokens, valid = [], []
        has_box = None if corner_positions is None else corner_positions.isfinite().flatten(2).all(dim=-1)  # [B, N]
        if point_positions is not None and input_labels is not None:
            tokens.append(self.embed_points(point_positions, input_labels))
            valid.append(input_labels != PADDING)
            if not self.end_every_prompt:
                # SAM ends the clicks of an object that has no box with a not-a-point token.
                ends = valid[0].any(dim=-1) if has_box is None else valid[0].any(dim=-1) & ~has_box
                valid.append(ends[..., None])
                tokens.append(self.ends(valid[-1]))
        if corner_positions is not None and has_box is not None:
            corners = list(self.point_embed)[2:4]
            corner_embed = torch.cat([embedding_vectors(corner, 1, corner_positions.device) for corner in corners])
            tokens.append(torch.nan_to_num(corner_positions).to(corner_embed.dtype) + corner_embed)
            valid.append(has_box[..., None].expand(-1, -1, 2))
        no_mask = embedding_vectors(self.no_mask_embed, 1, device)[0, :, None, None]
        dense = no_mask[None, None] if input_masks is None else self.embed_masks(input_masks, has_input_masks, no_mask)
        if self.end_every_prompt:
            nothing = torch.zeros(dense.shape[:2], dtype=torch.bool, device=dense.device)
            prompted = torch.cat(valid, dim=2).any(dim=2) if valid else nothing
            # SAM 2 has one for every object, and one more for the clicks of an object that has none, nor a box.
            valid.append(torch.stack([torch.ones_like(prompted), ~prompted], dim=-1))
            tokens.append(self.ends(valid[-1]))
        if not tokens:
            return None, None, dense
        return torch.cat(tokens, dim=2), torch.cat(valid, dim=2), dense

    def ends(self, valid: Tensor) -> Tensor:
        """A not-a-point token for each of `valid`, bool [B, N, T]: [B, N, T, C]."""
        return embedding_vectors(self.not_a_point_embed, 1, valid.device).expand(*valid.shape, -1)

    def embed_points(self, embedded: Tensor, labels: Tensor) -> Tensor:
        """Add what each label means to the embedded positions [B, N, P, C]."""
        labels = labels[..., None]
        background, foreground, not_a_point = (
            embedding_vectors(embedding, 1, labels.device)
            for embedding in (*list(self.point_embed)[:2], self.not_a_point_embed)
        )
        embedded = embedded.to(not_a_point.dtype)
        return torch.where(
            labels == FOREGROUND,
            embedded + foreground,
            torch.where(labels == BACKGROUND, embedded + background, not_a_point),
        )

    def embed_masks(self, masks: Tensor, has_masks: Tensor | None, no_mask: Tensor) -> Tensor:
        dense = self.mask_embed(masks.flatten(0, 1)[:, None].to(no_mask.dtype)).unflatten(0, masks.shape[:2])
        if has_masks is None:
            return dense
        return torch.where(has_masks[..., None, None, None], dense, no_mask)


def inner_points(
    input_points: Tensor | None, input_labels: Tensor | None, input_boxes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Points that prompts say to be in an object: foreground clicks, and middles of boxes.

    Args:
        input_points, input_labels, input_boxes: as of `SamHfModel.forward`; points with their labels, or boxes.

    Returns:
        points: float [B, N, K, 2], in pixels of the model input.
        is_given: bool [B, N, K], those that count.
    """
    points, is_given = [], []
    if input_points is not None and input_labels is not None:
        points.append(input_points)
        is_given.append(input_labels == FOREGROUND)
    if input_boxes is not None:
        points.append(input_boxes.unflatten(-1, (2, 2)).mean(dim=-2, keepdim=True))
        is_given.append(points[-1].isfinite().all(dim=-1))
    return torch.cat(points, dim=2).nan_to_num(), torch.cat(is_given, dim=2)


def drop_padding(tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """As few tokens as the object with most of them needs: those that count come first, in their order.

    Takes and returns what `SamHfPromptEncoder.forward` does; the mask is None when there is nothing left to hide.
    """
    fewest, most = torch.stack(token_mask.sum(dim=-1).aminmax()).tolist()
    if most < token_mask.shape[-1]:
        order = token_mask.byte().argsort(dim=-1, descending=True, stable=True)[..., :most]
        tokens, token_mask = tokens.take_along_dim(order[..., None], 2), token_mask.take_along_dim(order, 2)
    return tokens, None if fewest == most else token_mask


__all__ = [
    "BACKGROUND",
    "FOREGROUND",
    "NOT_A_POINT",
    "PADDING",
    "SamHfPromptEncoder",
    "drop_padding",
    "inner_points",
]
