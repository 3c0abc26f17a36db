"""How long steps, evaluations and the fit of thresholds take on this machine."""

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import median

import torch
from accelerate import Accelerator

from ..data import FaultLog, Records
from ..evaluation import fit_thresholds, simulate_clicks
from ..evaluation.thresholds import spread_records
from .batches import draw_windows
from .checkpoints import TrainingState
from .memory_use import weight_bytes
from .options import Options
from .rehearsal import Builders, Rehearsal

TIMED_STEPS = 3
# Thresholds of an image take as long as so many evaluations of one, or less: 1,024 clicks against 5 of 16 objects.
LONGEST_THRESHOLDS = 10
# What checkpoints are written, hashed and flushed at, of slow disks.
BYTES_PER_SECOND = 200e6


@dataclass
class Speed:
    """Seconds, those of the slowest process.

    Args:
        build: of the model.
        steps: by the side of the input, of a step with its share of the loading.
        evaluation: of an image.
        thresholds: of fitting them to one image; None where that was not tried.
        save: of the checkpoints at an evaluation.
    """

    build: float
    steps: dict[int, float]
    evaluation: float
    thresholds: float | None
    save: float


def measure(
    options: Options,
    accelerator: Accelerator,
    builders: Builders,
    train_set: Records,
    validation_set: Records,
    threshold_seconds: float,
) -> Speed:
    """Try what a run does. Thresholds only if they should take no longer than `threshold_seconds`."""
    begin = time.monotonic()
    rehearsal = Rehearsal(options, accelerator, builders)
    build = time.monotonic() - begin
    steps = step_seconds(rehearsal, train_set)
    rehearsal.model.eval()
    given = rehearsal.model, rehearsal.processor
    images = []
    with accelerator.autocast():
        begin = time.monotonic()
        for record in spread_records(validation_set, TIMED_STEPS):
            list(simulate_clicks(*given, [record]))
            images.append(time.monotonic() - begin)
            begin = time.monotonic()
        evaluation = agreed_longest(accelerator, median(images[1:] or images or [0.0]))
        thresholds = None
        if LONGEST_THRESHOLDS * evaluation <= threshold_seconds and images:
            begin = time.monotonic()
            fit_thresholds(*given, validation_set, num_images=1)
            thresholds = agreed_longest(accelerator, time.monotonic() - begin)
    weights = sum(part.nbytes for part in rehearsal.trainer.parameters())
    # `last` twice, which has two moments (and an average), and `best`.
    written = 2 * weight_bytes(rehearsal.trainer, bool(options.ema_decay)) + weights
    return Speed(
        agreed_longest(accelerator, build),
        {side: agreed_longest(accelerator, seconds) for side, seconds in steps.items()},
        evaluation,
        thresholds,
        written / BYTES_PER_SECOND,
    )


def step_seconds(rehearsal: Rehearsal, train_set: Records) -> dict[int, float]:
    """Seconds of a step on inputs of each side, on the first draws of the run."""
    options, accelerator = rehearsal.options, rehearsal.accelerator
    num_phases, num_steps = len(rehearsal.phases), TIMED_STEPS + 1
    short = replace(
        options, max_steps=num_phases * num_steps, crop_share=[1 / num_phases] * len(options.crop_share), num_workers=0
    )
    windows = draw_windows(
        train_set, rehearsal.processor, TrainingState(), FaultLog(1.0), short, accelerator, rehearsal.model.config
    )
    loading: dict[int, list[float]] = defaultdict(list)
    computing: dict[int, list[float]] = defaultdict(list)
    while True:
        begin = time.monotonic()
        window = next(windows, None)
        if window is None:
            break
        loaded = time.monotonic()
        rehearsal.step(window)
        side = window[0]["pixel_values"].shape[-1]
        loading[side].append(loaded - begin)
        computing[side].append(time.monotonic() - loaded)
    return {
        # Batches are loaded ahead of the steps that they are for, so that the mean of the loading counts. The first
        # step warms up.
        side: combined(sum(loading[side]) / len(loading[side]), median(computing[side][1:]), options, accelerator)
        for side in loading
    }


def combined(load: float, compute: float, options: Options, accelerator: Accelerator) -> float:
    """Seconds of a step whose batches other processes load meanwhile; on a CPU they take from the same cores."""
    if not options.num_workers:
        return load + compute
    taken = load / torch.get_num_threads() if accelerator.device.type == "cpu" else 0.0
    return max(load / options.num_workers, compute + taken)


def agreed_longest(accelerator: Accelerator, seconds: float) -> float:
    return float(accelerator.gather(torch.tensor([seconds], device=accelerator.device)).max())


__all__ = ["Speed", "agreed_longest", "measure"]
