"""What a run tells while it goes: a bar on a terminal, some ten lines in a log file, TensorBoard in either case."""

import time

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .interactive import InteractiveOutput

LOG_EVERY = 10
NUM_LINES = 10


class TrainingProgress:
    """Reports the means of every `LOG_EVERY` steps, as the main process sees them.

    Args:
        accelerator: its trackers take `train/...` values.
        first_step: steps done before.
        max_steps: steps when the run is over.
    """

    def __init__(self, accelerator: Accelerator, first_step: int, max_steps: int):
        self.accelerator = accelerator
        self.first_step, self.max_steps = first_step, max_steps
        self.start = time.monotonic()
        self.pending: list[Tensor] = []
        self.num_lines = first_step * NUM_LINES // max_steps
        # None: no bar without a terminal.
        disable = None if accelerator.is_main_process else True
        self.bar = tqdm(total=max_steps, initial=first_step, disable=disable, unit="step", smoothing=0.05)

    def update(self, step: int, output: InteractiveOutput, learning_rate: float) -> None:
        """Take note of step 1, 2, ..."""
        names = ["loss", *output.loss_dict, *(f"iou_click_{n + 1}" for n in range(len(output.iou_per_click)))]
        values = [output.loss.detach(), *output.loss_dict.values(), *output.iou_per_click]
        self.pending.append(torch.stack([value.float() for value in values]))
        self.bar.update()
        if step % LOG_EVERY and step < self.max_steps:
            return
        means = dict(zip(names, torch.stack(self.pending).mean(dim=0).tolist(), strict=True))
        self.pending.clear()
        self.accelerator.log(
            {f"train/{name}": mean for name, mean in means.items()} | {"train/learning_rate": learning_rate},
            step=step,
        )
        shown = {"loss": "loss", "IoU@1": "iou_click_1", f"IoU@{len(output.iou_per_click)}": names[-1]}
        text = ", ".join(f"{label} {means[name]:.3f}" for label, name in shown.items())
        self.bar.set_postfix_str(text)
        if self.bar.disable and step * NUM_LINES // self.max_steps > self.num_lines:
            self.num_lines = step * NUM_LINES // self.max_steps
            self.accelerator.print(f"step {step}/{self.max_steps}: {text}, {self.remaining(step)} left")

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
