"""What a run tells while it goes: a bar on a terminal, some ten lines in a log file, and the log of the run."""

import statistics
import time

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .options import Options
from .run_log import RunLog

NUM_LINES = 10


class TrainingProgress:
    """Reports the means of every `log_every` steps over all processes.

    Args:
        accelerator: tells who prints.
        log: takes `train/...` values.
        options: of the run.
        first_step: steps done before.
    """

    def __init__(self, accelerator: Accelerator, log: RunLog, options: Options, first_step: int):
        self.accelerator, self.log = accelerator, log
        self.first_step, self.max_steps, self.log_every = first_step, options.max_steps, options.log_every
        self.start = self.last = time.monotonic()
        self.durations: list[float] = []
        self.pending: list[Tensor] = []
        self.num_lines = first_step * NUM_LINES // self.max_steps
        # None: no bar without a terminal.
        disable = None if accelerator.is_main_process else True
        self.bar = tqdm(total=self.max_steps, initial=first_step, disable=disable, unit="step", smoothing=0.05)

    def update(self, step: int, values: dict[str, Tensor], learning_rate: float, num_images: int) -> None:
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
        self.pending.clear()
        self.durations.clear()
        self.log.write(
            {f"train/{name}": mean for name, mean in means.items()}
            | {"train/learning_rate": learning_rate, "train/images_per_second": round(speed, 3)},
            step,
        )
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


__all__ = ["TrainingProgress"]
