# Copyright 2026 the sam_hf authors. Licensed under the Apache License, Version 2.0.
"""The configurations of prompt encoder, mask decoder, instance decoder and of the whole model.

Fields have the names and defaults of `transformers.SamConfig` wherever they mean the same thing, so that
`SamHfConfig()` is SAM ViT-B. What SAM does not have is off by default and documented below.
"""

import math
from dataclasses import fields
from os import PathLike
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .hub_code import CarriesCode
from .sam2_config import SAM2_TYPES, fields_from_sam2
from .vision_configuration import (
    FROM_SCRATCH,
    HIERA,
    VISION_PRESETS,
    FilledIn,
    SamHfVisionConfig,
    VisionConfig,
    vision_config_class,
)

LOSS_CHOICES = {"iou_loss": ["l1", "mse"], "loss_resolution": ["mask", "input", "points"]}
AMBIGUOUS_CANDIDATES = ["multimask", "all"]


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

    @property
    def changes_masks(self) -> bool:
        """Whether masks are others without it."""
        return self.guides_masks or self.proposes_masks


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


def own_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    """The fields that a config has beyond those of every config."""
    return {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}


__all__ = [
    "AMBIGUOUS_CANDIDATES",
    "LOSS_CHOICES",
    "SamHfConfig",
    "SamHfInstanceDecoderConfig",
    "SamHfMaskDecoderConfig",
    "SamHfPromptEncoderConfig",
    "own_fields",
]
