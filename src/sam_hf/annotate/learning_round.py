"""A round of learning: a model trains on what is annotated, and is compared with the one before on other images.

The mask decoder and the prompt encoder train, by simulated clicks as in `examples/train.py`, and go on from the best
model so far: each round takes little time. The image encoder stays, so that each image is encoded once for all rounds,
and so does an instance decoder: it would learn that what is not annotated yet is no object.

What tells whether a model is better are images that neither of the two has learned from: those that a run of
`examples/train.py` on the same folder would hold back, which no round ever trains on; and where these have too few
objects the newest images, which this round does not train on.
"""

import json
import time
from collections.abc import Callable, Container
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Subset

from ..convert import load_checkpoint
from ..data import FaultLog
from ..data.splits import is_in_split, splits_table
from ..evaluation import ClickSummary, SamHfPredictor, evaluate
from ..evaluation.summary import SHOWN_CLICKS
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..training import (
    InteractiveTrainer,
    Options,
    StepResult,
    TrainingState,
    draw_windows,
    freeze,
    open_cache,
    parameter_groups,
    replace_folder,
    set_learning_rate,
    shared_batches,
    warmup_cosine,
)
from ..training.parts import freeze_object_score
from ..training.step import find_non_finite

# Objects that tell which model is better, and images that are looked at for it.
NUM_TELLING, MAX_TELLING_IMAGES = 10, 24
MIN_GAIN = 0.005
LEARNED = "learned.json"
RECIPE: dict[str, Any] = {
    "freeze": "encoder,instances",
    "augment": False,
    "center_share": 0.5,
    "batch_size": 2,
    "max_objects": 4,
    "num_corrections": 1,
    "learning_rate": 1e-4,
    "warmup_steps": 10,
    "max_steps": 160,
    "num_workers": 0,
}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Round:
    """What a round needs.

    Args:
        data: folder that has `masks/`; images: folder of the images.
        model: what to start from, and to be better than, as `load_checkpoint` takes it, with `image_size`.
        target: the folder to write the model to.
        cache: a folder for embeddings.
        device: "cpu", or the kind of an accelerator.
        seconds: that training computes, at most; where these are over first, fewer steps are taken.
        seed: of all chance.
        recipe: fields of `Options`.
    """

    data: Path
    images: Path | None
    model: str
    image_size: int | None
    target: Path
    cache: Path
    device: str = "cpu"
    seconds: float = 150.0
    seed: int = 0
    recipe: dict[str, Any] = field(default_factory=lambda: RECIPE)

    @property
    def options(self) -> Options:
        return Options(
            dataset=str(self.data),
            images=None if self.images is None else str(self.images),
            masks="labels",
            exif="shown",
            embedding_cache=str(self.cache),
            seed=self.seed,
            **self.recipe,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a round.

    Args:
        num_images: that were trained on.
        num_telling: objects in other images; before, after: their mean IoU after `SHOWN_CLICKS`, of the model before
            and of this one.
        gain: mean over these objects and 1 to 5 clicks; error: its standard error.
    """

    num_images: int
    num_telling: int
    before: list[float]
    after: list[float]
    gain: float
    error: float

    @property
    def is_better(self) -> bool:
        """A gain need not be sure, which few objects make none: the next round goes on from there."""
        return self.num_telling >= NUM_TELLING and self.gain >= MIN_GAIN


def learn(given: Round, tell: Tell = lambda _: None) -> Outcome:
    """Train, compare, and write `target` if that is better.

    Raises:
        ValueError: if the data cannot be used, or is too little.
        FloatingPointError: if loss or gradient are not finite.
    """
    options = given.options
    accelerator = Accelerator(cpu=given.device == "cpu")
    model, processor, _ = load_checkpoint(given.model, given.image_size)
    model.to(accelerator.device)
    known = learned_from(given.model)
    train_set, telling = share_out(options, known)
    before = clicked(model, processor, telling, accelerator)
    freeze(model, options.frozen or ())
    freeze_object_score(model)
    start = {weight: weight.detach().clone() for weight in model.parameters() if weight.requires_grad}
    train(model, processor, train_set, options, accelerator, given.seconds, tell)
    go_half_back(start)
    tell("comparing")
    after = clicked(model, processor, telling, accelerator)
    outcome = compare(before, after, len(train_set))
    if outcome.is_better:
        with replace_folder(given.target) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / LEARNED).write_text(json.dumps({"images": sorted(known | ids_of(train_set))}) + "\n")
    return outcome


def learned_from(model: str | Path) -> set[str]:
    """Names of the images that rounds trained a model on."""
    file = Path(model) / LEARNED
    return set(json.loads(file.read_text())["images"]) if file.is_file() else set()


def ids_of(part: Any) -> set[str]:
    return {part.dataset.ids[index] for index in part.indices}


def share_out(options: Options, known: Container[str]) -> tuple[Subset, Subset]:
    """The annotated images to train on, and those that tell: of these none is in `known`.

    Raises:
        ValueError: if there are too few objects.
    """
    records: Any = options.open(options.dataset, None)
    names = records.ids
    counts = [len(records.object_filter(records.read_objects(index))) for index in range(len(names))]
    held = held_back(options, names)
    telling = [index for index, name in enumerate(names) if name in held and name not in known]
    new = [index for index, name in enumerate(names) if name not in held and name not in known]
    new.sort(key=lambda index: (records.root / "masks" / f"{names[index]}.png").stat().st_mtime_ns)
    while new and sum(counts[index] for index in telling) < NUM_TELLING:
        telling.append(new.pop())
    training = [index for index, name in enumerate(names) if name not in held and index not in telling]
    for what, chosen, needed in (("compare models", telling, NUM_TELLING), ("train", training, 1)):
        if (found := sum(counts[index] for index in chosen)) < needed:
            raise ValueError(f"{found} objects in images to {what} on, expected {needed}: annotate more images")
    return Subset(records, training), Subset(records, sorted(telling))


def held_back(options: Options, ids: list[str]) -> set[str]:
    """The images that a run on the same folder holds back, however many are annotated by then."""
    if splits_table(Path(options.dataset)) is None:
        return {name for name in ids if is_in_split(name, options.eval_split)}
    return set(ids) - set(options.open(options.dataset, options.train_split).ids)  # type: ignore[attr-defined]


def train(
    model: SamHfModel,
    processor: SamHfProcessor,
    train_set: Subset,
    options: Options,
    accelerator: Accelerator,
    seconds: float,
    tell: Tell,
) -> None:
    """The loop of `examples/train.py` without what keeps a long run; `model` is in eval mode afterwards."""
    trainer: Any = InteractiveTrainer(
        model,
        center_share=options.center_share,
        encode=open_cache(model, options.embedding_cache, options.augment),
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, options.weight_decay), fused=True)
    trainer, optimizer = accelerator.prepare(trainer.train(), optimizer)
    state, faults = TrainingState(), FaultLog(options.max_fault_share)
    begin = time.process_time()  # as it gives way to others
    windows = draw_windows(train_set, processor, state, faults, options, accelerator, model.config)
    with closing(windows):  # type: ignore[type-var]
        for window in windows:
            spent = (time.process_time() - begin) / torch.get_num_threads()
            done = max(state.step, int(options.max_steps * spent / seconds))
            if done >= options.max_steps:
                break
            tell(f"{done / options.max_steps:.0%}")
            share = warmup_cosine(done, options.warmup_steps, options.max_steps, options.max_steps // 2)
            set_learning_rate(optimizer, (options.learning_rate or 0) * share)
            outputs = []
            for batch in shared_batches(accelerator, trainer, window, seed=options.seed, first_draw=state.draws):
                outputs.append(trainer(**batch))
                accelerator.backward(outputs[-1].loss)
            norm = accelerator.clip_grad_norm_(trainer.parameters(), options.max_grad_norm)
            fault = find_non_finite(accelerator, window, StepResult.of(outputs).losses, norm)
            if fault is not None:
                raise FloatingPointError(fault)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            state.draws += sum(len(batch["labels"]) for batch in window)
    model.eval()


@torch.no_grad()
def go_half_back(start: dict[nn.Parameter, Tensor]) -> None:
    """Change weights to the middle between them and what they were at the `start` (Wortsman et al. 2022, WiSE-FT).

    Of few images a model learns the wrong things, too; this gains more, and more surely (docs/log.md).
    """
    for weight, before in start.items():
        weight.lerp_(before, 0.5)


def clicked(model: SamHfModel, processor: SamHfProcessor, records: Subset, accelerator: Accelerator) -> ClickSummary:
    """Five centre clicks on each object."""
    given: Any = SamHfPredictor(model, processor), records, FaultLog(), MAX_TELLING_IMAGES
    summary = evaluate(*given, accelerator=accelerator)
    assert summary is not None, "nothing interrupts it"
    return summary


def compare(before: ClickSummary, after: ClickSummary, num_images: int) -> Outcome:
    """Of the same objects."""
    gains = (after.iou.astype(float) - before.iou).mean(axis=1)
    first, second = ([summary.iou_per_click[count - 1] for count in SHOWN_CLICKS] for summary in (before, after))
    error = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else float("inf")
    return Outcome(num_images, len(gains), first, second, float(gains.mean()), error)


__all__ = ["RECIPE", "Outcome", "Round", "learn", "learned_from"]
