"""`SamHfModel`: image encoder, prompt encoder and mask decoder as one `PreTrainedModel` that has a loss.

Axes, here and everywhere in the package: B images, N objects per image, P points per object, M mask candidates,
C channels, H, W the padded model input in pixels, h, w the mask grid, four times finer than the patch grid. Sizes are
(height, width), points (x, y), boxes (x1, y1, x2, y2).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbone_encoder import SamHfBackboneEncoder
from .configuration_sam_hf import SamHfConfig
from .hiera_encoder import SamHfHieraEncoder
from .hub_code import class_reference
from .image_encoder import SamHfVisionEncoder
from .instance_decoder import SamHfInstanceDecoder
from .instances import FOREGROUND_THRESH, SEED_THRESH, find_centers
from .layers import height_and_width
from .losses import ObjectLosses, ObjectTargets, object_losses, targets_at
from .mask_decoder import SamHfMaskDecoder
from .masks import best_masks
from .model_outputs import SamHfInstanceOutput, SamHfOutput, SamHfVisionOutput
from .positions import PositionFrame, SamHfPositionalEmbedding, grid_centers, normalise
from .pretrained_model import SamHfPreTrainedModel
from .prompt_checks import check_known, check_prompts, is_ambiguous, labels_of
from .prompt_encoder import SamHfPromptEncoder, drop_padding, inner_points
from .tiny_vit_encoder import SamHfTinyVitEncoder
from .vision_configuration import HIERA, TINY_VIT, SamHfBackboneConfig, SamHfVisionConfig

# By the `model_type` of `vision_config`.
VisionEncoder = SamHfVisionEncoder | SamHfHieraEncoder | SamHfTinyVitEncoder | SamHfBackboneEncoder
VISION_ENCODERS: dict[str, Callable[[Any], VisionEncoder]] = {
    SamHfVisionConfig.model_type: SamHfVisionEncoder,
    HIERA: SamHfHieraEncoder,
    TINY_VIT: SamHfTinyVitEncoder,
    SamHfBackboneConfig.model_type: SamHfBackboneEncoder,
}
# Candidates of all objects: masks, predicted IoU and object scores, see `SamHfMaskDecoder.forward`.
Decoded = tuple[Tensor, Tensor, Tensor | None]
# Points, labels, boxes, masks, and which objects have a mask, see `SamHfModel.forward`.
PromptTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class SamHfModel(SamHfPreTrainedModel):
    """Segment Anything: from an image and prompts of any number of objects to masks and their predicted IoU."""

    auto_classes: ClassVar[tuple[str, ...]] = ("AutoModel", "AutoModelForMaskGeneration")
    # `forward` has keyword arguments, but its loss is a mean whatever `num_items_in_batch` says.
    accepts_loss_kwargs = False

    def __init__(self, config: SamHfConfig):
        super().__init__(config)
        for part in (config.vision_config, config.mask_decoder_config):
            # Its own where `attn_implementation` is a dict.
            asked = part._attn_implementation or config._attn_implementation
            part._attn_implementation = self.get_correct_attn_implementation(asked)
        self.shared_image_embedding = SamHfPositionalEmbedding(config.prompt_encoder_config)
        self.vision_encoder = VISION_ENCODERS[config.vision_config.model_type](config.vision_config)
        self.prompt_encoder = SamHfPromptEncoder(config.prompt_encoder_config)
        self.mask_decoder = SamHfMaskDecoder(config.mask_decoder_config)
        self.instance_decoder = None
        if config.instance_decoder_config is not None:
            widths = config.vision_config.feature_widths
            self.instance_decoder = SamHfInstanceDecoder(config.instance_decoder_config, widths)
        self._has_checked_labels = False
        self.post_init()

    def auto_references(self) -> dict[str, str]:
        """Those of both models, whichever is saved: their weights are the same."""
        references = super().auto_references()
        if self.instance_decoder is not None:
            models = SamHfModel, SamHfForInstanceSegmentation
            references = {name: class_reference(model) for model in models for name in model.auto_classes} | references
        return references

    def parts_with_code(self) -> list:
        return [self.config, self]

    def get_input_embeddings(self) -> nn.Conv2d:
        return self.vision_encoder.get_input_embeddings()

    @property
    def input_dtype(self) -> torch.dtype:
        """Not `dtype`, which replicas of `nn.DataParallel` cannot tell: they have no parameters."""
        return self.get_input_embeddings().weight.dtype

    def get_image_embeddings(self, pixel_values: Tensor, frame: PositionFrame | None = None) -> list[Tensor]:
        """Encode images [B, 3, H, W] once for any number of prompts; gradients flow.

        `frame` says of which image the input is a crop; `decode` needs the same one. None: the input is whole.

        Returns:
            `[embedding [B, C, h/4, w/4]]`, or with high-resolution features
            `[s0 [B, C/8, h, w], s1 [B, C/4, h/2, w/2], embedding]`; before these, of a model with an instance decoder,
            its features [B, C', h, w], for `get_instance_maps`.
        """
        return self.add_instances(self.get_vision_features(pixel_values, frame))

    def get_vision_features(self, pixel_values: Tensor, frame: PositionFrame | None = None) -> list[Tensor]:
        """The part of `get_image_embeddings` that is the image encoder's."""
        return self.vision_encoder(pixel_values.to(self.input_dtype), frame)[0]

    def add_instances(self, vision_features: list[Tensor]) -> list[Tensor]:
        """The rest of it, that of the instance decoder; as they came if the model has none."""
        return vision_features if self.instance_decoder is None else self.instance_decoder(vision_features)

    def encode(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SamHfVisionOutput:
        """`get_image_embeddings`, and what the encoder has on its way; the config says what of that when None."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        embeddings, hidden_states, attentions = self.vision_encoder(
            pixel_values.to(self.input_dtype),
            output_attentions=bool(output_attentions),
            output_hidden_states=bool(output_hidden_states),
        )
        embeddings = self.add_instances(embeddings)
        return SamHfVisionOutput(
            last_hidden_state=embeddings[-1],
            image_embeddings=embeddings,
            hidden_states=tuple(hidden_states) or None,
            attentions=tuple(attentions) or None,
        )

    def get_image_wide_positional_embeddings(
        self, frame: PositionFrame | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Fourier features of the cells of the patch grid, float32 [1, C, h/4, w/4]; stock has this method, too.

        `frame` None is an input of the size in the config, `device` None that of the model.
        """
        height, width, *_ = frame or self.frame_of_config()
        patch = self.config.vision_config.stride
        centers = grid_centers(height // patch, width // patch, device or self.device)
        return self.shared_image_embedding(centers).permute(2, 0, 1)[None]

    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_input_masks: Tensor | None = None,
        frame: PositionFrame | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """What prompts become; arguments as in `forward`. Stock has this method, too; here gradients flow.

        `frame` None is an input of the size in the config.

        Returns:
            sparse: [B, N, T, C] of clicks and then corners of boxes, 0 where an object has fewer; None without any.
            dense: [B, N or 1, C, h/4, w/4] of masks; [1, 1, C, h/4, w/4] without any.
        """
        frame, patch = frame or self.frame_of_config(), self.config.vision_config.stride
        prompts = input_points, input_labels, input_boxes, input_masks, has_input_masks
        tokens, token_mask, dense = self.prompt_tokens(frame, self.device, *prompts)
        if tokens is not None and token_mask is not None:
            tokens = torch.where(token_mask[..., None], tokens, 0)
        if input_masks is None:
            dense = dense.expand(-1, -1, -1, frame.height // patch, frame.width // patch)
        return tokens, dense

    def get_instance_maps(self, image_embeddings: list[Tensor]) -> Tensor:
        """Where objects are, without prompts: float32 [B, 3, h, w] in [0, 1], `instances.MAPS`.

        Raises:
            ValueError: if the model has no instance decoder.
        """
        return self.get_instance_logits(image_embeddings).sigmoid()

    def get_instance_logits(self, image_embeddings: list[Tensor]) -> Tensor:
        """What `get_instance_maps` is the sigmoid of; gradients flow."""
        if self.instance_decoder is None:
            raise ValueError(
                "the model has no instance decoder: train one, with SamHfConfig(instance_decoder_config={}) or "
                "--instances true, or find objects by a grid of clicks."
            )
        return self.instance_decoder.head(image_embeddings[0].to(self.instance_decoder.head.weight.dtype)).float()

    def frame_of_config(self) -> PositionFrame:
        return PositionFrame(self.config.vision_config.image_size, self.config.vision_config.image_size)

    def decode(
        self,
        image_embeddings: list[Tensor],
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_input_masks: Tensor | None = None,
        frame: PositionFrame | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> Decoded:
        """All candidates of every object, before `multimask_output` selects among them.

        Arguments as in `forward` and `get_image_embeddings`; `keep` and returns as in `SamHfMaskDecoder.forward`.
        """
        prompts = input_points, input_labels, input_boxes, input_masks, has_input_masks
        if not torch.is_autocast_enabled(image_embeddings[-1].device.type):
            # Embeddings may have been kept in half precision.
            image_embeddings = [feature.to(self.mask_decoder.iou_token.weight.dtype) for feature in image_embeddings]
        features = image_embeddings if self.instance_decoder is None else image_embeddings[1:]
        prompts, proposals = self.with_proposals(image_embeddings, prompts)
        embedded = self.embed_prompts(features, *prompts, frame=frame)
        target = {"attention_similarity": attention_similarity, "target_embedding": target_embedding}
        masks, scores, object_scores = self.mask_decoder(features, *embedded, keep=keep, **target)
        if proposals is not None:
            # Of those that were kept there is one list, [K, h, w].
            added = proposals[:, :, None] if keep is None else proposals[0, keep(scores)[0].nonzero()[:, 0]]
            masks = masks + added.to(masks.dtype)
        return masks, scores, object_scores

    def with_proposals(
        self, image_embeddings: list[Tensor], prompts: PromptTensors
    ) -> tuple[PromptTensors, Tensor | None]:
        """Prompts, where objects without a mask get that of `propose_masks`, and what their answers are added to.

        That is float32 [B, N, h, w], the proposals or 0. They have a loss of their own; here no gradient flows.
        """
        points, labels, boxes, masks, has_masks = prompts
        if masks is not None and has_masks is None:
            return prompts, None
        proposals, is_proposed = self.propose_masks(image_embeddings, points, labels, boxes)
        if proposals is None or is_proposed is None:
            return prompts, None
        proposals = proposals.detach().masked_fill(~is_proposed[..., None, None], 0.0)
        if masks is None or has_masks is None:
            return (points, labels, boxes, proposals, is_proposed), proposals
        is_given = has_masks[..., None, None]
        masks = torch.where(is_given, masks.to(proposals.dtype), proposals)
        return (points, labels, boxes, masks, has_masks | is_proposed), proposals.masked_fill(is_given, 0.0)

    def propose_masks(
        self,
        image_embeddings: list[Tensor],
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the instance decoder takes for the objects under foreground clicks and in the middles of boxes.

        Returns:
            masks: float32 [B, N, h, w], logits; None without clicks and boxes, or if the model proposes no masks.
            has_masks: bool [B, N], objects that have a foreground click or a box.
        """
        decoder = self.instance_decoder
        if decoder is None or decoder.proposals is None or (input_points is None and input_boxes is None):
            return None, None
        features = image_embeddings[0].to(decoder.head.weight.dtype)
        points, is_given = inner_points(input_points, labels_of(input_points, input_labels), input_boxes)
        # Points are indices of pixels, whose middles are half a pixel further.
        cells = ((points + 0.5) * 4 / self.config.vision_config.stride).long()
        columns, rows = (part.clamp(0, n - 1) for part, n in zip(cells.unbind(-1), features.shape[:1:-1], strict=True))
        foreground = self.get_instance_logits(image_embeddings)[:, 0]
        cells = torch.stack([columns, rows], dim=-1)
        return decoder.proposals(features, foreground, cells, is_given), is_given.any(dim=-1)

    def encode_or_take(
        self,
        pixel_values: Tensor | None,
        image_embeddings: Tensor | list[Tensor] | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
    ) -> SamHfVisionOutput:
        """`encode`, or the embeddings that are there already."""
        if pixel_values is not None and image_embeddings is None:
            return self.encode(pixel_values, output_hidden_states, output_attentions)
        if image_embeddings is not None and pixel_values is None:
            features = [image_embeddings] if isinstance(image_embeddings, Tensor) else image_embeddings
            return SamHfVisionOutput(image_embeddings=features)
        raise ValueError("give either pixel_values or image_embeddings, and not both.")

    def record_attentions(self, decode: Callable[[], Decoded]) -> tuple[Decoded, tuple[Tensor, ...]]:
        """What `decode` returns, and `mask_decoder_attentions`; hooks make the decoder take the plain way."""
        layers = self.mask_decoder.transformer.layers
        recorded: list[list[Tensor]] = [[] for _ in layers]
        hooks = [
            layer.cross_attn_image_to_token.register_forward_hook(lambda *call, turns=turns: turns.append(call[-1]))
            for layer, turns in zip(layers, recorded, strict=True)
        ]
        try:
            decoded = decode()
        finally:
            for hook in hooks:
                hook.remove()
        return decoded, tuple(torch.cat(turns, dim=1) for turns in recorded)

    def embed_prompts(
        self,
        image_embeddings: list[Tensor],
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_input_masks: Tensor | None = None,
        frame: PositionFrame | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """What `SamHfMaskDecoder.forward` takes besides the image: positions, tokens, their mask, dense prompts."""
        embedding, patch = image_embeddings[-1], self.config.vision_config.stride
        height, width = embedding.shape[-2:]
        frame = frame or PositionFrame(height * patch, width * patch)
        prompts = input_points, input_labels, input_boxes, input_masks, has_input_masks
        tokens, token_mask, dense = self.prompt_tokens(frame, embedding.device, *prompts)
        top, left = frame.top // patch, frame.left // patch
        if tokens is not None and input_points is None and input_boxes is None:  # those of no prompt, for one image
            tokens = tokens.expand(len(embedding), -1, -1, -1)
            token_mask = None if token_mask is None else token_mask.expand(len(embedding), -1, -1)
        image_pe = self.get_image_wide_positional_embeddings(frame, embedding.device)
        return image_pe[..., top : top + height, left : left + width], tokens, token_mask, dense

    def prompt_tokens(
        self,
        frame: PositionFrame,
        device: torch.device,
        input_points: Tensor | None,
        input_labels: Tensor | None,
        input_boxes: Tensor | None,
        input_masks: Tensor | None,
        has_input_masks: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """What `SamHfPromptEncoder.forward` returns, with no more padding than the prompts need."""
        points = None if input_points is None else self.position_of(input_points, frame)
        corners = None if input_boxes is None else self.position_of(input_boxes.unflatten(-1, (2, 2)), frame)
        labels = labels_of(input_points, input_labels)
        tokens, token_mask, dense = self.prompt_encoder(points, labels, corners, input_masks, has_input_masks, device)
        if tokens is not None and not torch.compiler.is_compiling():
            tokens, token_mask = drop_padding(tokens, token_mask)
        return tokens, token_mask, dense

    def position_of(self, points: Tensor, frame: PositionFrame) -> Tensor:
        """Fourier features, float32 [..., C], of points [..., 2] in pixels of the model input."""
        return self.shared_image_embedding(normalise(points, frame))

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_input_masks: Tensor | None = None,
        image_embeddings: Tensor | list[Tensor] | None = None,
        labels: Tensor | None = None,
        multimask_output: bool | None = None,
        upscale_masks: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        original_sizes: Any = None,
        reshaped_input_sizes: Any = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SamHfOutput:
        """Predict masks.

        Args:
            pixel_values: float [B, 3, H, W], normalised and padded; or give `image_embeddings`, as returned by
                `get_image_embeddings`.
            input_points: float [B, N, P, 2], clicks (x, y) in pixels of the model input.
            input_labels: int [B, N, P]: 1 foreground, 0 background, -1 not a point, -10 padding; all 1 when None.
            input_boxes: float [B, N, 4] in pixels of the model input; a NaN row is an object without box.
            input_masks: float [B, N, h, w], logits of an earlier prediction; [B, 1, h, w] serves all objects.
            has_input_masks: bool [B, N], objects that have a mask prompt; None means all.
            labels: bool, integer or float [B, N, H, W] of 0 and 1 on any grid over the padded input; pixels of NaN, or
                of -1 in signed integers, are ignored, and so are objects that have no others.
            multimask_output: True for the candidates of an ambiguous prompt (three, or four by
                `ambiguous_candidates`), of which `masks.best_masks` is the one to show; False for the one mask of any
                other prompt. None chooses: candidates if no object has more than one click, nor a box or a mask. That
                depends on values, so `torch.compile(fullgraph=True)` and `torch.export` need it given.
            upscale_masks: also return `masks` [B, N, M, H, W].
            output_hidden_states, output_attentions: also return those of the image encoder, whose attentions need
                `attn_implementation="eager"`, and `mask_decoder_attentions`; the config's when None.
            original_sizes, reshaped_input_sizes: what the processor returns for `post_process_masks`; not used here.
            attention_similarity: float, broadcastable to [B * N, heads, T, L], added to the scores of the T tokens for
                the L cells of the embedding (PerSAM).
            target_embedding: float, broadcastable to [B, N, T, C], added to the tokens before each block (PerSAM).
            **kwargs: other arguments that transformers gives to models, such as `num_items_in_batch`; not used.

        Raises:
            ValueError: if neither or both of image and embedding are given, or shapes do not fit each other;
                for labels that are not in [0, 1], all that are in host memory and the first ones on an accelerator.
            TypeError: for arguments that neither this model nor transformers has.
        """
        check_known(kwargs)
        vision = self.encode_or_take(pixel_values, image_embeddings, output_hidden_states, output_attentions)
        features = vision.image_embeddings
        input_labels = labels_of(input_points, input_labels)
        prompts = input_points, input_labels, input_boxes, input_masks, has_input_masks
        num_features = len(self.config.vision_config.feature_widths) + (self.instance_decoder is not None)
        check_prompts(num_features, features, *prompts, labels)
        decode = partial(
            self.decode,
            features,
            *prompts,
            attention_similarity=attention_similarity,
            target_embedding=target_embedding,
        )
        attentions = None
        if self.config.output_attentions if output_attentions is None else output_attentions:
            decoded, attentions = self.record_attentions(decode)
        else:
            decoded = decode()
        all_masks, all_scores, object_score_logits = decoded
        if multimask_output is None:
            multimask_output = is_ambiguous(input_labels, input_boxes, input_masks, has_input_masks)
        masks, scores = self.mask_decoder.select_candidates(all_masks, all_scores, multimask_output)

        loss, loss_dict = None, None
        if labels is not None:
            labels = labels.to(masks.device)  # where the parts of the model are on several
            self.check_first_labels(labels)
            loss, loss_dict = self.reduce_losses(self.object_losses(masks, scores, object_score_logits, labels))
        return SamHfOutput(
            loss=loss,
            loss_dict=loss_dict,
            iou_scores=scores,
            pred_masks=masks,
            object_score_logits=object_score_logits,
            masks=self.upscale_to_input(masks) if upscale_masks else None,
            image_embeddings=features,
            vision_hidden_states=vision.hidden_states,
            vision_attentions=vision.attentions,
            mask_decoder_attentions=attentions,
        )

    def check_first_labels(self, labels: Tensor) -> None:
        """`check_range` of the first labels of the model that are on an accelerator, for which it has to wait.

        Labels such as 0 and 255 are so from the first batch on; in host memory all are checked.
        """
        if torch.compiler.is_compiling() or self._has_checked_labels or labels.device.type in ("cpu", "meta"):
            return
        self._has_checked_labels = True
        targets_at(labels.cpu(), height_and_width(labels))

    def upscale_to_input(self, masks: Tensor) -> Tensor:
        """Logits [B, N, M, h, w] to the size of the model input [B, N, M, H, W], bilinearly."""
        patch = self.config.vision_config.stride
        size = [side * patch // 4 for side in masks.shape[-2:]]
        return F.interpolate(masks.flatten(0, 1), size, mode="bilinear", align_corners=False).unflatten(
            0, masks.shape[:2]
        )

    def loss_targets(self, labels: Tensor, grid: tuple[int, int]) -> ObjectTargets:
        """Labels [B, N, H, W] as `object_losses` needs them, for any number of rounds; `grid` is that of the masks."""
        scale = self.config.vision_config.stride / 4 if self.config.loss_resolution == "input" else 1
        height, width = (int(side * scale) for side in grid)
        return ObjectTargets.of(labels, (height, width))

    def object_losses(
        self,
        masks: Tensor,
        iou_scores: Tensor,
        object_score_logits: Tensor | None,
        labels: Tensor | ObjectTargets,
        candidates: Tensor | None = None,
        point_draws: Tensor | None = None,
    ) -> ObjectLosses:
        """`losses.object_losses` with the parameters of the config, at its `loss_resolution`.

        `point_draws`, [B, N, 2] in [0, 1), decides the points of each object; without it they are always the same.
        """
        if isinstance(labels, Tensor):
            labels = self.loss_targets(labels, height_and_width(masks))
        if self.config.loss_resolution == "input":
            masks = self.upscale_to_input(masks.float())
        if self.config.loss_resolution != "points":
            point_draws = None
        elif point_draws is None:
            point_draws = torch.zeros(*masks.shape[:2], 2, device=masks.device)
        return object_losses(
            masks,
            iou_scores,
            object_score_logits,
            labels,
            focal_alpha=self.config.focal_alpha,
            focal_gamma=self.config.focal_gamma,
            focal_normalized=self.config.focal_normalized,
            focal_weight=self.config.focal_weight,
            dice_weight=self.config.dice_weight,
            iou_loss=self.config.iou_loss,
            relaxation=self.config.relaxation,
            candidates=candidates,
            point_draws=point_draws,
        )

    def reduce_losses(self, losses: ObjectLosses, count: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms, and the terms: sums over objects, divided by their number or by `count`."""
        count = losses.valid.sum().clamp(min=1) if count is None else count
        best_iou = losses.iou.gather(2, losses.best[..., None])[..., 0]
        terms = {
            "focal": losses.focal.sum() / count,
            "dice": losses.dice.sum() / count,
            "iou": losses.iou_regression.sum() / count,
            "object_score": losses.object_score.sum() / count,
        }
        weights = self.config.focal_weight, self.config.dice_weight, self.config.iou_weight
        total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=False))
        total = total + self.config.object_score_weight * terms["object_score"]
        terms = {name: term.detach() for name, term in terms.items()}
        return total, terms | {"mask_iou": (best_iou * losses.valid).sum() / count}


class SamHfForInstanceSegmentation(SamHfModel):
    """`SamHfModel` without prompts: a mask for each centre that its instance decoder finds.

    For `pipeline("image-segmentation")`, with `SamHfImageProcessor.post_process_instance_segmentation`. Any model with
    an instance decoder can be loaded as one.

    Raises:
        ValueError: for a config without an instance decoder.
    """

    auto_classes = ("AutoModelForImageSegmentation",)

    def __init__(self, config: SamHfConfig):
        if config.instance_decoder_config is None:
            raise ValueError("the model has no instance decoder, which finds objects: train one, by --instances true.")
        if len(config.id2label or ()) != 1:  # as nobody has named it
            config.id2label, config.label2id = {0: "object"}, {"object": 0}
        super().__init__(config)

    def forward(
        self,
        pixel_values: Tensor,
        reshaped_input_sizes: Tensor | None = None,
        foreground_thresh: float = FOREGROUND_THRESH,
        seed_thresh: float = SEED_THRESH,
        **kwargs: Any,
    ) -> SamHfInstanceOutput:
        """Find objects in images.

        Args:
            pixel_values: float [B, 3, H, W], normalised and padded.
            reshaped_input_sizes: int [B, 2], (height, width) of the images in it; nothing is found beside them.
            foreground_thresh, seed_thresh: see `instances.find_centers`.
            **kwargs: what else the processor returns; not used.
        """
        embeddings = self.get_image_embeddings(pixel_values)
        maps = self.get_instance_maps(embeddings)
        if reshaped_input_sizes is not None:
            cell = self.config.vision_config.stride / 4
            rows, columns = (torch.arange(side, device=maps.device) * cell for side in maps.shape[-2:])
            height, width = reshaped_input_sizes.to(maps.device).T[..., None]
            inside = (rows < height)[:, :, None] & (columns < width)[:, None]
            maps = maps * inside[:, None]
        found = [
            self.answer_centers(
                [feature[index, None] for feature in embeddings], *find_centers(image, foreground_thresh, seed_thresh)
            )
            for index, image in enumerate(maps)
        ]
        masks, scores = (
            nn.utils.rnn.pad_sequence(list(parts), batch_first=True) for parts in zip(*found, strict=True)
        )
        return SamHfInstanceOutput(pred_masks=masks, scores=scores, instance_maps=maps)

    def answer_centers(self, image_embeddings: list[Tensor], cells: Any, certainty: Any) -> tuple[Tensor, Tensor]:
        """Logits [n, h, w] of the best mask of each centre of one image, and scores float32 [n].

        Args:
            cells: int64 [n, 2], (x, y) in the mask grid; certainty: float64 [n]. Arrays of NumPy.
        """
        embedding = image_embeddings[-1]
        if not len(cells):
            none = embedding.new_zeros(0, *(4 * side for side in embedding.shape[-2:]))
            return none, none[:, 0, 0].float()
        cell = self.config.vision_config.stride / 4
        # Indices of pixels, whose middles are half a pixel further.
        points = (torch.from_numpy(cells).to(embedding.device) + 0.5) * cell - 0.5
        output = super().forward(
            image_embeddings=image_embeddings, input_points=points.float()[None, :, None], multimask_output=True
        )
        certainties = torch.from_numpy(certainty).to(embedding.device).float()
        masks = best_masks(output.pred_masks, output.iou_scores)[0]
        return masks, output.iou_scores[0].float().amax(-1) * certainties


__all__ = [
    "VISION_ENCODERS",
    "PromptTensors",
    "SamHfForInstanceSegmentation",
    "SamHfModel",
]
