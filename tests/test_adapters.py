"""LoRA by peft, as a user applies it to the model and by the presets of `sam_hf.training`, and freezing of parts."""

import copy

import peft
import pytest
import torch
from tiny_models import random_labels, random_pixels, random_prompts, tiny_model
from torch import Tensor, nn

from sam_hf import SamHfModel
from sam_hf.training import LORA_PRESETS, PARTS, InteractiveTrainer, add_lora, freeze, load_adapter, save_model
from sam_hf.training.adapters import ADAPTER
from sam_hf.training.memory_use import KeptForBackward

# Those of a model without instance decoder.
OWN = {part: name for part, name in PARTS.items() if part not in ("backbone", "instances")}
ENCODER = ["qkv", "proj"]
DECODER = ["q_proj", "k_proj", "v_proj", "out_proj"]


def model_and_inputs() -> tuple[SamHfModel, dict[str, Tensor]]:
    model = tiny_model(vision={"high_res_layers": [0, 1]}, decoder={"use_object_score": True})
    return model, {"pixel_values": random_pixels(), **random_prompts("points boxes masks")}


def randomise_adapters(model: nn.Module, seed: int = 0) -> None:
    """Adapters as training leaves them, and what trains beside them; the second matrix starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def predict(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = model.eval()(**inputs, multimask_output=True)
    return outputs.pred_masks, outputs.iou_scores, outputs.object_score_logits


@pytest.mark.parametrize("target", [*ENCODER, *DECODER])
def test_an_adapter_counts_and_merges(target):
    """The absorbed attention reads weights instead of calling projections: it must not pass an adapter by."""
    model, inputs = model_and_inputs()
    before = predict(model, inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=4, target_modules=[target]))
    torch.testing.assert_close(predict(adapted, inputs), before, atol=1e-5, rtol=0)
    randomise_adapters(adapted)
    after = predict(adapted, inputs)
    assert (after[0] - before[0]).abs().max() > 1e-2
    merged = adapted.merge_and_unload()
    assert type(merged) is SamHfModel and not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(predict(merged, inputs), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [ENCODER, DECODER, ENCODER + DECODER], ids=["encoder", "decoder", "both"])
def test_peft_models_train_save_and_load(targets, tmp_path):
    torch.manual_seed(0)
    model, inputs = model_and_inputs()
    untouched = copy.deepcopy(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets)).train()
    frozen = {name: p.detach().clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(12):
        loss = adapted(**inputs, labels=random_labels()).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.named_parameters() if name in frozen)

    adapted.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(untouched, str(tmp_path))
    torch.testing.assert_close(predict(loaded, inputs), predict(adapted, inputs), atol=0, rtol=0)


@pytest.mark.parametrize("frozen", [list(PARTS), ["prompt_encoder"], []], ids=["frozen", "decoder", "none"])
@pytest.mark.parametrize("preset", LORA_PRESETS)
def test_presets_train_what_they_say(preset, frozen):
    model, inputs = model_and_inputs()
    adapted = add_lora(model, preset, rank=2, frozen=frozen)
    parts = LORA_PRESETS[preset].parts
    for part, name in OWN.items():
        parameters = dict(model.get_submodule(name).named_parameters())
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        if part in parts:
            assert trained == {name for name in parameters if "lora" in name} != set(), part
            layers = {int(name.split(".")[1]) for name in trained if name.startswith("layers.")}
            assert part != "encoder" or layers == ({1} if preset == "encoder_late" else {0, 1})
        elif part in frozen:
            assert not trained, part
        else:
            assert trained == {name for name in parameters if "modules_to_save" in name} != set(), part
    adapted(**inputs, labels=random_labels()).loss.backward()
    adapters = [parameter.grad for name, parameter in model.named_parameters() if "lora_B" in name]
    assert all(gradient.abs().sum() > 0 for gradient in adapters)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("encoder", {"prompt_encoder", "mask_decoder"}),
        ("encoder_late", {"prompt_encoder", "mask_decoder"}),
        ("decoder", set()),
        ("all", set()),
    ],
)
def test_what_trains_in_full_beside_adapters_if_nothing_is_said(preset, expected):
    adapted = add_lora(tiny_model(), preset, rank=2)
    assert set(adapted.peft_config["default"].modules_to_save or ()) == expected
    base = adapted.get_base_model()
    for name in OWN.values():
        whole = {part for part, value in base.get_submodule(name).named_parameters() if value.requires_grad}
        assert any("lora" not in part for part in whole) == (name in expected), name


def deep_model(depth: int, **vision) -> SamHfModel:
    return tiny_model(vision={"num_hidden_layers": depth, "high_res_layers": [0, depth - 1], **vision})


def kept_by_layers(model: nn.Module, run) -> list[int]:
    """What each layer of the encoder keeps for the backward pass when `run` runs, in bytes; -1 without autograd."""
    kept: list[int] = []

    def begin(module: nn.Module, inputs: tuple) -> None:
        module.noted = KeptForBackward()
        module.noted.__enter__()

    def end(module: nn.Module, inputs: tuple, output: tuple[Tensor, None]) -> None:
        module.noted.__exit__(None, None, None)
        kept.append(module.noted.num_bytes(model) if output[0].requires_grad else -1)

    for layer in model.vision_encoder.layers:
        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(end)
    run()
    return kept


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
@pytest.mark.parametrize(("depth", "first"), [(1, 0), (2, 1), (5, 2), (8, 4), (12, 6)])
def test_below_late_adapters_there_is_no_autograd(depth, first, checkpoints):
    model = deep_model(depth)
    adapted = add_lora(model, "encoder_late", rank=2).train()
    randomise_adapters(adapted)
    InteractiveTrainer(adapted, checkpoint_activations=checkpoints)
    kept = kept_by_layers(adapted, lambda: adapted.get_image_embeddings(random_pixels()))
    assert kept[:first] == [-1] * first and all(number >= 0 for number in kept[first:]) and len(kept) == depth
    if not checkpoints:
        assert min(kept[first:]) > 0
    sum(part.sum() for part in adapted.get_image_embeddings(random_pixels())).backward()
    with_gradient = {
        int(name.split("layers.")[1].split(".")[0])
        for name, part in model.vision_encoder.named_parameters()
        if part.grad is not None and "lora_B" in name
    }
    assert with_gradient == set(range(first, depth))


def test_late_adapters_keep_half_of_what_the_encoder_keeps():
    """The layers are alike, so that the ratio is that of their numbers."""
    kept = {}
    for preset in ("encoder", "encoder_late"):
        torch.manual_seed(0)
        adapted = add_lora(deep_model(12, window_size=0), preset, rank=2).train()
        randomise_adapters(adapted)
        layers = kept_by_layers(adapted, lambda adapted=adapted: adapted.get_image_embeddings(random_pixels()))
        kept[preset] = sum(number for number in layers if number > 0)
    assert kept["encoder_late"] / kept["encoder"] == pytest.approx(0.5, abs=0.03)


def test_late_adapters_resume_and_merge(tmp_path):
    model = deep_model(5)
    base = copy.deepcopy(model)
    inputs = {"pixel_values": random_pixels(), **random_prompts("points boxes masks")}
    adapted = add_lora(model, "encoder_late", rank=2)
    randomise_adapters(adapted)
    expected = tuple(part for part in predict(adapted, inputs) if part is not None)
    save_model(adapted, tmp_path)
    merged = predict(SamHfModel.from_pretrained(tmp_path), inputs)
    resumed = add_lora(base, "encoder_late", rank=2)
    load_adapter(resumed, tmp_path / ADAPTER)
    for found in (merged, predict(resumed, inputs)):
        torch.testing.assert_close(tuple(part for part in found if part is not None), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="--freeze prompt_encoder,decoder"):
        load_adapter(add_lora(deep_model(5), "encoder", rank=2), tmp_path / ADAPTER)


def test_layers_below_late_adapters_drop_no_paths():
    model = deep_model(5, drop_path_rate=0.5)
    add_lora(model, "encoder_late")
    assert [layer.drop_path_rate for layer in model.vision_encoder.layers] == [0, 0, 0.25, 0.375, 0.5]


def test_a_saved_model_needs_no_peft_and_its_adapter_fits_the_model_it_was_made_for(tmp_path):
    model, inputs = model_and_inputs()
    model.save_pretrained(tmp_path / "base")
    adapted = add_lora(model, "encoder", rank=2, frozen=["prompt_encoder"])
    randomise_adapters(adapted)
    expected = predict(adapted, inputs)
    saved = save_model(adapted, tmp_path / "run")
    assert type(saved) is SamHfModel
    torch.testing.assert_close(predict(adapted, inputs), expected, atol=0, rtol=0)  # itself unchanged
    merged, loading = SamHfModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(loading.values())
    torch.testing.assert_close(predict(merged, inputs), expected, atol=1e-5, rtol=0)

    base = SamHfModel.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "run" / ADAPTER))
    # Weights that a file is mapped to are aligned otherwise than those made here, which changes rounding.
    torch.testing.assert_close(predict(again, inputs), expected, atol=1e-5, rtol=0)
    resumed = add_lora(copy.deepcopy(base), "encoder", rank=2, frozen=["prompt_encoder"])
    load_adapter(resumed, tmp_path / "run" / ADAPTER)
    torch.testing.assert_close(predict(resumed, inputs), expected, atol=1e-5, rtol=0)
    for options in ({"preset": "all"}, {"preset": "encoder", "rank": 3}, {"preset": "encoder", "frozen": []}):
        other = add_lora(copy.deepcopy(base), **{"rank": 2, "frozen": ["prompt_encoder"], **options})
        with pytest.raises(ValueError, match="resume with the preset, rank and frozen parts"):
            load_adapter(other, tmp_path / "run" / ADAPTER)


def test_frozen_parts_take_no_gradient():
    model, inputs = model_and_inputs()
    freeze(model, ["encoder", "prompt_encoder"])
    model(**inputs, labels=random_labels()).loss.backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"mask_decoder"}
    freeze(model, [])
    assert model.mask_decoder.iou_token.weight.requires_grad


@pytest.mark.parametrize(
    ("adapt", "is_still"),
    [
        (lambda model: freeze(model, ["encoder"]), True),
        (lambda model: freeze(model, ["decoder"]), False),
        (lambda model: add_lora(model, "decoder"), True),
        (lambda model: add_lora(model, "decoder", frozen=["prompt_encoder"]), False),
        (lambda model: add_lora(model, "encoder"), False),
    ],
    ids=["frozen", "trains", "frozen beside adapters", "trains beside adapters", "has adapters"],
)
def test_only_an_encoder_that_trains_drops_paths(adapt, is_still):
    torch.manual_seed(0)
    model = tiny_model(vision={"drop_path_rate": 0.9})
    adapt(model)
    pixels = random_pixels(4)
    embeddings = [model.train(is_training).get_image_embeddings(pixels)[-1] for is_training in (True, False)]
    assert torch.allclose(*embeddings) == is_still
    assert model.config.vision_config.drop_path_rate == 0.9


def test_unknown_parts_and_presets_are_refused():
    model, _ = model_and_inputs()
    with pytest.raises(ValueError, match=r"no part \['head'\]; choose from encoder, prompt_encoder, decoder"):
        freeze(model, ["head"])
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model, PARTS)
    with pytest.raises(ValueError, match="no LoRA preset 'qkv'; choose one of encoder, encoder_late, decoder, all"):
        add_lora(model, "qkv")
    assert all(parameter.requires_grad for parameter in model.parameters())
