"""A run that fits its machine: what `--minutes` and `--batch_size auto` choose, before anything is built."""

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data import Records, RecordStream
from ..data.check import check_dataset
from .batch_fitting import fit_batch
from .checkpoints import replace_file
from .models import find_config, has_weights
from .options import AUTO_BATCH, Options
from .planning import (
    THRESHOLD_SHARE,
    Candidate,
    Choice,
    DataFigures,
    Schedule,
    candidates,
    enough_steps,
    image_size,
    schedule,
)
from .process import process_seconds
from .rehearsal import Builders
from .speed import Speed, agreed_longest, measure

PLAN = "plan.json"
# Training images that a plan looks at, in this share of the minutes at most.
CHECKED_IMAGES, CHECKED_SHARE = 50, 0.02
# Of the minutes, after which no other image size or number of rounds is tried.
TRIED_SHARE = 0.25
BATCH_OPTIONS = ("batch_size", "whole_batch_size")
PLANNED = (
    "image_size",
    "max_objects",
    "num_corrections",
    "max_steps",
    "warmup_steps",
    "eval_every",
    "eval_images",
    "final_eval_images",
    "threshold_images",
)


def fit_to_machine(
    options: Options,
    checkpoint: Path | None,
    accelerator: Accelerator,
    builders: Builders,
    train_set: Records | RecordStream,
    validation_set: Records,
) -> None:
    """Put numbers into `options` for `--minutes` and `--batch_size auto`, the same in all processes.

    All that is measured is built for it and thrown away, and the generators of torch are left as they are: the run is
    the same as one that was given the numbers. One that continues a `checkpoint` takes those of its `options.yaml`.

    Raises:
        ValueError: for `--minutes` with a stream, without objects, or as `fit_batch`.
    """
    if options.minutes is None and options.batch_size != AUTO_BATCH:
        return
    if checkpoint is not None:
        take_up(options)
        return
    begin = time.monotonic() - process_seconds()
    with apart(accelerator):
        if options.minutes is None:
            adopt(options, fit_batch(options, accelerator, builders))
            return
        if isinstance(train_set, RecordStream):
            raise ValueError("--minutes plans by the images of a data set, which --streaming does not list.")
        Planner(options, accelerator, builders, train_set, validation_set, begin).plan()


def adopt(options: Options, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(options, name, value)


def take_up(options: Options) -> None:
    """What the run that goes on was planned with."""
    known = yaml.safe_load((Path(options.output_dir) / "options.yaml").read_text())
    names = [*BATCH_OPTIONS, "max_objects"] if options.batch_size == AUTO_BATCH else []
    names += PLANNED if options.minutes is not None else []
    adopt(options, {name: known[name] for name in names if name not in options.explicit - {"batch_size"}})


@contextmanager
def apart(accelerator: Accelerator) -> Iterator[None]:
    """Leave torch's generators as they are, and no memory taken."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
    gc.collect()
    if devices:
        torch.cuda.empty_cache()


class Planner:
    """Plans a run by trying what it does.

    Args:
        options: get what is chosen.
        begin: when the command was started, by `time.monotonic`.
    """

    def __init__(
        self,
        options: Options,
        accelerator: Accelerator,
        builders: Builders,
        train_set: Records,
        validation_set: Records,
        begin: float,
    ):
        assert options.minutes is not None
        self.options, self.accelerator, self.builders = options, accelerator, builders
        self.train_set, self.validation_set, self.begin, self.minutes = (
            train_set,
            validation_set,
            begin,
            options.minutes,
        )
        self.start = self.spent()  # as long as other processes take, too
        self.is_trained = has_weights(options.model)
        self.vision = find_config(options.model, options.image_size).vision_config
        (self.figures,) = broadcast_object_list([self.look()])

    def spent(self) -> float:
        return agreed_longest(self.accelerator, time.monotonic() - self.begin)

    def look(self) -> DataFigures:
        """At some training images."""
        num_images = len(self.train_set)
        places = np.linspace(0, num_images - 1, min(CHECKED_IMAGES, num_images)).round().astype(int).tolist()
        end = time.monotonic() + CHECKED_SHARE * 60 * self.minutes

        def in_time() -> Iterator[int]:
            for index in places:
                yield index
                if time.monotonic() > end:
                    return

        return DataFigures.of(check_dataset(self.train_set, in_time()), num_images, len(self.validation_set))

    def plan(self) -> None:
        """Choose, print and write the plan."""
        possible = candidates(self.options, self.figures, self.vision)
        enough = enough_steps(self.options, self.is_trained)
        cheapest = options, speed, made = self.tried(possible[0])
        for candidate in reversed(possible[1:]):
            seconds = candidate.step_from(possible[0], *cheapest[:2])
            if made.step * made.steps_that_fit < enough * seconds or self.spent() > TRIED_SHARE * 60 * self.minutes:
                continue
            found = self.tried(candidate)
            if found[-1].steps_that_fit >= enough:
                options, speed, made = found
                break
        if made.steps_that_fit < enough and "max_steps" not in options.explicit:
            self.accelerator.print(f"{self.minutes:g} minutes are short: fewer than {enough} steps learn little")
        made = self.schedule(options, speed)  # with the time that is left now
        made.choices.update(self.explained(options, possible[-1]))
        adopt(self.options, {name: getattr(options, name) for name in BATCH_OPTIONS})
        adopt(self.options, {name: choice.value for name, choice in made.choices.items()})
        if self.accelerator.is_main_process:
            print(table(made, self.minutes), flush=True)
            self.write(made, speed)

    def tried(self, candidate: Candidate) -> tuple[Options, Speed, Schedule]:
        options = replace(self.options, **asdict(candidate))
        options.explicit = self.options.explicit
        adopt(options, fit_batch(options, self.accelerator, self.builders))
        given = self.accelerator, self.builders, self.train_set, self.validation_set
        speed = measure(options, *given, threshold_seconds=THRESHOLD_SHARE * 60 * self.minutes)
        return options, speed, self.schedule(options, speed)

    def schedule(self, options: Options, speed: Speed) -> Schedule:
        return schedule(
            options,
            self.figures,
            speed,
            minutes=self.minutes,
            spent=self.spent(),
            start=self.start,
            is_trained=self.is_trained,
            num_processes=self.accelerator.num_processes,
        )

    def explained(self, options: Options, best: Candidate) -> dict[str, Choice]:
        _, reason = image_size(self.figures, self.vision)
        reasons = {
            "image_size": reason if options.image_size == best.image_size else f"less than {best.image_size} for time",
            "max_objects": f"an image has {self.figures.objects} (median)"
            if options.max_objects == best.max_objects
            else "fewer for memory",
            "num_corrections": "there is time"
            if options.num_corrections == best.num_corrections
            else "fewer for time",
        }
        return {
            name: Choice(getattr(options, name), "given" if name in self.options.explicit else why)
            for name, why in reasons.items()
        }

    def write(self, made: Schedule, speed: Speed) -> None:
        plan = {
            "minutes": self.minutes,
            "started": time.time() - self.spent_here(),
            "planned_seconds": {name: round(seconds, 3) for name, seconds in made.parts.items()},
            "choices": {name: choice._asdict() for name, choice in made.choices.items()},
            "data": self.figures._asdict(),
            "seconds": asdict(speed),
        }
        folder = Path(self.options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / PLAN, json.dumps(plan, indent=2) + "\n")

    def spent_here(self) -> float:
        return time.monotonic() - self.begin


def table(made: Schedule, minutes: float) -> str:
    """The plan, for people."""
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made.parts.items())
    lines = [f"plan for {minutes:g} minutes: {made.seconds / 60:.1f} ({parts})"]
    lines += [f"  {name:18}{choice.value:>8}  {choice.reason}" for name, choice in made.choices.items()]
    return "\n".join(lines)


def compare_with_plan(options: Options, checkpoint: Path | None, accelerator: Accelerator) -> None:
    """Say how far off the plan of a run was that has ended, and add it to `plan.json`; nothing of one that went on."""
    if options.minutes is None or checkpoint is not None or not accelerator.is_main_process:
        return
    path = Path(options.output_dir) / PLAN
    plan = json.loads(path.read_text())
    planned, taken = sum(plan["planned_seconds"].values()) / 60, (time.time() - plan["started"]) / 60
    print(
        f"took {taken:.2f} minutes: {taken / options.minutes - 1:+.0%} of --minutes {options.minutes:g}, "
        f"{taken / planned - 1:+.0%} of the {planned:.2f} that were planned"
    )
    replace_file(path, json.dumps(plan | {"taken_seconds": round(60 * taken, 3)}, indent=2) + "\n")


__all__ = ["PLAN", "compare_with_plan", "fit_to_machine"]
