"""The configuration of a SAM 2, EdgeTAM or SAM 3 tracker of transformers, for images or for video, as our fields."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .vision_configuration import HIERA, SAM3_BACKBONE, SamHfBackboneConfig

# By `model_type` of a configuration, that for images.
SAM2_TYPES = {
    "sam2": "sam2",
    "sam2_video": "sam2",
    "edgetam": "edgetam",
    "edgetam_video": "edgetam",
    "sam3_tracker": "sam3_tracker",
    "sam3_tracker_video": "sam3_tracker",
    "sam3_video": "sam3_tracker",  # which has a tracker in it
}
PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
# What our image encoder has for good, and where transformers has a choice.
FIXED = {
    "patch_kernel_size": [7, 7],
    "patch_stride": [4, 4],
    "patch_padding": [3, 3],
    "query_stride": [2, 2],
    "num_query_pool_stages": 3,
    "fpn_kernel_size": 1,
    "fpn_stride": 1,
    "fpn_padding": 0,
    "fpn_top_down_levels": [2, 3],
    "num_feature_levels": 3,
    "num_point_embeddings": 4,
}
HIERA_FIELDS = (
    "embed_dim_per_stage",
    "blocks_per_stage",
    "num_attention_heads_per_stage",
    "window_size_per_stage",
    "global_attention_blocks",
    "window_positional_embedding_background_size",
    "num_channels",
    "hidden_act",
    "layer_norm_eps",
    "mlp_ratio",
)
PROMPT_FIELDS = ("hidden_size", "mask_input_channels", "hidden_act", "layer_norm_eps")
# Not `hidden_act`, which transformers stores and does not use: the decoder has ReLU.
DECODER_FIELDS = (
    "hidden_size",
    "mlp_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_downsample_rate",
    "num_multimask_outputs",
    "iou_head_depth",
    "iou_head_hidden_dim",
    "dynamic_multimask_via_stability",
    "dynamic_multimask_stability_delta",
    "dynamic_multimask_stability_thresh",
)
# What the SAM 2 decoder has without saying so.
DECODER_CONSTANTS = {
    "use_object_score": True,
    "iou_prediction_use_sigmoid": True,
    "layer_norm_eps": 1e-5,
    "dynamic_multimask_min_grid": 0,
}


def fields_from_sam2(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Of the `config.json` of one of `SAM2_TYPES`, what concerns images.

    Raises:
        ValueError: if it is of an architecture that no published checkpoint has.
    """
    given = config_dict.get("tracker_config") or config_dict
    parts: dict[str, Any] = {name: dict(given.get(name) or {}) for name in PARTS}
    for name in PARTS[1:]:
        parts[name].pop("model_type", None)  # of video
    # Files leave out what is default.
    config: Any = CONFIG_MAPPING[SAM2_TYPES[config_dict["model_type"]]](**parts)
    vision, prompts, decoder = config.vision_config, config.prompt_encoder_config, config.mask_decoder_config
    backbone = vision.backbone_config
    found = {
        name: getattr(part, name) for part in (backbone, vision, prompts) for name in FIXED if hasattr(part, name)
    }
    problems = [f"{name} is {value}, expected {FIXED[name]}" for name, value in found.items() if value != FIXED[name]]
    if problems:
        raise ValueError("\n  - ".join(["this SAM 2 has another architecture:", *problems]))
    return {
        "vision_config": {
            "image_size": prompts.image_size,
            "output_channels": vision.fpn_hidden_size,
            **encoder_fields(backbone),
        },
        "prompt_encoder_config": {
            "position_scale": prompts.scale,
            "end_every_prompt": True,
            **values(prompts, PROMPT_FIELDS),
        },
        "mask_decoder_config": {**values(decoder, DECODER_FIELDS), **DECODER_CONSTANTS},
        # Where all objects are there, it would only unlearn that others are not.
        "object_score_weight": 0.0,
    }


def encoder_fields(backbone: Any) -> dict[str, Any]:
    """Of the image encoder that has such a backbone."""
    if backbone.model_type == "sam2_hiera_det_model":
        return {"model_type": HIERA, **values(backbone, HIERA_FIELDS)}
    # The four maps of EdgeTAM's, or the one of SAM 3's.
    strides = [backbone.patch_size] if backbone.model_type == SAM3_BACKBONE else [4, 8, 16, 32]
    return {"model_type": SamHfBackboneConfig.model_type, "backbone_config": backbone.to_dict(), "strides": strides}


def values(config: PreTrainedConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


__all__ = [
    "DECODER_CONSTANTS",
    "DECODER_FIELDS",
    "HIERA_FIELDS",
    "PARTS",
    "PROMPT_FIELDS",
    "SAM2_TYPES",
    "fields_from_sam2",
    "values",
]
