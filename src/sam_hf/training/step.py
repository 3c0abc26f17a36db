"""One optimizer step from several batches on several processes: what each batch gets, and whether to take it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn

from ..loss_points import valid_pixels
from ..masks import has_pixels
from .draws import seed_of
from .interactive import InteractiveOutput


@dataclass
class StepResult:
    """What the batches of one step gave in this process.

    Args:
        losses: float32 [batches], the part of each in the loss of the step.
        values: loss, its terms and `iou_click_1`, ... as float32 scalars; the mean over processes is that over all
            objects of the step.
    """

    losses: Tensor
    values: dict[str, Tensor]

    @classmethod
    def of(cls, outputs: Sequence[InteractiveOutput]) -> "StepResult":
        parts = [output.detached_values() for output in outputs]
        values = {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in parts[0]}
        return cls(torch.stack([part["loss"] for part in parts]), values)


def windows(batches: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` batches, one for each step."""
    batches = iter(batches)
    while window := list(islice(batches, size)):
        yield window


def shared_batches(
    accelerator: Accelerator, trainer: nn.Module, window: list[dict[str, Any]], *, seed: int, first_draw: int
) -> Iterator[dict[str, Any]]:
    """The batches of a step, each to be followed by its forward and backward pass before the next is asked for.

    Together they give the gradient of the mean loss over all objects of all batches, on all processes. The mean of
    means would favour objects of sparse batches, and depend on how images are spread over batches and processes. Data
    parallel wrappers average gradients, so every process divides its sum by its share of the count.

    Args:
        trainer: a prepared `InteractiveTrainer`; processes exchange gradients in the last backward pass alone.
        window: the batches of this process, on any device. They may have `num_objects`, a count of their objects;
            `image_ids` are ignored.
        seed, first_draw: of the run, and number of the first sample of the step. Torch's generator, for drop path, is
            seeded for every batch by these, as if all batches of all processes came one after the other.

    Yields:
        arguments of `trainer`, on the device of the accelerator, with the `normalizer`.
    """
    device, num_processes = accelerator.device, accelerator.num_processes
    counts = [batch["num_objects"] if "num_objects" in batch else count_objects(batch["labels"]) for batch in window]
    normalizer = accelerator.reduce(torch.tensor(sum(counts), device=device), "sum").clamp(min=1) / num_processes
    for index, batch in enumerate(window):
        inputs = {name: value for name, value in batch.items() if name not in ("image_ids", "num_objects")}
        batch_size = len(batch["pixel_values"])
        torch.manual_seed(seed_of(seed, first_draw + (index * num_processes + accelerator.process_index) * batch_size))
        is_last = index + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(trainer):
            yield {**send_to_device(inputs, device, non_blocking=True), "normalizer": normalizer}


def count_objects(labels: Tensor) -> int:
    """How many objects of [B, N, H, W] are not padding, i.e. have any pixel that counts."""
    return int(has_pixels(valid_pixels(labels)).sum())


def find_non_finite(
    accelerator: Accelerator, window: list[dict[str, Any]], losses: Tensor, grad_norm: Tensor
) -> str | None:
    """What to say of a step whose loss or gradient is not finite; None if both are. The same on all processes.

    Args:
        window: the batches of this process, with the `image_ids` of each.
        losses: float [batches].
        grad_norm: float scalar, of the reduced gradient.

    Returns:
        a message that names the images of the batches whose loss is not finite, or of all when only the gradient is
        not.
    """
    is_bad = ~losses.isfinite()
    found = torch.stack([is_bad.sum(), (~grad_norm.isfinite()).sum()])
    bad_losses, bad_norms = accelerator.reduce(found, "sum").tolist()
    if not bad_losses and not bad_norms:
        return None
    blamed = [batch["image_ids"] for batch, bad in zip(window, is_bad.tolist(), strict=True) if bad or not bad_losses]
    names = ", ".join(name for image_ids in gather_object(blamed) for name in image_ids)
    return f"the loss or the gradient is not finite (norm {grad_norm.item()}) with the images {names}."


__all__ = ["StepResult", "count_objects", "find_non_finite", "shared_batches", "windows"]
