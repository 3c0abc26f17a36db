"""Two processes, or batches that are accumulated, do what one process does with one batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
from accelerate import Accelerator
from tiny_runs import small_config
from two_processes import NOTHING_FOR_ONE, UNEVEN, batches, gradients

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import SyntheticScenes
from sam_hf.training import InteractiveTrainer
from sam_hf.training.collator import ClickSamplingCollator
from sam_hf.training.step import count_objects

pytestmark = pytest.mark.usefixtures("on_cpu")
# `accelerate launch --cpu` starts several processes under MPI only; with this flag it uses torchrun on a CPU, too.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def both(untrained, tmp_path_factory) -> dict[int, Path]:
    """Folders with what one process and two left."""
    folders = {size: tmp_path_factory.mktemp(f"processes{size}") for size in (1, 2)}
    log = folders[2] / "log.txt"
    command = [*LAUNCH, two_processes.__file__, str(untrained), str(folders[2])]
    with log.open("w") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        # To a file: with a pipe, a timeout would wait for the processes that it does not know.
        run = subprocess.run(command, stdout=output, stderr=output, timeout=300, env=environment)
    assert run.returncode == 0, log.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        two_processes.main(str(untrained), str(folders[1]))
    return folders


def result(folder: Path, rank: int = 0) -> dict:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


@pytest.mark.parametrize("counts", [UNEVEN, NOTHING_FOR_ONE])
def test_gradients_of_two_processes_are_those_of_one(both, counts):
    assert tuple(int(count_objects(batch["labels"])) for batch in batches(counts)) == counts
    expected, expected_values = result(both[1])[counts]
    for rank in range(2):
        found, values = result(both[2], rank)[counts]
        assert found.keys() == expected.keys()
        largest = max(float((found[name] - expected[name]).abs().max()) for name in found)
        print(f"rank {rank}: largest difference of a gradient {largest:.2g}")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [UNEVEN, (0, 0)])
def test_accumulated_gradients_are_those_of_one_batch(counts):
    found, values = gradients(Accelerator(), counts, drop_path_rate=0.0)
    torch.manual_seed(0)
    trainer = InteractiveTrainer(SamHfModel(small_config())).train()
    scenes = SyntheticScenes(len(counts))
    records = [{**scenes[k], "objects": scenes[k]["objects"][:count]} for k, count in enumerate(counts)]
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))
    output = trainer(**ClickSamplingCollator(processor, num_corrections=1)(records))
    output.loss.backward()
    expected = {name: part.grad for name, part in trainer.model.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values, output.detached_values(), rtol=1e-5, atol=1e-6)


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("train/")} for line in lines]


def test_run_of_two_processes_is_that_of_one(both):
    """With a step that is left out on both, since the loss of one image is NaN."""
    lines, expected = (logged(both[size] / "run") for size in (2, 1))
    assert ["train/loss" in line for line in lines if line] == [True, False, True]
    assert len(lines) == len(expected) and lines[0].keys() == expected[0].keys()
    for line, other in zip(lines, expected, strict=True):
        for name in line.keys() - {"train/images_per_second"}:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    for size in (1, 2):
        state = torch.load(both[size] / "run" / "last" / "training_state.pt", weights_only=True)
        assert (state["step"], state["draws"], state["skipped_steps"]) == (3, 4 + 4 + 8, 1)
        assert {moments["step"].item() for moments in state["optimizer"].values()} == {2}


def test_processes_wait_for_the_one_that_saves_and_it_for_those_that_load(both):
    main, other = (result(both[2], rank)["times"] for rank in range(2))
    assert main["status"] == other["status"] == 128 + signal.SIGTERM
    assert other["left"] > main["saved"]
    assert main["evaluates"] > other["loaded"]


def test_nan_on_one_process_stops_all_and_names_the_image(both):
    error = result(both[1])["error"]
    assert result(both[2], 0)["error"] == result(both[2], 1)["error"] == error
    assert error.startswith("step 2: the loss or the gradient is not finite (norm nan) with the images scene-0-train-")
    assert error.count("scene-") == 1 and "--skip_nonfinite" in error
