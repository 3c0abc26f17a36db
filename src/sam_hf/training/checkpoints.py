"""Folders that are either complete or absent, and what a run needs beside the weights to go on exactly."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

LAST, BEST = "last", "best"
STATE_FILE = "training_state.pt"


@dataclass
class TrainingState:
    """Where a run stands.

    All chance in training is keyed by the number of a draw, so no state of a random generator belongs here.

    Args:
        step: optimizer steps done.
        draws: samples used by all processes together; the next one drawn has this number.
        best_score: of the weights in `best`.
    """

    step: int = 0
    draws: int = 0
    best_score: float = float("-inf")

    def save(self, folder: Path, optimizer: Optimizer) -> None:
        torch.save(asdict(self) | {"optimizer": optimizer.state_dict()["state"]}, folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path, optimizer: Optimizer) -> "TrainingState":
        """Read what `save` wrote, and give `optimizer` its moments back.

        Its hyperparameters stay as they are: a run may go on with another learning rate or weight decay.

        Raises:
            ValueError: if the optimizer has other parameters than the saved one.
        """
        values = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        moments, groups = values.pop("optimizer"), optimizer.state_dict()["param_groups"]
        indices = {index for group in groups for index in group["params"]}
        if not moments.keys() <= indices:
            raise ValueError(
                f"{folder / STATE_FILE} holds an optimizer of {len(moments)} parameters, but the model trains "
                f"{len(indices)}: resume with the --model of that run."
            )
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return cls(**values)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `target` when the block ends without error.

    A process that is killed leaves `target` as it was, or (between two renames) its former content under the name
    that `find_folder` knows. Whatever else it leaves is removed by the next call.
    """
    partial, former = target.with_name(f"{target.name}.partial"), _former(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in partial.rglob("*"):
        if path.is_file():
            # Else a power cut may keep the rename and lose the content.
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    partial.rename(target)
    shutil.rmtree(former, ignore_errors=True)


def find_folder(target: Path) -> Path | None:
    """The complete folder that `replace_folder(target)` last wrote, if any."""
    return next((folder for folder in (target, _former(target)) if folder.is_dir()), None)


def starting_point(output_dir: Path, resume: bool) -> Path | None:
    """The checkpoint that a run starts from: `last` in `output_dir` to resume, else None.

    Raises:
        ValueError: if there is nothing to resume, or a run in the folder that a new one would overwrite.
    """
    last = find_folder(output_dir / LAST)
    if resume and last is None:
        raise ValueError(f"there is no checkpoint {output_dir / LAST} to resume: start the run without --resume.")
    if not resume and (last or find_folder(output_dir / BEST)):
        raise ValueError(
            f"{output_dir} already holds a run: continue it with --resume, or give another --output_dir "
            "(or delete the folder)."
        )
    return last


def _former(target: Path) -> Path:
    return target.with_name(f"{target.name}.former")


__all__ = [
    "BEST",
    "LAST",
    "STATE_FILE",
    "TrainingState",
    "find_folder",
    "replace_folder",
    "starting_point",
]
