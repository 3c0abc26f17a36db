"""Recipes: what they set, what overrides them, and what each of their parts does to a step."""

import math

import pytest
import torch
from test_interactive import EVERYTHING, Recorder, choices, training_batch
from tiny_models import tiny_model
from tiny_runs import arguments
from torch import Tensor

from sam_hf import BACKGROUND, FOREGROUND, PADDING, SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.clicks import DRAW_RANGE, boxes_from_masks, jitter_boxes, sample_error_clicks
from sam_hf.data import SyntheticScenes
from sam_hf.loss_points import IGNORED
from sam_hf.training import RECIPES, InteractiveTrainer, Options, Recipe
from sam_hf.training.batches import build_collator
from sam_hf.training.collator import NO_CLICK, ClickSamplingCollator, insert_repeats
from sam_hf.training.interactive import FEEDBACK_LIMIT
from sam_hf.training.options import options_yaml
from sam_hf.training.reporting import read_log

CROSS_ENTROPY = {"focal_weight": 1.0, "focal_alpha": -1.0, "focal_gamma": 0.0, "focal_normalized": False}


def processor() -> SamHfProcessor:
    return SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_what_is_not_given(train, tmp_path, name):
    assert train.parse_options(["--recipe", name]) == Options(recipe=name, **RECIPES[name].options)
    file = tmp_path / "run.yaml"
    file.write_text(f"recipe: {name}\nnum_corrections: 5\nbox_probability: 0.2\n")
    options = train.parse_options([str(file), "--box_probability", "0.6", "--loss_resolution", "mask"])
    given = {"num_corrections": 5, "box_probability": 0.6, "loss_resolution": "mask"}
    assert options == Options(recipe=name, **(RECIPES[name].options | given))
    file.write_text(options_yaml(options))
    assert train.parse_options([str(file)]) == options
    assert train.parse_options([str(file), "--recipe", name, "--max_steps", "7"]).max_steps == 7


def test_recipes_have_the_published_numbers(train):
    rounds = {name: train.parse_options(["--recipe", name]).num_rounds for name in RECIPES}
    assert rounds == {"fast": 4, "sam": 11, "sam2": 8}
    assert train.parse_options([]) == Options()


def test_points_take_cross_entropy(train):
    options = train.parse_options(["--loss_resolution", "points", "--recipe", "sam2"])
    assert options.losses == {"iou_loss": "l1", "relaxation": 0.0, "loss_resolution": "points", **CROSS_ENTROPY}


def test_losses_reach_the_model(train):
    config = train.build_model(train.parse_options(["--recipe", "sam"]), None).config
    assert (config.iou_loss, config.loss_resolution, config.focal_normalized) == ("mse", "mask", False)
    assert train.build_model(Options(), None).config.focal_normalized  # that of the preset


def test_a_recipe_of_ones_own(train, monkeypatch):
    monkeypatch.setitem(RECIPES, "mine", Recipe(losses={"dice_weight": 3.0}, options={"num_corrections": 1}))
    options = train.parse_options(["--recipe", "mine"])
    assert options.num_rounds == 2 and train.build_model(options, None).config.dice_weight == 3.0
    with pytest.raises(ValueError, match="--recipe yours should be one of fast, sam, sam2, mine"):
        train.parse_options(["--recipe", "yours"])


def test_switches_of_earlier_versions_are_parts_of_the_recipe(train, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("recipe: sam\nrepeats: true\nbox_noise: gaussian\nfeedback: detached\nobject_share: 0.0\n")
    assert train.parse_options([str(file)]) == train.parse_options(["--recipe", "sam"])
    file.write_text("recipe: sam\nrepeats: false\n")
    with pytest.raises(ValueError, match="repeats: False is no option any more, but a part of the recipe"):
        train.parse_options([str(file)])
    file.write_text("focal_alpha: 0.3\n")
    with pytest.raises(ValueError, match="focal_alpha: 0.3 is no option any more.* and of the model's config.json"):
        train.parse_options([str(file)])
    assert train.parse_options([str(file), "--resume"]) == Options(resume=True)  # the checkpoint has it


def test_a_resumed_run_keeps_the_losses_of_the_model_that_it_started_from(train, tmp_path):
    """Points that are asked for by an option bring cross-entropy; those of a model come with its own losses."""
    tiny_model(loss_resolution="points", focal_weight=7.0, focal_alpha=0.6).save_pretrained(tmp_path)
    options = train.parse_options(["--model", str(tmp_path)])
    started = train.build_model(options, None)
    started.save_pretrained(tmp_path / "checkpoint")
    file = tmp_path / "run.yaml"
    file.write_text(options_yaml(options))
    resumed = train.parse_options([str(file), "--resume"])
    for config in (started.config, train.build_model(resumed, tmp_path / "checkpoint").config):
        assert (config.focal_weight, config.focal_alpha, config.focal_gamma) == (7.0, 0.6, 2.0)
        assert config.loss_resolution == "points"
    resumed.loss_resolution = "mask"
    with pytest.raises(ValueError, match="the run to resume has --loss_resolution points, not mask"):
        train.build_model(resumed, tmp_path / "checkpoint")


def test_one_repeat_lies_between_the_clicks_and_one_at_the_end():
    clicks = torch.arange(3 * 4 * 8, dtype=torch.int32).reshape(3, 4, 8)
    where = torch.tensor([0.0, 0.124, 0.125, 0.999]).double().expand(3, 4)[..., None]
    result = insert_repeats(clicks, where)
    assert result.shape == (3, 4, 10) and (result[..., 9] == NO_CLICK).all()
    is_repeat = result == NO_CLICK
    assert torch.equal(is_repeat[..., :9].int().argmax(-1), torch.tensor([0, 0, 1, 7]).expand(3, 4))
    assert torch.equal(result[~is_repeat].reshape(3, 4, 8), clicks)


def test_without_a_draw_there_is_no_new_click():
    model = tiny_model(**EVERYTHING).train()
    batch = training_batch(num_rounds=3)
    batch["click_draws"][0, 1, 0] = batch["click_draws"][:, :, 1] = NO_CLICK
    points, labels = batch["input_points"], batch["input_labels"]
    recorded = []
    model.decode = lambda *args, decode=model.decode, **options: recorded.append(args) or decode(*args, **options)
    InteractiveTrainer(model, center_share=0.5)(**batch)
    _, second, third = ((args[1], args[2]) for args in recorded)
    assert torch.equal(second[0][:, :, :1], points) and torch.equal(second[1][:, :, :1], labels)
    has_click = torch.ones(2, 3, dtype=torch.bool)
    has_click[0, 1] = False
    assert torch.equal(second[1][..., 1] != PADDING, has_click)
    assert (third[1][..., 2] == PADDING).all() and third[0].isfinite().all()


def test_a_step_of_each_recipe_has_its_rounds(train, monkeypatch):
    scenes = SyntheticScenes(2)
    for name, clicks in (("fast", 4), ("sam", 9), ("sam2", 8)):
        options = train.parse_options(["--recipe", name, "--max_objects", "3"])
        model = tiny_model(**EVERYTHING, iou_loss=options.losses.get("iou_loss", "l1")).train()
        record = Recorder(model, monkeypatch)
        batch = build_collator(processor(), 64, options)([scenes[0], scenes[1]])
        output = train.build_trainer(model, options)(**batch)
        assert len(record.calls) == len(output.iou_per_click) == options.num_rounds
        is_real = (batch["labels"] != IGNORED).flatten(2).any(-1)
        given = (record.calls[-1][0][2] != PADDING).sum(-1) + batch["input_boxes"].isfinite().all(-1)
        assert (given[is_real] == clicks).all() and is_real.any()
        output.loss.backward()
        assert all(part.grad is not None and part.grad.isfinite().all() for part in model.parameters())


def test_noise_of_boxes_is_what_is_asked_for():
    scene = {**SyntheticScenes(1)[0], "draw": 0}
    options = {"box_probability": 1.0, "max_objects": 4, "seed": 3}
    batches = {
        noise: ClickSamplingCollator(processor(), box_noise=noise, **options)([scene])
        for noise in ("uniform", "gaussian")
    }
    tight = boxes_from_masks(batches["uniform"]["labels"] == 1)
    rng = ClickSamplingCollator(processor(), seed=3).generator(scene)
    rng.permutation(len([item for item in scene["objects"] if not item["iscrowd"]]))
    draws = torch.from_numpy(rng.random((tight.shape[1], 6)))[None]
    for noise, batch in batches.items():
        expected = jitter_boxes(tight, height=64, width=64, draws=draws[..., 2:], noise=noise)
        assert torch.equal(batch["input_boxes"], expected)
    assert not torch.equal(batches["uniform"]["input_boxes"], batches["gaussian"]["input_boxes"])


def test_a_share_of_corrections_lies_anywhere_in_the_object():
    generator = torch.Generator().manual_seed(1)
    target, prediction = (torch.rand(2, 5, 12, 16, generator=generator) > 0.5 for _ in range(2))
    valid = torch.ones_like(target)
    draws = torch.tensor([0.0, 0.25, 0.39, 0.41, 0.999], dtype=torch.float64).expand(2, 5)[..., None]
    trainer = InteractiveTrainer(tiny_model(), object_share=0.4)
    points, labels = trainer.sample_clicks(target, prediction, valid, (draws * DRAW_RANGE).int())
    inside, _ = sample_error_clicks(target, valid=valid, draws=draws / 0.4 % 1)
    wrong, wrong_labels = sample_error_clicks(
        target, prediction, valid=valid, draws=(draws / 0.6 - 0.4 / 0.6).clamp(0)
    )
    assert torch.equal(points, torch.cat([inside[:, :3], wrong[:, 3:]], dim=1))
    assert (labels[:, :3] == FOREGROUND).all() and torch.equal(labels[:, 3:], wrong_labels[:, 3:])
    assert (wrong_labels[:, :3] == BACKGROUND).any()


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"center_share=0.7 and object_share=0.5"):
        InteractiveTrainer(tiny_model(), center_share=0.7, object_share=0.5)
    with pytest.raises(ValueError, match="feedback='raw' should be one of"):
        InteractiveTrainer(tiny_model(), feedback="raw")
    with pytest.raises(ValueError, match="num_corrections is 0"):
        ClickSamplingCollator(processor(), repeats=True)


def confident_model() -> SamHfModel:
    model = tiny_model(**EVERYTHING).train()
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(100)
    return model


def step(monkeypatch: pytest.MonkeyPatch, **options) -> tuple[list, Tensor, dict[str, Tensor]]:
    """Calls of `decode`, loss and gradients."""
    model = confident_model()
    with monkeypatch.context() as patch:
        record = Recorder(model, patch)
        output = InteractiveTrainer(model, **options)(**training_batch(num_rounds=3))
        output.loss.backward()
    return record.calls, output.loss.detach(), {name: part.grad for name, part in model.named_parameters()}


@pytest.mark.parametrize("feedback", ["clamped", "detached", "attached"])
def test_feedback(monkeypatch, feedback):
    calls, _, _ = step(monkeypatch, feedback=feedback)
    chosen = choices(calls, training_batch()["input_boxes"])
    for turn in range(2):
        given, masks = calls[turn + 1][0][4], calls[turn][1][0]
        expected = torch.take_along_dim(masks, chosen[turn][..., None, None, None], dim=2)[:, :, 0]
        assert expected.abs().max() > FEEDBACK_LIMIT
        limit = FEEDBACK_LIMIT if feedback == "clamped" else math.inf
        assert torch.equal(given, expected.clamp(-limit, limit))
        assert given.requires_grad == (feedback == "attached")


def test_attached_feedback_changes_the_gradient_alone_also_when_checkpointed(monkeypatch):
    _, loss, gradients = step(monkeypatch, feedback="detached")
    _, attached_loss, attached = step(monkeypatch, feedback="attached")
    _, _, checkpointed = step(monkeypatch, feedback="attached", checkpoint_activations=True)
    assert torch.equal(loss, attached_loss)
    name = "mask_decoder.output_hypernetworks_mlps.0.proj_out.weight"
    assert not torch.allclose(gradients[name], attached[name], rtol=1e-3)
    torch.testing.assert_close(checkpointed, attached)


def test_losses_of_rounds_may_be_added(monkeypatch):
    _, mean, gradients = step(monkeypatch)
    _, total, summed = step(monkeypatch, sum_rounds=True)
    torch.testing.assert_close(total, 3 * mean)
    torch.testing.assert_close(summed, {name: 3 * part for name, part in gradients.items()}, rtol=1e-3, atol=1e-4)


def test_every_round_compares_other_points(monkeypatch):
    model = tiny_model(loss_resolution="points", **EVERYTHING).train()
    seen = []
    losses = model.object_losses
    monkeypatch.setattr(model, "object_losses", lambda *args: seen.append(args[-1]) or losses(*args))
    batch = training_batch(num_rounds=3)
    batch["point_draws"] = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (InteractiveTrainer(model)(**batch) for _ in range(2))
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(seen[0], batch["point_draws"]) and len({part.sum().item() for part in seen}) == 3
    assert all(((part >= 0) & (part < 1)).all() for part in seen)


@pytest.mark.usefixtures("on_cpu")
def test_a_run_with_a_recipe_and_points(train, untrained, tmp_path):
    options = {"recipe": "sam", "num_corrections": 2, "loss_resolution": "points", "max_steps": 2, "eval_every": 2}
    train.main(arguments(untrained, tmp_path / "run", log_every=1, final_eval_images=1, **options))
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "train/loss" in line]
    assert len(lines) == 2 and all(math.isfinite(line["train/loss"]) for line in lines)
    assert "train/iou_click_5" in lines[0] and "train/iou_click_6" not in lines[0]
    written = train.parse_options([str(tmp_path / "run" / "options.yaml")])
    assert (written.recipe, written.num_rounds, written.losses["focal_alpha"]) == ("sam", 5, -1.0)
