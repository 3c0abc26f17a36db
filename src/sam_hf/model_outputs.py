"""What models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SamHfOutput(ModelOutput):
    """What `SamHfModel` returns.

    Args:
        loss: float32 scalar, when `labels` are given.
        loss_dict: its unweighted terms `focal`, `dice`, `iou`, `object_score`, and `mask_iou`, the true IoU of the
            candidate with the lowest mask loss; each the mean over objects.
        iou_scores: float [B, N, M], predicted IoU.
        pred_masks: float [B, N, M, h, w], logits; a mask is where they are positive.
        object_score_logits: float [B, N, 1], positive if the model thinks that there is an object.
        masks: float [B, N, M, H, W], `pred_masks` resized to the model input, with `upscale_masks=True`.
        image_embeddings: list, finest first, the embedding [B, C, h/4, w/4] last; `forward` takes it back.
        vision_hidden_states: input of the first encoder block and output of every one, each [B, h/4, w/4, C'].
        vision_attentions: attention weights of every encoder block, [B * windows, heads, L, L], or
            [B, heads, L, L] of global blocks.
        mask_decoder_attentions: of every decoder block the output of the attention of the image to the tokens, each
            [B, N, h/4 * w/4, C]. These are no weights, but they are what stock's output of this name holds.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    iou_scores: Tensor | None = None
    pred_masks: Tensor | None = None
    object_score_logits: Tensor | None = None
    masks: Tensor | None = None
    image_embeddings: list[Tensor] | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SamHfVisionOutput(ModelOutput):
    """What `SamHfModel.encode` returns.

    Args:
        last_hidden_state: the embedding [B, C, h/4, w/4], under the name that it has in stock's vision output.
        image_embeddings: list, finest first, the embedding last; see `SamHfModel.get_image_embeddings`.
        hidden_states, attentions: as `vision_hidden_states` and `vision_attentions` of `SamHfOutput`.
    """

    last_hidden_state: Tensor | None = None
    image_embeddings: list[Tensor] = None  # type: ignore[assignment]  # always there, behind what may be absent
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SamHfInstanceOutput(ModelOutput):
    """What `SamHfForInstanceSegmentation` returns.

    Args:
        pred_masks: float [B, N, h, w], logits of the mask of each object; N is that of the image with the most.
        scores: float32 [B, N], predicted IoU times the foreground at the centre; 0 beyond the objects of an image.
        instance_maps: float32 [B, 3, h, w], see `SamHfModel.get_instance_maps`.
    """

    pred_masks: Tensor | None = None
    scores: Tensor | None = None
    instance_maps: Tensor | None = None


__all__ = ["SamHfInstanceOutput", "SamHfOutput", "SamHfVisionOutput"]
