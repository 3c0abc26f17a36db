"""A step of training on an accelerator, as far as a CPU can tell: what waits for values, and that none is float64."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from test_interactive import EVERYTHING, training_batch
from tiny_models import IMAGE, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sam_hf.clicks import DRAW_RANGE, centers, sample_center_clicks
from sam_hf.training import interactive
from sam_hf.training.interactive import InteractiveTrainer

ROUNDS = 4
# Operations whose result, or its shape, the host has to wait for.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"}


class Watch(TorchDispatchMode):
    """Counts operations that wait for the device, and those that make float64."""

    def __init__(self):
        super().__init__()
        self.waiting: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in WAITING or any(index is not None and index.dtype == torch.bool for index in indices):
            self.waiting[name] += 1
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, Tensor) and result.dtype == torch.float64:
                self.doubles[name] += 1
        return results


@contextmanager
def as_on_an_accelerator(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors are taken for those of a device, and labels are not looked at, as there."""
    with patch.context() as patched:
        for module in (interactive, centers):
            patched.setattr(module, "is_in_host_memory", lambda _: False)
        patched.setattr("sam_hf.losses.check_range", lambda _: None)
        yield


def batch_of_a_step(loss_resolution: str = "mask") -> dict[str, Tensor]:
    batch = training_batch(ROUNDS)
    batch["labels"] = batch["labels"].nan_to_num(-1).to(torch.int8)
    if loss_resolution == "points":
        batch["point_draws"] = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    return {**batch, "frame": [2 * IMAGE, 2 * IMAGE, 8, 16]}


@pytest.mark.parametrize("center_share", [0.0, 0.5])
def test_only_numbers_that_decide_are_waited_for(center_share, monkeypatch):
    """How many tokens the prompts of a round need, and how far the search for a centre has to go."""
    trainer = InteractiveTrainer(tiny_model(**EVERYTHING).train(), center_share=center_share)
    batch = batch_of_a_step()
    with as_on_an_accelerator(monkeypatch), Watch() as watch:
        to_list = Tensor.tolist  # which no mode sees
        monkeypatch.setattr(Tensor, "tolist", lambda tensor: watch.waiting.update(["tolist"]) or to_list(tensor))
        trainer(**batch).loss.backward()
    assert watch.waiting["tolist"] == ROUNDS
    assert watch.waiting["_local_scalar_dense"] == (ROUNDS - 1 if center_share else 0)
    assert watch.waiting.total() <= 7


@pytest.mark.parametrize("loss_resolution", ["mask", "input", "points"])
def test_no_number_has_64_bits_after_the_point(loss_resolution, monkeypatch):
    """Apple's devices have none."""
    model = tiny_model(**EVERYTHING, loss_resolution=loss_resolution).train()
    trainer = InteractiveTrainer(model, center_share=0.3, object_share=0.3)
    batch = batch_of_a_step(loss_resolution)
    with as_on_an_accelerator(monkeypatch), Watch() as watch:
        trainer(**batch).loss.backward()
    assert not watch.doubles


def test_a_step_is_the_same_as_on_a_cpu(monkeypatch):
    torch.manual_seed(0)
    trainer = InteractiveTrainer(tiny_model(**EVERYTHING).train(), center_share=0.5)
    expected = trainer(**batch_of_a_step())
    with as_on_an_accelerator(monkeypatch):
        found = trainer(**batch_of_a_step())
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.iou_per_click, expected.iou_per_click)


def test_center_clicks_of_accelerators_are_those_of_a_cpu(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    target, prediction = (torch.rand(2, 6, 24, 31, generator=generator) < share for share in (0.6, 0.4))
    prediction[0, 0] = target[0, 0]  # nothing is wrong
    target[0, 1] = prediction[0, 1] = True  # nor is there background
    valid = torch.rand(2, 1, 24, 31, generator=generator) < 0.9
    clicked = 24 * torch.rand(2, 6, 3, 2, generator=generator)
    clicked[1, 2] = torch.nan
    target[1, 3], prediction[1, 3] = False, False
    prediction[1, 3, 5, 7] = True
    clicked[1, 3, 0] = torch.tensor([7.0, 5.0])  # what is wrong was clicked
    for given in ({}, {"valid": valid}, {"clicked": clicked}, {"valid": valid, "clicked": clicked}):
        expected = sample_center_clicks(target, prediction, **given)
        with as_on_an_accelerator(monkeypatch):
            found = sample_center_clicks(target, prediction, **given)
        assert all(torch.equal(*parts) for parts in zip(found, expected, strict=True))


def test_draws_of_another_kind_are_refused():
    batch = batch_of_a_step()
    batch["click_draws"] = batch["click_draws"].double() / DRAW_RANGE
    with pytest.raises(ValueError, match="click_draws are torch.float64, expected int32 or int64"):
        InteractiveTrainer(tiny_model())(**batch)
