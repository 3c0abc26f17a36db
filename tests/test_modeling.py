"""The model by itself: shapes, inert padding, candidates, gradients, precisions, saving, errors."""

import itertools
import math
import weakref
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_models import (
    GRID,
    IMAGE,
    MASK,
    PATCH,
    WIDTH,
    random_labels,
    random_loss,
    random_pixels,
    random_prompts,
    randomise,
    tiny_config,
    tiny_model,
)
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskGeneration

from sam_hf import (
    BACKGROUND,
    FOREGROUND,
    NOT_A_POINT,
    PADDING,
    SamHfConfig,
    SamHfModel,
    SamHfPromptEncoderConfig,
    SamHfVisionConfig,
)
from sam_hf.image_encoder import drop_path

HIGH_RES = {"vision": {"high_res_layers": [0, 1]}}
SAM2_HEADS = {"decoder": {"use_object_score": True, "iou_prediction_use_sigmoid": True}}
PLAIN_VIT = {"vision": {"window_size": 0, "use_rel_pos": False}}
FOUR_LAYERS = {"decoder": {"num_hidden_layers": 4}}
EVERYTHING = {**HIGH_RES, **SAM2_HEADS}
PROMPTS = ["points", "boxes", "masks", "points boxes", "points boxes masks", ""]


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


def gradients(model: SamHfModel) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kinds", PROMPTS)
@pytest.mark.parametrize(("batch", "num_objects"), [*itertools.product((1, 2, 3), (1, 4))])
@torch.no_grad()
def test_shapes(batch, num_objects, kinds):
    model = tiny_model(**EVERYTHING)
    prompts = random_prompts(kinds, batch, num_objects)
    num_objects = num_objects if kinds else 1
    for multimask_output, candidates in ((True, 3), (False, 1)):
        output = model(random_pixels(batch), **prompts, multimask_output=multimask_output, upscale_masks=True)
        assert output.pred_masks.shape == (batch, num_objects, candidates, MASK, MASK)
        assert output.masks.shape == (batch, num_objects, candidates, IMAGE, IMAGE)
        assert output.iou_scores.shape == (batch, num_objects, candidates)
        assert output.object_score_logits.shape == (batch, num_objects, 1)
        assert [tuple(part.shape) for part in output.image_embeddings] == [
            (batch, WIDTH // 8, MASK, MASK),
            (batch, WIDTH // 4, 2 * GRID, 2 * GRID),
            (batch, WIDTH, GRID, GRID),
        ]
        assert output.loss is output.loss_dict is output.vision_hidden_states is None
        assert output.pred_masks.isfinite().all() and output.iou_scores.isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (80, 40), (8, 8)])
@pytest.mark.parametrize("options", [{}, PLAIN_VIT, FOUR_LAYERS, EVERYTHING])
@torch.no_grad()
def test_any_multiple_of_the_patch_size_runs(options, size):
    model, (height, width) = tiny_model(**options), size
    output = model(
        random_pixels(2, height, width),
        **random_prompts("points boxes"),
        upscale_masks=True,
        output_hidden_states=True,
    )
    assert output.pred_masks.shape == (2, 2, 1, height // 2, width // 2)
    assert output.masks.shape == (2, 2, 1, height, width)
    assert len(output.vision_hidden_states) == 3
    assert all(state.shape == (2, height // PATCH, width // PATCH, WIDTH) for state in output.vision_hidden_states)
    assert output.pred_masks.isfinite().all()


@pytest.mark.parametrize("patch_size", [2, 4, 14, 16])
@torch.no_grad()
def test_masks_are_upscaled_to_the_input_whatever_the_patch_size(patch_size):
    model = tiny_model(vision={"patch_size": patch_size, "image_size": 2 * patch_size})
    output = model(random_pixels(1, 2 * patch_size, 3 * patch_size), upscale_masks=True)
    assert output.pred_masks.shape[-2:] == (8, 12)
    assert output.masks.shape[-2:] == (2 * patch_size, 3 * patch_size)


@torch.no_grad()
def test_upscaled_masks_are_the_bilinear_resize():
    output = tiny_model()(random_pixels(), **random_prompts("points"), upscale_masks=True)
    expected = torch.nn.functional.interpolate(output.pred_masks[0], (IMAGE, IMAGE), mode="bilinear")
    assert torch.equal(output.masks[0], expected)


def pad_batch() -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Two images of three and two objects with every mix of prompts, padded with values that must not be read."""
    prompts = random_prompts("points boxes masks", 2, 3, num_points=3)
    labels = prompts["input_labels"]
    labels[0, 0, 1:] = PADDING  # one click
    labels[0, 1, :] = PADDING  # a box alone
    labels[0, 2, 0] = PADDING  # padding comes first, with a box and a mask
    labels[1, 0, 1] = NOT_A_POINT  # clicks and a mask
    labels[1, 1, :] = PADDING  # nothing
    labels[1, 2, :] = PADDING  # padded object
    prompts["input_points"][labels == PADDING] = 1e4
    no_box = torch.tensor([[True, False, False], [True, True, True]])
    prompts["input_boxes"][no_box] = math.nan
    prompts["has_input_masks"] = torch.tensor([[False, False, True], [True, False, False]])
    prompts["input_masks"][~prompts["has_input_masks"]] = 1e4
    targets = random_labels(2, 3)
    targets[1, 2] = math.nan
    targets[0, 1, :5] = math.nan
    return random_pixels(), prompts, targets


def alone(pixels: Tensor, prompts: dict[str, Tensor], image: int, item: int) -> dict[str, Tensor]:
    """The arguments for one object of one image without any padding."""
    here = (slice(image, image + 1), slice(item, item + 1))
    arguments = {"pixel_values": pixels[image : image + 1]}
    real = prompts["input_labels"][image, item] != PADDING
    if real.any():
        arguments["input_points"] = prompts["input_points"][here][:, :, real]
        arguments["input_labels"] = prompts["input_labels"][here][:, :, real]
    if prompts["input_boxes"][image, item].isfinite().all():
        arguments["input_boxes"] = prompts["input_boxes"][here]
    if prompts["has_input_masks"][image, item]:
        arguments["input_masks"] = prompts["input_masks"][here]
    return arguments


@pytest.mark.parametrize("options", [{}, EVERYTHING, FOUR_LAYERS])
@pytest.mark.parametrize("multimask_output", [True, False])
def test_batch_and_padding_change_nothing(multimask_output, options):
    model = tiny_model(**options)
    pixels, prompts, targets = pad_batch()
    together = model(pixels, **prompts, labels=targets, multimask_output=multimask_output)
    together.loss.backward()
    joint = gradients(model)
    model.zero_grad()

    losses = []
    for image, item in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        output = model(
            **alone(pixels, prompts, image, item),
            labels=targets[image : image + 1, item : item + 1],
            multimask_output=multimask_output,
        )
        assert difference(together.pred_masks[image, item], output.pred_masks[0, 0]) < 1e-5
        assert difference(together.iou_scores[image, item], output.iou_scores[0, 0]) < 1e-5
        if "decoder" in options and "use_object_score" in options["decoder"]:
            one, other = together.object_score_logits[image, item], output.object_score_logits[0, 0]
            assert difference(one, other) < 1e-5
        losses.append(output)
    mean = torch.stack([output.loss for output in losses]).mean()
    assert difference(together.loss, mean) < 1e-5
    for name, term in together.loss_dict.items():
        assert difference(term, torch.stack([output.loss_dict[name] for output in losses]).mean()) < 1e-5
    mean.backward()
    for name, gradient in gradients(model).items():
        expected = torch.zeros(1) if joint[name] is None else joint[name]
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        assert (gradient - expected).abs().max() < 1e-5, name


@torch.no_grad()
def test_more_padding_changes_nothing():
    model = tiny_model(**EVERYTHING)
    pixels, prompts = random_pixels(), random_prompts("points")
    expected = model(pixels, **prompts, multimask_output=True)
    padded = {
        "input_points": torch.cat([prompts["input_points"], torch.full((2, 2, 5, 2), math.nan)], dim=2),
        "input_labels": torch.cat([prompts["input_labels"], torch.full((2, 2, 5), PADDING)], dim=2),
        "input_boxes": torch.full((2, 2, 4), math.nan),
        "input_masks": torch.zeros(2, 2, MASK, MASK),
        "has_input_masks": torch.zeros(2, 2, dtype=torch.bool),
    }
    output = model(pixels, **padded, multimask_output=True)
    assert difference(output.pred_masks, expected.pred_masks) < 1e-5
    assert difference(output.iou_scores, expected.iou_scores) < 1e-5


def test_padding_never_poisons_gradients():
    model = tiny_model(**EVERYTHING)
    pixels, prompts, targets = pad_batch()
    prompts["input_points"][prompts["input_labels"] == PADDING] = math.nan
    model(pixels, **prompts, labels=targets).loss.backward()
    assert all(grad is None or grad.isfinite().all() for grad in gradients(model).values())


@torch.no_grad()
def test_one_mask_prompt_serves_all_objects():
    model, prompts = tiny_model(), random_prompts("points masks")
    shared = prompts | {"input_masks": prompts["input_masks"][:, :1]}
    repeated = prompts | {"input_masks": prompts["input_masks"][:, :1].repeat(1, 2, 1, 1)}
    assert difference(model(random_pixels(), **shared).pred_masks, model(random_pixels(), **repeated).pred_masks) < (
        1e-5
    )


@torch.no_grad()
def test_labels_default_to_foreground():
    model, prompts = tiny_model(), random_prompts("points")
    expected = model(random_pixels(), **prompts | {"input_labels": torch.ones(2, 2, 2, dtype=torch.long)})
    del prompts["input_labels"]
    assert torch.equal(model(random_pixels(), **prompts).pred_masks, expected.pred_masks)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_embeddings_replace_pixels_and_carry_gradients(options):
    model, prompts = tiny_model(**options), random_prompts("points boxes")
    pixels = random_pixels().requires_grad_()
    expected = model(pixels, **prompts)
    random_loss([expected.pred_masks]).backward()
    direct, pixels.grad = pixels.grad, None

    embeddings = model.get_image_embeddings(pixels)
    output = model(image_embeddings=embeddings, **prompts)
    assert torch.equal(output.pred_masks, expected.pred_masks)
    assert all(a is b for a, b in zip(output.image_embeddings, embeddings, strict=True))
    random_loss([output.pred_masks]).backward()
    assert direct.any() and difference(pixels.grad, direct) < 1e-6


def test_every_feature_map_depends_on_the_pixels():
    pixels = random_pixels(1).requires_grad_()
    for feature in tiny_model(**EVERYTHING).get_image_embeddings(pixels):
        (gradient,) = torch.autograd.grad(random_loss([feature]), pixels, retain_graph=True)
        assert gradient.any()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"vision": {"high_res_layers": [0, 1]}}], ids=["plain", "high resolution"])
def test_embeddings_may_be_kept_in_half_precision(dtype, options):
    model, prompts = tiny_model(**options), random_prompts("points")
    halves = [feature.to(dtype) for feature in model.get_image_embeddings(random_pixels())]
    answer = model(image_embeddings=halves, **prompts)
    expected = model(image_embeddings=[feature.float() for feature in halves], **prompts)
    assert torch.equal(answer.pred_masks, expected.pred_masks) and answer.pred_masks.dtype == torch.float32


@pytest.mark.parametrize("high_res_layers", [None, [2, 0]])
@pytest.mark.parametrize("asked", [False, True])
def test_hidden_states_live_on_only_if_asked_for(high_res_layers, asked):
    model = tiny_model(vision={"num_hidden_layers": 5, "high_res_layers": high_res_layers})
    made, alive = [], []
    for layer in model.vision_encoder.layers:
        layer.register_forward_hook(lambda m, a, output: made.append(weakref.ref(output[0].untyped_storage())))
    model.vision_encoder.neck.register_forward_pre_hook(
        lambda m, a: alive.extend(index for index, ref in enumerate(made) if ref() is not None)
    )
    with torch.no_grad():
        output = model(random_pixels(), **random_prompts("points"), output_hidden_states=asked)
    assert (output.vision_hidden_states is None) is not asked
    assert set(alive) == set(range(5) if asked else [4, *(high_res_layers or [])])


def test_a_bare_tensor_is_an_embedding():
    model, prompts = tiny_model(), random_prompts("points")
    (embedding,) = model.get_image_embeddings(random_pixels())
    expected = model(random_pixels(), **prompts)
    assert torch.equal(model(image_embeddings=embedding, **prompts).pred_masks, expected.pred_masks)


def test_tuple_output_equals_dict_output():
    model, prompts = tiny_model(), random_prompts("points")
    output = model(random_pixels(), **prompts)
    as_tuple = model(random_pixels(), **prompts, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output.to_tuple())
    assert torch.equal(as_tuple[1], output.pred_masks)


@torch.no_grad()
def test_high_resolution_branches_start_without_effect():
    plain, prompts = tiny_model(), random_prompts("points")
    fine = SamHfModel(tiny_config(**HIGH_RES)).eval()
    missing = fine.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys and all("high_res_s" in name for name in missing.missing_keys)
    arguments = {"pixel_values": random_pixels(), **prompts}
    assert torch.equal(fine(**arguments).pred_masks, plain(**arguments).pred_masks)
    assert not torch.equal(randomise(fine)(**arguments).pred_masks, plain(**arguments).pred_masks)


def test_high_resolution_branches_learn_from_the_start():
    model = SamHfModel(tiny_config(**HIGH_RES))
    model(random_pixels(), **random_prompts("points"), labels=random_labels()).loss.backward()
    assert model.vision_encoder.high_res_s0.proj_out.weight.grad.any()
    assert model.vision_encoder.high_res_s1.proj_out.weight.grad.any()


@pytest.mark.parametrize(
    ("kinds", "num_points", "candidates"),
    [
        ("points", 1, 3),
        ("points", 2, 1),
        ("boxes", 1, 1),
        ("points boxes", 1, 1),
        ("points masks", 1, 1),
        ("masks", 1, 1),
        ("", 1, 1),
    ],
)
@torch.no_grad()
def test_only_a_single_click_is_ambiguous(kinds, num_points, candidates):
    prompts = random_prompts(kinds, num_points=num_points)
    assert tiny_model()(random_pixels(), **prompts).pred_masks.shape[2] == candidates


@torch.no_grad()
def test_prompts_that_are_padding_do_not_decide_the_candidates():
    model, prompts = tiny_model(), random_prompts("points", num_points=2)
    prompts["input_labels"][..., 1] = PADDING
    assert model(random_pixels(), **prompts).pred_masks.shape[2] == 3
    prompts["input_boxes"] = torch.full((2, 2, 4), math.nan)
    assert model(random_pixels(), **prompts).pred_masks.shape[2] == 3
    prompts["input_masks"] = torch.zeros(2, 2, MASK, MASK)
    prompts["has_input_masks"] = torch.zeros(2, 2, dtype=torch.bool)
    assert model(random_pixels(), **prompts).pred_masks.shape[2] == 3
    prompts["has_input_masks"][0, 0] = True
    assert model(random_pixels(), **prompts).pred_masks.shape[2] == 1


@torch.no_grad()
def test_stability_choice_applies_in_eval_mode_only():
    options = {"dynamic_multimask_via_stability": True, "dynamic_multimask_stability_thresh": 1.1}
    model, prompts = tiny_model(decoder=options | {"dynamic_multimask_min_grid": 0}), random_prompts("boxes")
    every = tiny_model()(random_pixels(), **prompts, multimask_output=True)
    best = every.iou_scores.argmax(dim=-1, keepdim=True)
    unstable = model(random_pixels(), **prompts)
    assert torch.equal(unstable.iou_scores, every.iou_scores.gather(2, best))
    expected = torch.take_along_dim(every.pred_masks, best[..., None, None], dim=2)
    assert torch.equal(unstable.pred_masks, expected)
    first = tiny_model()(random_pixels(), **prompts, multimask_output=False)
    assert difference(model.train()(random_pixels(), **prompts).pred_masks, first.pred_masks) < 1e-5


def run_all_prompt_types(model: SamHfModel) -> None:
    for kinds in PROMPTS[:-1]:
        output = model(random_pixels(), **random_prompts(kinds), multimask_output=True)
        tensors = [output.pred_masks, output.iou_scores, output.object_score_logits]
        random_loss(tensors).backward()
    model(random_pixels(), **random_prompts("points"), multimask_output=False).pred_masks.mean().backward()


def test_every_parameter_gets_a_gradient():
    model = tiny_model(**EVERYTHING)
    run_all_prompt_types(model)
    # The bias of the keys adds the same to all scores of a softmax.
    useless = [name for name, grad in gradients(model).items() if grad is None or grad.abs().max() < 1e-9]
    assert [name for name in useless if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("kinds", PROMPTS)
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast, kinds):
    model = tiny_model(**EVERYTHING)
    prompts, num_objects = random_prompts(kinds), 2 if kinds else 1
    arguments = {"pixel_values": random_pixels(), **prompts, "labels": random_labels(2, num_objects)}
    with torch.no_grad():
        expected = model(**arguments)
    if "boxes" in kinds:  # a padded box, so that attention is masked
        prompts["input_boxes"][0, 0] = math.nan
    model = model if autocast else model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(**arguments)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(grad is None or grad.isfinite().all() for grad in gradients(model).values())
    # Every object but the one that lost its box.
    errors = (output.pred_masks.float() - expected.pred_masks).flatten(2).abs().mean(dim=-1).flatten()
    assert errors[1:].max() < 0.1 * expected.pred_masks.abs().mean()


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_padding(autocast):
    model = tiny_model(**EVERYTHING)
    model = model if autocast else model.to(torch.bfloat16)
    pixels, prompts, targets = pad_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(pixels, **prompts, labels=targets)
    output.loss.backward()
    assert output.pred_masks.isfinite().all()
    assert all(grad is None or grad.isfinite().all() for grad in gradients(model).values())


def test_activation_checkpointing_keeps_gradients():
    model = tiny_model(**EVERYTHING).train()
    arguments = {"pixel_values": random_pixels(), **random_prompts("points"), "labels": random_labels()}
    model(**arguments).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    # The name of transformers 5.17, and the present one.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    calls = []
    model.vision_encoder.layers[0].layer_norm1.register_forward_hook(lambda *_: calls.append(1))
    model(**arguments).loss.backward()
    assert len(calls) == 2  # forward, and once more in backward
    for name, gradient in gradients(model).items():
        assert gradient is expected[name] is None or difference(gradient, expected[name]) < 1e-6, name


def test_drop_path_keeps_the_expectation_in_training_only():
    torch.manual_seed(0)
    residual = torch.ones(20000, 2, 2, 3)
    assert drop_path(residual, 0.3, training=False) is residual
    assert drop_path(residual, 0.0, training=True) is residual
    dropped = drop_path(residual, 0.3, training=True)
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(dim=1), per_sample.amax(dim=1))  # whole samples or nothing
    assert torch.allclose(per_sample.unique(), torch.tensor([0.0, 1 / 0.7]))


def test_drop_path_grows_with_depth_and_changes_training_alone():
    model = tiny_model(vision={"num_hidden_layers": 3, "drop_path_rate": 0.5})
    assert [layer.drop_path_rate for layer in model.vision_encoder.layers] == [0.0, 0.25, 0.5]
    pixels = random_pixels(4)
    reference = tiny_model(vision={"num_hidden_layers": 3})
    with torch.no_grad():
        expected = reference.get_image_embeddings(pixels)[0]
        assert torch.equal(model.get_image_embeddings(pixels)[0], expected)
        torch.manual_seed(0)
        assert not torch.allclose(model.train().get_image_embeddings(pixels)[0], expected)


@pytest.mark.parametrize("options", [{}, PLAIN_VIT])
@torch.no_grad()
def test_eager_and_sdpa_attention_agree(options):
    outputs = []
    pixels, prompts, _ = pad_batch()
    for implementation in ("eager", "sdpa"):
        config = tiny_config(**options)
        config._attn_implementation = implementation
        model = randomise(SamHfModel(config)).eval()
        assert model.vision_encoder.config._attn_implementation == implementation
        assert model.mask_decoder.config._attn_implementation == implementation
        outputs.append(model(pixels, **prompts).pred_masks)
    assert difference(*outputs) < 1e-5


def test_attention_implementation_can_be_switched():
    model = tiny_model()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.vision_encoder.layers[0].attn.config._attn_implementation == implementation
        assert model.mask_decoder.transformer.layers[0].self_attn.config._attn_implementation == implementation


def test_attention_implementations_of_parts(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    asked = {"": "sdpa", "vision_config": "eager"}
    config = SamHfModel.from_pretrained(tmp_path, attn_implementation=asked).config
    parts = [config, config.vision_config, config.mask_decoder_config]
    assert [part._attn_implementation for part in parts] == ["sdpa", "eager", "sdpa"]
    for name in ("eager", "sdpa"):
        config = SamHfModel.from_pretrained(tmp_path, config=config, attn_implementation=name).config
        assert {part._attn_implementation for part in (config, config.vision_config)} == {name}


class Derived(SamHfModel):
    pass


def test_a_subclass_loads_at_another_size(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = [cls.from_pretrained(tmp_path, image_size=2 * IMAGE).state_dict() for cls in (SamHfModel, Derived)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[1]["vision_encoder.pos_embed"].shape[1] == 2 * GRID


@pytest.mark.parametrize("kept", [[], ["own"]], ids=["stock's name", "both names"])
def test_the_fourier_matrix_loads_under_either_name(tmp_path, kept):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    own = "shared_image_embedding.positional_embedding"
    others = "prompt_encoder.shared_embedding.positional_embedding"
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights[others] = weights[own].clone()
    if not kept:
        del weights[own]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = SamHfModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded.state_dict()[own], model.state_dict()[own])
    loaded.save_pretrained(tmp_path / "again")
    assert set(safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")) == set(model.state_dict())


@pytest.mark.parametrize("options", [{}, EVERYTHING, PLAIN_VIT])
@torch.no_grad()
def test_save_and_load_with_the_auto_classes(options, tmp_path):
    model = tiny_model(seed=3, **options, focal_alpha=-1, focal_weight=7)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    arguments = {"pixel_values": random_pixels(), **random_prompts("points masks")}
    expected = model(**arguments)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SamHfConfig
    assert config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    for loader in (SamHfModel, AutoModel, AutoModelForMaskGeneration):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is SamHfModel and not loaded.training
        assert loaded.config.focal_weight == 7 and loaded.config.focal_alpha == -1
        output = loaded(**arguments)
        assert torch.equal(output.pred_masks, expected.pred_masks)
        assert torch.equal(output.iou_scores, expected.iou_scores)


def save_without(model: SamHfModel, folder: Path, removed: list[str]) -> dict[str, Tensor]:
    """Save a checkpoint that lacks some weights; the weights that it has."""
    model.save_pretrained(folder)
    weights = {name: value.clone() for name, value in model.state_dict().items() if name not in removed}
    assert len(weights) + len(removed) == len(model.state_dict())
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def test_loading_keeps_weights_whose_sibling_is_missing(tmp_path):
    zero = [
        "mask_decoder.iou_prediction_head.proj_in.bias",
        "mask_decoder.transformer.layers.0.layer_norm1.bias",
        "prompt_encoder.mask_embed.conv1.bias",
        "vision_encoder.high_res_s0.proj_out.weight",
        "vision_encoder.high_res_s1.proj_out.bias",
        "vision_encoder.layers.0.attn.rel_pos_h",
        "vision_encoder.neck.layer_norm1.bias",
        "vision_encoder.patch_embed.projection.bias",
    ]
    drawn = [
        "mask_decoder.mask_tokens.weight",
        "mask_decoder.upscale_conv1.weight",
        "prompt_encoder.point_embed.2.weight",
        "shared_image_embedding.positional_embedding",
        "vision_encoder.layers.1.mlp.lin1.weight",
        "vision_encoder.pos_embed",
    ]
    weights = save_without(tiny_model(seed=4, **EVERYTHING), tmp_path, zero + drawn)
    loaded = SamHfModel.from_pretrained(tmp_path).state_dict()
    for name, value in weights.items():
        assert torch.equal(loaded[name], value), name
    assert all(not loaded[name].any() for name in zero)
    assert all(loaded[name].isfinite().all() and loaded[name].std() > 1e-3 for name in drawn)


@torch.no_grad()
def test_new_branches_of_a_loaded_model_start_without_effect(tmp_path):
    plain = tiny_model(seed=5)
    plain.save_pretrained(tmp_path)
    config = SamHfConfig.from_pretrained(tmp_path)
    config.vision_config.high_res_layers = [0, 1]
    config.mask_decoder_config.use_object_score = False
    fine = SamHfModel.from_pretrained(tmp_path, config=config)
    arguments = {"pixel_values": random_pixels(), **random_prompts("points")}
    assert torch.equal(fine(**arguments).pred_masks, plain(**arguments).pred_masks)
    assert fine.vision_encoder.high_res_s0.upscale[0].weight.std() > 1e-3


def test_initial_weights_depend_on_the_seed_alone_and_are_all_set():
    def build() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return SamHfModel(tiny_config(**EVERYTHING)).state_dict()

    one, other = build(), build()
    assert all(torch.equal(one[name], other[name]) for name in one)
    matrix = one["shared_image_embedding.positional_embedding"]
    assert matrix.std() == pytest.approx(1.0, abs=0.4)  # 32 draws
    assert one["vision_encoder.pos_embed"].std() == pytest.approx(0.02, rel=0.1)


def test_position_scale_multiplies_the_frequencies():
    config = tiny_model().config
    matrices = []
    for config.prompt_encoder_config.position_scale in (1.0, 4.0, [0.5, 8.0]):
        torch.manual_seed(0)
        matrices.append(SamHfModel(config).shared_image_embedding.positional_embedding)
    torch.testing.assert_close(4 * matrices[0], matrices[1])
    geometric = 0.5 * 16 ** torch.linspace(0, 1, WIDTH // 2)
    torch.testing.assert_close(geometric * matrices[0], matrices[2])


@pytest.mark.parametrize("use_rel_pos", [False, True])
def test_log_length_attention_keeps_sharpness_over_more_patches(use_rel_pos):
    plain, scaled = (
        tiny_model(vision={"use_rel_pos": use_rel_pos, "log_length_attention": on}).vision_encoder
        for on in (False, True)
    )
    native, larger = random_pixels(), random_pixels(height=2 * IMAGE)
    assert torch.equal(scaled(native)[0][0], plain(native)[0][0])
    # Logits are bilinear in query and key, relative positions linear in the query: scale the query's projection.
    query = plain.layers[1].attn.qkv
    with torch.no_grad():
        for parameter in query.parameters():
            parameter[:WIDTH] *= math.log(2 * GRID**2) / math.log(GRID**2)
    torch.testing.assert_close(scaled(larger)[0][0], plain(larger)[0][0], rtol=1e-5, atol=1e-5)


def test_low_precision_keeps_the_positions_exact(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = SamHfModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    expected = tiny_model().state_dict()["shared_image_embedding.positional_embedding"]
    assert torch.equal(loaded.shared_image_embedding.positional_embedding, expected)


def box(batch: int = 2, num_objects: int = 2) -> Tensor:
    return random_prompts("boxes", batch, num_objects)["input_boxes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": None}, "either pixel_values or image_embeddings"),
        ({"image_embeddings": torch.zeros(2, WIDTH, GRID, GRID)}, "either pixel_values or image_embeddings"),
        ({"pixel_values": torch.zeros(2, 3, 65, 64)}, r"multiples of 8.*\[2, 3, 65, 64\]"),
        ({"pixel_values": torch.zeros(2, 1, 64, 64)}, r"pixel_values should be \[B, 3, H, W\]"),
        ({"pixel_values": torch.zeros(3, 64, 64)}, r"pixel_values should be \[B, 3, H, W\]"),
        ({"input_points": torch.zeros(2, 1, 2)}, r"input_points should be \[B, N, P, 2\].*\[2, 1, 2\]"),
        ({"input_points": torch.zeros(2, 1, 1, 3)}, r"input_points should be \[B, N, P, 2\]"),
        ({"input_points": torch.zeros(3, 1, 1, 2)}, "input_points is for 3 images, but there are 2"),
        ({"input_labels": torch.ones(2, 1, 1)}, "input_labels.*input_points"),
        (
            {"input_points": torch.zeros(2, 1, 2, 2), "input_labels": torch.ones(2, 1, 1)},
            "input_labels should have one label per point",
        ),
        ({"input_boxes": torch.zeros(2, 0, 4)}, r"input_boxes is for no object, \[2, 0, 4\]"),
        ({"input_boxes": torch.zeros(2, 4)}, r"input_boxes should be \[B, N, 4\]"),
        ({"input_boxes": torch.zeros(2, 1, 2, 2)}, r"input_boxes should be \[B, N, 4\]"),
        ({"input_masks": torch.zeros(2, 1, 64, 64)}, r"input_masks should be \[B, N, h, w\].*32"),
        ({"has_input_masks": torch.ones(2, 1, dtype=torch.bool)}, "has_input_masks.*input_masks"),
        ({"input_boxes": box(), "labels": random_labels(2, 3)}, "same number of objects"),
        ({"labels": random_labels(2, 3)}, "same number of objects"),
        ({"input_boxes": box(2, 3), "input_masks": torch.zeros(2, 2, MASK, MASK)}, "same number of objects"),
        (
            {"input_boxes": box(2, 3), "input_points": torch.zeros(2, 2, 1, 2)},
            "same number of objects N, but got .*'input_points': 2.*'input_boxes': 3",
        ),
        ({"labels": torch.zeros(2, MASK, MASK)}, r"labels should be \[B, N, H, W\]"),
    ],
)
def test_forward_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{"pixel_values": random_pixels(), **arguments})


def test_arguments_that_transformers_gives_to_models_are_taken_and_others_refused():
    model, inputs = tiny_model(), {"pixel_values": random_pixels(), "labels": random_labels(2, 1)}
    with torch.no_grad():
        expected = model(**inputs).loss
        assert torch.equal(model(**inputs, num_items_in_batch=torch.tensor(7), is_causal=None).loss, expected)
    assert not model.accepts_loss_kwargs  # or else the Trainer would not divide what it accumulates
    for unknown in ({"interpolate_pos_encoding": True}, {"input_label": None}):
        with pytest.raises(TypeError, match=f"SamHfModel.forward got {next(iter(unknown))}, which neither"):
            model(**inputs, **unknown)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"attention_similarity": torch.zeros(3, 1, 1, GRID**2)},
            r"attention_similarity should broadcast to .*, here \[2, 2, 7, 64\], but got \[3, 1, 1, 64\]",
        ),
        ({"attention_similarity": torch.zeros(GRID, GRID)}, r"attention_similarity .* got \[8, 8\]"),
        ({"target_embedding": torch.zeros(WIDTH, 1)}, r"target_embedding .* here \[2, 1, 7, 32\], but got \[32, 1\]"),
    ],
)
def test_targets_of_another_shape_are_refused(target, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(random_pixels(), **random_prompts("boxes", num_objects=1), **target)


class Elsewhere(Tensor):
    """Stands for labels on an accelerator; to read them takes a copy."""

    copies = 0
    device = torch.device("cuda")

    def cpu(self) -> Tensor:
        Elsewhere.copies += 1
        return self.as_subclass(Tensor)


def test_the_first_labels_on_an_accelerator_are_checked_and_no_others(monkeypatch):
    labels = random_labels(2, 1)
    with pytest.raises(ValueError, match="labels are from 0 to 255, expected 0 for background"):
        tiny_model()(random_pixels(), labels=(255 * labels).as_subclass(Elsewhere))
    monkeypatch.setattr(Elsewhere, "copies", 0)
    model = tiny_model()
    for _ in range(3):
        model.check_first_labels(labels.as_subclass(Elsewhere))
    assert Elsewhere.copies == 1
    model.check_first_labels(labels)


@torch.no_grad()
def test_decoding_takes_points_without_labels():
    model = tiny_model()
    features, points = model.get_image_embeddings(random_pixels()), random_prompts("points")["input_points"]
    expected, _, _ = model.decode(features, points, torch.ones(points.shape[:3], dtype=torch.long))
    assert torch.equal(model.decode(features, points)[0], expected)


@pytest.mark.parametrize(
    ("options", "num_features", "message"),
    [({}, 3, "1 feature map.*got 3"), (HIGH_RES, 1, "3 feature maps.*got 1")],
)
def test_embeddings_of_another_kind_of_model_are_refused(options, num_features, message):
    features = [torch.zeros(1, WIDTH, GRID, GRID)] * num_features
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)(image_embeddings=features)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SamHfVisionConfig(image_size=1000), "image_size=1000 is not a multiple of patch_size=16; use 992"),
        (lambda: SamHfVisionConfig(num_attention_heads=7), "multiple of num_attention_heads=7"),
        (lambda: SamHfVisionConfig(high_res_layers=[1]), "name two of the 12 encoder blocks"),
        (lambda: SamHfVisionConfig(high_res_layers=[1, 12]), "name two of the 12 encoder blocks"),
        (lambda: SamHfPromptEncoderConfig(position_scale=[1.0]), "position_scale=.* should be one positive number"),
        (lambda: SamHfPromptEncoderConfig(position_scale=0), "position_scale=0 should be one positive number"),
        (lambda: SamHfVisionConfig(drop_path_rate=1.0), "drop_path_rate=1.0 should be in"),
        (lambda: tiny_config(decoder={"num_attention_heads": 3}), "multiple of num_attention_heads=3"),
        (lambda: tiny_config(decoder={"hidden_size": 64}), "make them equal"),
        (lambda: SamHfConfig(focal_gamma=-0.5), "focal_gamma=-0.5 should be at least 0"),
        (lambda: SamHfConfig(focal_alpha=1.5), "focal_alpha=1.5 at most 1"),
        (lambda: SamHfConfig.from_preset("tiny"), "choose one of .*'base', 'hiera_base_plus', .*, 'large'"),
    ],
)
def test_config_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["small", "base", "large", "huge"])
def test_presets(name):
    config = SamHfConfig.from_preset(name, image_size=512)
    assert config.vision_config.image_size == 512
    with torch.device("meta"):
        model = SamHfModel(config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    expected = {"small": (2, 6), "base": (88, 95), "large": (300, 315), "huge": (630, 645)}[name]
    assert expected[0] < millions < expected[1]


def test_the_small_preset_is_the_one_that_was_measured():
    config = SamHfConfig.from_preset("small")
    assert (config.focal_weight, config.focal_alpha, config.focal_normalized) == (1.0, 0.65, True)
    assert config.relaxation == 0.1
    vision, decoder = config.vision_config, config.mask_decoder_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (256, 8, 128, 6)
    assert vision.high_res_layers == [1, 3] and vision.log_length_attention and not vision.use_rel_pos
    assert decoder.use_object_score and decoder.iou_prediction_use_sigmoid and decoder.ambiguous_candidates == "all"
    assert config.prompt_encoder_config.position_scale == pytest.approx([0.5, 32 / (4 * math.pi)])
    for name in ("base", "large", "huge"):
        stock = SamHfConfig.from_preset(name)
        assert (stock.focal_weight, stock.focal_alpha, stock.vision_config.high_res_layers) == (20, 0.25, None)


def test_label_values():
    assert (FOREGROUND, BACKGROUND, NOT_A_POINT, PADDING) == (1, 0, -1, -10)
