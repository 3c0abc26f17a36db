"""The training example, run as a user runs it on a tiny model, and the parts of `sam_hf.training`."""

import ast
import inspect
import json
import os
import shutil
import signal
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import ModelCard
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import tiny_model
from tiny_runs import MAX_STEPS, SCRIPT, arguments, load_example, small_config
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, AutoProcessor

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor, convert
from sam_hf.data import FaultLog, RandomCropScaleFlip, SyntheticScenes, open_dataset
from sam_hf.evaluation import ClickSummary, processes, simulate_clicks, summarise_clicks
from sam_hf.training import (
    DrawnRecords,
    DrawSampler,
    InteractiveTrainer,
    TrainingProgress,
    TrainingState,
    checkpoints,
    load_model,
    parameter_groups,
)
from sam_hf.training.collator import ClickSamplingCollator
from sam_hf.training.options import options_yaml
from sam_hf.training.reporting import read_log

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def finished_run(train, untrained, tmp_path_factory) -> SimpleNamespace:
    """An uninterrupted run: its folder, and the model as it was in memory after the last step."""
    models = []

    class RecordingTrainer(train.ClickTrainer):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            models.append(model)

    folder = tmp_path_factory.mktemp("runs") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(train, "ClickTrainer", RecordingTrainer)
        train.main(arguments(untrained, folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return SimpleNamespace(folder=folder, model=models[0])


def test_yaml_gives_options_and_the_command_line_overrides_them(train, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("dataset: here\nlearning_rate: 1e-4\nrotate: true\nimage_size: null\nmax_steps: 7\n")
    options = train.parse_options([str(file), "--max_steps", "9", "--resume"])
    expected = {"dataset": "here", "learning_rate": 1e-4, "rotate": True, "image_size": None, "max_steps": 9}
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.resume and options.batch_size == train.Options().batch_size
    file.write_text(options_yaml(options))
    again = train.parse_options([str(file), "--resume"])
    assert again == options, "options.yaml does not repeat the run"


def test_unknown_options_are_refused(train, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rat: 1.0\n")
    with pytest.raises(ValueError, match="learning_rat"):
        train.parse_options([str(file)])
    with pytest.raises(ValueError, match="--max_step"):
        train.parse_options(["--max_step", "3"])
    file.write_text("max_steps: many\n")
    with pytest.raises(SystemExit):
        train.parse_options([str(file)])
    assert "max_steps/--max-steps: invalid int value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "gradient_accumulation_steps", "eval_every", "log_every"])
def test_counts_of_nothing_are_refused(train, name):
    with pytest.raises(ValueError, match=f"--{name} 0 should be at least 1"):
        train.parse_options([f"--{name}", "0"])


def test_every_option_is_explained_and_example_configs_parse(train, capsys):
    with pytest.raises(SystemExit):
        train.parse_options(["--help"])
    assert "peak of the learning rate" in capsys.readouterr().out
    for file in (SCRIPT.parent / "configs").glob("*.yaml"):
        options = train.parse_options([str(file)])
        assert options.output_dir == f"runs/{file.stem}"


def test_the_script_reads_as_the_algorithm(train):
    assert len(inspect.getsource(train.main).splitlines()) <= 60
    calls = [node.func for node in ast.walk(ast.parse(SCRIPT.read_text())) if isinstance(node, ast.Call)]
    names = [func.attr if isinstance(func, ast.Attribute) else func.id for func in calls]
    order = ["prompt", "predict", "loss", "correct", "backward", "clip_grad_norm_", "step"]
    found = [name for name in sorted(set(names), key=names.index) if name in order]
    assert set(found) == set(order)


def test_the_step_of_the_script_is_that_of_the_library(train):
    def body(method) -> str:
        """Without docstring and comments."""
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
        return ast.dump(ast.Module(function.body[ast.get_docstring(function) is not None :], []))

    assert train.ClickTrainer.rounds is not InteractiveTrainer.rounds
    assert body(train.ClickTrainer.rounds) == body(InteractiveTrainer.rounds)


CHANGES = """
from dataclasses import dataclass
from sam_hf.training import option

@dataclass
class MyOptions(Options):
    weight: float = option(1.0, "of the loss")

class MyTrainer(ClickTrainer):
    def loss(self, prediction, batch, turn):
        result = super().loss(prediction, batch, turn)
        return result._replace(loss=WEIGHT * result.loss)

ClickTrainer, Options = MyTrainer, MyOptions
WEIGHT = 100.0
warmup_cosine = lambda *_: 0.5
"""


def test_a_copy_of_the_script_may_change_loss_schedule_and_options_and_needs_no_file_beside_it(
    train, untrained, tmp_path, monkeypatch
):
    script = tmp_path / "alone" / "mine.py"
    script.parent.mkdir()
    script.write_text(
        SCRIPT.read_text().replace('if __name__ == "__main__":', f'{CHANGES}\n\nif __name__ == "__main__":')
    )
    options = {"max_steps": 1, "eval_every": 1, "log_every": 1, "final_eval_images": 1}
    train.main(arguments(untrained, tmp_path / "as it was", **options))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(script.parent)
    load_example(script).main([*arguments(untrained, tmp_path / "changed", **options), "--weight", "3"])
    lines = [read_log(tmp_path / name / "log.jsonl")[0] for name in ("as it was", "changed")]
    assert lines[1]["train/loss"] == pytest.approx(100 * lines[0]["train/loss"], rel=1e-5)
    assert [line["train/learning_rate"] for line in lines] == [5e-4, 5e-4]  # of the warm-up, and by the new schedule
    assert "weight: 3.0" in (tmp_path / "changed" / "options.yaml").read_text()
    assert "simulated clicks" in (tmp_path / "changed" / "best" / "README.md").read_text()


def test_folders_load_with_auto_classes_and_predict_what_was_trained(finished_run, untrained):
    processor = AutoProcessor.from_pretrained(finished_run.folder / "last")
    assert processor.image_processor.size["longest_edge"] == 64
    inputs = processor(
        images=Image.effect_noise((50, 40), 60), input_points=[[[20, 10]], [[40, 30]]], input_labels=[[1], [1]]
    )
    model = finished_run.model.cpu().eval()
    last = AutoModel.from_pretrained(finished_run.folder / "last").eval()
    best = AutoModel.from_pretrained(finished_run.folder / "best").eval()
    with torch.no_grad():
        expected, masks = model(**inputs).pred_masks, last(**inputs).pred_masks
        assert best(**inputs).pred_masks.shape == expected.shape
    assert torch.equal(masks, expected)
    state = torch.load(finished_run.folder / "last" / "training_state.pt", weights_only=True)
    assert (state["step"], state["draws"]) == (MAX_STEPS, 3 * MAX_STEPS)  # twice as many on whole images


def test_card_metrics_and_picture_hold_the_final_evaluation(train, finished_run):
    folder = finished_run.folder / "best"
    metrics = json.loads((folder / "metrics.json").read_text())
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    scenes = open_dataset("scenes", "validation")
    summary = summarise_clicks(simulate_clicks(model, processor, (scenes[0], scenes[len(scenes) - 1])))
    assert metrics["iou_per_click"] == summary.iou_per_click and len(summary.iou_per_click) == 5
    assert (metrics["num_images"], metrics["num_objects"]) == (2, len(summary.iou))

    card = ModelCard.load(folder / "README.md")
    assert [result.metric_value for result in card.data.eval_results] == np.round(summary.iou_per_click, 4).tolist()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "mask-generation"
    assert summary.table() in card.text and "predictions.png" in card.text and "Kirillov" in card.text
    assert f"after {metrics['step']} training steps" in card.text
    command = next(line for line in card.text.splitlines() if line.startswith("accelerate launch"))
    options = train.parse_options(command.split()[3:])
    assert (options.max_steps, options.final_eval_images, options.dataset) == (MAX_STEPS, 2, "scenes")
    assert "{{" not in card.content
    # Image, ground truth and three predictions of an object from each of two images.
    width, height = Image.open(folder / "predictions.png").size
    assert width / height == pytest.approx(5 / 2, rel=0.1)


def test_tensorboard_has_losses_and_clicks(finished_run):
    events = EventAccumulator(str(finished_run.folder / "tensorboard")).Reload()
    names = {"loss", "focal", "dice", "iou", "object_score", "iou_click_1", "iou_click_2", "learning_rate"}
    assert {f"train/{name}" for name in names} < set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation/iou_click_5")] == [2, 4, 6]
    assert [event.step for event in events.Images("validation/predictions")] == [2, 4, 6]


def test_run_folder_tells_what_ran_where(train, finished_run):
    folder = finished_run.folder
    lines = read_log(folder / "log.jsonl")
    assert [(line["step"], "train/loss" in line) for line in lines] == [(2, False), (4, False), (6, True), (6, False)]
    assert {"train/images_per_second", "train/iou_click_2", "train/learning_rate"} < lines[2].keys()
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Scalars("train/loss")[0].value == pytest.approx(lines[2]["train/loss"])
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"] and "commit" in environment
    assert environment["libraries"]["torch"] == torch.__version__ and environment["processes"] == 1
    assert Image.open(folder / "curves.png").size[0] > 500
    assert train.parse_options([str(folder / "options.yaml")]).learning_rate == 1e-3


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "adaptation",
    [
        {"lora": "all", "lora_rank": 2, "optimizer": "muon"},
        {"lora": "encoder", "lora_rank": 2, "freeze": "prompt_encoder"},
        {"lora": "encoder_late", "lora_rank": 2},
        {"freeze": "encoder"},
    ],
    ids=["adapters", "adapters and decoder", "late adapters", "frozen encoder"],
)
def test_adapted_runs_resume_exactly_and_load_without_peft(train, finished_run, tmp_path, monkeypatch, adaptation):
    base = finished_run.folder / "best"
    options = {"max_steps": 4, "final_eval_images": 1, **adaptation}
    train.main(arguments(base, tmp_path / "whole", **options))

    update = TrainingProgress.update

    def interrupt(progress, step, *values):
        update(progress, step, *values)
        if step == 3:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingProgress, "update", interrupt)
        train.main(arguments(base, tmp_path / "halves", **options))
    train.main([str(tmp_path / "halves" / "options.yaml"), "--resume"])

    files = ["last/model.safetensors", "best/model.safetensors"]
    files += ["last/adapter/adapter_model.safetensors"] if "lora" in adaptation else []
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes(), name
    trained, start = (AutoModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "whole" / "last", base))
    changed = {name.split(".")[0] for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    assert trained.keys() == start.keys()
    assert (
        changed
        == {
            "all": {"vision_encoder", "mask_decoder"},
            "encoder": {"vision_encoder", "mask_decoder"},
            "encoder_late": {"vision_encoder", "mask_decoder", "prompt_encoder"},
            None: {"prompt_encoder", "mask_decoder"},
        }[adaptation.get("lora")]
    )


def test_a_kill_in_the_first_evaluated_checkpoint_can_be_resumed(
    train, untrained, finished_run, tmp_path, monkeypatch
):
    write = checkpoints._write_manifest

    def killed(folder: Path, step: int) -> None:
        if folder.name == "last.partial" and (tmp_path / "best").exists():
            raise Interrupted
        write(folder, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(checkpoints, "_write_manifest", killed)
        train.main(arguments(untrained, tmp_path))
    train.main([str(tmp_path / "options.yaml"), "--resume"])
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished_run.folder / name).read_bytes(), name
    steps = [[line["step"] for line in read_log(path / "log.jsonl")] for path in (tmp_path, finished_run.folder)]
    assert steps[0] == steps[1]


def test_best_is_intact_in_the_end_and_found_after_a_kill_between_renames(train, finished_run, tmp_path):
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    assert checkpoints.find_damage(folder / "best") is None
    (folder / "best").rename(folder / "best.former")
    train.main([str(folder / "options.yaml"), "--resume", f"--output_dir={folder}"])
    assert checkpoints.find_damage(folder / "best") is None and not (folder / "best.former").exists()
    (folder / "best" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="model.safetensors is missing"), pytest.raises(ValueError, match="no intact"):
        train.main([str(folder / "options.yaml"), "--resume", f"--output_dir={folder}"])


def test_adapters_on_random_weights_are_refused(train, tmp_path):
    with pytest.raises(ValueError, match="--lora adapts trained weights, but --model small starts from random ones"):
        train.main(arguments("small", tmp_path, lora="encoder"))


def adam(model: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, 0.1), lr=1.0)


def test_resume_keeps_moments_but_takes_new_hyperparameters(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = adam(model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    TrainingState(step=3, draws=12, best_score=0.5).save(tmp_path, optimizer)
    other = torch.optim.AdamW(parameter_groups(model, 0.3), lr=2.0)
    state = TrainingState.load(tmp_path, other)
    assert state == TrainingState(3, 12, 0.5)
    assert [group["lr"] for group in other.param_groups] == [2.0, 2.0]
    assert [group["weight_decay"] for group in other.param_groups] == [0.3, 0.0]
    torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match="2 parameters, but the model trains 1"):
        TrainingState.load(tmp_path, adam(torch.nn.Linear(2, 2, bias=False)))


def test_a_run_is_neither_overwritten_nor_invented(train, untrained, finished_run, tmp_path):
    with pytest.raises(ValueError, match="already holds a run: continue it with --resume, or give another"):
        train.main(arguments(untrained, finished_run.folder))
    with pytest.raises(ValueError, match="start the run without --resume"):
        train.main([*arguments(untrained, tmp_path), "--resume"])


def test_unusable_models_and_sizes_are_explained(train, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'smal' is no preset \(small, base, large, huge, hiera_mini"):
        train.main(arguments("smal", tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sam_hq"}')
    with pytest.raises(ValueError, match="is a 'sam_hq' model"):
        train.main(arguments(tmp_path, tmp_path))
    with pytest.raises(ValueError, match="image_size=68 should be a multiple of 8"):
        train.main(arguments(untrained, tmp_path, image_size=68))


def test_loss_options_and_pretrained_weights_reach_the_model(train, finished_run):
    model = load_model(finished_run.folder / "best", losses={"focal_alpha": 0.9, "focal_weight": 5.0})
    assert (model.config.focal_alpha, model.config.focal_weight, model.config.focal_gamma) == (0.9, 5.0, 2.0)
    best = AutoModel.from_pretrained(finished_run.folder / "best")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), best.state_dict().values(), strict=True))
    assert load_model("small", image_size=128).config.vision_config.image_size == 128


def test_training_starts_from_weights_of_stock_sam(train, tmp_path):
    model = tiny_model()
    convert.save_checkpoint(model, SamHfProcessor(SamHfImageProcessor()), tmp_path, "transformers")
    assert AutoConfig.from_pretrained(tmp_path).model_type == "sam"
    started, weights = load_model(tmp_path).state_dict(), model.state_dict()
    assert started.keys() == weights.keys() and all(torch.equal(started[name], weights[name]) for name in weights)


def test_weights_that_are_not_read_are_no_random_start(train, tmp_path):
    small_config().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="has weights in pytorch_model.bin, but none in safetensors"):
        train.main(arguments(tmp_path, tmp_path / "run"))


def test_a_run_says_what_it_starts_from_and_saves_before_it_evaluates(train, untrained, tmp_path, monkeypatch, capsys):
    def evaluate(*_, **__) -> None:
        raise Interrupted

    monkeypatch.setattr("sam_hf.training.run.evaluate", evaluate)
    with pytest.raises(Interrupted):
        train.main(arguments(untrained, tmp_path / "run"))
    assert f"start: random weights, {untrained}" in capsys.readouterr().out
    last = checkpoints.find_folder(tmp_path / "run" / "last")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Interrupted):
        train.main([str(tmp_path / "run" / "options.yaml"), "--resume"])
    assert last is not None and f"start: {last}\n" in capsys.readouterr().out


def test_a_signal_ends_an_evaluation_which_the_next_resume_makes(
    train, untrained, finished_run, tmp_path, monkeypatch
):
    look, seen = processes.click_through, []

    def signalled(*given, **options):
        seen.append(given[2:4])
        os.kill(os.getpid(), signal.SIGTERM)
        return look(*given, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(processes, "click_through", signalled)
        train.main(arguments(untrained, tmp_path, eval_images=5))
    assert stop.value.code == 128 + signal.SIGTERM and len(seen) == 1
    state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
    assert (state["step"], state["evaluated_step"]) == (2, 0) and not (tmp_path / "best").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    train.main([str(tmp_path / "options.yaml"), "--resume", "auto", "--eval_images", "1"])
    lines = [read_log(path / "log.jsonl") for path in (tmp_path, finished_run.folder)]
    scores = [[(line["step"], line.get("validation/score")) for line in part] for part in lines]
    assert scores[0] == scores[1]


def test_an_evaluation_is_in_the_precision_of_the_run(train, untrained, tmp_path, monkeypatch):
    precisions, encode = set(), SamHfModel.get_image_embeddings

    def noted(model, *given):
        embeddings = encode(model, *given)
        if not model.training:
            precisions.add(embeddings[0].dtype)
        return embeddings

    monkeypatch.setattr(SamHfModel, "get_image_embeddings", noted)
    train.main(arguments(untrained, tmp_path, max_steps=1, final_eval_images=1, mixed_precision="bf16"))
    assert precisions == {torch.bfloat16}


def test_a_run_may_stop_early_and_stays_so(train, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(ClickSummary, "score", 0.5)
    options = {"eval_every": 1, "early_stop": 2, "final_eval_images": 1}
    train.main(arguments(untrained, tmp_path, **options))
    for _ in range(2):
        state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
        assert state["step"] == 3 and (tmp_path / "curves.png").exists()
        AcceleratorState._reset_state(reset_partial_state=True)
        train.main([str(tmp_path / "options.yaml"), "--resume"])


def test_resume_is_true_false_or_auto(train):
    for words, expected in (
        ([], "false"),
        (["--resume"], "true"),
        (["--resume=False"], "false"),
        (["--resume", "auto"], "auto"),
    ):
        assert train.parse_options([*words, "--max_steps", "3"]).resume == expected
    with pytest.raises(ValueError, match="--resume perhaps should be one of true, false, auto"):
        train.parse_options(["--resume", "perhaps"])


def test_data_that_cannot_be_evaluated_end_a_run_before_its_first_step(train, untrained, tmp_path, monkeypatch):
    validation = [{**SyntheticScenes(1)[0], "objects": []}]
    monkeypatch.setattr(train.Options, "open_data", lambda *_: (SyntheticScenes(2), validation, FaultLog()))
    with pytest.raises(ValueError, match="no record of the validation data has an object to click on"):
        train.main(arguments(untrained, tmp_path / "run"))
    assert not (tmp_path / "run" / "last").exists()


def test_a_variable_of_the_launcher_does_not_divide_the_gradient(train, untrained, tmp_path, monkeypatch):
    for name, number in (("without", None), ("with", "4")):
        if number:
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", number)
        train.main(arguments(untrained, tmp_path / name, max_steps=2, final_eval_images=1))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    weights = [(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in ("without", "with")]
    assert weights[0] == weights[1]


def test_a_finished_run_can_be_pushed(train, finished_run, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repo_id, exist_ok):
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id, folder_path):
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            calls.append((repo_id, files))

    monkeypatch.setattr("sam_hf.training.run.HfApi", Hub)
    train.main([str(finished_run.folder / "options.yaml"), "--resume", "--push_to_hub"])
    ((repo_id, pushed),) = calls
    assert repo_id == "me/scenes" and {"modeling_sam_hf.py", "processing_sam_hf.py", "config.json"} < pushed.keys()
    best = finished_run.folder / "best"
    assert not list(best.glob("*.py"))
    for name in ("README.md", "metrics.json", "model.safetensors", "predictions.png"):
        assert pushed[name] == (best / name).read_bytes(), name
    assert b'from_pretrained("me/scenes")' in pushed["README.md"]


def scene_loader(num_workers: int, start: int = 0) -> DataLoader:
    collator = ClickSamplingCollator(
        SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64})),
        max_objects=3,
        num_corrections=2,
        augmentation=RandomCropScaleFlip(32),
        crop_size=32,
        seed=5,
    )
    return DataLoader(
        DrawnRecords(SyntheticScenes(5)),
        batch_size=2,
        sampler=DrawSampler(5, stop=12, start=start, seed=5),
        collate_fn=collator,
        num_workers=num_workers,
    )


def test_batches_depend_on_the_draw_only():
    expected = list(scene_loader(num_workers=0))
    assert len(expected) == 6 and expected[0]["pixel_values"].shape == (2, 3, 32, 32)
    for batches, offset in ((scene_loader(num_workers=2), 0), (scene_loader(num_workers=0, start=4), 2)):
        for batch, other in zip(batches, expected[offset:], strict=True):
            torch.testing.assert_close(batch, other, rtol=0, atol=0, equal_nan=True)
    first, again = (expected[0]["pixel_values"][0], None)
    # The same scene looks different when it is drawn again, an epoch later.
    order = [draw.index for draw in DrawSampler(5, stop=12, seed=5)]
    again = order.index(order[0], 5)
    assert not torch.equal(first, expected[again // 2]["pixel_values"][again % 2])


def test_draws_are_permutations_that_go_on_anywhere():
    draws = list(DrawSampler(7, stop=30, seed=3))
    assert [draw.number for draw in draws] == list(range(30))
    epochs = [[draw.index for draw in draws[first : first + 7]] for first in (0, 7, 14, 21)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]
    for start in (0, 5, 7, 20, 30):
        assert list(DrawSampler(7, stop=30, start=start, seed=3)) == draws[start:]
        assert len(DrawSampler(7, stop=30, start=start)) == 30 - start
    assert [draw.index for draw in DrawSampler(7, stop=30, seed=4)] != [draw.index for draw in draws]
    with pytest.raises(ValueError, match="empty"):
        DrawSampler(0, stop=1)


@pytest.mark.parametrize("num_corrections", [0, 2])
@pytest.mark.parametrize("has_objects", [True, False])
def test_every_parameter_has_a_gradient_in_every_step(num_corrections, has_objects):
    records = [dict(SyntheticScenes(2)[index]) for index in range(2)]
    for record in records:
        record["objects"] = record["objects"] if has_objects else []
    collator = ClickSamplingCollator(
        SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64})), num_corrections=num_corrections
    )
    trainer = InteractiveTrainer(SamHfModel(small_config()))
    output = trainer(**collator(records))
    output.loss.backward()
    assert [name for name, parameter in trainer.named_parameters() if parameter.grad is None] == []
    norm = sum(parameter.grad.square().sum() for parameter in trainer.parameters())
    assert norm.isfinite() and (norm > 0) == has_objects


def nuclei(shared_data: Path) -> list[dict]:
    """Two micrographs with their four largest nuclei each, large enough for 128 pixels."""
    dataset = open_dataset(shared_data / "dsb2018", "train")
    return [
        {**dataset[index], "objects": sorted(dataset[index]["objects"], key=lambda item: -item["area"])[:4]}
        for index in (39, 140)
    ]


def test_overfits_real_images(shared_data):
    torch.manual_seed(0)
    model = SamHfModel(small_config(width=64, image_size=128, num_hidden_layers=3, global_attn_indexes=[0, 1, 2]))
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 128}, do_stretch_contrast=True))
    batch = ClickSamplingCollator(processor, max_objects=4, num_corrections=1)(nuclei(shared_data))
    assert batch["labels"].shape[:2] == (2, 4)
    trainer = InteractiveTrainer(model).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0))
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20)
        output = trainer(**batch)
        if output.iou_per_click.min() > 0.95:
            break
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert output.iou_per_click.min() > 0.95
