"""What a run tells while it goes: a log of JSON lines, TensorBoard, curves, a bar on a terminal, and its memory."""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.tracking import TensorBoardTracker
from torch import Tensor, nn
from tqdm import tqdm

from ..evaluation import ClickSummary
from .checkpoints import TrainingState, replace_file
from .memory_use import MEGABYTE, KeptForBackward, weight_bytes
from .process import peak_memory

LOG_FILE = "log.jsonl"
SCORE = "validation/score"
CURVES = {
    "loss": ("train/loss",),
    "IoU in training": ("train/iou_click_1", "train/iou_click_2", "train/iou_click_4", "train/iou_click_8"),
    "IoU in validation": ("validation/iou_click_1", "validation/iou_click_3", "validation/iou_click_5"),
    "learning rate": ("train/learning_rate",),
}
NUM_LINES = 10


class TensorBoard(TensorBoardTracker):
    """TensorBoard with the options as a text: accelerate's hyperparameters are a run of their own at every start."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        if PartialState().is_main_process:
            self.writer.add_text("options", "".join(f"    {name}: {value}\n" for name, value in values.items()))

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        super().log_images({name: np.stack(images) for name, images in values.items()}, step, dataformats="NHWC")


class RunLog:
    """Writes `log.jsonl`, `curves.png` and what trackers write (`tensorboard`), in the main process only.

    Args:
        accelerator: created with `log_with` and the run folder.
        folder: of the run; its name is that of the project in other trackers than TensorBoard.
        state: where the run starts. What an interrupted one wrote about later steps is dropped: they are done again.
        options: of the run, for the trackers.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, state: TrainingState, options: dict[str, Any] | None = None
    ):
        self.accelerator, self.path = accelerator, folder / LOG_FILE
        own = TensorBoard("tensorboard", folder, purge_step=state.step + 1)
        accelerator.log_with = [own if str(name) == own.name else name for name in accelerator.log_with]
        accelerator.init_trackers(folder.resolve().name, options)
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            lines = read_log(self.path)
            kept = [line for line in lines if line["step"] <= (state.evaluated_step if SCORE in line else state.step)]
            replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict[str, float], step: int) -> None:
        """One line of values, by names such as `train/loss`, after step 1, 2, ...; leaves out what is not finite."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self.accelerator.log(values, step=step)

    def evaluation(self, summary: ClickSummary, step: int) -> None:
        """Take note of an evaluation; it is printed and pictured as well."""
        clicks = {f"validation/iou_click_{n}": iou for n, iou in enumerate(summary.iou_per_click, start=1)}
        self.write({**clicks, SCORE: summary.score}, step)
        if not self.accelerator.is_main_process:
            return
        picture = np.asarray(summary.picture())
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):  # some take numbers only
                tracker.log_images({"validation/predictions": [picture]}, step=step)
        ious = ", ".join(f"{iou:.3f} ({n})" for n, iou in enumerate(summary.iou_per_click, start=1))
        tqdm.write(f"step {step}: validation IoU {ious}")

    def plot(self) -> None:
        """Draw the curves of the whole run to `curves.png`."""
        from matplotlib.figure import Figure  # a second to import, and only needed here

        lines = read_log(self.path)
        figure = Figure(figsize=(12, 8))
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
            for name in names:
                points = [(line["step"], line[name]) for line in lines if name in line]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), label=name.split("/")[-1], marker="." if len(points) < 30 else None
                    )
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()
        figure.subplots_adjust(hspace=0.3)
        figure.savefig(self.path.with_name("curves.png"))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`; an unfinished last one is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


class TrainingProgress:
    """Reports the means of every `log_every` steps over all processes.

    Args:
        accelerator: tells who prints.
        log: takes `train/...` values.
        max_steps: of the run; first_step: steps done before.
        log_every: steps between two reports.
    """

    def __init__(self, accelerator: Accelerator, log: RunLog, max_steps: int, log_every: int, first_step: int):
        self.accelerator, self.log = accelerator, log
        self.first_step, self.max_steps, self.log_every = first_step, max_steps, log_every
        self.start = self.last = time.monotonic()
        self.durations: list[float] = []
        self.waited = 0.0
        self.pending: list[Tensor] = []
        self.num_lines = first_step * NUM_LINES // self.max_steps
        # None: no bar without a terminal.
        disable = None if accelerator.is_main_process else True
        self.bar = tqdm(total=self.max_steps, initial=first_step, disable=disable, unit="step", smoothing=0.05)

    def timed(self, windows: Iterable[Any]) -> Iterator[Any]:
        """The batches of one step after the other; takes note of how long each is waited for."""
        windows = iter(windows)
        while True:
            begin = time.monotonic()
            window = next(windows, None)
            self.waited += time.monotonic() - begin
            if window is None:
                return
            yield window

    def update(
        self, step: int, values: dict[str, Tensor], learning_rate: float, num_images: int, skipped_steps: int = 0
    ) -> None:
        """Take note of step 1, 2, ...; `values` as in `StepResult`, `num_images` of all processes."""
        self.pending.append(torch.stack([value.float() for value in values.values()]))
        now = time.monotonic()
        self.durations.append(now - self.last)
        self.last = now
        self.bar.update()
        if step % self.log_every and step < self.max_steps:
            return
        pending = torch.stack(self.pending)
        pending = pending.masked_fill(~pending.isfinite(), torch.nan)  # of steps that were left out
        means = self.accelerator.reduce(pending.nanmean(dim=0), "mean").tolist()
        means = dict(zip(values, means, strict=True))
        # The median leaves out what evaluations and checkpoints take.
        speed = num_images / statistics.median(self.durations)
        others = {
            "learning_rate": learning_rate,
            "images_per_second": round(speed, 3),
            "skipped_steps": skipped_steps,
            "data_wait_seconds": round(self.waited, 3),
            "peak_memory": round(peak_memory(self.accelerator.device) / MEGABYTE, 1),
        }
        self.pending.clear()
        self.durations.clear()
        self.waited = 0.0
        self.log.write({f"train/{name}": value for name, value in (means | others).items()}, step)
        clicks = [name for name in means if name.startswith("iou_click_")]
        text = ", ".join(
            [f"loss {means['loss']:.3f}"]
            + [f"IoU@{name.split('_')[-1]} {means[name]:.3f}" for name in dict.fromkeys((clicks[0], clicks[-1]))]
        )
        self.bar.set_postfix_str(f"{text}, {speed:.1f} images/s")
        if self.bar.disable and step * NUM_LINES // self.max_steps > self.num_lines:
            self.num_lines = step * NUM_LINES // self.max_steps
            remaining = self.remaining(step)
            self.accelerator.print(f"step {step}/{self.max_steps}: {text}, {speed:.1f} images/s, {remaining} left")

    def remaining(self, step: int) -> str:
        seconds = (time.monotonic() - self.start) / (step - self.first_step) * (self.max_steps - step)
        return tqdm.format_interval(seconds)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def close(self) -> None:
        self.bar.close()


def report_memory(trainer: nn.Module, whole: tuple[int, int], has_average: bool, write: Callable[[str], None]) -> None:
    """Measure the next forward pass of `trainer` and write a line on what a step of AdamW takes in each process.

    Weights, gradients and moments are counted; activations are what autograd keeps for the backward pass at the end of
    the forward pass, and grow with the pixels of the input. What is computed and dropped on the way is not counted.

    Args:
        trainer: an `InteractiveTrainer`, before it is wrapped; its input is `pixel_values` [B, 3, H, W].
        whole: batch size and side in pixels of whole images, which the last steps see.
        has_average: whether a `WeightAverage` is kept.
        write: takes the line.
    """
    kept = KeptForBackward()

    def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kept.__enter__()

    def end(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        kept.__exit__(None, None, None)
        for handle in handles:
            handle.remove()
        write(describe_memory(trainer, kept.num_bytes(trainer), kwargs["pixel_values"], whole, has_average))

    handles = [
        trainer.register_forward_pre_hook(begin, with_kwargs=True),
        trainer.register_forward_hook(end, with_kwargs=True, always_call=True),
    ]


def describe_memory(
    trainer: nn.Module, activations: int, pixel_values: Tensor, whole: tuple[int, int], has_average: bool
) -> str:
    """The line of `report_memory`; `activations` in bytes, `whole` images in a batch and side of these in pixels."""
    fixed = weight_bytes(trainer, has_average) / MEGABYTE
    kept = activations / MEGABYTE
    batch_size, side = whole
    largest = kept * batch_size * side**2 / pixel_values[:, 0].numel()
    of_whole = f", {largest:,.0f} MB of {batch_size} whole images" if largest > kept else ""
    return (
        f"memory of a step: {fixed:,.0f} MB for weights, gradients and AdamW, {kept:,.0f} MB kept for the backward "
        f"pass of a batch {list(pixel_values.shape)}{of_whole}"
    )


__all__ = [
    "LOG_FILE",
    "RunLog",
    "TrainingProgress",
    "read_log",
    "report_memory",
]
