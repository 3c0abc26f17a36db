"""A run that is killed anywhere and resumed ends as one that is not: weights, optimizer, log."""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from tiny_runs import DEADLY, MAX_STEPS, arguments, start_pair, start_run

from sam_hf.data import SyntheticScenes
from sam_hf.data.parquet import write_parquet
from sam_hf.training import find_folder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")

# Two batches a step, mid-epoch; checkpoints without and with evaluation at steps 2, 3, 4, 6.
OPTIONS = {
    "optimizer": "muon",
    "ema_decay": 0.9,
    "layer_decay": 0.8,
    "save_every": 3,
    "log_every": 1,
    "keep_checkpoints": 1,
}


def run(argv: list[str], deadly: str | None = None) -> int:
    process = start_run(argv, deadly)
    process.join(timeout=300)
    return process.exitcode


def resume(folder: Path) -> list[str]:
    return [str(folder / "options.yaml"), "--resume"]


@pytest.fixture(scope="module")
def whole(untrained, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(arguments(untrained, folder, **OPTIONS)) == 0
    return folder


def told(folder: Path) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    clock = {"time", "train/images_per_second", "train/data_wait_seconds", "train/peak_memory"}
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def assert_same_end(folder: Path, whole: Path) -> None:
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    states = [torch.load(path / "last" / "training_state.pt", weights_only=True) for path in (folder, whole)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert told(folder) == told(whole)
    assert [line["step"] for line in told(folder) if "train/loss" in line] == [*range(1, states[0]["step"] + 1)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("deadly", DEADLY)
def test_killed_run_ends_like_a_whole_one(untrained, whole, tmp_path, deadly, num_workers):
    if num_workers and deadly != "after step 5":
        pytest.skip("saving has nothing to do with workers")
    argv = arguments(untrained, tmp_path, num_workers=num_workers, **OPTIONS)
    process = start_run(argv, deadly)
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while is_alive(process.pid):
        assert time.monotonic() < deadline, "processes of the loader are left"
        time.sleep(0.1)
    assert find_folder(tmp_path / "last") is not None
    assert run(resume(tmp_path)) == 0
    assert_same_end(tmp_path, whole)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


def is_alive(group: int) -> bool:
    """Whether any process of a group is."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_lines(folder: Path, count: int) -> None:
    """Until the log has so many."""
    deadline = time.monotonic() + 120
    while num_lines(folder) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_lines(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.parametrize("number, num_workers", [(signal.SIGTERM, 2), (signal.SIGINT, 0), (signal.SIGUSR1, 0)])
def test_signals_save_first(untrained, whole, tmp_path, number, num_workers):
    """As terminals and schedulers do: the signal goes to the loader's processes, too."""
    options = {**OPTIONS, "save_every": 1000, "eval_every": 1000, "num_workers": num_workers}
    process = start_run(arguments(untrained, tmp_path, **options))
    wait_for_lines(tmp_path, 1)
    os.killpg(process.pid, number)
    process.join(timeout=120)
    assert process.exitcode == 128 + number
    state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
    assert 1 <= state["step"] < MAX_STEPS
    assert run([*resume(tmp_path), "--eval_every=2"]) == 0
    state, expected = (
        torch.load(path / "last" / "training_state.pt", weights_only=True) for path in (tmp_path, whole)
    )
    torch.testing.assert_close(state["trained"], expected["trained"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Parquet files, three of them to train on; two epochs are less than a run."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    splits = {split: (SyntheticScenes(7, split, size=(64, 64)), range(7)) for split in ("train", "validation")}
    write_parquet(splits, folder, records_per_shard=3)
    return folder


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_run_on_a_stream_ends_like_a_whole_one(untrained, shards, tmp_path, num_workers):
    options = {**OPTIONS, "dataset": shards, "streaming": True, "num_workers": num_workers}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(arguments(untrained, whole, **options)) == 0
    assert run(arguments(untrained, killed, **options), "after step 5") == -signal.SIGKILL
    assert torch.load(killed / "last" / "training_state.pt", weights_only=True)["step"] == 4
    assert run(resume(killed)) == 0
    assert_same_end(killed, whole)


@pytest.fixture(scope="module")
def whole_pair(untrained, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole_pair")
    assert exit_codes(start_pair(arguments(untrained, folder, **OPTIONS))) == [0, 0]
    return folder


def exit_codes(processes: list[BaseProcess]) -> list[int]:
    for process in processes:
        process.join(timeout=300)
    return [process.exitcode for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("deadly", ["after step 5", "while saving"])
def test_two_processes_that_are_killed_end_like_two_that_are_not(untrained, whole_pair, tmp_path, deadly):
    first, second = start_pair(arguments(untrained, tmp_path, **OPTIONS), deadly)
    assert exit_codes([first]) == [-signal.SIGKILL]
    second.kill()
    assert exit_codes([second]) != [0]
    saved = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)["step"]
    assert saved == (4 if deadly == "after step 5" else 3)
    assert exit_codes(start_pair(resume(tmp_path))) == [0, 0]
    assert_same_end(tmp_path, whole_pair)
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_twenty_kills_at_random_moments(untrained, tmp_path):
    """While starting, loading, stepping, evaluating, saving."""
    options = {**OPTIONS, "max_steps": 60, "eval_every": 10, "save_every": 1, "keep_checkpoints": 3}
    whole, folder, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    begin = time.monotonic()
    assert run(arguments(untrained, whole, **options)) == 0
    seconds = time.monotonic() - begin
    steps = []
    for _ in range(20):
        is_new = find_folder(folder / "last") is None
        process = start_run(arguments(untrained, folder, **options) if is_new else resume(folder))
        if rng.random() < 0.7:
            wait_for_lines(folder, num_lines(folder) + 1)
        time.sleep(rng.uniform(0, seconds / 30))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        steps.append(num_lines(folder))
    print(f"a run of {seconds:.0f} s, killed 20 times with so many lines in its log: {steps}")
    assert run(resume(folder)) == 0
    assert_same_end(folder, whole)
