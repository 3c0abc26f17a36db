"""The three graphs that are exported, with the inputs and outputs of `Sam2Model` in transformers.js 4.

It names the features of an image `image_embeddings.0`, `image_embeddings.1`, ..., finest first; S is the side of the
model input.
"""

from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, nn
from torch.export import Dim

from ..layers import height_and_width
from ..modeling_sam_hf import PromptTensors, SamHfModel
from ..prompt_encoder import PADDING

ENCODER, DECODER, MASK_PROMPT = "vision_encoder", "prompt_encoder_mask_decoder", "mask_prompt_encoder"
MAPS = "instance_maps"


class Encoder(nn.Module):
    """Images, float32 [B, 3, S, S], to their features; behind these the instance maps [B, 3, h, w] if it has them."""

    def __init__(self, model: SamHfModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        features = self.model.get_image_embeddings(pixel_values)
        if self.model.instance_decoder is None:
            return tuple(features)
        return *of_decoder(self.model, features), self.model.get_instance_maps(features)


class Decoder(nn.Module):
    """Features and prompts to predicted IoU, masks, and the object score if it has one.

    Any object may be without points or boxes, and one of the two may be for fewer objects than the other: the rest
    then has none. The number of candidates is always that for an ambiguous prompt. To any other prompt all of them
    are the same mask, so that the one of the highest predicted IoU is right for both. That is so for each object,
    where `SamHfModel.forward` decides for all objects of a call.
    """

    def __init__(self, model: SamHfModel):
        super().__init__()
        self.model = model

    def forward(
        self, image_embeddings: list[Tensor], input_points: Tensor, input_labels: Tensor, input_boxes: Tensor
    ) -> tuple[Tensor, ...]:
        """
        Args:
            image_embeddings: as `Encoder` returns them.
            input_points: float32 [B, N, P, 2] in pixels of the model input; P may be 0.
            input_labels: int64 [B, N, P].
            input_boxes: float32 [B, N', 4]; N' may be 0. One of NaN is none; one of infinity is none either, and says
                that the prompt is not ambiguous.

        Returns:
            iou_scores [B, max(N, N'), M], pred_masks [B, max(N, N'), M, h, w], and object_score_logits.
        """
        num_pointed, num_boxed = input_points.shape[1], input_boxes.shape[1]
        num_objects = torch.sym_max(num_pointed, num_boxed)
        # A padded point for each, so that nothing that follows is empty: onnxruntime-web fails on that.
        points = extend(input_points, 1, 0.0, axis=2)
        labels = extend(input_labels, 1, PADDING, axis=2)
        points = extend(points, num_objects - num_pointed, 0.0)
        labels = extend(labels, num_objects - num_pointed, PADDING)
        boxes = extend(input_boxes, num_objects - num_boxed, torch.nan)
        decoder = self.model.mask_decoder
        features = image_embeddings[1:] if proposes(self.model) else image_embeddings
        prompts: PromptTensors = (points, labels, boxes, None, None)
        proposals = None
        if proposes(self.model):
            # Zeros instead of the features that proposals come from ask for none, see `MaskPrompt`.
            is_asked = (image_embeddings[0].abs().amax(dim=(1, 2, 3)) > 0)[:, None]
            (*_, masks, has_masks), proposals = self.model.with_proposals(image_embeddings, prompts)
            assert has_masks is not None and proposals is not None, "there are always points"
            prompts = points, labels, boxes, masks, has_masks & is_asked
            proposals = proposals * is_asked[..., None, None]
        masks, scores, *others = decoder(features, *self.model.embed_prompts(features, *prompts))
        if proposals is not None:
            masks = masks + proposals[:, :, None]
        ambiguous = ((labels != PADDING).sum(-1) <= 1) & boxes.isnan().any(-1)
        candidates = decoder.select_candidates(masks, scores, True)
        single = decoder.select_candidates(masks, scores, False)
        masks = torch.where(ambiguous[..., None, None, None], candidates[0], single[0])
        scores = torch.where(ambiguous[..., None], candidates[1], single[1])
        return scores, masks, *(other for other in others if other is not None)


class MaskPrompt(nn.Module):
    """The last of the features, for which `Decoder` answers as if it had got the mask, logits [B, 1, h, w], too.

    It does not see the mask, so that a single click with one counts as ambiguous, unless a box of infinity comes with
    it, for which it answers as `SamHfModel.forward`. A model that proposes masks must get zeros for the first of the
    features, of which these are made.
    """

    def __init__(self, model: SamHfModel):
        super().__init__()
        self.encoder = model.prompt_encoder

    def forward(self, embedding: Tensor, input_masks: Tensor) -> Tensor:
        no_mask = self.encoder.no_mask_embed.weight[0][:, None, None]
        return embedding + self.encoder.mask_embed(input_masks) - no_mask


def extend(values: Tensor, count: int | SymInt, fill: float, axis: int = 1) -> Tensor:
    """So many entries of `fill` more at the end of an axis."""
    shape = [*values.shape[:axis], count, *values.shape[axis + 1 :]]
    return torch.cat([values, values.new_full(shape, fill)], dim=axis)


class Graph(NamedTuple):
    """What the exporter is given: `arguments` are examples, `axes` say which of their sides may have any length."""

    module: nn.Module
    arguments: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    axes: tuple[Any, ...]


def proposes(model: SamHfModel) -> bool:
    return model.instance_decoder is not None and model.instance_decoder.proposals is not None


def of_decoder(model: SamHfModel, features: list[Tensor]) -> list[Tensor]:
    """What masks are decoded from: of the instance decoder's features only where it proposes masks."""
    return features[1:] if model.instance_decoder is not None and not proposes(model) else features


def feature_names(model: SamHfModel) -> list[str]:
    return [f"image_embeddings.{k}" for k in range(len(model.config.vision_config.feature_widths) + proposes(model))]


@torch.no_grad()
def graphs_of(model: SamHfModel) -> dict[str, Graph]:
    """The graphs by the names of their files."""
    names, size = feature_names(model), model.config.image_size
    encoder = Encoder(model)
    pixels = torch.zeros(2, 3, size, size)
    features = list(encoder(pixels)[: len(names)])
    height, width = height_and_width(features[-1])
    images, objects, points, boxes = Dim("batch"), Dim("objects"), Dim("points"), Dim("boxes")
    # Sides of 0 and 1, or equal ones, would be taken for the only possible.
    prompts = torch.ones(2, 3, 4, 2), torch.ones(2, 3, 4, dtype=torch.long), torch.ones(2, 5, 4)
    prompt_axes = {0: images, 1: objects, 2: points}, {0: images, 1: objects, 2: points}, {0: images, 1: boxes}
    maps = [] if model.instance_decoder is None else [MAPS]
    scores = ["object_score_logits"] if model.config.mask_decoder_config.use_object_score else []
    return {
        ENCODER: Graph(encoder, (pixels,), ["pixel_values"], names + maps, ({0: images},)),
        DECODER: Graph(
            Decoder(model),
            (features, *prompts),
            [*names, "input_points", "input_labels", "input_boxes"],
            ["iou_scores", "pred_masks", *scores],
            ([{0: images}] * len(names), *prompt_axes),
        ),
        MASK_PROMPT: Graph(
            MaskPrompt(model),
            (features[-1], torch.zeros(2, 1, 4 * height, 4 * width)),
            [names[-1], "input_masks"],
            ["embedding_with_mask"],
            ({0: images}, {0: images}),
        ),
    }


__all__ = [
    "DECODER",
    "ENCODER",
    "MAPS",
    "MASK_PROMPT",
    "Decoder",
    "Graph",
    "feature_names",
    "graphs_of",
    "of_decoder",
    "proposes",
]
