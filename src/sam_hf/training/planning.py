"""The rules of `--minutes`: what to train with in the time that there is. docs/training.md has where they are from."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..data.check import DatasetReport
from ..vision_configuration import VisionConfig
from .options import Options
from .speed import Speed

# Of the minutes, so that most runs end within them.
FILLED_SHARE = 0.95
# Masks of discs of so many cells of the mask grid are at best 0.97 of what they should be.
CELLS_OF_OBJECT = 6
# Of the objects may be smaller than that.
SMALL_SHARE = 0.1
MAX_OBJECTS = 8
CORRECTIONS = (1, 3)
# Fewer steps than these learn too little: then rounds and image size give way.
ENOUGH_STEPS, ENOUGH_TRAINED_STEPS = 300, 100
# More are learnt by heart.
DRAWS_PER_IMAGE = 2000
WARMUP_STEPS, WARMUP_SHARE = 50, 0.1
# Of the minutes: the last evaluation (and that before training), those on the way, and thresholds.
FINAL_SHARE, ON_THE_WAY_SHARE, THRESHOLD_SHARE = 0.1, 0.1, 0.05
EVALUATIONS, EVALUATED_IMAGES, THRESHOLD_IMAGES = 10, 32, 8


class Choice(NamedTuple):
    """The value of an option, and why."""

    value: Any
    reason: str


class DataFigures(NamedTuple):
    """What a plan goes by.

    Args:
        num_images, num_validation: of the splits.
        objects: median number of objects in an image.
        small: diameter of the disc as large as an object that a tenth is smaller than, over the longest side of its
            image.
        longest: median of the longest sides of the images in pixels.
    """

    num_images: int
    num_validation: int
    objects: int
    small: float
    longest: int

    @classmethod
    def of(cls, report: DatasetReport, num_images: int, num_validation: int) -> "DataFigures":
        """
        Raises:
            ValueError: if there is no object.
        """
        if not report.areas:
            raise ValueError("--minutes plans by the objects of the training data, but found none.")
        diameters = 2 / math.sqrt(math.pi) * report.shares
        counts = [count for count in report.counts if count]
        return cls(
            num_images,
            num_validation,
            math.ceil(np.median(counts)),
            float(np.quantile(diameters, SMALL_SHARE)),
            round(np.median([max(size) for size in report.sizes])),
        )


@dataclass
class Candidate:
    """What decides how long a step takes."""

    image_size: int
    num_corrections: int
    max_objects: int

    def step_from(self, other: "Candidate", options: Options, speed: Speed) -> float:
        """Seconds of a step by those of another: what is not for every pixel stays, and each round takes the same.

        Args:
            options, speed: of the other.
        """
        step, fixed = mean_step(options, speed), 0.0
        if len(speed.steps) > 1:
            (small, least), *_, (large, most) = sorted(speed.steps.items())
            slope = max(0.0, most - least) / (large**2 - small**2)
            fixed = max(0.0, least - slope * small**2)
        pixels = (self.image_size / other.image_size) ** 2
        rounds = (1 + self.num_corrections) / (1 + other.num_corrections)
        return (fixed + max(0.0, step - fixed) * pixels) * rounds


def candidates(options: Options, figures: DataFigures, vision: VisionConfig) -> list[Candidate]:
    """From the cheapest to the best, those options that are given left as they are."""
    wanted, _ = image_size(figures, vision)
    smallest = max(options.crop_size or [4 * vision.size_multiple])
    halves = [round_up(wanted / part, 2 * vision.size_multiple) for part in (4, 2)]
    sides = sorted({wanted, *(side for side in halves if side >= smallest)}) if wanted >= smallest else [smallest]
    if "image_size" in options.explicit:
        sides = [options.image_size or vision.image_size]
    rounds = [options.num_corrections] if "num_corrections" in options.explicit else list(CORRECTIONS)
    objects = options.max_objects if "max_objects" in options.explicit else min(figures.objects, MAX_OBJECTS)
    return [Candidate(side, rounds[0], objects) for side in sides] + [
        Candidate(sides[-1], number, objects) for number in rounds[1:]
    ]


def image_size(figures: DataFigures, vision: VisionConfig) -> tuple[int, str]:
    """The side of the model input that shows the objects, and what set it."""
    step = 2 * vision.size_multiple  # crops have half of it
    sides = {
        f"a tenth of the objects are smaller than {CELLS_OF_OBJECT} cells of the mask grid": CELLS_OF_OBJECT
        * vision.stride
        / 4
        / figures.small,
        "the images have no more pixels": figures.longest,
        "the model is made for it": vision.image_size,
    }
    reason = min(sides, key=lambda name: sides[name])
    return min(round_up(sides[reason], step), vision.image_size), reason


def round_up(value: float, step: int) -> int:
    return step * math.ceil(value / step)


def enough_steps(options: Options, is_trained: bool) -> int:
    if "max_steps" in options.explicit:
        return options.max_steps
    return ENOUGH_TRAINED_STEPS if is_trained else ENOUGH_STEPS


@dataclass
class Schedule:
    """How the minutes are spent.

    Args:
        choices: of options, whether they were given or not.
        step: seconds of an optimizer step, mean over all phases.
        steps_that_fit: into the minutes.
        parts: seconds of each part of the run.
    """

    choices: dict[str, Choice]
    step: float
    steps_that_fit: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def schedule(
    options: Options,
    figures: DataFigures,
    speed: Speed,
    *,
    minutes: float,
    spent: float,
    start: float,
    is_trained: bool,
    num_processes: int = 1,
) -> Schedule:
    """Evaluations by their shares of the minutes, and steps for what is left.

    Args:
        options: with the image size, objects and rounds of a candidate.
        spent: seconds that are gone; start: that a process of the loader takes to start.
    """
    whole = FILLED_SHARE * 60 * minutes
    at_ends = 2 if is_trained else 1
    choices: dict[str, Choice] = {}

    def choose(name: str, value: int, reason: str) -> int:
        is_given = name in options.explicit
        choices[name] = Choice(getattr(options, name), "given") if is_given else Choice(value, reason)
        return choices[name].value

    def fitting(share: float, seconds: float, most: int, least: int) -> int:
        return max(least, min(most, math.floor(share * whole / max(seconds, 1e-6))))

    last = choose(
        "final_eval_images",
        fitting(FINAL_SHARE, at_ends * speed.evaluation, figures.num_validation, 1),
        f"of {figures.num_validation}, in {FINAL_SHARE:.0%} of the time, {speed.evaluation:.2g} s each",
    )
    few = choose(
        "eval_images",
        fitting(ON_THE_WAY_SHARE, speed.evaluation, min(EVALUATED_IMAGES, last), 1),
        f"in {ON_THE_WAY_SHARE:.0%} of the time",
    )
    on_the_way = few * speed.evaluation + speed.save
    number = fitting(ON_THE_WAY_SHARE, on_the_way, EVALUATIONS, 1)
    each = speed.thresholds
    fitted = choose(
        "threshold_images",
        0 if each is None else fitting(THRESHOLD_SHARE, each, THRESHOLD_IMAGES, 0),
        f"in {THRESHOLD_SHARE:.0%} of the time, {'longer' if each is None else f'{each:.2g} s'} each",
    )
    parts = {
        "start": spent + speed.build + (start if options.num_workers else 0.0),
        "evaluations": number * on_the_way + (1 + at_ends * last) * speed.evaluation,
        "thresholds": fitted * (each or 0.0),
        "end": start,  # of the plots, cards and last checkpoint
    }
    step = mean_step(options, speed)
    images = options.batch_size * options.gradient_accumulation_steps * num_processes
    fit = math.floor((whole - sum(parts.values())) / step)
    most = math.ceil(DRAWS_PER_IMAGE * figures.num_images / images)
    steps = choose(
        "max_steps",
        max(1, min(fit, most)),
        f"{step:.2g} s each fill the time" if fit <= most else f"{DRAWS_PER_IMAGE} draws of each image are enough",
    )
    choose("warmup_steps", min(WARMUP_STEPS, math.ceil(WARMUP_SHARE * steps)), f"{WARMUP_SHARE:.0%} of the steps")
    choose("eval_every", math.ceil(steps / number), f"{number} evaluations, in {ON_THE_WAY_SHARE:.0%} of the time")
    return Schedule(choices, step, fit, parts | {"steps": steps * step})


def mean_step(options: Options, speed: Speed) -> float:
    """Seconds, over the phases of crops and whole images."""
    shares = options.crop_share if options.augment else []
    sides = list(speed.steps)
    of_sides = [*shares, 1 - sum(shares)]
    if len(sides) < len(of_sides):  # crops as large as whole images
        return max(speed.steps.values())
    return sum(share * speed.steps[side] for share, side in zip(of_sides, sides, strict=True))


__all__ = [
    "CELLS_OF_OBJECT",
    "THRESHOLD_SHARE",
    "Candidate",
    "Choice",
    "DataFigures",
    "Schedule",
    "candidates",
    "enough_steps",
    "image_size",
    "schedule",
]
