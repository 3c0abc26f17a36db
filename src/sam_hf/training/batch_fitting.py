"""`--batch_size auto`: how many images of a batch fit into memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from .memory_use import MEGABYTE, available_memory, weight_bytes
from .options import AUTO_BATCH, Options
from .rehearsal import Builders, Rehearsal

# Larger batches make steps longer, and hardly better.
BATCH_SIZES = (1, 2, 4, 8, 16)
# Batches differ, and the allocator leaves gaps.
USABLE_SHARE = 0.85
# Of a step at its peak, to what is kept at the end of the forward pass: measured 1.3 to 1.4, on a CPU.
PEAK_OF_KEPT = 1.75

Fits = Callable[[int, int, int], bool]  # side, images, objects per image


def fit_batch(options: Options, accelerator: Accelerator, builders: Builders) -> dict[str, int]:
    """The options that make a batch fit into the memory that is free now; the same on all processes.

    Whole images and crops get as many of `BATCH_SIZES` as fit with all their objects and rounds. Where not even one
    image does, objects are halved. The number of forward passes of a step stays what it is.

    Returns:
        `batch_size`, unless it was given `whole_batch_size`, and where they are fewer `max_objects`; nothing if the
        batch size is a number already.

    Raises:
        ValueError: if one image with one object (or those that were given) does not fit.
    """
    if options.batch_size != AUTO_BATCH:
        return {}
    available = int(available_memory(accelerator.device) * USABLE_SHARE)
    is_on_cpu = accelerator.device.type != "cuda"
    # What layers take that are computed again is not seen by autograd: as if all were kept.
    shown = replace(options, checkpoint_activations=options.checkpoint_activations and not is_on_cpu)
    rehearsal = Rehearsal(shown, accelerator, builders)
    fits = fits_on_cpu(rehearsal, available) if is_on_cpu else fits_on_cuda(rehearsal, available)
    *crops, whole = [phase.side for phase in rehearsal.phases]
    sides = {"batch_size": max(crops, default=whole)}
    if options.whole_batch_size is None:
        sides["whole_batch_size"] = whole
    num_objects = options.max_objects
    while True:
        found = {name: agreed_least(accelerator, largest(fits, side, num_objects)) for name, side in sides.items()}
        if min(found.values()):
            break
        if num_objects == 1 or "max_objects" in options.explicit:
            raise ValueError(
                f"--batch_size auto: not even one image with {num_objects} objects fits into the "
                f"{available / MEGABYTE:,.0f} MB that are free. Try --checkpoint_activations true, "
                "--mixed_precision bf16 on a GPU, --lora encoder_late, fewer --max_objects or a smaller --image_size."
            )
        num_objects //= 2
    found |= {"max_objects": num_objects} if num_objects < options.max_objects else {}
    accelerator.print(f"batches that fit into memory: {', '.join(f'{name} {n}' for name, n in found.items())}")
    return found


def largest(fits: Fits, side: int, num_objects: int) -> int:
    """The largest batch that fits, 0 if none does; stops at the first that does not."""
    found = 0
    for size in BATCH_SIZES:
        if not fits(side, size, num_objects):
            break
        found = size
    return found


def agreed_least(accelerator: Accelerator, number: int) -> int:
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).min())


def fits_on_cpu(rehearsal: Rehearsal, available: int) -> Fits:
    """By what autograd keeps of one image, which the memory line of a run counts, too."""
    fixed = weight_bytes(rehearsal.trainer, bool(rehearsal.options.ema_decay))
    kept: dict[tuple[int, int], int] = {}

    def fits(side: int, size: int, num_objects: int) -> bool:
        if (side, num_objects) not in kept:
            kept[side, num_objects] = rehearsal.kept_bytes(rehearsal.full_batch(side, 1, num_objects))
        return fixed + PEAK_OF_KEPT * size * kept[side, num_objects] <= available

    return fits


def fits_on_cuda(rehearsal: Rehearsal, available: int) -> Fits:
    """By trying: two steps, of which the second has the moments of the optimizer."""
    device = rehearsal.accelerator.device
    before = torch.cuda.memory_allocated(device) - sum(part.nbytes for part in rehearsal.trainer.parameters())
    average = weight_bytes(rehearsal.trainer, True) - weight_bytes(rehearsal.trainer, False)
    average *= bool(rehearsal.options.ema_decay)

    def fits(side: int, size: int, num_objects: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        batch: list[dict[str, Any]] = [rehearsal.full_batch(side, size, num_objects)]
        try:
            for _ in range(2):
                rehearsal.step(batch)
        except torch.OutOfMemoryError:
            rehearsal.optimizer.zero_grad()
            return False
        finally:
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_allocated(device) - before + average <= available

    return fits


__all__ = ["fit_batch"]
