"""SAM 2 of transformers, for images and for video, with random weights and small enough for tests."""

import pytest
import torch
from tiny_models import randomise
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
)

SIDE, WIDTH = 128, 32
MEMORY_WIDTHS = (
    "memory_attention_hidden_size",
    "memory_encoder_hidden_size",
    "memory_attention_feed_forward_hidden_size",
    "mask_downsampler_embed_dim",
    "memory_fuser_embed_dim",
    "memory_fuser_intermediate_dim",
)


def sam2_parts(side: int = SIDE) -> dict:
    """Windows that do not fill the grids of the last two stages, as in the published sizes."""
    hiera = Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[side, side],
        embed_dim_per_stage=[16, 32, 64, 128],
        blocks_per_stage=[1, 2, 3, 2],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 3],
        global_attention_blocks=[4],
    )
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": hiera.to_dict(),
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
            "fpn_hidden_size": WIDTH,
        },
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": side},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": 2 * WIDTH,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": WIDTH,
        },
    }


@torch.no_grad()
def sam2_model(*, video: bool = False, side: int = SIDE) -> Sam2Model | Sam2VideoModel:
    """In eval mode, with the same weights at each call."""
    if video:
        memory = {"image_size": side, "memory_encoder_output_channels": 16, "memory_attention_rope_feat_sizes": [8, 8]}
        parts = sam2_parts(side)
        # Transformers 5.17 takes fields of it for those of the prompts.
        parts["mask_decoder_config"] = Sam2VideoMaskDecoderConfig(**parts["mask_decoder_config"])
        config = Sam2VideoConfig(**parts, **dict.fromkeys(MEMORY_WIDTHS, WIDTH), **memory)
        model = Sam2VideoModel(config)
    else:
        model = Sam2Model(Sam2Config(**sam2_parts(side)))
    randomise(model)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model.eval()


def skip_without_defaults(config: type) -> None:
    """Skip where a configuration of transformers asks the Hub for its defaults, as EdgeTAM's does in 5.17."""
    try:
        config()
    except OSError:
        pytest.skip(f"this version of transformers asks the Hub for the defaults of {config.__name__}")
