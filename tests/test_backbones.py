"""Foreign backbones as image encoders: EdgeTAM and SAM 3's tracker as in transformers, and any other in training."""

import importlib.util
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sam2_models import SIDE, WIDTH, sam2_parts, skip_without_defaults
from tiny_models import randomise
from torch import Tensor, nn
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    EdgeTamVisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    TimmWrapperConfig,
)
from transformers.modeling_outputs import BackboneOutput

from sam_hf import SamHfConfig, SamHfModel
from sam_hf.positions import PositionFrame
from sam_hf.training import InteractiveTrainer, freeze
from sam_hf.vision_configuration import SamHfBackboneConfig

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
        {
            "model_type": "swin",
            "embed_dim": 16,
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "image_size": 128,
            **FOUR,
        },
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
    skip_without_defaults(EdgeTamVisionConfig)
    backbone = TimmWrapperConfig(
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
    again = load(tmp_path / "ours").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in ours.state_dict().items())


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


@pytest.mark.parametrize("name", ALL)
def test_any_backbone_encodes_and_loads_again(name, tmp_path):
    """On inputs that are not square, too."""
    model = build(name).eval()
    stride = model.config.vision_config.stride
    with torch.no_grad():
        features, history, _ = model.vision_encoder(pixels(model, wider=2), output_hidden_states=True)
        side = model.config.image_size // stride
        assert [tuple(part.shape[1:]) for part in features] == [
            (width, scale * side, scale * 2 * side)
            for width, scale in zip(model.config.vision_config.feature_widths, (4, 2, 1), strict=True)
        ]
        sides = [model.config.image_size // stride for stride in model.config.vision_config.strides]
        assert [grid.shape[1:3] for grid in history] == [(side, 2 * side) for side in sides]
        model.save_pretrained(tmp_path)
        again = load(tmp_path).eval()
        for part, expected in zip(again.get_image_embeddings(pixels(model, wider=2)), features, strict=True):
            assert torch.equal(part, expected)


def train_step(model: Any, **options: Any) -> Tensor:
    side = model.config.image_size
    prompts = clicks(side)
    labels = torch.zeros(2, 3, side, side, dtype=torch.bool)
    labels[..., side // 4 : side // 2, side // 8 :] = True
    trainer = InteractiveTrainer(model, **options).train()
    loss = trainer(
        pixels(model), prompts["input_points"], prompts["input_labels"], prompts["input_boxes"], labels
    ).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", ALL)
def test_every_weight_gets_a_gradient(name):
    """A zero one where it is not used, since data parallel wrappers wait for all."""
    model = build(name)
    train_step(model)
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", ["convnext", "dinov2", pytest.param("timm convnext", marks=NEEDS_TIMM)])
def test_activation_checkpointing_computes_again_and_changes_nothing(name):
    model, counts = build(name), []
    products = [part for part in model.vision_encoder.backbone.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    products[1].register_forward_hook(lambda *_: counts.append(1))
    expected = train_step(model)
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    assert len(counts) == 1
    model.zero_grad()
    assert torch.equal(train_step(model, checkpoint_activations=True), expected)
    assert len(counts) == 3
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, grads[key])


class Normed(nn.Module):
    """A backbone with batch norm whose maps have strides 4, 8 and 16."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, 8, stride, stride=stride), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5))
            for before, stride in ((3, 4), (8, 2), (8, 2))
        )
        self.channels = [8, 8, 8]

    def forward(self, maps: Tensor) -> Any:
        found = []
        for conv in self.convs:
            maps = conv(maps)
            found.append(maps)
        return BackboneOutput(feature_maps=tuple(found))


def normed_model(monkeypatch, dropout: float) -> SamHfModel:
    monkeypatch.setattr("sam_hf.backbone_encoder.build_backbone", lambda config: Normed())
    vision = SamHfBackboneConfig(
        backbone_config={"model_type": "resnet"}, strides=(4, 8, 16), image_size=64, output_channels=WIDTH
    )
    model = randomise(SamHfModel(SamHfConfig(vision_config=vision, **PARTS)))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(module, nn.BatchNorm2d):
            module.running_var.abs_().add_(0.5)
            module.weight.data.add_(1.0)
    return model.train()


def test_statistics_of_batch_norm_stay_so_that_two_batches_equal_one(monkeypatch):
    model = normed_model(monkeypatch, dropout=0.0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    image = pixels(model, batch=8)
    targets = [
        torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
        for part in model.get_image_embeddings(image[:1])
    ]

    def gradients(size: int) -> list[Tensor]:
        model.zero_grad()
        for part in image.split(size):
            features = model.get_image_embeddings(part)
            sum((found * wanted).sum() for found, wanted in zip(features, targets, strict=True)).backward()
        return [weight.grad.clone() for weight in model.vision_encoder.parameters()]

    for found, expected in zip(gradients(4), gradients(8), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_frozen_backbone_has_no_dropout(monkeypatch):
    model = normed_model(monkeypatch, dropout=0.5)
    image = pixels(model)
    assert not torch.equal(model.get_image_embeddings(image)[-1], model.get_image_embeddings(image)[-1])
    freeze(model, ["backbone"])
    model.train()
    assert torch.equal(model.get_image_embeddings(image)[-1], model.get_image_embeddings(image)[-1])
    assert model.vision_encoder.neck.conv_s0.weight.requires_grad


def test_sam3_sees_crops_where_they_are():
    """Its global blocks; windows and stored positions start at the corner of the crop."""
    model = build("sam3_vit").eval()
    layer, seen = model.vision_encoder.backbone.layers[1], []
    layer.rotary_emb.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        whole = pixels(model)
        model.get_image_embeddings(whole)
        model.get_image_embeddings(whole[..., 28:84, 56:112], PositionFrame(112, 112, 28, 56))
    grid = seen[0].view(8, 8, 2)
    assert torch.equal(seen[1].view(4, 4, 2), grid[2:6, 4:])
    assert torch.equal(grid, layer.precompute_positions(layer.config, 0).view(8, 8, 2))


def test_maps_of_other_strides_than_said_are_refused():
    backbone, _ = BACKBONES["convnext"]
    vision = SamHfBackboneConfig(
        backbone_config=dict(backbone), strides=(2, 4, 8, 16), image_size=64, output_channels=WIDTH
    )
    model = SamHfModel(SamHfConfig(vision_config=vision, **PARTS))
    with pytest.raises(ValueError, match=r"maps .* of \[\(16, 16, 16\).*expected \[\(16, 32, 32\).*correct `strides`"):
        model.get_image_embeddings(pixels(model))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone_config": {"model_type": "convnext"}, "strides": [4, 8]}, r"strides=\[4, 8\] should be one, or"),
        ({"backbone_config": {"model_type": "convnext"}, "strides": [4, 8, 12]}, r"strides=\[4, 8, 12\] should be"),
        ({"backbone_config": {"model_type": "convnext"}, "image_size": 100}, "image_size=100 .* use 96"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SamHfBackboneConfig(**given)


def test_a_model_needs_a_backbone():
    with pytest.raises(ValueError, match="backbone_config is None"):
        SamHfModel(SamHfConfig(vision_config=SamHfBackboneConfig(image_size=64, output_channels=WIDTH), **PARTS))
