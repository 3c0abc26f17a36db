# Copyright 2026 the sam_hf authors. Licensed under the Apache License, Version 2.0.
"""The configurations of the image encoders, and the presets: those of published models, and two to train."""

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

HIERA = "sam_hf_hiera_model"
TINY_VIT = "sam_hf_tiny_vit_model"
# Of transformers.
SAM3_BACKBONE = "sam3_vit_model"
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
        check_drop_path(self.drop_path_rate)
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
        check_image_size(self)
        check_drop_path(self.drop_path_rate)
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
        check_image_size(self)
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
        check_drop_path(self.drop_path_rate)
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
        # Without one it is no more than the defaults, of which transformers 5.17 makes an instance to compare with.
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        strides = list(self.strides)
        if strides != [strides[0] << index for index in range(len(strides))] or len(strides) not in (1, 3, 4):
            raise ValueError(f"strides={strides} should be one, or three or four, each twice the one before.")
        check_image_size(self)
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


def check_image_size(config: Any) -> None:
    """
    Raises:
        ValueError: if the model input of the configuration of an image encoder is no size that it takes.
    """
    size, multiple = config.image_size, config.size_multiple
    if size % multiple:
        raise ValueError(f"image_size={size} is not a multiple of {multiple}; use {size - size % multiple}.")


def check_drop_path(rate: float) -> None:
    """
    Raises:
        ValueError: if `rate` is none of a path that is dropped by chance.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate} should be in [0, 1).")


__all__ = [
    "FROM_SCRATCH",
    "HIERA",
    "SAM3_BACKBONE",
    "TINY_VIT",
    "VISION_CONFIGS",
    "VISION_PRESETS",
    "FilledIn",
    "SamHfBackboneConfig",
    "SamHfHieraConfig",
    "SamHfTinyVitConfig",
    "SamHfVisionConfig",
    "VisionConfig",
    "vision_config_class",
]
