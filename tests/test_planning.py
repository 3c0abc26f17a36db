"""`--minutes`: the rules in closed form, and a run that is planned, repeated and resumed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from tiny_runs import arguments, start_pair

from sam_hf.data import SyntheticScenes
from sam_hf.data.check import DatasetReport
from sam_hf.training import Options, machine_fit, planning
from sam_hf.training import speed as speed_file
from sam_hf.training.options import parse_options
from sam_hf.training.planning import Candidate, DataFigures, candidates, image_size, mean_step, schedule
from sam_hf.training.reporting import read_log
from sam_hf.training.speed import Speed, combined, step_seconds
from sam_hf.vision_configuration import SamHfVisionConfig

FIGURES = DataFigures(num_images=40, num_validation=10, objects=5, small=0.05, longest=500)
VIT = SamHfVisionConfig(image_size=256, patch_size=8)
SPEED = Speed(build=1.0, steps={64: 0.5, 128: 1.5}, evaluation=0.2, thresholds=4.0, save=0.1)


def made(options: Options, minutes: float = 10.0, figures: DataFigures = FIGURES, speed: Speed = SPEED, **given: Any):
    given = {"spent": 20.0, "start": 5.0, "is_trained": False} | given
    return schedule(options, figures, speed, minutes=minutes, **given)


def values(plan: planning.Schedule) -> dict[str, Any]:
    return {name: choice.value for name, choice in plan.choices.items()}


def test_the_minutes_are_spent_as_the_rules_say():
    """Ten minutes are 570 s: 57 s of images at 0.2 s are all 10; 5 % are 28.5 s, hence 7 images at 4 s."""
    plan = made(Options())
    assert mean_step(Options(), SPEED) == pytest.approx(0.95 * 0.5 + 0.05 * 1.5)
    evaluations = 10 * (10 * 0.2 + 0.1) + (1 + 10) * 0.2
    left = 570 - (20 + 1 + 5) - evaluations - 28 - 5
    steps = math.floor(left / 0.55)
    assert values(plan) == {
        "final_eval_images": 10,
        "eval_images": 10,
        "threshold_images": 7,
        "max_steps": steps,
        "warmup_steps": 50,
        "eval_every": math.ceil(steps / 10),
    }
    assert 570 - 0.55 < plan.seconds <= 570


def test_trained_weights_are_evaluated_twice_on_all_images():
    more = made(Options(), is_trained=True).parts["evaluations"] - made(Options()).parts["evaluations"]
    assert more == pytest.approx(10 * 0.2)


def test_no_image_is_drawn_more_often_than_it_is_worth():
    few = made(Options(), minutes=2880, figures=FIGURES._replace(num_images=3))
    assert values(few)["max_steps"] == 3 * planning.DRAWS_PER_IMAGE / 4
    assert "enough" in few.choices["max_steps"].reason
    shared = made(Options(), minutes=2880, figures=FIGURES._replace(num_images=3), num_processes=2)
    assert values(shared)["max_steps"] == 3 * planning.DRAWS_PER_IMAGE / 8


def test_what_is_given_stays_and_counts():
    argv = ["--final_eval_images", "3", "--threshold_images=0", "--warmup-steps", "9", "--num_workers", "0"]
    plan = made(parse_options(argv))
    assert plan.choices["final_eval_images"] == (3, "given") and plan.choices["warmup_steps"] == (9, "given")
    assert plan.parts["evaluations"] == pytest.approx(10 * (3 * 0.2 + 0.1) + 4 * 0.2)
    assert plan.parts["thresholds"] == 0 and plan.parts["start"] == 21
    assert made(parse_options(["--max_steps", "77"])).parts["steps"] == pytest.approx(77 * 0.55)


def test_thresholds_that_take_long_are_left_out():
    for speed in (replace(SPEED, thresholds=None), replace(SPEED, thresholds=40.0)):
        plan = made(Options(), speed=speed)
        assert values(plan)["threshold_images"] == 0 and plan.parts["thresholds"] == 0


@pytest.mark.parametrize("minutes", [2, 5, 20, 240, 2880])
@pytest.mark.parametrize("num_images", [1, 2, 10, 100, 500])
@pytest.mark.parametrize("factor", [0.01, 1.0, 30.0])
def test_a_plan_is_a_run_that_can_be_made(minutes, num_images, factor):
    figures = FIGURES._replace(num_images=num_images, num_validation=max(1, num_images // 10))
    speed = Speed(factor, {64: 0.5 * factor, 128: 1.5 * factor}, 0.2 * factor, 4 * factor, factor)
    plan = made(Options(), minutes, figures, speed)
    chosen = values(plan)
    Options(**chosen)
    assert 1 <= chosen["eval_every"] <= chosen["max_steps"] and 1 <= chosen["warmup_steps"] <= chosen["max_steps"]
    assert chosen["max_steps"] <= 2000 * num_images / 4
    assert math.ceil(chosen["max_steps"] / chosen["eval_every"]) <= 10
    assert plan.seconds <= 57 * minutes or chosen["max_steps"] == 1
    assert plan.parts["thresholds"] <= 0.05 * 57 * minutes


@pytest.mark.parametrize(
    ("small", "longest", "expected", "reason"),
    [
        (0.05, 500, 240, "cells"),  # 6 cells of 2 pixels are 12 of 240
        (0.05, 100, 112, "no more pixels"),
        (0.01, 5000, 256, "made for it"),
        (0.9, 500, 16, "cells"),
    ],
)
def test_the_image_size_shows_the_objects(small, longest, expected, reason):
    side, why = image_size(FIGURES._replace(small=small, longest=longest), VIT)
    assert side == expected and reason in why


def test_candidates_get_better_and_leave_what_is_given():
    sizes = [(one.image_size, one.num_corrections) for one in candidates(Options(), FIGURES, VIT)]
    assert sizes == [(64, 1), (128, 1), (240, 1), (240, 3)]
    given = parse_options(["--image_size", "96", "--max_objects", "2"])
    assert candidates(given, FIGURES, SamHfVisionConfig(image_size=96, patch_size=8)) == [
        Candidate(96, 1, 2),
        Candidate(96, 3, 2),
    ]
    sam = parse_options(["--recipe", "sam", "--crop_size", "128"])
    assert candidates(sam, FIGURES, VIT) == [Candidate(128, 8, 5), Candidate(240, 8, 5)]
    many = candidates(Options(), FIGURES._replace(objects=90), VIT)
    assert {one.max_objects for one in many} == {8}


def test_a_step_of_another_size_is_told_by_the_pixels():
    """Times that are 0.2 s + side^2 / 40,000 s, and twice as long with twice as many rounds."""
    options = Options(crop_share=[0.5])
    speed = replace(SPEED, steps={side: 0.2 + side**2 / 40_000 for side in (32, 64)})
    base = Candidate(64, 1, 4)
    assert base.step_from(base, options, speed) == pytest.approx(mean_step(options, speed))
    other = 0.2 + 0.5 * (64**2 + 128**2) / 40_000
    assert Candidate(128, 3, 4).step_from(base, options, speed) == pytest.approx(2 * other)


def test_figures_of_discs():
    """One object of 314 pixels in images of 100, nine of 1,256 in images of 400: 20 of 100 and 40 of 400 pixels."""
    report = DatasetReport(sizes=[(50, 100), (400, 80), (9, 7)], areas=[314] + 9 * [1256], counts=[1, 9, 0])
    figures = DataFigures.of(report, 3, 2)
    assert figures == (3, 2, 5, pytest.approx(0.1, abs=1e-3), 100)
    with pytest.raises(ValueError, match="plans by the objects"):
        DataFigures.of(DatasetReport(), 3, 2)


@pytest.mark.usefixtures("on_cpu")
def test_loaders_of_a_cpu_take_from_its_cores(train, tmp_path):
    accelerator = train.start_accelerator(tmp_path, None, 0, "none")
    threads = torch.get_num_threads()
    assert combined(2.0, 3.0, Options(num_workers=0), accelerator) == 5.0
    assert combined(2.0, 3.0, Options(num_workers=1), accelerator) == 3.0 + 2.0 / threads
    assert combined(9.0, 1.0, Options(num_workers=2), accelerator) == max(4.5, 1.0 + 9.0 / threads)


@pytest.fixture
def speed_of_each(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Instead of measuring: a second for every 64 pixels squared and round; the options that were asked about."""
    asked: list[Options] = []

    def measured(options: Options, *given: Any, threshold_seconds: float) -> Speed:
        asked.append(options)
        sides = [phase.side for phase in options.phases(options.image_size)]
        steps = {side: (side / 64) ** 2 * (1 + options.num_corrections) for side in sides}
        return replace(SPEED, steps=steps, evaluation=1.0, thresholds=None)

    monkeypatch.setattr(machine_fit, "measure", measured)
    monkeypatch.setattr(machine_fit, "process_seconds", lambda: 10.0)
    return asked


def reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


PLANNED_RUN = {
    "minutes": 5,
    "num_workers": 0,
    "max_steps": 4,
    "eval_images": 1,
    "final_eval_images": 1,
    "log_every": 1,
    "warmup_steps": 2,
}


def planned_arguments(untrained: Path, folder: Path) -> list[str]:
    given = {**PLANNED_RUN, "model": untrained, "output_dir": folder, "batch_size": 1}
    return [f"--{name}={value}" for name, value in given.items()]


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(folder / "log.jsonl") if "train/loss" in line]


@pytest.mark.usefixtures("on_cpu")
def test_a_planned_run_is_written_as_numbers_and_repeated_exactly(train, untrained, tmp_path, speed_of_each, capsys):
    train.main(planned_arguments(untrained, tmp_path / "planned"))
    options = yaml.safe_load((tmp_path / "planned" / "options.yaml").read_text())
    plan = json.loads((tmp_path / "planned" / "plan.json").read_text())
    assert "minutes" not in options and options["max_steps"] == 4 and options["eval_images"] == 1
    assert {name: choice["value"] for name, choice in plan["choices"].items()} == {
        name: options[name] for name in machine_fit.PLANNED
    }
    # Four steps fit with all rounds.
    assert (options["image_size"], options["num_corrections"]) == (64, 3)
    assert plan["choices"]["max_steps"]["reason"] == "given" and plan["data"]["num_images"] == 10_000
    assert plan["taken_seconds"] > 0
    text = capsys.readouterr().out
    assert "plan for 5 minutes" in text and "of --minutes 5" in text and "  max_objects " in text

    asked = len(speed_of_each)
    reset()
    train.main([str(tmp_path / "planned" / "options.yaml"), f"--output_dir={tmp_path / 'again'}"])
    assert len(speed_of_each) == asked, "plain numbers need no plan"
    assert losses(tmp_path / "again") == losses(tmp_path / "planned") and len(losses(tmp_path / "again")) == 4
    reset()
    capsys.readouterr()
    train.main([*planned_arguments(untrained, tmp_path / "planned"), "--resume", "auto"])
    assert len(speed_of_each) == asked and "of --minutes" not in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "planned" / "options.yaml").read_text()) == options


@pytest.mark.usefixtures("on_cpu")
def test_short_minutes_give_up_rounds_then_pixels(train, untrained, tmp_path, speed_of_each):
    options = parse_options(["--model", str(untrained), "--minutes", "30", "--output_dir", str(tmp_path)])
    accelerator = train.start_accelerator(tmp_path, None, 0, "none")
    data = SyntheticScenes(8), SyntheticScenes(2, split="validation")
    chosen = []
    # A step takes 1.15 s with all rounds, 0.58 s with fewer, and 0.14 s with fewer pixels, too.
    for minutes in (30, 5, 3, 1):
        options.minutes, options.explicit = minutes, frozenset({"minutes"})
        machine_fit.fit_to_machine(options, None, accelerator, None, *data)
        chosen.append((options.image_size, options.num_corrections, options.max_steps))
    sizes = [choice[:2] for choice in chosen]
    assert sizes == [(64, 3), (64, 1), (32, 1), (32, 1)]
    assert chosen[-1][2] < planning.ENOUGH_STEPS <= chosen[0][2]


@pytest.mark.usefixtures("on_cpu")
def test_a_plan_takes_the_batch_that_fits(train, untrained, tmp_path, speed_of_each, monkeypatch):
    fitted = {"batch_size": 2, "whole_batch_size": 1, "max_objects": 3}
    monkeypatch.setattr(machine_fit, "fit_batch", lambda options, *_: fitted)
    argv = ["--model", str(untrained), "--minutes", "30", "--batch_size", "auto", "--output_dir", str(tmp_path)]
    options = parse_options(argv)
    accelerator = train.start_accelerator(tmp_path, None, 0, "none")
    data = SyntheticScenes(8), SyntheticScenes(2, split="validation")
    machine_fit.fit_to_machine(options, None, accelerator, None, *data)
    assert {name: getattr(options, name) for name in fitted} == fitted
    assert {asked.batch_size for asked in speed_of_each} == {2}
    assert json.loads((tmp_path / "plan.json").read_text())["choices"]["max_objects"]["reason"] == "fewer for memory"


@pytest.mark.usefixtures("on_cpu")
def test_measuring_leaves_chance_alone_and_finds_all_phases(train, untrained, tmp_path):
    argv = ["--model", str(untrained), "--minutes", "1", "--output_dir", str(tmp_path), "--num_workers", "0"]
    options = parse_options([*argv, "--crop_size", "32", "48", "--crop_share", "0.5", "0.3", "--batch_size", "1"])
    accelerator = train.start_accelerator(tmp_path, None, 0, "none")
    options.choose_learning_rates(False)
    builders = train.Builders(train.build_model, train.build_trainer, train.build_optimizer)
    data = SyntheticScenes(8, size=(64, 64)), SyntheticScenes(2, split="validation", size=(64, 64))
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    machine_fit.fit_to_machine(options, None, accelerator, builders, *data)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert list(plan["seconds"]["steps"]) == ["32", "48", "64"]
    assert all(seconds > 0 for seconds in plan["seconds"]["steps"].values()) and plan["seconds"]["evaluation"] > 0


@pytest.mark.usefixtures("on_cpu")
def test_a_step_takes_what_its_parts_take(train, untrained, tmp_path, monkeypatch):
    """Seconds of loading are a mean, of computing a median without the first."""
    now, load, compute = [0.0], iter([0.1, 0.3, 0.3, 0.3] * 2), iter([9.0, 1.0, 1.0, 4.0, 9.0, 2.0, 2.0, 2.0])
    windows = [[{"pixel_values": torch.zeros(1, 3, side, side)}] for side in (32,) * 4 + (64,) * 4]

    def draws(*given: Any):
        for window in windows:
            now[0] += next(load)
            yield window

    class Fake:
        options = Options(num_workers=0)
        phases = (None, None)
        accelerator = train.start_accelerator(tmp_path, None, 0, "none")
        processor = None
        model = torch.nn.Module()

        def step(self, window: list) -> None:
            now[0] += next(compute)

    Fake.model.config = None
    monkeypatch.setattr(speed_file, "draw_windows", draws)
    monkeypatch.setattr(speed_file.time, "monotonic", lambda: now[0])
    assert step_seconds(Fake(), None) == {32: pytest.approx(0.25 + 1.0), 64: pytest.approx(0.25 + 2.0)}


def test_minutes_want_a_list_of_images(train, untrained, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    options = parse_options(["--minutes", "2", "--model", str(untrained)])
    accelerator = train.start_accelerator(tmp_path, None, 0, "none")
    stream = machine_fit.RecordStream.__new__(machine_fit.RecordStream)
    with pytest.raises(ValueError, match="which --streaming does not list"):
        machine_fit.fit_to_machine(options, None, accelerator, None, stream, SyntheticScenes(2))
    reset()


def test_what_was_given_is_known(tmp_path):
    (tmp_path / "a.yaml").write_text("image_size: null\nmax_steps: 3\n")
    options = parse_options([str(tmp_path / "a.yaml"), "--eval-images", "2", "--recipe=sam"])
    expected = {"max_steps", "eval_images", "recipe", "num_corrections", "box_probability", "loss_resolution"}
    assert options.explicit == expected and Options().explicit == frozenset()
    assert "minutes" not in arguments(tmp_path, tmp_path)


def test_two_processes_plan_alike(untrained, tmp_path):
    """Each measures, and all take the same numbers: else one would wait for the other forever."""
    given = {"minutes": 1, "batch_size": "auto", "max_steps": 2, "model": untrained, "output_dir": tmp_path}
    given |= {"final_eval_images": 2, "eval_images": 1, "num_workers": 0, "threshold_images": 0, "num_corrections": 1}
    pair = start_pair([f"--{name}={value}" for name, value in given.items()])
    for process in pair:
        process.join(timeout=300)
    assert [process.exitcode for process in pair] == [0, 0]
    options = yaml.safe_load((tmp_path / "options.yaml").read_text())
    assert options["batch_size"] == options["whole_batch_size"] == 16 and options["max_steps"] == 2
    assert json.loads((tmp_path / "plan.json").read_text())["choices"]["image_size"]["value"] == options["image_size"]
