"""The record of a run as JSON lines, TensorBoard and curves; a resumed one tells every step once."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from ..evaluation import ClickSummary
from .checkpoints import replace_file
from .state import TrainingState

LOG_FILE = "log.jsonl"
SCORE = "validation/score"
CURVES = {
    "loss": ("train/loss",),
    "IoU in training": ("train/iou_click_1", "train/iou_click_2", "train/iou_click_4", "train/iou_click_8"),
    "IoU in validation": ("validation/iou_click_1", "validation/iou_click_3", "validation/iou_click_5"),
    "learning rate": ("train/learning_rate",),
}


class RunLog:
    """Writes `log.jsonl`, `tensorboard` and `curves.png` of a run folder, in the main process only.

    Args:
        accelerator: created with `log_with="tensorboard"` and the run folder.
        folder: of the run.
        state: where the run starts. What an interrupted one wrote about later steps is dropped: they are done again.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, state: TrainingState):
        self.accelerator, self.path = accelerator, folder / LOG_FILE
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
        if accelerator.is_main_process:
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

    def evaluation(self, summary: ClickSummary, step: int) -> ClickSummary:
        """Take note of an evaluation, which is returned; it is printed and pictured as well."""
        clicks = {f"validation/iou_click_{n}": iou for n, iou in enumerate(summary.iou_per_click, start=1)}
        self.write({**clicks, SCORE: summary.score}, step)
        picture = np.asarray(summary.picture())[None]
        tracker = self.accelerator.get_tracker("tensorboard")
        tracker.log_images({"validation/predictions": picture}, step=step, dataformats="NHWC")
        ious = ", ".join(f"{iou:.3f} ({n})" for n, iou in enumerate(summary.iou_per_click, start=1))
        tqdm.write(f"step {step}: validation IoU {ious}")
        return summary

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


__all__ = ["LOG_FILE", "RunLog", "read_log"]
