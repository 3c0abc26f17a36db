"""`--batch_size auto`: what fits, with which numbers a run goes on, and that finding them changes nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from tiny_runs import arguments

from sam_hf.training import batch_fitting, memory_use
from sam_hf.training.batch_fitting import PEAK_OF_KEPT, USABLE_SHARE, agreed_least, fit_batch, fits_on_cuda, largest
from sam_hf.training.memory_use import KeptForBackward, allowed_memory, available_memory, weight_bytes
from sam_hf.training.options import AUTO_BATCH, parse_options
from sam_hf.training.rehearsal import Builders, Rehearsal
from sam_hf.training.reporting import read_log


def reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def setting(train, untrained, tmp_path, on_cpu):
    """Options for `auto` with more of them, an accelerator, and the builders of the example."""

    def of(*more: str) -> tuple:
        options = parse_options(
            ["--model", str(untrained), "--batch_size", "auto", "--output_dir", str(tmp_path), *more]
        )
        options.choose_learning_rates(False)
        accelerator = train.start_accelerator(tmp_path, None, 0, "none")
        return options, accelerator, Builders(train.build_model, train.build_trainer, train.build_optimizer)

    return of


def need(setting: tuple, side: int, num_objects: int, size: int) -> float:
    """Bytes that a batch is taken to need, worked out by hand."""
    rehearsal = Rehearsal(*setting)
    kept = rehearsal.kept_bytes(rehearsal.full_batch(side, 1, num_objects))
    return weight_bytes(rehearsal.trainer, False) + PEAK_OF_KEPT * kept * size


def test_words_and_numbers_of_the_option():
    assert parse_options(["--batch_size", "auto"]).batch_size == AUTO_BATCH
    assert parse_options(["--batch-size=3"]).batch_size == 3
    for word in ("0", "many"):
        with pytest.raises((ValueError, SystemExit)):
            parse_options(["--batch_size", word])


@pytest.mark.parametrize(("fitting", "expected"), [(0, 0), (1, 1), (3, 2), (15, 8), (99, 16)])
def test_sizes_grow_to_the_first_that_does_not_fit(fitting, expected):
    tried = []

    def fits(side: int, size: int, num_objects: int) -> bool:
        tried.append(size)
        return size <= fitting

    assert largest(fits, 64, 2) == expected
    assert all(size <= fitting for size in tried[:-1])


def test_a_cpu_gets_what_its_memory_allows(setting, monkeypatch):
    given = setting("--num_corrections", "1")
    allowed = need(given, 64, 8, 2)
    for factor, expected in ((1.01, 2), (0.99, 1)):
        monkeypatch.setattr(batch_fitting, "available_memory", lambda _, f=factor: allowed * f / USABLE_SHARE)
        found = fit_batch(*given)
        assert found["whole_batch_size"] == expected and found["batch_size"] > expected
        assert found.keys() == {"batch_size", "whole_batch_size"}


def test_objects_are_halved_where_no_image_fits(setting, monkeypatch):
    given = setting("--num_corrections", "1", "--whole_batch_size", "1", "--augment", "false")
    allowed = need(given, 64, 2, 1) * 1.01
    assert allowed < need(given, 64, 4, 1)
    monkeypatch.setattr(batch_fitting, "available_memory", lambda _: allowed / USABLE_SHARE)
    assert fit_batch(*given) == {"batch_size": 1, "max_objects": 2}
    with pytest.raises(ValueError, match="not even one image with 4 objects fits into the .* MB that are free"):
        fit_batch(*setting("--num_corrections", "1", "--max_objects", "4"))
    monkeypatch.setattr(batch_fitting, "available_memory", lambda _: 1000)
    with pytest.raises(ValueError, match="with 1 objects"):
        fit_batch(*given)


def test_a_number_is_not_probed(setting):
    options, *rest = setting()
    options.batch_size = 3
    assert fit_batch(options, *rest) == {} == fit_batch(options, None, None)


def test_what_is_computed_again_counts_as_kept_on_a_cpu(setting, monkeypatch):
    monkeypatch.setattr(batch_fitting, "available_memory", lambda _: need(given, 64, 8, 2) * 1.01 / USABLE_SHARE)
    given = setting()
    assert fit_batch(*given) == fit_batch(*setting("--checkpoint_activations", "true"))


def test_all_processes_take_the_least():
    accelerator = SimpleNamespace(device="cpu", gather=lambda own: torch.cat([own, torch.tensor([2, 8])]))
    assert agreed_least(accelerator, 4) == 2


def test_a_full_batch_has_all_objects_and_rounds(setting):
    rehearsal = Rehearsal(*setting("--recipe", "sam"))
    batch = rehearsal.full_batch(32, 3, 5)
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["labels"].shape[:2] == (3, 5)
    assert (batch["labels"] == 1).flatten(2).any(-1).all() and batch["click_draws"].shape == (3, 5, 10)


def test_it_is_rehearsed_with_the_processor_of_the_run(setting):
    rehearsal = Rehearsal(*setting("--tile_size", "90", "--stretch_contrast", "true"))
    own = rehearsal.processor.image_processor
    assert own.tile_size == 90 and own.do_stretch_contrast


def test_a_gpu_is_tried_until_it_is_full(setting, monkeypatch):
    """A device whose steps take 100 bytes an image above 1,000, and has no more than `room`."""
    rehearsal = Rehearsal(*setting())
    weights = sum(part.nbytes for part in rehearsal.trainer.parameters())
    peak, steps = [0], []

    def step(window: list[dict[str, Any]]) -> None:
        size = len(window[0]["labels"])
        steps.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("full")
        peak[0] = weights + 1000 + 100 * size

    monkeypatch.setattr(rehearsal, "step", step)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: weights)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak[0])
    assert largest(fits_on_cuda(rehearsal, weights + 10**6), 32, 1) == 8
    assert steps == [1, 1, 2, 2, 4, 4, 8, 8, 16]
    assert largest(fits_on_cuda(rehearsal, weights + 1400), 32, 1) == 4
    assert largest(fits_on_cuda(rehearsal, weights + 1399), 32, 1) == 2
    rehearsal.options.ema_decay = 0.9
    assert largest(fits_on_cuda(rehearsal, weights + 1400), 32, 1) == 0


def losses(folder: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(folder / "log.jsonl") if "train/loss" in line]


@pytest.mark.usefixtures("on_cpu")
def test_a_run_is_that_of_the_number_and_its_resume_does_not_probe(train, untrained, tmp_path, monkeypatch):
    """Drop path and random weights take from torch's generator, which the probe must leave alone."""
    monkeypatch.setattr(batch_fitting, "BATCH_SIZES", (1, 2))
    given = {"max_steps": 3, "log_every": 1, "eval_every": 3, "whole_batch_size": 1}
    train.main(arguments(untrained, tmp_path / "auto", **given, batch_size="auto"))
    options = yaml.safe_load((tmp_path / "auto" / "options.yaml").read_text())
    assert options["batch_size"] == 2
    reset()
    train.main(arguments(untrained, tmp_path / "two", **given, batch_size=2))
    assert losses(tmp_path / "auto") == losses(tmp_path / "two") and len(losses(tmp_path / "two")) == 3
    files = [tmp_path / name / "last" / "model.safetensors" for name in ("auto", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()

    def refuse(*_: Any) -> None:
        raise AssertionError("probed again")

    monkeypatch.setattr(batch_fitting, "Rehearsal", refuse)
    for argv in (
        [str(tmp_path / "auto" / "options.yaml"), "--resume"],
        [*arguments(untrained, tmp_path / "auto", **given, batch_size="auto"), "--resume", "auto"],
    ):
        reset()
        train.main(argv)
    assert yaml.safe_load((tmp_path / "auto" / "options.yaml").read_text()) == options


def test_what_autograd_keeps_is_counted_once_and_without_weights():
    layer = torch.nn.Linear(4, 4)
    value = torch.ones(8, 4, requires_grad=True)
    with KeptForBackward() as kept:
        product = layer(value * 1)  # its input of 8 x 4 numbers, and the weight
        squares = product * product  # the product, twice
        with torch.no_grad():
            product.exp().log()
    assert kept.num_bytes(layer) == 4 * 2 * 8 * 4
    del squares
    assert kept.num_bytes(layer) == 4 * 8 * 4
    assert weight_bytes(layer, False) == 4 * 80 and weight_bytes(layer, True) == 5 * 80
    layer.bias.requires_grad_(False)
    assert weight_bytes(layer, False) == 4 * 64 + 16


def test_limits_of_control_groups_count(tmp_path, monkeypatch):
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    for folder, limit, anon in ((inner, "max", 10), (inner.parent, "5000", 1500), (tmp_path, "9000", 2000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.stat").write_text(f"anon {anon}\nfile 77\n")
    own = tmp_path / "cgroup"
    own.write_text("12:cpu:/old\n0::/job/step\n")
    assert allowed_memory(tmp_path, own) == [3500, 7000]
    own.write_text("12:cpu:/old\n")
    assert allowed_memory(tmp_path, own) == []
    monkeypatch.setattr(memory_use, "allowed_memory", lambda: [4096])
    assert available_memory(torch.device("cpu")) == 4096
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(torch.device("cpu")) == 1024
    monkeypatch.setattr(memory_use.sys, "platform", "win32")
    with pytest.raises(ValueError, match="cannot tell how much memory is free on win32: give a number"):
        available_memory(torch.device("cpu"))
