"""Two processes, or batches that are accumulated, do what one process does with one batch."""

import json
import os
import runpy
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from socket import socket

import pytest
import torch
import two_processes
from accelerate import Accelerator
from tiny_runs import small_config
from two_processes import MODELS, NOTHING_FOR_ONE, UNEVEN, batches, gradients

from sam_hf import SamHfImageProcessor, SamHfModel, SamHfProcessor
from sam_hf.data import SyntheticScenes
from sam_hf.training import InteractiveTrainer
from sam_hf.training.collator import ClickSamplingCollator
from sam_hf.training.step import count_objects

pytestmark = pytest.mark.usefixtures("on_cpu")


def as_launched(rank: int, port: int, log: Path, *arguments: str) -> None:
    """Run `two_processes.py` as one of two, told what launchers tell; `test_launch.py` has a real one."""
    with log.open("w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    sys.argv[:] = [two_processes.__file__, *arguments]
    runpy.run_path(two_processes.__file__, run_name="__main__")


@pytest.fixture(scope="module")
def both(untrained, tmp_path_factory) -> dict[int, Path]:
    """Folders with what one process and two left."""
    folders = {size: tmp_path_factory.mktemp(f"processes{size}") for size in (1, 2)}
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["sam_hf.training.batches", "matplotlib.figure"])  # as `tiny_runs` does
    logs = [folders[2] / f"log{rank}.txt" for rank in range(2)]
    given = (str(untrained), str(folders[2]))
    pair = [context.Process(target=as_launched, args=(rank, port, log, *given)) for rank, log in enumerate(logs)]
    for process in pair:
        process.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        two_processes.main(str(untrained), str(folders[1]))
    for process in pair:
        process.join(timeout=300)
        process.kill()
    assert [process.exitcode for process in pair] == [0, 0], "".join(log.read_text() for log in logs)
    return folders


def result(folder: Path, rank: int = 0) -> dict:
    return torch.load(folder / f"rank{rank}.pt", weights_only=True)


@pytest.mark.parametrize("counts", [UNEVEN, NOTHING_FOR_ONE])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_two_processes_are_those_of_one(both, counts, model):
    assert tuple(int(count_objects(batch["labels"])) for batch in batches(counts)) == counts
    expected, expected_values, expected_buffers = result(both[1])[model, counts]
    for rank in range(2):
        found, values, buffers = result(both[2], rank)[model, counts]
        assert found.keys() == expected.keys()
        largest = max(float((found[name] - expected[name]).abs().max()) for name in found)
        print(f"rank {rank}: largest difference of a gradient {largest:.2g}")
        # They are up to 13, of which rounding makes 1e-6 with torch 2.14.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(buffers, expected_buffers, rtol=0, atol=0)


@pytest.mark.parametrize("counts", [UNEVEN, (0, 0)])
def test_accumulated_gradients_are_those_of_one_batch(counts):
    found, values, _ = gradients(Accelerator(), counts, small_config())
    torch.manual_seed(0)
    trainer = InteractiveTrainer(SamHfModel(small_config())).train()
    scenes = SyntheticScenes(len(counts))
    records = [{**scenes[k], "objects": scenes[k]["objects"][:count]} for k, count in enumerate(counts)]
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}))
    output = trainer(**ClickSamplingCollator(processor, num_corrections=1)(records))
    output.loss.backward()
    expected = {name: part.grad for name, part in trainer.model.named_parameters()}
    # Batches of other sizes round differently: 5e-6 with torch 2.11.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
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
        for name in line.keys() - {"train/images_per_second", "train/data_wait_seconds", "train/peak_memory"}:
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


def test_an_evaluation_of_two_processes_is_that_of_one_and_each_does_half(both):
    expected = result(both[1])["evaluated"]
    assert expected["images"] == 7 and len(expected["rows"]) == 6 and expected["faults"] == [1, 9, "no image"]
    assert expected["begun"] == [*range(9)]
    for rank in range(2):
        found = result(both[2], rank)["evaluated"]
        assert found["begun"] == [*range(rank, 9, 2)] and found["interrupted"] is None
        assert found["images"] == 7 and found["faults"] == expected["faults"]
        pairs = zip([found["iou"], *found["rows"]], [expected["iou"], *expected["rows"]], strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_nan_on_one_process_stops_all_and_names_the_image(both):
    error = result(both[1])["error"]
    assert result(both[2], 0)["error"] == result(both[2], 1)["error"] == error
    assert error.startswith("step 2: the loss or the gradient is not finite (norm nan) with the images scene-0-train-")
    assert error.count("scene-") == 1 and "--skip_nonfinite" in error
