"""Where every option arrives: one row each, in a run or a call that it is made for; and what it says of itself."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import small_config
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from sam_hf import SamHfModel
from sam_hf.data import SyntheticScenes, data_options, decode_masks
from sam_hf.evaluation import processes
from sam_hf.evaluation.options import parse_evaluation_options
from sam_hf.training import LORA_PRESETS, RECIPES, Options, Run, StepResult, TrainingState, batches, machine_fit, parts
from sam_hf.training import models as models_file
from sam_hf.training import run as run_file
from sam_hf.training import step as step_file
from sam_hf.training.options import From, option, origins, parse_options
from sam_hf.training.reporting import read_log

DOCUMENT = Path(__file__).parents[1] / "docs" / "options.md"


@dataclass
class Seen:
    """What a run was made of, and what it did."""

    folder: Path
    run: Any = None
    checkpoints: list = field(default_factory=list)
    trainer: Any = None
    sources: list = field(default_factory=list)
    opened: list = field(default_factory=list)
    loaders: list = field(default_factory=list)
    collators: list = field(default_factory=list)
    windows: list = field(default_factory=list)
    rates: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    evaluated: list = field(default_factory=list)
    saved: list = field(default_factory=list)
    pushed: list = field(default_factory=list)
    seeds: list = field(default_factory=list)

    @property
    def groups(self) -> dict[str, dict]:
        """The optimizer's group of every parameter."""
        return {name: group for group in self.run.optimizer.param_groups for name in group["param_names"]}

    @property
    def adapter(self) -> dict:
        return json.loads((self.folder / "best" / "adapter" / "adapter_config.json").read_text())

    def steps(self, name: str) -> list[int]:
        """Those of the lines of the log that have a value."""
        return [line["step"] for line in read_log(self.folder / "log.jsonl") if name in line]

    def image_processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.folder / "best").image_processor


def share_of(seen: Seen, part: str) -> float:
    return next(group["rate_share"] for name, group in seen.groups.items() if part in name)


def scale_of(seen: Seen, end: int) -> float:
    return seen.collators[0].augmentation.scale[end] * seen.collators[0].crop_size / 64


def only(values: list) -> Any:
    (value,) = set(values)
    return value


Row = tuple[Any, Callable[[Seen], Any]]

# Option: a value that is not the default, and where it must be in the end.
SCRATCH: dict[str, Row] = {
    "dataset": ("DATA", lambda seen: seen.opened[0][0]),
    "model": ("MODEL", lambda seen: seen.sources[0]),
    "output_dir": ("RUN", lambda seen: str(seen.run.path)),
    "image_size": (64, lambda seen: seen.image_processor().size["longest_edge"]),
    "tile_size": (
        90,
        lambda seen: only([seen.image_processor().tile_size, *(c.augmentation.tile_size for c in seen.collators)]),
    ),
    "recipe": ("sam2", lambda seen: only([n for n, r in RECIPES.items() if r.feedback == seen.trainer.feedback])),
    "instances": (
        True,
        lambda seen: only([*(c.instances for c in seen.collators), seen.run.model.instance_decoder is not None]),
    ),
    "stretch_contrast": (True, lambda seen: seen.image_processor().do_stretch_contrast),
    "max_steps": (6, lambda seen: seen.run.state.step),
    "batch_size": (2, lambda seen: only([len(batch["labels"]) for window in seen.windows[:5] for batch in window])),
    "whole_batch_size": (3, lambda seen: only([len(batch["labels"]) for batch in seen.windows[5]])),
    "gradient_accumulation_steps": (2, lambda seen: only([len(window) for window in seen.windows])),
    "max_objects": (3, lambda seen: only([collator.max_objects for collator in seen.collators])),
    "num_corrections": (2, lambda seen: only([collator.num_corrections for collator in seen.collators])),
    "center_share": (0.25, lambda seen: seen.trainer.center_share),
    "box_probability": (0.4, lambda seen: only([collator.box_probability for collator in seen.collators])),
    "crop_size": ([32, 48], lambda seen: [collator.crop_size for collator in seen.collators[:2]]),
    "crop_share": ([0.34, 0.5], lambda seen: [0.34, 0.5] if sides(seen) == [32, 32, 48, 48, 48, 64] else sides(seen)),
    "scale_min": (0.7, lambda seen: scale_of(seen, 0)),
    "scale_max": (1.5, lambda seen: scale_of(seen, 1)),
    "rotate": (True, lambda seen: only([c.augmentation.vflip and c.augmentation.rot90 for c in seen.collators])),
    "optimizer": ("muon", lambda seen: {True: "muon"}.get("Muon" in type(seen.run.optimizer.optimizer).__name__)),
    "learning_rate": (2e-3, lambda seen: max(seen.rates)),
    "encoder_rate": (0.5, lambda seen: share_of(seen, "vision_encoder.neck")),
    "layer_decay": (0.75, lambda seen: share_of(seen, "layers.0.attn.qkv") / share_of(seen, "layers.1.attn.qkv")),
    "weight_decay": (0.07, lambda seen: max(group["weight_decay"] for group in seen.groups.values())),
    "warmup_steps": (3, lambda seen: round(max(seen.rates) / seen.rates[0])),
    "max_grad_norm": (0.01, lambda seen: max(seen.norms)),
    "ema_decay": (0.9, lambda seen: seen.run.average.decay),
    "drop_path": (0.2, lambda seen: seen.run.model.vision_encoder.layers[-1].drop_path_rate),
    "checkpoint_activations": (True, lambda seen: seen.trainer.checkpoint_activations),
    "negatives": (0.3, lambda seen: only([loader["dataset"].negatives for loader in seen.loaders])),
    "loss_resolution": ("points", lambda seen: "points" if all(c.sample_points for c in seen.collators) else None),
    "eval_every": (2, lambda seen: only(np.diff([0, *seen.steps("validation/score")]).tolist())),
    "save_every": (3, lambda seen: only([step for step in seen.saved if step % 2])),
    "keep_checkpoints": (1, lambda seen: len(list((seen.folder / "earlier").iterdir()))),
    "log_every": (3, lambda seen: only(np.diff([0, *seen.steps("train/loss")]).tolist())),
    "log_with": ("none", lambda seen: None if (seen.folder / "tensorboard").exists() else "none"),
    "eval_images": (1, lambda seen: only(seen.evaluated[:-1])),
    "final_eval_images": (2, lambda seen: seen.evaluated[-1]),
    "threshold_images": (1, lambda seen: metrics_of(seen)["automatic_masks"]["num_images"]),
    "num_workers": (2, lambda seen: only([loader["num_workers"] for loader in seen.loaders])),
    "seed": (
        3,
        lambda seen: only(
            [c.seed for c in seen.collators] + [loader["sampler"].seed for loader in seen.loaders] + seen.seeds
        ),
    ),
    "push_to_hub": (True, lambda seen: len(seen.pushed) == 1),
    "hub_model_id": ("me/mine", lambda seen: seen.pushed[0]),
    "license": ("mit", lambda seen: only(license_lines(seen))),
}
ADAPTED: dict[str, Row] = {
    "lora": (
        "decoder",
        lambda seen: only([n for n, m in LORA_PRESETS.items() if m.modules == seen.adapter["target_modules"]]),
    ),
    "lora_rank": (3, lambda seen: seen.adapter["r"]),
    "mixed_precision": (
        "bf16",
        lambda seen: json.loads((seen.folder / "environment.json").read_text())["mixed_precision"],
    ),
    "resume": ("auto", lambda seen: "auto" if seen.checkpoints == [None, seen.folder / "last"] else None),
}
FROZEN: dict[str, Row] = {
    "freeze": ("encoder,prompt_encoder", lambda seen: ",".join(frozen_parts(seen))),
    "augment": (False, lambda seen: only([collator.augmentation for collator in seen.collators]) is not None),
    "embedding_cache": ("CACHE", lambda seen: str(seen.trainer.encoder.folder)),
}
# What is not worth a run of its own.
CALLED: dict[str, Row] = {
    "train_split": ("fold1", lambda _: opened_data(train_split="fold1")[0][1]),
    "eval_split": ("test", lambda _: opened_data(eval_split="test")[1][1]),
    "images": ("photos", lambda _: keyword(images="photos")),
    "layout": ("Pascal VOC", lambda _: keyword(layout="Pascal VOC")),
    "masks": ("binary", lambda _: keyword(masks="binary")),
    "background": (7, lambda _: keyword(background=7)),
    "ignore_label": (255, lambda _: keyword(ignore_label=255)),
    "crowd_as_objects": (True, lambda _: keyword(crowd_as_objects=True)),
    "take_stuff": (True, lambda _: keyword(take_stuff=True)),
    "exif": ("stored", lambda _: keyword(exif="stored")),
    "image_column": ("left", lambda _: keyword(image_column="left")),
    "mask_column": ("right", lambda _: keyword(mask_column="right")),
    "min_area": (12, lambda _: keyword(min_area=12)),
    "max_area": (900, lambda _: keyword(max_area=900)),
    "min_share": (0.1, lambda _: keyword(min_share=0.1)),
    "max_share": (0.6, lambda _: keyword(max_share=0.6)),
    "split_regions": (True, lambda _: keyword(split_regions=True)),
    "streaming": (True, lambda _: opened_data(streaming=True)[0][0] == "stream_dataset"),
    "max_fault_share": (0.7, lambda _: opened_data(max_fault_share=0.7)[2].max_share),
    "early_stop": (2, lambda _: evaluations_until_over(early_stop=2)),
    "skip_nonfinite": (2, lambda _: steps_left_out(skip_nonfinite=2)),
    "minutes": (7.0, lambda _: planned_minutes(minutes=7.0)),
}


def sides(seen: Seen) -> list[int]:
    return [window[0]["pixel_values"].shape[-1] for window in seen.windows]


def metrics_of(seen: Seen) -> dict[str, Any]:
    return json.loads((seen.folder / "best" / "metrics.json").read_text())


def license_lines(seen: Seen) -> list[str]:
    lines = (seen.folder / "best" / "README.md").read_text().splitlines()
    return [line.removeprefix("license: ") for line in lines if line.startswith("license:")]


def frozen_parts(seen: Seen) -> list[str]:
    model = seen.run.model
    present = {name: path for name, path in parts.PARTS.items() if name in parts.parts_of(model)}
    trained = {name: list(model.get_submodule(path).parameters()) for name, path in present.items()}
    return [name for name, parameters in trained.items() if not any(part.requires_grad for part in parameters)]


def opened_data(**given: Any) -> tuple[Any, Any, Any]:
    """Function, split and keywords that open the data of training and of validation, and the log of faults."""
    calls: list[Any] = []

    def recorder(name: str) -> Callable:
        return lambda source, split, **options: calls.append((name, split, options)) or SyntheticScenes(2)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_dataset", "stream_dataset"):
            patch.setattr(data_options, name, recorder(name))
        patch.setattr(SyntheticScenes, "first", lambda self, count: self, raising=False)
        _, _, faults = Options(dataset="somewhere", **given).open_data(1)
    train, validation = calls
    return train, validation, faults


def keyword(**given: Any) -> Any:
    """The value with which a keyword of the readers arrives at both."""
    (name,) = given
    train, validation, _ = opened_data(**given)
    assert train[2] == validation[2]
    return train[2][name]


def steps_left_out(skip_nonfinite: int) -> int:
    """How many steps may have a loss that is not finite."""
    accelerator = SimpleNamespace(reduce=lambda tensor, _: tensor, print=lambda _: None)
    run = SimpleNamespace(
        options=Options(skip_nonfinite=skip_nonfinite), accelerator=accelerator, state=TrainingState()
    )
    result = StepResult(torch.tensor([float("nan")]), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sam_hf.training.step.gather_object", lambda names: names)
        for count in range(10):
            try:
                assert not Run.may_step(run, [{"image_ids": ["a"]}], result, torch.tensor(1.0))
            except FloatingPointError:
                return count
    return 10


def planned_minutes(minutes: float) -> float:
    """What a run is planned for."""
    planned: list[float] = []
    data = SyntheticScenes(2), SyntheticScenes(2)
    with pytest.MonkeyPatch.context() as patch:
        planner = SimpleNamespace(plan=lambda: None)
        patch.setattr(machine_fit, "Planner", lambda options, *_: planned.append(options.minutes) or planner)
        accelerator = SimpleNamespace(device=torch.device("cpu"))
        machine_fit.fit_to_machine(Options(minutes=minutes), None, accelerator, None, *data)
    return only(planned)


def evaluations_until_over(early_stop: int) -> int:
    """How many evaluations after the best end a run; neither one before it nor the best itself counts."""
    state = TrainingState()
    run = SimpleNamespace(options=Options(early_stop=early_stop), state=state)
    for score in (0.5, 0.4, 0.6, 0.6, 0.3):
        assert not Run.is_over.fget(run)
        state.take_score(score)
    assert Run.is_over.fget(run)
    return state.evaluations_since_best


def write_folder(folder: Path) -> Path:
    """Scenes as images and label maps."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = ["id,split"]
    for index in range(8):
        record = SyntheticScenes(8, size=(72, 72))[index]
        masks = decode_masks(record["objects"])
        record["image"].save(folder / "images" / f"{index}.png")
        Image.fromarray((masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0).astype(np.uint8)).save(
            folder / "masks" / f"{index}.png"
        )
        rows.append(f"{index},{'validation' if index > 5 else 'train'}")
    (folder / "splits.csv").write_text("\n".join(rows))
    return folder


def watch(patch: pytest.MonkeyPatch, train: Any, seen: Seen) -> None:
    """Take note of what a run does."""

    class WatchedRun(Run):
        def __init__(self, options: Options, checkpoint: Path | None, *given: Any) -> None:
            seen.run = self
            seen.checkpoints.append(checkpoint)
            super().__init__(options, checkpoint, *given)

        def may_step(self, window: list, result: StepResult, grad_norm: torch.Tensor) -> bool:
            gradients = [part.grad for part in self.model.parameters() if part.grad is not None]
            seen.norms.append(round(torch.stack([part.norm() for part in gradients]).norm().item(), 4))
            return super().may_step(window, result, grad_norm)

        def end_step(self, window: list, result: StepResult, learning_rate: float) -> None:
            seen.windows.append(window)
            seen.rates.append(self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["rate_share"])
            super().end_step(window, result, learning_rate)

    def noted(calls: list, function: Callable, what: Callable) -> Callable:
        def call(*args: Any, **given: Any) -> Any:
            calls.append(what(*args, **given))
            return function(*args, **given)

        return call

    def build_trainer(*args: Any, build: Callable = train.build_trainer) -> Any:
        seen.trainer = build(*args)
        return seen.trainer

    def build_collator(*args: Any, build: Callable = batches.build_collator) -> Any:
        seen.collators.append(build(*args))
        return seen.collators[-1]

    def load(*args: Any, **given: Any) -> DataLoader:
        seen.loaders.append(given | {"dataset": args[0]})
        alone = {"num_workers": 0, "multiprocessing_context": None, "prefetch_factor": None}
        return DataLoader(*args, **(given | alone))

    patch.setenv("ACCELERATE_USE_CPU", "true")
    patch.setattr(train, "Run", WatchedRun)
    patch.setattr(train, "build_trainer", build_trainer)
    patch.setattr(batches, "build_collator", build_collator)
    patch.setattr(batches, "DataLoader", load)
    patch.setattr(batches, "start_worker_server", lambda _: None)
    patch.setattr(models_file, "load_model", noted(seen.sources, models_file.load_model, lambda s, **_: str(s)))
    opened = noted(seen.opened, data_options.open_dataset, lambda source, split, **given: (source, given))
    patch.setattr(data_options, "open_dataset", opened)
    patch.setattr(run_file, "evaluate", noted(seen.evaluated, run_file.evaluate, lambda *args, **_: args[3]))
    patch.setattr(TrainingState, "save", noted(seen.saved, TrainingState.save, lambda state, *_: state.step))
    patch.setattr(step_file, "seed_of", noted(seen.seeds, step_file.seed_of, lambda seed, _: seed))
    patch.setattr(run_file, "push", lambda folder, name: seen.pushed.append(name))
    patch.setattr(run_file.HfApi, "create_repo", lambda _, name, **__: SimpleNamespace(repo_id=name))


def arguments(rows: dict[str, Row], places: dict[str, Path], **options: Any) -> list[str]:
    given = {name: value for name, (value, _) in rows.items() if name != "resume"} | options
    argv = []
    for name, value in given.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [places.get(value, value)])]
    return argv


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stands in the tables for a path."""
    folder = tmp_path_factory.mktemp("options")
    small_config().save_pretrained(folder / "model")
    torch.manual_seed(0)
    SamHfModel(small_config()).save_pretrained(folder / "trained")
    return {
        "DATA": write_folder(folder / "data"),
        "MODEL": folder / "model",
        "RUN": folder / "run",
        "CACHE": folder / "c",
    }


@pytest.fixture(scope="module")
def runs(train: Any, places: dict[str, Path]) -> dict[str, Seen]:
    """Three short runs that are watched."""
    few = {"max_steps": 2, "batch_size": 1, "max_objects": 2, "num_corrections": 1, "eval_images": 1}
    few |= {"final_eval_images": 1, "eval_every": 2, "num_workers": 0, "model": places["MODEL"].parent / "trained"}
    seen = {}
    for name, rows, options in (
        ("scratch", SCRATCH, {}),
        ("adapted", ADAPTED, few | {"dataset": "scenes", "output_dir": places["RUN"].parent / "adapted"}),
        ("frozen", FROZEN, few | {"dataset": "scenes", "output_dir": places["RUN"].parent / "frozen"}),
    ):
        argv = arguments(rows, places, **options)
        seen[name] = Seen(Path(argv[argv.index("--output_dir") + 1]))
        for more in (["--resume", "auto"],) * 2 if "resume" in rows else ([],):
            with pytest.MonkeyPatch.context() as patch:
                watch(patch, train, seen[name])
                train.main([*argv, *more])
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    return seen


def assert_arrives(row: Row, seen: Seen | None, places: dict[str, Path]) -> None:
    value, where = row
    expected = str(places[value]) if isinstance(value, str) and value in places else value
    assert where(seen) == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", SCRATCH)
def test_an_option_arrives(runs, places, name):
    assert_arrives(SCRATCH[name], runs["scratch"], places)


def test_the_card_says_that_images_are_seen_in_tiles(runs):
    cards = {name: (seen.folder / "best" / "README.md").read_text() for name, seen in runs.items()}
    told = {name: re.findall(r"larger than .*? pixels", card) for name, card in cards.items()}
    assert told == {"scratch": ["larger than 90 pixels"], "adapted": [], "frozen": []}
    assert all(re.search(r"few cells are lost\.\n- [IR]", card) for card in cards.values())


@pytest.mark.parametrize("name", ADAPTED)
def test_an_option_of_adapters_arrives(runs, places, name):
    assert_arrives(ADAPTED[name], runs["adapted"], places)


@pytest.mark.parametrize("name", FROZEN)
def test_an_option_of_frozen_parts_arrives(runs, places, name):
    assert_arrives(FROZEN[name], runs["frozen"], places)


@pytest.mark.parametrize("name", CALLED)
def test_an_option_of_a_call_arrives(name):
    assert_arrives(CALLED[name], None, {})


def test_every_option_has_a_row_and_a_value_that_is_not_the_default():
    rows = [*SCRATCH, *ADAPTED, *FROZEN, *CALLED]
    assert sorted(rows) == sorted(item.name for item in fields(Options))
    default = Options()
    for name, (value, _) in (SCRATCH | ADAPTED | FROZEN | CALLED).items():
        assert value != getattr(default, name), name


# What an average and the choice of the best do has no option of its own.


def test_evaluations_and_checkpoints_have_the_average(runs):
    seen = runs["scratch"]
    saved = load_file(seen.folder / "last" / "model.safetensors")
    trained = torch.load(seen.folder / "last" / "training_state.pt", weights_only=True)["trained"]
    name = "mask_decoder.upscale_conv1.weight"
    torch.testing.assert_close(saved[name], seen.run.average.averages[name])
    torch.testing.assert_close(trained[name], dict(seen.run.model.named_parameters())[name].detach())
    assert not torch.allclose(saved[name], trained[name])


def test_an_evaluation_is_of_the_average_and_best_is_the_best(train, places, tmp_path, monkeypatch):
    scores, weights = iter([0.3, 0.5, 0.4, 0.5]), []
    summarise = processes.summarise_clicks

    def decreasing(*given: Any) -> Any:
        summary = summarise(*given)
        score = next(scores)
        for trace in summary.traces:
            trace.iou[:] = score
        return summary

    def evaluate(predictor: Any, *args: Any, evaluate: Callable = run_file.evaluate, **given: Any) -> Any:
        weights.append(predictor.model.mask_decoder.iou_token.weight.detach().clone())
        return evaluate(predictor, *args, **given)

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(processes, "summarise_clicks", decreasing)
    monkeypatch.setattr(run_file, "evaluate", evaluate)
    options = {"model": places["MODEL"], "output_dir": tmp_path, "max_steps": 3, "batch_size": 1, "eval_every": 1}
    options |= {"ema_decay": 0.9, "num_workers": 0, "eval_images": 1, "final_eval_images": 1, "warmup_steps": 0}
    train.main([f"--{name}={value}" for name, value in options.items()])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    best, last = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "last"))
    name = "mask_decoder.iou_token.weight"
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["step"] == 2
    assert torch.equal(best[name], weights[1]) and torch.equal(last[name], weights[2])
    assert not torch.equal(weights[1], weights[2])


# What options say of themselves.


@pytest.mark.parametrize("item", fields(Options), ids=lambda item: item.name)
def test_an_option_is_explained_and_has_a_source_and_a_range(item):
    origin = origins(Options)[item.name]
    assert item.metadata["help"] and origin.source.split(":")[0].split(" by ")[0] in ("paper", "measured", "taste")
    numbers = getattr(Options(), item.name)
    if isinstance(numbers, (int, float)) and not isinstance(numbers, bool):
        assert origin.low is not None and numbers >= origin.low


@pytest.mark.parametrize("name", [name for name, origin in origins(Options).items() if origin.low is not None])
def test_values_out_of_range_are_refused(name):
    origin = origins(Options)[name]
    with pytest.raises(ValueError, match=f"--{name} .* should be at least"):
        parse_options([f"--{name}", str(int(origin.low) - 1)])
    if origin.high is not None:
        with pytest.raises(ValueError, match=f"--{name} .* should be at most"):
            Options(**{name: [origin.high + 1] if name == "crop_share" else origin.high + 1})


def test_shares_of_crops_fit_their_sizes():
    with pytest.raises(ValueError, match="one share of the steps for each of the 2 crop sizes"):
        Options(crop_size=[32, 64])
    with pytest.raises(ValueError, match="add up to at most 1"):
        Options(crop_size=[32, 64], crop_share=[0.6, 0.5])


@dataclass
class MyOptions(Options):
    """Those of a script of one's own."""

    shout: bool = option(False, "about nothing")
    loudness: Annotated[float, From("taste", 0, 11)] = option(1.0, "of it")


def test_a_script_may_have_options_of_its_own():
    options = parse_options(["--shout", "true", "--max_steps", "7", "--recipe", "sam"], None, MyOptions)
    assert type(options) is MyOptions and options.shout and options.num_corrections == 8
    with pytest.raises(ValueError, match="--loudness 12.0 should be at most 11"):
        parse_options(["--loudness", "12"], None, MyOptions)


def options_table() -> str:
    """The page `docs/options.md`."""
    lines = [
        "# Options of `examples/train.py`",
        "",
        "Made by `python tests/test_options.py`. *Source*: where the default is from; a taste has not been compared.",
        "",
        "| option | default | range | source | meaning |",
        "|---|---|---|---|---|",
    ]
    default = Options()
    for item in fields(Options):
        origin = origins(Options)[item.name]
        value, choices = getattr(default, item.name), item.metadata.get("choices")
        bounds = [
            f"{word} {bound:g}" for word, bound in (("from", origin.low), ("to", origin.high)) if bound is not None
        ]
        allowed = ", ".join(choices) if choices else " ".join(bounds)
        cells = f"`{item.name}`", "" if value is None else f"`{value}`", allowed
        lines.append(f"| {' | '.join(cells)} | {origin.source} | {item.metadata['help'].replace('%%', '%')} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_options_is_up_to_date():
    assert DOCUMENT.read_text() == options_table(), "run python tests/test_options.py"


@pytest.mark.parametrize("parse", [parse_options, parse_evaluation_options])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--num_eval_images=4", "--num_eval_images=4 is no option. Did you mean --"),
        ("--datasset", "--datasset is no option. Did you mean --dataset?"),
        ("--qqq", "--qqq is no option. See --help."),
        ("stray", "stray is no option. See --help."),
    ],
)
def test_a_word_that_is_no_option_is_told(parse, word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(["--model", "m", "--dataset", "scenes", word])


if __name__ == "__main__":
    DOCUMENT.write_text(options_table())
