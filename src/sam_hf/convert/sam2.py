"""SAM 2 back to transformers and to Meta's `sam2`: their names and configurations, and what only video needs."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2VisionConfig

from ..configuration_sam_hf import SamHfConfig, own_fields
from ..sam2_config import DECODER_CONSTANTS, DECODER_FIELDS, HIERA_FIELDS, PARTS, PROMPT_FIELDS, values
from ..sam2_weights import POINT_EMBED, SAM2_NAMES, SAM2_PARTS
from ..vision_configuration import FROM_SCRATCH, HIERA, VISION_PRESETS, SamHfHieraConfig
from .meta import count, meta_name
from .problems import NEEDS_INSTANCES, is_same

POSITIONS = "shared_image_embedding.positional_embedding"
# What transformers holds twice.
POSITIONS_TWIN = "prompt_encoder.shared_embedding.positional_embedding"
# What names of ours begin with, and what Meta's do instead, where `meta_name` does not know it; longer ones first.
META_PREFIXES = {
    "vision_encoder.patch_embed.projection.": "image_encoder.trunk.patch_embed.proj.",
    "vision_encoder.layers.": "image_encoder.trunk.blocks.",
    "vision_encoder.pos_embed": "image_encoder.trunk.pos_embed",
    "vision_encoder.neck.conv_s": "sam_mask_decoder.conv_s",
    "vision_encoder.neck.no_memory_embedding": "no_mem_embed",
}
META_TRUNK = "image_encoder.trunk."
# What of Meta's only video needs.
META_VIDEO = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\..*"
    r"|maskmem_tpos_enc|no_obj_ptr|no_obj_embed_spatial|no_mem_pos_enc"
)
# Of ours, what SAM 2 has for good: what it does not say, and what is without effect there.
CONSTANTS: dict[tuple[str, str], Any] = {
    ("vision_config", "patch_stride"): 4,
    ("prompt_encoder_config", "end_every_prompt"): True,
    ("prompt_encoder_config", "num_point_embeddings"): 4,
    ("mask_decoder_config", "ambiguous_candidates"): "multimask",
    ("mask_decoder_config", "hidden_act"): "relu",
    **{("mask_decoder_config", field): value for field, value in DECODER_CONSTANTS.items()},
}
# What the builders of Meta's `sam2` can be told.
MULTIMASK_FIELDS = [field for field in DECODER_FIELDS if field.startswith("dynamic_multimask_")]
# Of ours, what concerns training alone.
OF_TRAINING = {"drop_path_rate"}


def is_sam2(config: SamHfConfig) -> bool:
    return config.vision_config.model_type == HIERA


def additions_to_sam2(config: SamHfConfig) -> list[str]:
    """What of the model SAM 2 does not have."""
    found = {(part, field): getattr(getattr(config, part), field) for part, field in CONSTANTS}
    problems = [
        f"{part}.{field} is {value}, and SAM 2 has {CONSTANTS[part, field]}"
        for (part, field), value in found.items()
        if value != CONSTANTS[part, field]
    ]
    scale = config.prompt_encoder_config.position_scale
    if isinstance(scale, (list, tuple)) or scale != int(scale):
        problems.append(f"prompt_encoder_config.position_scale is {scale}, and SAM 2 has a whole number")
    if config.instance_decoder_config is not None:
        problems.append(NEEDS_INSTANCES)
    return problems


def differences_to_base(config: SamHfConfig, base: SamHfConfig) -> list[str]:
    """Fields of the parts in which a model and the one that it goes back into do not answer alike."""
    problems = []
    for part in PARTS:
        ours, theirs = getattr(config, part), getattr(base, part)
        if type(ours) is not type(theirs):
            problems.append(f"{part} is of type {ours.model_type}, and that of the base {theirs.model_type}")
            continue
        for field in sorted(own_fields(type(ours)) - OF_TRAINING):
            has, gets = getattr(ours, field), getattr(theirs, field)
            if not is_same(has, gets):
                problems.append(f"{part}.{field} is {has}, and that of the base {gets}")
    return problems


def differences_to_meta(config: SamHfConfig) -> tuple[list[str], list[str]]:
    """Fields of prompt encoder and decoder that Meta's code has otherwise: those it can be told, and all others."""
    published = SamHfConfig.from_preset("hiera_tiny")  # all sizes are alike in these
    found = {
        f"{part}.{field}": (getattr(getattr(config, part), field), getattr(getattr(published, part), field))
        for part in PARTS[1:]
        for field in sorted(own_fields(type(getattr(config, part))))
    }
    lines = {
        name: f"{name} is {has}, and Meta's code has {gets}" for name, (has, gets) in found.items() if has != gets
    }
    told = [lines.pop(name) for field in MULTIMASK_FIELDS if (name := f"mask_decoder_config.{field}") in lines]
    return told, list(lines.values())


def sam2_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ours under the names of `Sam2Model`."""
    renamed = {stock_name(name): value for name, value in weights.items() if not name.startswith(f"{POINT_EMBED}.")}
    rows = [weights[f"{POINT_EMBED}.{index}.weight"] for index in range(4)]
    # Not shared, which `save_pretrained` refuses.
    return renamed | {f"{POINT_EMBED}.weight": torch.cat(rows), POSITIONS_TWIN: weights[POSITIONS].clone()}


def stock_name(name: str) -> str:
    """What `Sam2Model` calls a weight of ours, but for the rows of `POINT_EMBED`, which are one there."""
    for before, theirs, ours in SAM2_PARTS:
        name = re.sub(rf"^({before})\.{ours}\.", rf"\1.{theirs}.", name)
    for theirs, ours in sorted(SAM2_NAMES.items(), key=lambda names: -len(names[1])):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def sam2_config(config: SamHfConfig) -> Sam2Config:
    """The configuration of a `Sam2Model` of the same architecture."""
    vision, prompts, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    assert isinstance(vision, SamHfHieraConfig)
    # Presets have tuples, which transformers refuses.
    hiera: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values(vision, HIERA_FIELDS).items()
    }
    side, fine = vision.image_size, vision.image_size // vision.patch_stride
    widths, heads = hiera["embed_dim_per_stage"], hiera["num_attention_heads_per_stage"]
    hiera |= {"hidden_size": widths[0], "num_attention_heads": heads[0], "image_size": [side, side]}
    vision_config: dict[str, Any] = {
        "backbone_config": Sam2HieraDetConfig(**hiera),
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[fine // 2**level] * 2 for level in range(3)],
        "fpn_hidden_size": vision.output_channels,
    }
    scale = prompts.position_scale
    assert not isinstance(scale, (list, tuple))
    return Sam2Config(
        vision_config=Sam2VisionConfig(**vision_config),
        prompt_encoder_config={
            **values(prompts, PROMPT_FIELDS),
            "image_size": side,
            "patch_size": vision.stride,
            "scale": int(scale),  # transformers takes no float
        },
        mask_decoder_config=values(decoder, DECODER_FIELDS),
    )


def meta_sam2_name(name: str, iou_head_depth: int = 3) -> str:
    """What Meta's `sam2` calls a weight of ours."""
    for ours, theirs in META_PREFIXES.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    else:
        if convolution := re.fullmatch(r"vision_encoder\.neck\.convs\.(\d+)\.(\w+)", name):
            return "image_encoder.neck.convs.{}.conv.{}".format(*convolution.groups())
        name = re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", meta_name(name, iou_head_depth))
    for ours, theirs in ((".layer_norm", ".norm"), (".mlp.lin1.", ".mlp.layers.0."), (".mlp.lin2.", ".mlp.layers.1.")):
        name = name.replace(ours, theirs)
    return name


def published() -> dict[str, SamHfHieraConfig]:
    """The image encoders of SAM 2.1, by their names in `VISION_PRESETS`."""
    return {
        name: SamHfHieraConfig(**fields)
        for name, fields in VISION_PRESETS.items()
        if fields.get("model_type") == HIERA and name not in FROM_SCRATCH
    }


def preset_of(config: SamHfConfig) -> str | None:
    """Which published SAM 2 has this image encoder, as of `VISION_PRESETS`."""
    for name, vision in published().items():
        if all(is_same(getattr(config.vision_config, field), getattr(vision, field)) for field in HIERA_FIELDS):
            return name
    return None


def config_from_meta_sam2(weights: Mapping[str, Tensor]) -> SamHfConfig:
    """The published model that weights under Meta's names are for; windows and heads are told by no shape.

    Raises:
        ValueError: if there is none of that width and number of blocks.
    """
    blocks = count(weights, r"image_encoder\.trunk\.blocks\.\d+\.norm1\.weight")
    positions = weights.get(f"{META_TRUNK}pos_embed")
    width = None if positions is None else positions.shape[1]
    for name, vision in published().items():
        if (vision.embed_dim_per_stage[0], sum(vision.blocks_per_stage)) == (width, blocks):
            return SamHfConfig.from_preset(name)
    raise ValueError(f"the image encoder has {blocks} blocks, the first of width {width}, as no published SAM 2 has.")


__all__ = [
    "META_TRUNK",
    "META_VIDEO",
    "MULTIMASK_FIELDS",
    "additions_to_sam2",
    "config_from_meta_sam2",
    "differences_to_base",
    "differences_to_meta",
    "is_sam2",
    "meta_sam2_name",
    "preset_of",
    "sam2_config",
    "sam2_weights",
    "stock_name",
]
