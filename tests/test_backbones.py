"""Foreign backbones as image encoders: EdgeTAM and SAM 3's tracker as in transformers, and any other in training."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam2_models import SIDE, WIDTH, sam2_parts
from tiny_models import randomise
from torch import Tensor, nn
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
)

from sam_hf import SamHfConfig, SamHfModel
from sam_hf.configuration_sam_hf import SamHfBackboneConfig
from sam_hf.positions import PositionFrame

NEEDS_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
OUTPUTS = ("pred_masks", "iou_scores", "object_score_logits")
SAM3_SIDE = 112
PARTS: dict[str, Any] = {
    "prompt_encoder_config": {"hidden_size": WIDTH},
    "mask_decoder_config": {
        "hidden_size": WIDTH,
        "mlp_dim": 64,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": WIDTH,
        "use_object_score": True,
    },
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
FOUR = {"depths": [1, 1, 1, 1], "out_features": STAGES}
SAM3_VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SAM3_SIDE,
    "patch_size": 14,
    "window_size": 4,
    "global_attn_indexes": [1],
    "pretrain_image_size": 56,
}
BACKBONES: dict[str, tuple[dict, tuple[int, ...]]] = {
    "convnext": ({"model_type": "convnext", "hidden_sizes": [16, 32, 64, 128], **FOUR}, (4, 8, 16, 32)),
    "dinov3_convnext": ({"model_type": "dinov3_convnext", "hidden_sizes": [16, 32, 64, 128], **FOUR}, (4, 8, 16, 32)),
    "swin": (
        {"model_type": "swin", "embed_dim": 16, "num_heads": [1, 2, 4, 8], "window_size": 4, "image_size": 128, **FOUR},
        (4, 8, 16, 32),
    ),
    "dinov2": (
        {
            "model_type": "dinov2",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        (14,),
    ),
    "dinov3_vit": (
        {
            "model_type": "dinov3_vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        (16,),
    ),
    "sam3_vit": (SAM3_VIT, (14,)),
}
TIMM = {
    "timm convnext": (
        {"architecture": "convnext_atto", "model_args": {"features_only": True, "out_indices": [0, 1, 2]}},
        (4, 8, 16),
    ),
    "timm vit": (
        {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"features_only": True, "out_indices": [-1], "dynamic_img_size": True, "depth": 2},
        },
        (16,),
    ),
}
ALL = [*BACKBONES, *(pytest.param(name, marks=NEEDS_TIMM) for name in TIMM)]


def build(name: str) -> SamHfModel:
    """In training mode, with the same weights at each call."""
    torch.manual_seed(0)
    backbone, strides = BACKBONES.get(name) or ({"model_type": "timm_wrapper", **TIMM[name][0]}, TIMM[name][1])
    vision = SamHfBackboneConfig(
        backbone_config=dict(backbone), strides=strides, image_size=8 * strides[-1], output_channels=WIDTH
    )
    return SamHfModel(SamHfConfig(vision_config=vision, **PARTS)).train()


def pixels(model: SamHfModel, batch: int = 2, wider: int = 1) -> Tensor:
    side = model.config.image_size
    return torch.randn(batch, 3, side, wider * side, generator=torch.Generator().manual_seed(0))


def clicks(side: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_points": side * torch.rand(batch, 3, 2, 2, generator=generator),
        "input_labels": torch.randint(0, 2, (batch, 3, 2), generator=generator),
        "input_boxes": torch.tensor([0.1, 0.2, 0.7, 0.9]).mul(side).expand(batch, 3, 4),
    }


@torch.no_grad()
def assert_equal(ours: SamHfModel, stock: Any, side: int) -> None:
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    prompts = clicks(side)
    boxes = prompts.pop("input_boxes")
    for given in (prompts, {"input_boxes": boxes}, prompts | {"input_boxes": boxes}):
        for multimask_output in (True, False):
            inputs = {"pixel_values": image, **given, "multimask_output": multimask_output}
            found, expected = ours.eval()(**inputs), stock.eval()(**inputs)
            for name in OUTPUTS:
                assert expected[name].std() > 1e-4
                scale = expected[name].abs().max().clamp(min=1).item()
                torch.testing.assert_close(found[name], expected[name], atol=1e-5 * scale, rtol=0)


@torch.no_grad()
def random_stock(model: Any) -> Any:
    randomise(model)
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.add_(1.0)
            module.running_var.abs_().add_(0.5)
    return model.eval()


def edgetam(video: bool) -> Any:
    import transformers

    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    )
    parts = sam2_parts()
    sizes = parts["vision_config"]["backbone_feature_sizes"]
    vision = {"backbone_config": backbone, "backbone_feature_sizes": sizes, "fpn_hidden_size": WIDTH}
    parts["vision_config"] = {"model_type": "edgetam_vision_model", **vision}
    torch.manual_seed(0)
    if not video:
        return random_stock(EdgeTamModel(EdgeTamConfig(**parts)))
    return random_stock(EdgeTamVideoModel(EdgeTamVideoConfig(**parts, image_size=SIDE)))


def tracker(levels: int = 3) -> Sam3TrackerModel:
    vision = {
        "model_type": "sam3_vision_model",
        "fpn_hidden_size": WIDTH,
        "scale_factors": [4.0, 2.0, 1.0, 0.5][:levels],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "backbone_config": SAM3_VIT,
    }
    parts = sam2_parts()
    prompts = {"hidden_size": WIDTH, "image_size": SAM3_SIDE, "patch_size": 14}
    config = Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=parts["mask_decoder_config"]
    )
    torch.manual_seed(0)
    return random_stock(Sam3TrackerModel(config))


def load(folder: Any) -> SamHfModel:
    """Nothing is missing, too much, or of another shape."""
    model, info = SamHfModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@NEEDS_TIMM
@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
def test_edgetam_equals_that_of_transformers(video, tmp_path):
    stock = edgetam(video)
    stock.save_pretrained(tmp_path / "stock")
    ours = load(tmp_path / "stock")
    if video:
        stock = EdgeTamModel.from_pretrained(tmp_path / "stock")
    assert_equal(ours, stock, SIDE)
    ours.save_pretrained(tmp_path / "ours")
    assert_equal(load(tmp_path / "ours"), stock, SIDE)


@pytest.mark.parametrize("levels", [3, 4])
def test_the_tracker_of_sam3_equals_that_of_transformers(levels, tmp_path):
    stock = tracker(levels)
    if levels == 4:
        # transformers adds it to the level that it drops; its video model, and ours, to the one of the embedding.
        stock.no_memory_embedding.data.zero_()
    stock.save_pretrained(tmp_path / "stock")
    ours = load(tmp_path / "stock")
    assert (ours.config.vision_config.stride, ours.config.vision_config.size_multiple) == (14, 14)
    assert_equal(ours, stock, SAM3_SIDE)
    ours.save_pretrained(tmp_path / "ours")
    assert_equal(load(tmp_path / "ours"), stock, SAM3_SIDE)


def test_the_tracker_within_sam3_for_video_is_found(tmp_path):
    stock = tracker()
    names = {
        "vision_encoder.backbone.": "detector_model.vision_encoder.backbone.",
        "vision_encoder.neck.": "tracker_neck.",
        "": "tracker_model.",
    }

    def stored(name: str) -> str:
        start = next(start for start in names if name.startswith(start))
        return names[start] + name.removeprefix(start)

    weights = {stored(name): value.contiguous() for name, value in stock.state_dict().items()}
    weights["detector_model.text_encoder.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "sam3_video", "tracker_config": stock.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal(load(tmp_path), stock, SAM3_SIDE)


def test_another_input_size_of_sam3_equals_stock_of_that_size(tmp_path):
    stock = tracker()
    stock.save_pretrained(tmp_path)
    other = stock.config.to_dict()
    other["vision_config"]["backbone_config"]["image_size"] = 56
    other["vision_config"]["backbone_feature_sizes"] = [[16, 16], [8, 8], [4, 4]]
    other["prompt_encoder_config"]["image_size"] = 56
    resized = Sam3TrackerModel(Sam3TrackerConfig(**other))
    resized.load_state_dict(stock.state_dict())
    assert_equal(SamHfModel.from_pretrained(tmp_path, image_size=56), resized, 56)
