# Copyright 2026 the sam_hf authors. Licensed under the Apache License, Version 2.0.
"""The configurations of image encoder, prompt encoder, mask decoder and of the whole model.

Fields have the names and defaults of `transformers.SamConfig` wherever they mean the same thing, so that
`SamHfConfig()` is SAM ViT-B. What SAM does not have is off by default and documented below.
"""

import math
from dataclasses import fields
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .hub_code import CarriesCode
from .sam2_config import SAM2_TYPES, fields_from_sam2

HIERA = "sam_hf_hiera_model"
TINY_VIT = "sam_hf_tiny_vit_model"
VISION_PRESETS: dict[str, dict[str, Any]] = {
    # A model that trains from random weights on a CPU: small patches because the mask grid, four times finer than
    # the patch grid, bounds the IoU of small objects.
    "small": {
        "image_size": 256,
        "patch_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "output_channels": 128,
        "window_size": 8,
        "global_attn_indexes": [2, 5],
        "use_rel_pos": False,
        "high_res_layers": [1, 3],
        "log_length_attention": True,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
    # The same kind of model as "small", with as many weights and as fine masks.
    "hiera_mini": {
        "model_type": HIERA,
        "image_size": 256,
        "patch_stride": 2,
        "embed_dim_per_stage": [24, 48, 96, 192],
        "blocks_per_stage": [1, 2, 5, 2],
        "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [5, 7],
        "output_channels": 128,
    },
    "hiera_tiny": {"model_type": HIERA},
    "hiera_small": {
        "model_type": HIERA,
        "blocks_per_stage": [1, 2, 11, 2],
        "global_attention_blocks": [7, 10, 13],
    },
    "hiera_base_plus": {
        "model_type": HIERA,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "blocks_per_stage": [2, 3, 16, 3],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "hiera_large": {
        "model_type": HIERA,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "blocks_per_stage": [2, 6, 36, 4],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
    },
    "mobile": {"model_type": TINY_VIT},
}
# Presets to train from random weights; the others are those of SAM, SAM 2.1 and MobileSAM.
FROM_SCRATCH = ("small", "hiera_mini")

LOSS_CHOICES = {"iou_loss": ["l1", "mse"], "loss_resolution": ["mask", "input", "points"]}
AMBIGUOUS_CANDIDATES = ["multimask", "all"]

T = TypeVar("T")


class FilledIn(Generic[T]):
    """For type checkers: a field of type T that may be given as None, or as a dict, until `__post_init__` has run."""

    def __get__(self, config: object, owner: type) -> T:
        raise NotImplementedError

    def __set__(self, config: object, value: T | dict[str, Any] | None) -> None:
        raise NotImplementedError


@strict
class SamHfVisionConfig(PreTrainedConfig):
    """Image encoder: a plain ViT (`window_size=0`, `use_rel_pos=False`) or SAM's ViTDet.

    Args beyond `transformers.SamVisionConfig`:
        image_size: side in pixels of the square input that the absolute positions are stored for. Any other multiple
            of `patch_size`, square or not, runs with interpolated positions.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        high_res_layers: indices `(s0, s1)` of the two blocks whose hidden states become the high-resolution features
            `[B, C/8, 4h, 4w]` and `[B, C/4, 2h, 2w]` of an `h x w` patch grid; None switches them off.
        log_length_attention: scale the logits of global attention by log(patches) / log(patches of an `image_size`
            input). A softmax over more patches is flatter, so that a model trained on crops would otherwise lose
            accuracy on whole images (scalable softmax, Nakanishi 2025). Without effect at `image_size` itself.
    """

    base_config_key = "vision_config"
    model_type = "sam_hf_vision_model"

    hidden_size: int = 768
    output_channels: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    qkv_bias: bool = True
    mlp_ratio: float | int = 4.0
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: int = 14
    global_attn_indexes: list[int] | tuple[int, ...] = (2, 5, 8, 11)
    if TYPE_CHECKING:
        mlp_dim: FilledIn[int] = FilledIn()
    else:
        mlp_dim: int | None = None
    drop_path_rate: float | int = 0.0
    high_res_layers: list[int] | tuple[int, ...] | None = None
    log_length_attention: bool = False

    def __post_init__(self, **kwargs):
        self.mlp_dim = int(self.hidden_size * self.mlp_ratio) if self.mlp_dim is None else self.mlp_dim
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"use {self.image_size - self.image_size % self.patch_size} or another patch_size."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} should be in [0, 1).")
        if self.high_res_layers is not None and (
            len(self.high_res_layers) != 2
            or any(not 0 <= layer < self.num_hidden_layers for layer in self.high_res_layers)
        ):
            raise ValueError(
                f"high_res_layers={self.high_res_layers} should name two of the {self.num_hidden_layers} encoder "
                "blocks, e.g. [1, 3], or be None."
            )
        super().__post_init__(**kwargs)

    @property
    def feature_widths(self) -> list[int]:
        """Channels of what the encoder gives, finest first, the embedding last."""
        width = self.output_channels
        return [width] if self.high_res_layers is None else [width // 8, width // 4, width]

    @property
    def stride(self) -> int:
        """Side in pixels of a cell of the image embedding."""
        return self.patch_size

    @property
    def size_multiple(self) -> int:
        """What sides of inputs are multiples of."""
        return self.patch_size


@strict
class SamHfHieraConfig(PreTrainedConfig):
    """Image encoder of SAM 2: Hiera and a feature pyramid. The defaults are SAM 2.1 tiny.

    Args beyond `transformers.Sam2HieraDetConfig`:
        image_size: side in pixels of the square input that the model is for. Any multiple of `size_multiple` runs.
        output_channels: C of the image embedding.
        patch_stride: side in pixels of a cell of the first stage, which is one of the mask grid, too. Each later stage
            halves the grid, and the third one makes the image embedding.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    base_config_key = "vision_config"
    model_type = HIERA

    embed_dim_per_stage: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    blocks_per_stage: list[int] | tuple[int, ...] = (1, 2, 7, 2)
    num_attention_heads_per_stage: list[int] | tuple[int, ...] = (1, 2, 4, 8)
    window_size_per_stage: list[int] | tuple[int, ...] = (8, 4, 14, 7)
    global_attention_blocks: list[int] | tuple[int, ...] = (5, 7, 9)
    window_positional_embedding_background_size: list[int] | tuple[int, ...] = (7, 7)
    num_channels: int = 3
    image_size: int = 1024
    output_channels: int = 256
    patch_stride: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs):
        multiple = self.size_multiple
        if self.image_size % multiple:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {multiple}; "
                f"use {self.image_size - self.image_size % multiple}."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} should be in [0, 1).")
        super().__post_init__(**kwargs)

    @property
    def feature_widths(self) -> list[int]:
        """As of `SamHfVisionConfig`, and so are the others."""
        return [self.output_channels // 8, self.output_channels // 4, self.output_channels]

    @property
    def stride(self) -> int:
        return 4 * self.patch_stride

    @property
    def size_multiple(self) -> int:
        """Of the coarsest cells, and of the windows whose positions repeat."""
        return math.lcm(8 * self.patch_stride, self.window_size_per_stage[0] * self.patch_stride)


@strict
class SamHfTinyVitConfig(PreTrainedConfig):
    """Image encoder of MobileSAM: TinyViT, whose first stage has convolutions and the others windows of attention.

    Args:
        embed_dims, depths: channels and number of blocks of each of four stages. The second and the third halve the
            grid of the one before.
        num_heads, window_sizes: of the three stages with attention; sides of windows in cells.
        image_size: side in pixels of the square input that the model is for. Any multiple of `size_multiple` runs.
        output_channels: C of the image embedding.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
    """

    base_config_key = "vision_config"
    model_type = TINY_VIT

    embed_dims: list[int] | tuple[int, ...] = (64, 128, 160, 320)
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 5, 10)
    window_sizes: list[int] | tuple[int, ...] = (7, 14, 7)
    num_channels: int = 3
    image_size: int = 1024
    output_channels: int = 256
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs):
        multiple = self.size_multiple
        if self.image_size % multiple:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {multiple}; "
                f"use {self.image_size - self.image_size % multiple}."
            )
        lengths = [len(part) for part in (self.embed_dims, self.depths, self.num_heads, self.window_sizes)]
        if lengths != [4, 4, 3, 3]:
            raise ValueError(
                f"embed_dims, depths, num_heads and window_sizes have lengths {lengths}, expected [4, 4, 3, 3]: the "
                "first of four stages has no attention."
            )
        if any(width % heads for width, heads in zip(self.embed_dims[1:], self.num_heads, strict=True)):
            raise ValueError(
                f"embed_dims={list(self.embed_dims)} should be, but for the first, multiples of "
                f"num_heads={list(self.num_heads)}."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} should be in [0, 1).")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        return self.embed_dims[-1]

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.depths)

    @property
    def feature_widths(self) -> list[int]:
        return [self.output_channels]

    @property
    def stride(self) -> int:
        return 16

    @property
    def size_multiple(self) -> int:
        return 16


@strict
class SamHfBackboneConfig(PreTrainedConfig):
    """Image encoder: a backbone of transformers or timm, and a neck.

    Args:
        backbone_config: of the backbone, a configuration or its fields with `model_type`, such as "convnext", or
            "timm_wrapper" with `architecture` and `model_args`. Its outputs are the maps that `strides` names.
        strides: side in pixels of a cell of each map, finest first. Three or four, each twice the one before, make a
            feature pyramid, as SAM 2 has, whose third level is the image embedding. A single one is that of a plain
            ViT, whose map is upscaled, as SAM 3 does.
        image_size: side in pixels of the square input that the model is for. Any multiple of `size_multiple` runs.
        output_channels: C of the image embedding.
    """

    base_config_key = "vision_config"
    model_type = "sam_hf_backbone_model"

    if TYPE_CHECKING:
        backbone_config: FilledIn[PreTrainedConfig] = FilledIn()
    else:
        backbone_config: dict | PreTrainedConfig | None = None
    strides: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    num_channels: int = 3
    image_size: int = 1024
    output_channels: int = 256

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            raise ValueError('backbone_config is None, expected a configuration such as {"model_type": "convnext"}.')
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        strides = list(self.strides)
        if strides != [strides[0] << index for index in range(len(strides))] or len(strides) not in (1, 3, 4):
            raise ValueError(f"strides={strides} should be one, or three or four, each twice the one before.")
        if self.image_size % self.size_multiple:
            multiple = self.size_multiple
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {multiple}; "
                f"use {self.image_size - self.image_size % multiple}."
            )
        super().__post_init__(**kwargs)

    @property
    def feature_widths(self) -> list[int]:
        return [self.output_channels // 8, self.output_channels // 4, self.output_channels]

    @property
    def stride(self) -> int:
        return self.strides[min(2, len(self.strides) - 1)]

    @property
    def size_multiple(self) -> int:
        return self.strides[-1]

    @property
    def drop_path_rate(self) -> float:
        """Stochastic depth, by the backbone's own rule.

        Raises:
            ValueError: when it is set, for a backbone that has none.
        """
        arguments = getattr(self.backbone_config, "model_args", None)
        if arguments is not None:
            return arguments.get("drop_path_rate", 0.0)
        return getattr(self.backbone_config, "drop_path_rate", 0.0)

    @drop_path_rate.setter
    def drop_path_rate(self, rate: float) -> None:
        if getattr(self.backbone_config, "model_args", None) is not None:
            self.backbone_config.model_args["drop_path_rate"] = rate
        elif hasattr(self.backbone_config, "drop_path_rate"):
            self.backbone_config.drop_path_rate = rate
        elif rate:
            raise ValueError(
                f"a backbone of type {self.backbone_config.model_type!r} has no drop path, but drop_path_rate={rate} "
                "was asked for: leave it out."
            )


# What the configuration of an image encoder may be. All have `image_size`, `output_channels`, `num_channels`,
# `feature_widths`, `stride` and `size_multiple`.
VisionConfig = SamHfVisionConfig | SamHfHieraConfig | SamHfTinyVitConfig | SamHfBackboneConfig
VISION_CONFIGS: dict[str, type[VisionConfig]] = {
    config.model_type: config
    for config in (SamHfVisionConfig, SamHfHieraConfig, SamHfTinyVitConfig, SamHfBackboneConfig)
}


@strict
class SamHfPromptEncoderConfig(PreTrainedConfig):
    """Prompt encoder.

    Args beyond `transformers.SamPromptEncoderConfig`:
        position_scale: standard deviation of the random frequencies that encode positions. Features of two positions
            are alike up to a distance of about 1 / (4 pi scale) of the input side: with SAM's 1, 80 of 1024 pixels.
            Two values: the deviation grows geometrically from the one to the other over the frequencies.
        end_every_prompt: a not-a-point token also ends boxes, and two stand for no prompt at all (SAM 2), instead of
            one that ends the clicks of objects without box (SAM).
    """

    base_config_key = "prompt_encoder_config"
    model_type = "sam_hf_prompt_encoder"

    hidden_size: int = 256
    mask_input_channels: int = 16
    num_point_embeddings: int = 4
    position_scale: float | int | list[float] | tuple[float, ...] = 1.0
    end_every_prompt: bool = False
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    def __post_init__(self, **kwargs):
        scales = self.position_scale if isinstance(self.position_scale, (list, tuple)) else [self.position_scale] * 2
        if len(scales) != 2 or min(scales) <= 0:
            raise ValueError(
                f"position_scale={self.position_scale} should be one positive number, or the first and last of two."
            )
        super().__post_init__(**kwargs)


@strict
class SamHfMaskDecoderConfig(PreTrainedConfig):
    """Mask decoder.

    Args beyond `transformers.SamMaskDecoderConfig` (names and defaults of the SAM 2 decoder):
        use_object_score: add the object-score token and its head.
        iou_prediction_use_sigmoid: squash predicted IoU into (0, 1), as SAM 2 does.
        dynamic_multimask_via_stability: in eval mode a single mask whose stability score is below
            `dynamic_multimask_stability_thresh` is replaced by the best of the three candidates.
        dynamic_multimask_stability_delta: logit offset of that stability score.
        dynamic_multimask_min_grid: smallest longer side of the masks where that applies, in cells. On coarser ones a
            single cell of a small object lowers the score below the threshold.
        ambiguous_candidates: what may answer a single click: "multimask", the last `num_multimask_outputs` masks
            (SAM); "all", the first one, too, which is the best one where objects are unambiguous.
    """

    base_config_key = "mask_decoder_config"
    model_type = "sam_hf_mask_decoder"

    hidden_size: int = 256
    hidden_act: str = "relu"
    mlp_dim: int = 2048
    num_hidden_layers: int = 2
    num_attention_heads: int = 8
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    layer_norm_eps: float = 1e-6
    use_object_score: bool = False
    iou_prediction_use_sigmoid: bool = False
    dynamic_multimask_via_stability: bool = False
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98
    dynamic_multimask_min_grid: int = 256
    ambiguous_candidates: str = "multimask"

    def __post_init__(self, **kwargs):
        if self.ambiguous_candidates not in AMBIGUOUS_CANDIDATES:
            raise ValueError(
                f"ambiguous_candidates={self.ambiguous_candidates!r} should be one of {AMBIGUOUS_CANDIDATES}."
            )
        inner = self.hidden_size // self.attention_downsample_rate
        if self.hidden_size % 8 or inner % self.num_attention_heads:
            raise ValueError(
                f"mask decoder hidden_size={self.hidden_size} must be a multiple of 8, and hidden_size / "
                f"attention_downsample_rate = {inner} a multiple of num_attention_heads={self.num_attention_heads}."
            )
        super().__post_init__(**kwargs)


@strict
class SamHfInstanceDecoderConfig(PreTrainedConfig):
    """Instance decoder, which finds objects without prompts.

    Args:
        hidden_size: channels on the mask grid; twice as many on the next coarser one.
        guides_masks: add what it knows to the features that the mask decoder gets.
        proposes_masks: what it takes for the object under a click, or in the middle of a box, is the mask prompt of an
            object that has none, and what the mask decoder then answers is added to it.
        layer_norm_eps: of its normalisations.
    """

    base_config_key = "instance_decoder_config"
    model_type = "sam_hf_instance_decoder"

    hidden_size: int = 32
    guides_masks: bool = False
    proposes_masks: bool = False
    layer_norm_eps: float = 1e-6


@strict
class SamHfConfig(CarriesCode, PreTrainedConfig):
    """Configuration of `SamHfModel`.

    `from_pretrained` also reads the `config.json` of a `transformers.SamModel`, `Sam2Model` or `Sam2VideoModel`.

    Args beyond `transformers.SamConfig`:
        instance_decoder_config: of a part that finds objects without prompts; None, as for stock weights, is without.

    Args used when `labels` are given (SAM paper, section 3 and appendix A):
        focal_weight, dice_weight, iou_weight, object_score_weight: weights of the loss terms. An object score of
            weight 0, as of SAM 2, stays as it is in training.
        focal_alpha: weight of foreground pixels in the focal loss, 1 - alpha for background; negative: no weighting.
        focal_gamma: exponent of the focal loss; 0 with negative alpha is plain cross-entropy.
        focal_normalized: divide the focal loss by the sum of its focusing factors instead of the number of pixels.
        iou_loss: of predicted against true IoU, "l1" (SAM 2) or "mse" (SAM).
        relaxation: share of the mask loss that all candidates of a click have part in, instead of the best one alone.
        loss_resolution: where masks are compared with labels: "mask", on the mask grid; "input", upscaled to the
            model input; "points", at 12,544 points, most of them where the model is in doubt, with the labels at
            their full resolution.
    """

    model_type = "sam_hf"
    auto_classes = ("AutoConfig",)
    # All but predictions: `Trainer` would gather them over a whole evaluation.
    keys_to_ignore_at_inference = ["loss_dict", "image_embeddings", "vision_hidden_states", "vision_attentions"]
    sub_configs = {
        "vision_config": SamHfVisionConfig,
        "prompt_encoder_config": SamHfPromptEncoderConfig,
        "mask_decoder_config": SamHfMaskDecoderConfig,
        "instance_decoder_config": SamHfInstanceDecoderConfig,
    }

    if TYPE_CHECKING:
        vision_config: FilledIn[VisionConfig] = FilledIn()
        prompt_encoder_config: FilledIn[SamHfPromptEncoderConfig] = FilledIn()
        mask_decoder_config: FilledIn[SamHfMaskDecoderConfig] = FilledIn()
        instance_decoder_config: SamHfInstanceDecoderConfig | None = None
    else:
        vision_config: dict | PreTrainedConfig | None = None
        prompt_encoder_config: dict | PreTrainedConfig | None = None
        mask_decoder_config: dict | PreTrainedConfig | None = None
        instance_decoder_config: dict | PreTrainedConfig | None = None
    focal_weight: float | int = 20.0
    dice_weight: float | int = 1.0
    iou_weight: float | int = 1.0
    object_score_weight: float | int = 1.0
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    focal_normalized: bool = False
    iou_loss: str = "l1"
    loss_resolution: str = "mask"
    relaxation: float | int = 0.0

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if isinstance(value, dict) or (value is None and name != "instance_decoder_config"):
                given = value or {}
                if name == "vision_config":
                    config_class = vision_config_class(given)
                setattr(self, name, config_class(**given))
        for name, choices in LOSS_CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} should be one of {choices}.")
        if self.focal_gamma < 0 or self.focal_alpha > 1:
            raise ValueError(
                f"focal_gamma={self.focal_gamma} should be at least 0, and focal_alpha={self.focal_alpha} at most 1 "
                "(negative: no weighting)."
            )
        sizes = {
            "vision_config.output_channels": self.vision_config.output_channels,
            "prompt_encoder_config.hidden_size": self.prompt_encoder_config.hidden_size,
            "mask_decoder_config.hidden_size": self.mask_decoder_config.hidden_size,
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the three parts exchange embeddings of one width, but got {sizes}; make them equal.")
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side in pixels of the square model input; setting it sets `vision_config.image_size`."""
        return self.vision_config.image_size

    @image_size.setter
    def image_size(self, value: int) -> None:
        vision_config = self.vision_config
        self.vision_config = type(vision_config)(**(vision_config.to_dict() | {"image_size": value}))

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "sam":
            config_dict = {
                name: {key: value for key, value in config_dict.get(name, {}).items() if key in own_fields(part)}
                for name, part in cls.sub_configs.items()
                if name != "instance_decoder_config"
            }
        elif config_dict.get("model_type") in SAM2_TYPES:
            config_dict = fields_from_sam2(config_dict)
        return config_dict, kwargs

    @classmethod
    def from_preset(cls, name: str, image_size: int | None = None) -> "SamHfConfig":
        """The configuration called `small` or `hiera_mini` (train on a CPU), or that of a published model.

        These are `base`, `large` and `huge`, SAM's ViT-B, L and H, `hiera_tiny`, `hiera_small`, `hiera_base_plus` and
        `hiera_large` of SAM 2.1, and `mobile`, MobileSAM.

        Args:
            name: one of `VISION_PRESETS`.
            image_size: side in pixels of the model input; the preset's own when None.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in VISION_PRESETS:
            raise ValueError(f"there is no preset {name!r}; choose one of {sorted(VISION_PRESETS)}.")
        given = VISION_PRESETS[name] | ({} if image_size is None else {"image_size": image_size})
        vision = vision_config_class(given)(**given)
        if name not in FROM_SCRATCH:
            of_sam2 = {} if vision.model_type != HIERA else fields_from_sam2({"model_type": "sam2"})
            return cls(**of_sam2 | {"vision_config": vision})
        return cls.to_train(vision)

    @classmethod
    def to_train(cls, vision: VisionConfig) -> "SamHfConfig":
        """A model to train from random weights around an image encoder: prompts, decoders and losses of `small`."""
        width = vision.output_channels
        return cls(
            vision_config=vision,
            # The coarsest frequencies tell near from far; with the finest, neighbouring patches can be told apart,
            # however small the objects are, and still look alike.
            prompt_encoder_config={
                "hidden_size": width,
                "position_scale": [0.5, vision.image_size / vision.stride / (4 * math.pi)],
            },
            mask_decoder_config={
                "hidden_size": width,
                "mlp_dim": 4 * width,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": width,
                "use_object_score": True,
                "iou_prediction_use_sigmoid": True,
                "ambiguous_candidates": "all",
            },
            instance_decoder_config=SamHfInstanceDecoderConfig(guides_masks=True, proposes_masks=True),
            # SAM's 20 x focal loss with alpha 0.25 would give up objects of a few pixels first.
            focal_weight=1.0,
            focal_alpha=0.65,
            focal_normalized=True,
            # With 0 one of the candidates was dead in each of the runs that were looked at.
            relaxation=0.1,
        )


def vision_config_class(given: dict[str, Any]) -> type[VisionConfig]:
    """The class for the fields of a `vision_config`, by their `model_type`; SAM's for those without.

    Raises:
        ValueError: if there is none.
    """
    model_type = given.get("model_type", SamHfVisionConfig.model_type)
    if model_type not in VISION_CONFIGS:
        raise ValueError(
            f"vision_config has model_type {model_type!r}, for which there is no image encoder; expected one of "
            f"{', '.join(VISION_CONFIGS)}."
        )
    return VISION_CONFIGS[model_type]


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """The fields that a config has beyond those of every config."""
    return {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}


__all__ = [
    "AMBIGUOUS_CANDIDATES",
    "HIERA",
    "LOSS_CHOICES",
    "TINY_VIT",
    "VISION_CONFIGS",
    "VISION_PRESETS",
    "SamHfBackboneConfig",
    "SamHfConfig",
    "SamHfHieraConfig",
    "SamHfInstanceDecoderConfig",
    "SamHfMaskDecoderConfig",
    "SamHfPromptEncoderConfig",
    "SamHfTinyVitConfig",
    "SamHfVisionConfig",
    "VisionConfig",
    "own_fields",
]
