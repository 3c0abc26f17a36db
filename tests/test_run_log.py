"""The record of a run: what a line of its log has, other trackers, and what becomes of it after an interruption."""

import json
import math
import subprocess
import time

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import arguments

from sam_hf.training import RunLog, TrainingState
from sam_hf.training.reporting import read_log
from sam_hf.training.run import git_commit

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture
def listing(monkeypatch) -> list:
    """What a tracker beside TensorBoard, which stands for any of accelerate's, was told."""
    told = []

    class Listing(GeneralTracker):
        name, requires_logging_directory = "wandb", False
        tracker = None

        def __init__(self, project: str):
            super().__init__()
            told.append(("project", project))

        def start(self) -> None:
            pass

        def store_init_configuration(self, values: dict) -> None:
            told.append(("options", values))

        def log(self, values: dict, step: int | None = None, **_) -> None:
            told.append((step, values))

        def log_images(self, values: dict, step: int | None = None, **_) -> None:
            told.append((step, {name: len(images) for name, images in values.items()}))

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Listing)
    available = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    for module in ("accelerate.tracking", "sam_hf.training.process"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: available)
    return told


def test_other_trackers_get_the_options_the_log_and_the_pictures(train, untrained, tmp_path, listing):
    options = {"max_steps": 2, "final_eval_images": 1, "log_with": "tensorboard,wandb", "skip_nonfinite": 1}
    train.main(arguments(untrained, tmp_path / "mine", **options))
    assert listing[0] == ("project", "mine")
    (given,) = (values for name, values in listing if name == "options")
    assert given["max_steps"] == 2 and given["model"] == str(untrained) and "resume" not in given
    lines = read_log(tmp_path / "mine" / "log.jsonl")
    told = [(step, values) for step, values in listing if isinstance(step, int)]
    assert [(line.pop("step"), line) for line in lines if line.pop("time")] == [told[0], told[1]]
    assert told[2] == (2, {"validation/predictions": 1})
    events = EventAccumulator(str(tmp_path / "mine" / "tensorboard")).Reload()
    assert "options/text_summary" in events.Tags()["tensors"] and "validation/predictions" in events.Tags()["images"]


@pytest.mark.parametrize(
    "names, message",
    [
        ("tensorboard,wanb", "wanb is no tracker of accelerate: choose from .*tensorboard.*wandb"),
        ("aim", "aim needs its package, which is not installed: pip install aim"),
    ],
)
def test_trackers_that_are_not_there_are_told_before_anything_is_loaded(train, tmp_path, listing, names, message):
    with pytest.raises(ValueError, match=f"--log_with {message}"):
        train.main(["--model", "nowhere", "--log_with", names, "--output_dir", str(tmp_path)])


def test_a_line_has_what_a_run_is_watched_by(train, untrained, tmp_path, monkeypatch):
    norms, clip = [], Accelerator.clip_grad_norm_

    def noted(*given):
        norms.append(clip(*given))
        return norms[-1] * (float("nan") if len(norms) == 2 else 1)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", noted)
    draw_windows = train.draw_windows

    def slow(*args, **given):
        for window in draw_windows(*args, **given):
            time.sleep(0.2)
            yield window

    monkeypatch.setattr(train, "draw_windows", slow)
    train.main(arguments(untrained, tmp_path, max_steps=4, log_every=2, final_eval_images=1, skip_nonfinite=1))
    first, second = (line for line in read_log(tmp_path / "log.jsonl") if "train/loss" in line)
    assert first["train/grad_norm"] == pytest.approx(norms[0].item())
    assert second["train/grad_norm"] == pytest.approx((norms[2] + norms[3]).item() / 2)
    assert (first["train/skipped_steps"], second["train/skipped_steps"]) == (1, 1)
    for line in (first, second):
        assert 0.4 < line["train/data_wait_seconds"] < 60 and 50 < line["train/peak_memory"] < 50_000
    assert second["train/peak_memory"] >= first["train/peak_memory"]


def test_the_commit_of_a_script_is_found_and_its_lack_is_no_error(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "mine.py").touch()
    for command in (["init", "-q"], ["add", "mine.py"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == commit
    (tmp_path / "mine.py").write_text("changed")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent.parent))
    assert git_commit(tmp_path.parent) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None


def test_a_resumed_log_tells_every_step_once(tmp_path):
    def write(first_step: int, values: dict[int, float]) -> RunLog:
        accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
        log = RunLog(accelerator, tmp_path, TrainingState(first_step))
        for step, value in values.items():
            log.write({"train/loss": value, "train/dice": math.nan}, step)
        accelerator.end_training()
        return log

    log = write(0, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0})
    with log.path.open("a") as file:
        file.write('{"step": 6, "ti')  # killed here
    assert [line["step"] for line in read_log(log.path)] == [1, 2, 3, 4, 5]
    time.sleep(1.1)  # TensorBoard sorts its files by the second
    write(3, {4: 40.0, 5: 50.0, 6: 60.0})

    expected = [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == expected
    assert not any("train/dice" in line for line in lines)
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == expected
    log.plot()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
