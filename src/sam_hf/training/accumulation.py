"""The gradient of one optimizer step, from several batches on several processes."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from .draws import seed_of


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


def windows(batches: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` batches, one for each step."""
    batches = iter(batches)
    while window := list(islice(batches, size)):
        yield window


def accumulate(
    accelerator: Accelerator,
    trainer: nn.Module,
    window: list[dict[str, Any]],
    *,
    seed: int,
    first_draw: int,
) -> StepResult:
    """Add the gradient of the mean loss over all objects of all batches of a step, on all processes.

    The mean of means would favour objects of sparse batches, and depend on how images are spread over batches and
    processes. Data parallel wrappers average gradients, so every process divides its sum by its share of the count.

    Args:
        trainer: a prepared `InteractiveTrainer`.
        window: the batches of this process, on any device; `image_ids` in them are ignored.
        seed, first_draw: of the run, and number of the first sample of the step. Torch's generator, for drop path, is
            seeded for every batch by these, as if all batches of all processes came one after the other.
    """
    device, num_processes = accelerator.device, accelerator.num_processes
    count = torch.stack([count_objects(batch["labels"]) for batch in window]).sum().to(device)
    normalizer = accelerator.reduce(count, "sum").clamp(min=1) / num_processes
    outputs = []
    for index, batch in enumerate(window):
        inputs = {name: value for name, value in batch.items() if name != "image_ids"}
        batch_size = len(batch["pixel_values"])
        torch.manual_seed(seed_of(seed, first_draw + (index * num_processes + accelerator.process_index) * batch_size))
        is_last = index + 1 == len(window)
        with nullcontext() if is_last else accelerator.no_sync(trainer):
            output = trainer(**send_to_device(inputs, device, non_blocking=True), normalizer=normalizer)
            accelerator.backward(output.loss)
        outputs.append(output.detached_values())
    values = {name: torch.stack([output[name] for output in outputs]).sum(dim=0) for name in outputs[0]}
    return StepResult(torch.stack([output["loss"] for output in outputs]), values)


def count_objects(labels: Tensor) -> Tensor:
    """How many objects of [B, N, H, W] are not padding, i.e. have any pixel that is not NaN; int64 scalar."""
    return labels.isfinite().flatten(2).any(dim=-1).sum()


__all__ = ["StepResult", "accumulate", "count_objects", "windows"]
