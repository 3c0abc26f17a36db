"""Training that starts from a pretrained backbone, and from models that have one: weights, options, adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_backbones import NEEDS_TIMM, build, pixels, train_step
from test_hub import WITHOUT_PACKAGE, run
from tiny_runs import arguments, assert_answers_as_in_the_run
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
)

from sam_hf import SamHfConfig, SamHfModel
from sam_hf.training import add_lora, backbones, freeze, has_weights, parameter_groups, prepare_model, save_model
from sam_hf.training.adapters import load_adapter
from sam_hf.training.backbones import is_backbone
from sam_hf.training.embedding_cache import open_cache
from sam_hf.training.models import build_processor, find_config
from sam_hf.training.options import Options

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
LABELS = {"num_labels": 1000}


def stored(name: str, folder: Path) -> Any:
    """A pretrained model in a folder as the Hub has it, and what its backbone is called in it."""
    torch.manual_seed(1)
    if name == "convnext":
        model = ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, **LABELS)
        )
        ConvNextImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    elif name == "swin":
        model = SwinModel(SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=4))
    else:
        model = Dinov2Model(
            Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14)
        )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("name", "strides", "side"),
    [("convnext", [4, 8, 16, 32], 512), ("swin", [4, 8, 16, 32], 512), ("dinov2", [14], 504)],
)
def test_a_model_starts_from_a_backbone_of_transformers(name, strides, side, tmp_path, capsys):
    weights = stored(name, tmp_path).state_dict()
    assert is_backbone(tmp_path) and not has_weights(tmp_path)
    model = prepare_model(tmp_path)
    vision = model.config.vision_config
    assert (list(vision.strides), vision.image_size) == (strides, side)
    assert not hasattr(vision.backbone_config, "label2id") or len(vision.backbone_config.label2id) < 1000
    # A classifier has the name of the backbone before those of its weights, and so has one backbone.
    weights = {key.removeprefix(f"{name}."): value for key, value in weights.items()}
    found = model.vision_encoder.backbone.state_dict()
    shared = [key for key in found if key.removeprefix(f"{name}.") in weights]
    assert len(shared) > 0.7 * len(found)
    for key in shared:
        assert torch.equal(found[key], weights[key.removeprefix(f"{name}.")]), key
    said = capsys.readouterr().out
    assert said.startswith(f"backbone: {len(shared)} weights, ") and str(tmp_path) in said
    assert all((key in said) == (key not in shared) for key in found)
    small = SamHfConfig.from_preset("small", side)
    assert model.config.mask_decoder_config.to_dict() == small.mask_decoder_config.to_dict()
    assert model.config.focal_alpha == small.focal_alpha and model.instance_decoder is not None
    smaller = prepare_model(tmp_path, image_size=4 * strides[-1], instances=False)
    assert smaller.config.image_size == 4 * strides[-1] and smaller.instance_decoder is None
    train_step(smaller)


def test_a_plain_vit_gives_its_last_layer(tmp_path):
    stored("dinov2", tmp_path)
    assert find_config(tmp_path, None).vision_config.backbone_config.out_features == ["stage3"]


@NEEDS_TIMM
@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("convnext_atto", {}, [4, 8, 16, 32]),
        ("repvit_m0_9", {}, [4, 8, 16, 32]),
        ("resnet10t", {}, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", {"depth": 3}, [16]),
    ],
)
def test_a_model_starts_from_a_backbone_of_timm(name, options, strides, tmp_path):
    import timm

    torch.manual_seed(1)
    trained = timm.create_model(name, num_classes=7, pretrained_cfg_overlay={"mean": MEAN, "std": STD}, **options)
    timm.models.save_for_hf(trained, tmp_path, model_args=options, safe_serialization=True)
    model = prepare_model(tmp_path, image_size=8 * strides[-1]).eval()
    assert list(model.config.vision_config.strides) == strides
    image = pixels(model)
    with torch.no_grad():
        last = model.vision_encoder(image, output_hidden_states=True)[1][-1].permute(0, 3, 1, 2)
        if strides == [16]:
            dynamic = timm.create_model(name, num_classes=7, dynamic_img_size=True, **options)
            dynamic.load_state_dict(trained.state_dict())
            trained = dynamic
        features = trained.eval().forward_intermediates(image, indices=1, intermediates_only=True)
        torch.testing.assert_close(last, features[0])
    processor = build_processor(model).image_processor
    assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)


def test_normalisation_is_that_of_the_backbone_and_stays(tmp_path):
    stored("convnext", tmp_path / "backbone")
    model = prepare_model(tmp_path / "backbone", image_size=64)
    processor = build_processor(model, crop_sizes=[32])
    save_model(model, tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    again = build_processor(prepare_model(tmp_path / "run"))
    for each in (processor, again):
        assert (list(each.image_processor.image_mean), list(each.image_processor.image_std)) == (MEAN, STD)
        assert each.image_processor.keep_aspect_ratio
    with pytest.raises(ValueError, match="crop_size=48 should be a multiple of 32"):
        build_processor(model, crop_sizes=[48])


def test_a_backbone_without_the_strides_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], downsample_in_first_stage=True)
    ResNetModel(config).save_pretrained(tmp_path)
    find_config(tmp_path, None)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"resnet has maps of strides \[4, 8\], expected 4, 8, 16 .* choose another"):
        find_config(tmp_path, None)


def test_random_weights_without_files(tmp_path, capsys):
    ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1] * 4).save_pretrained(tmp_path)
    prepare_model(tmp_path)
    assert not capsys.readouterr().out


def test_rates_of_a_pretrained_backbone(tmp_path):
    stored("convnext", tmp_path)
    options = Options(model=str(tmp_path))
    options.choose_learning_rates(has_weights(tmp_path))
    assert (options.learning_rate, options.encoder_rate, options.layer_decay) == (1e-3, 0.1, 1.0)
    build("convnext").save_pretrained(tmp_path / "trained")
    options = Options(model=str(tmp_path / "trained"))
    options.choose_learning_rates(has_weights(tmp_path / "trained"))
    assert (options.learning_rate, options.encoder_rate, options.layer_decay) == (1e-4, 0.1, 1.0)
    with pytest.raises(ValueError, match="layer_decay=0.9 goes by the layers"):
        parameter_groups(build("convnext"), 0.1, layer_decay=0.9)


def test_drop_path_is_that_of_the_backbone(tmp_path):
    stored("convnext", tmp_path)
    model = prepare_model(tmp_path, image_size=64, drop_path=0.4)
    rates = [part.drop_prob for part in model.vision_encoder.backbone.modules() if hasattr(part, "drop_prob")]
    assert rates and max(rates) == pytest.approx(0.4)
    save_model(model, tmp_path / "run")
    assert find_config(tmp_path / "run", None).vision_config.drop_path_rate == 0.4
    vision = build("sam3_vit").config.vision_config
    vision.drop_path_rate = 0.0
    with pytest.raises(ValueError, match="'sam3_vit_model' has no drop path, but drop_path_rate=0.1"):
        vision.drop_path_rate = 0.1


@NEEDS_TIMM
def test_drop_path_of_timm(tmp_path):
    import timm

    for name in ("convnext_atto", "repvit_m0_9"):
        timm.models.save_for_hf(timm.create_model(name), tmp_path / name, safe_serialization=True)
    model = prepare_model(tmp_path / "convnext_atto", image_size=64, drop_path=0.4)
    rates = [part.drop_prob for part in model.vision_encoder.backbone.modules() if hasattr(part, "drop_prob")]
    assert max(rates) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="arguments of repvit_m0_9 do not fit it: .*drop_path_rate"):
        prepare_model(tmp_path / "repvit_m0_9", drop_path=0.4)


@pytest.mark.usefixtures("on_cpu")
def test_a_run_around_a_backbone(train, tmp_path):
    """Of patches of 14 pixels, so that a cell of the mask grid has 3.5."""
    stored("dinov2", tmp_path / "backbone")
    given = {"image_size": 56, "freeze": "backbone", "max_steps": 2, "final_eval_images": 1}
    train.main(arguments(tmp_path / "backbone", tmp_path / "run", **given))
    assert_answers_as_in_the_run(tmp_path / "run" / "best")
    found = SamHfModel.from_pretrained(tmp_path / "run" / "best").vision_encoder.backbone.state_dict()
    expected = prepare_model(tmp_path / "backbone", image_size=56).vision_encoder.backbone.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_freezing_leaves_the_new_neck(tmp_path):
    stored("convnext", tmp_path)
    model = prepare_model(tmp_path, image_size=64, frozen=["backbone"])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert not any(name.startswith("vision_encoder.backbone.") for name in trained)
    assert {name for name, _ in model.named_parameters()} - trained == {
        f"vision_encoder.backbone.{name}" for name, _ in model.vision_encoder.backbone.named_parameters()
    }
    train_step(model)
    with pytest.raises(ValueError, match="--freeze encoder would leave the neck .* random"):
        prepare_model(tmp_path, frozen=["encoder"])
    with pytest.raises(ValueError, match="no backbone of another package"):
        prepare_model("small", frozen=["backbone"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(model, ["encoder", "prompt_encoder", "decoder", "instances", "backbone"])


def test_a_frozen_encoder_is_cached(tmp_path):
    model = build("swin")  # whose paths are dropped in training
    assert model.config.vision_config.backbone_config.drop_path_rate
    freeze(model, ["encoder"])
    cache = open_cache(model, tmp_path, is_augmented=False)
    image = pixels(model.train())
    first, second = cache(image), cache(image)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[-1], model.eval().get_image_embeddings(image)[-1])


@pytest.mark.parametrize("preset", ["encoder", "all", "decoder"])
def test_adapters_of_linear_layers(preset, tmp_path):
    model = build("dinov2")
    backbone = {
        name for name, part in model.named_modules() if ".backbone." in name and type(part).__name__ == "Linear"
    }
    adapted = add_lora(model, preset, rank=2)
    with_adapters = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in adapted.named_modules()
        if name.endswith(".lora_A.default")
    }
    in_backbone = {name for name in with_adapters if ".backbone." in name}
    assert in_backbone == (set() if preset == "decoder" else backbone)
    assert bool(with_adapters - in_backbone) == (preset != "encoder")
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05)
    train_step(adapted)
    image = pixels(model)
    with torch.no_grad():
        expected = adapted.eval().get_image_embeddings(image)[-1]
        save_model(adapted, tmp_path)
        merged = SamHfModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(merged.get_image_embeddings(image)[-1], expected, atol=1e-5, rtol=1e-5)
    again = add_lora(build("dinov2"), preset, rank=2)
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again.eval().get_image_embeddings(image)[-1], expected, atol=1e-5, rtol=1e-5)


def test_adapters_that_have_no_place(tmp_path):
    with pytest.raises(ValueError, match="encoder_late: which half of a backbone"):
        add_lora(build("dinov2"), "encoder_late")
    stored("convnext", tmp_path)
    with pytest.raises(ValueError, match="around the backbone .* all else is new"):
        prepare_model(tmp_path, lora="encoder")


@NEEDS_TIMM
def test_a_backbone_of_convolutions_has_no_place_for_adapters():
    with pytest.raises(ValueError, match="no linear layers, only convolutions"):
        add_lora(build("timm convnext"), "encoder")


def test_a_folder_with_code_needs_no_package(tmp_path):
    model = build("convnext").eval()
    model.save_pretrained(tmp_path, include_code=True)
    image = pixels(model)
    with torch.no_grad():
        torch.save({"image": image, "embedding": model.get_image_embeddings(image)[-1]}, tmp_path / "expected.pt")
    code = """
import torch
from transformers import AutoModel

expected = torch.load("expected.pt")
model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()
with torch.no_grad():
    torch.testing.assert_close(model.get_image_embeddings(expected["image"])[-1], expected["embedding"])
"""
    run(WITHOUT_PACKAGE + code, tmp_path)


def test_nobody_is_asked_for_a_preset(monkeypatch):
    monkeypatch.setattr(backbones.AutoConfig, "from_pretrained", lambda source: pytest.fail(f"asked for {source}"))
    assert not is_backbone("small") and not has_weights("small")
