"""Which batches a run trains on, from small crops to whole images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..configuration_sam_hf import SamHfConfig
from ..data import FaultLog, PhotometricJitter, RandomCropScaleFlip, Records, RecordStream
from ..processing_sam_hf import SamHfProcessor
from .checkpoints import TrainingState
from .collator import ClickSamplingCollator
from .draws import numbered_draws
from .options import Options, Phase
from .process import WORKER_START, live_and_die_with_parent, start_worker_server
from .step import count_objects, windows

# The share of `--negatives` that is not given.
NEGATIVES = 0.2
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


def collate_named(collator: ClickSamplingCollator, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch with the names of its images, for messages, and the number of its objects, here as it takes a while."""
    batch = collator(records)
    image_ids = [record["image_id"] for record in records]
    return {**batch, "image_ids": image_ids, "num_objects": count_objects(batch["labels"])}


def build_collator(
    processor: SamHfProcessor, side: int, options: Options, config: SamHfConfig | None = None
) -> ClickSamplingCollator:
    """Crops of `side` pixels, or whole images if that is their size, with prompts and draws.

    The `config` of the model says whether it compares masks at points, and learns from images without objects.
    """
    image_processor = processor.image_processor
    full_size = image_processor.size["longest_edge"]
    # An object is as large in pixels in either phase.
    scale = options.scale_min * full_size / side, options.scale_max * full_size / side
    augmentation = RandomCropScaleFlip(
        side,
        scale,
        vflip=options.rotate,
        rot90=options.rotate,
        jitter=PhotometricJitter(),
        tile_size=image_processor.tile_size,
        keep_aspect_ratio=image_processor.keep_aspect_ratio,
    )
    return ClickSamplingCollator(
        processor,
        crop_size=side,
        max_objects=options.max_objects,
        num_corrections=options.num_corrections,
        repeats=options.step.repeats,
        sample_points=config is not None and config.loss_resolution == "points",
        augmentation=augmentation if options.augment else None,
        box_probability=options.box_probability,
        box_noise=options.step.box_noise,
        negatives=config is not None and usable_negatives(options, config) > 0,
        instances=bool(options.instances),
        seed=options.seed,
    )


def usable_negatives(options: Options, config: SamHfConfig) -> float:
    """The share of draws that may be images without objects, which only an object score that trains learns from."""
    share = NEGATIVES if options.negatives is None else options.negatives
    return share if config.mask_decoder_config.use_object_score and config.object_score_weight else 0.0


def draw_windows(
    dataset: Records | RecordStream,
    processor: SamHfProcessor,
    state: TrainingState,
    faults: FaultLog,
    options: Options,
    accelerator: Accelerator,
    config: SamHfConfig,
) -> Iterator[list[dict[str, Any]]]:
    """The batches of this process for one step after the other, from where `state` stands to the end.

    First crops, then whole images. They stay on the CPU until each is needed: a step may have many. `config` is the
    model's.
    """
    if options.negatives and not usable_negatives(options, config):
        accelerator.print("images without objects are left out: the model has no object score to learn from them")
    if options.num_workers:
        start_worker_server(__name__)
    phases = options.phases(processor.image_processor.size["longest_edge"])
    collators = [partial(collate_named, build_collator(processor, phase.side, options, config)) for phase in phases]
    negatives = usable_negatives(options, config)
    given = phases, collators, state, options, accelerator, negatives
    batches = stream_batches(dataset, *given) if isinstance(dataset, RecordStream) else drawn_batches(dataset, *given)
    yield from windows(noted(batches, faults), options.gradient_accumulation_steps)


def drawn_batches(
    dataset: Records,
    phases: Sequence[Phase],
    collators: Sequence[Collate],
    state: TrainingState,
    options: Options,
    accelerator: Accelerator,
    negatives: float,
) -> Iterator[dict[str, Any]]:
    """Of records by index: a loader for each phase."""
    for (_, last_step, batch_size), collate in zip(phases, collators, strict=True):
        if state.step >= last_step:
            continue
        num_batches = (last_step - state.step) * options.gradient_accumulation_steps
        draws, sampler = numbered_draws(
            dataset,
            start=state.draws,
            stop=state.draws + num_batches * batch_size * accelerator.num_processes,
            seed=options.seed,
            negatives=negatives,
        )
        how = loader_options(options, accelerator)
        loader = DataLoader(draws, batch_size=batch_size, sampler=sampler, collate_fn=collate, **how)
        yield from accelerator.prepare_data_loader(loader, device_placement=False)


def stream_batches(
    stream: RecordStream,
    phases: Sequence[Phase],
    collators: Sequence[Collate],
    state: TrainingState,
    options: Options,
    accelerator: Accelerator,
    negatives: float,
) -> Iterator[dict[str, Any]]:
    """Of a stream: one loader for all phases, as another would read the stream again from its beginning.

    Accelerate would send every record through the first process; here each reads its own.
    """
    drawn, coming, first_step = [], [], 0
    for (_, last_step, batch_size), collate in zip(phases, collators, strict=True):
        done = min(max(state.step, first_step), last_step)
        drawn.append(((done - first_step) * options.gradient_accumulation_steps, batch_size))
        coming.append(((last_step - done) * options.gradient_accumulation_steps, batch_size, collate))
        first_step = last_step
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    shared = stream.share(seed=options.seed, rank=rank, num_ranks=num_ranks, drawn=drawn, negatives=negatives)
    yield from DataLoader(StreamBatches(shared, coming), batch_size=None, **loader_options(options, accelerator))


def loader_options(options: Options, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "num_workers": options.num_workers,
        "multiprocessing_context": WORKER_START if options.num_workers else None,
        "prefetch_factor": 4 if options.num_workers else None,
        "worker_init_fn": live_and_die_with_parent,
        "pin_memory": accelerator.device.type == "cuda",
    }


class StreamBatches(IterableDataset):
    """The batches of a stream, made in the workers of a loader without a batch size.

    Args:
        stream: what is for this process.
        phases: one after the other the number of batches, how many records each has, and what makes it of them.
    """

    def __init__(self, stream: RecordStream, phases: Sequence[tuple[int, int, Collate]]):
        self.stream, self.phases = stream, phases

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        records: Iterator[Any] = iter(self.stream)
        batches = chain.from_iterable(repeat((size, collate), number) for number, size, collate in self.phases)
        for size, collate in islice(batches, worker, None, num_workers):
            yield collate(list(islice(records, size)))


def noted(batches: Iterable[dict[str, Any]], faults: FaultLog) -> Iterator[dict[str, Any]]:
    """The batches, after telling `faults` what could not be used in them."""
    for batch in batches:
        faults.note(batch.pop("faults", ()), len(batch["labels"]))
        yield batch


__all__ = ["build_collator", "draw_windows"]
