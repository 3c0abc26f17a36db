"""Which batches a run trains on, from small crops to whole images."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from multiprocessing import forkserver, get_all_start_methods, get_context
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ..data import FaultLog, PhotometricJitter, RandomCropScaleFlip, RecordStream
from ..processing_sam_hf import SamHfProcessor
from .accumulation import windows
from .collator import ClickSamplingCollator
from .draws import numbered_draws
from .options import Options
from .signals import live_and_die_with_parent
from .state import TrainingState

# Forked workers may hang, since this process has threads by now; where there is no server, nothing forks.
WORKER_START = "forkserver" if "forkserver" in get_all_start_methods() else None


def phases(image_size: int, options: Options) -> list[tuple[int, int, int]]:
    """(side, last step, batch size) of the crops of each size, and at last of whole images.

    Raises:
        ValueError: if there are not as many shares as sizes, or they add up to more than 1.
    """
    if not options.augment:
        return [(image_size, options.max_steps, options.whole_batch_size or options.batch_size)]
    sizes, shares = options.crop_size or [image_size // 2], options.crop_share
    if len(sizes) != len(shares) or min(shares) < 0 or sum(shares) > 1 + 1e-6:
        raise ValueError(
            f"--crop_share should be one share of the steps for each of the {len(sizes)} crop sizes {sizes}, and add "
            f"up to at most 1, but got {shares}."
        )
    last_steps = [round(sum(shares[: k + 1]) * options.max_steps) for k in range(len(shares))]
    crops = [(side, last_step, options.batch_size) for side, last_step in zip(sizes, last_steps, strict=True)]
    return [*crops, (image_size, options.max_steps, options.whole_batch_size or options.batch_size)]


def start_worker_server() -> None:
    """Start the process that loader processes are forked from, with all that they import and deaf to SIGTERM.

    Schedulers send that to every process of a job, but the batches in work are needed until this one has saved.
    """
    if WORKER_START is None:
        return
    get_context(WORKER_START).set_forkserver_preload([__name__])
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited
    forkserver.ensure_running()
    signal.signal(signal.SIGTERM, handler)


def collate_named(collator: ClickSamplingCollator, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch with the names of its images, for messages."""
    return {**collator(records), "image_ids": [record["image_id"] for record in records]}


def build_collator(processor: SamHfProcessor, side: int, options: Options) -> ClickSamplingCollator:
    """Crops of `side` pixels, or whole images if that is their size, with prompts and draws."""
    full_size = processor.image_processor.size["longest_edge"]
    # An object is as large in pixels in either phase.
    scale = options.scale_min * full_size / side, options.scale_max * full_size / side
    augmentation = RandomCropScaleFlip(
        side, scale, vflip=options.rotate, rot90=options.rotate, jitter=PhotometricJitter()
    )
    return ClickSamplingCollator(
        processor,
        crop_size=side,
        max_objects=options.max_objects,
        num_corrections=options.num_corrections,
        repeats=options.repeats,
        sample_points=options.loss_resolution == "points",
        augmentation=augmentation if options.augment else None,
        box_probability=options.box_probability,
        box_noise=options.box_noise,
        seed=options.seed,
    )


def draw_windows(
    dataset: Dataset | RecordStream,
    processor: SamHfProcessor,
    state: TrainingState,
    faults: FaultLog,
    options: Options,
    accelerator: Accelerator,
) -> Iterator[list[dict[str, Any]]]:
    """The batches of this process for one step after the other, from where `state` stands to the end.

    First crops, then whole images. They stay on the CPU until each is needed: a step may have many.
    """
    if options.num_workers:
        start_worker_server()
    full_size = processor.image_processor.size["longest_edge"]
    for side, last_step, batch_size in phases(full_size, options):
        if state.step >= last_step:
            continue
        collator = build_collator(processor, side, options)
        num_batches = (last_step - state.step) * options.gradient_accumulation_steps
        draws, sampler = numbered_draws(
            dataset,
            start=state.draws,
            stop=state.draws + num_batches * batch_size * accelerator.num_processes,
            batch_size=batch_size,
            seed=options.seed,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        loader = DataLoader(
            draws,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(collate_named, collator),
            num_workers=options.num_workers,
            multiprocessing_context=WORKER_START if options.num_workers else None,
            prefetch_factor=4 if options.num_workers else None,
            worker_init_fn=live_and_die_with_parent,
            pin_memory=accelerator.device.type == "cuda",
        )
        if sampler is None:
            # Accelerate would send every record of a stream through the first process.
            batches = islice(loader, num_batches)
        else:
            batches = accelerator.prepare_data_loader(loader, device_placement=False)
        yield from windows(noted(batches, faults), options.gradient_accumulation_steps)


def noted(batches: Iterable[dict[str, Any]], faults: FaultLog) -> Iterator[dict[str, Any]]:
    """The batches, after telling `faults` what could not be used in them."""
    for batch in batches:
        faults.note(batch.pop("faults", ()), len(batch["labels"]))
        yield batch


__all__ = ["build_collator", "draw_windows", "phases"]
