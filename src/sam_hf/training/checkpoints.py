"""Folders that are either complete or absent, which of them a run goes on from, and what it needs besides weights."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from .optimization import WeightAverage

BEST, LAST, EARLIER = "best", "last", "earlier"
MANIFEST = "manifest.json"
STATE_FILE = "training_state.pt"


@contextmanager
def replace_folder(target: Path, step: int = 0, keep: int = 0, num_bytes: int = 0) -> Iterator[Path]:
    """An empty folder to write to, which takes the place of `target` when the block ends without error.

    A manifest of all files, with their sizes and SHA-256, is written last and everything reaches the disk before the
    rename. A process that is killed leaves `target` as it was, or (between two renames) its former content under a
    name that `find_folder` knows. Whatever else it leaves is removed by the next call; an error removes it at once.

    Args:
        target: folder to replace.
        step: goes into the manifest.
        keep: how many former contents of `target` stay, as `earlier/step_...` beside it; the oldest are removed.
        num_bytes: what will be written takes at least so many, as far as that is known.

    Raises:
        OSError: if the disk is full, which the number of bytes tells before anything is written.
    """
    partial, former = target.with_name(f"{target.name}.partial"), _former(target)
    shutil.rmtree(partial, ignore_errors=True)
    with _errors_of_disk(target, num_bytes):
        partial.mkdir(parents=True)
        try:
            if num_bytes > shutil.disk_usage(partial).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield partial
            _write_manifest(partial, step)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if target.exists():
        _retire(former, keep)
        target.rename(former)
    partial.rename(target)
    flush(target.parent)
    _retire(former, keep, step)


@contextmanager
def _errors_of_disk(target: Path, num_bytes: int) -> Iterator[None]:
    """Says of errors of writing what was needed and what there is; some libraries have their own for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        place = next(folder for folder in target.parents if folder.exists())
        needed, free = num_bytes / 2**20, shutil.disk_usage(place).free / 2**20
        raise OSError(
            f"{target} could not be written: {error}. It takes {needed:,.0f} MB, and {free:,.0f} MB are free on its "
            "disk (a quota may allow less). What was saved before is intact: make room and go on with --resume."
        ) from error


def replace_file(target: Path, text: str) -> None:
    """Write a file that a process that is killed leaves as it was."""
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(text)
    flush(partial)
    partial.replace(target)


def find_folder(target: Path) -> Path | None:
    """The newest folder that `replace_folder(target)` wrote and that is intact, if any; a damaged one gets a warning.

    Looks at `target`, its former content, and earlier ones from the newest to the oldest.
    """
    earlier = sorted((target.parent / EARLIER).glob("step_*"), reverse=True) if target.name == LAST else []
    for folder in (target, _former(target), *earlier):
        if not folder.is_dir():
            continue
        damage = find_damage(folder)
        if damage is None:
            return folder
        warnings.warn(f"{folder} is not used: {damage}.", stacklevel=2)
    return None


def find_damage(folder: Path) -> str | None:
    """What differs from the manifest of a folder, None if nothing does."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"it has no readable {MANIFEST}"
    for name, entry in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if entry != _describe(path):
            return f"{name} is not as it was written"
    return None


def starting_point(output_dir: Path, resume: bool | str) -> Path | None:
    """The checkpoint that a run starts from: the newest intact one in `output_dir` to resume, else None.

    Args:
        resume: whether to, as a bool or a word; "auto" if there is a checkpoint.

    Raises:
        ValueError: if there is nothing to resume, or a run in the folder that a new one would overwrite.
    """
    holds_run = any((output_dir / name).is_dir() for name in (LAST, f"{LAST}.former", BEST))
    asked = str(resume).lower()
    resume = holds_run if asked == "auto" else asked == "true"
    if not resume and holds_run:
        raise ValueError(
            f"{output_dir} already holds a run: continue it with --resume, or give another --output_dir "
            "(or delete the folder)."
        )
    last = find_folder(output_dir / LAST) if resume else None
    if resume and last is None:
        raise ValueError(
            f"there is no intact checkpoint {output_dir / LAST} to resume: start the run without --resume, in a new "
            "--output_dir if there is anything in this one."
        )
    return last


@dataclass
class TrainingState:
    """Where a run stands.

    All chance in training is keyed by the number of a draw, so no state of a random generator belongs here.

    Args:
        step: optimizer steps done, skipped ones included.
        draws: samples used by all processes together; the next one drawn has this number.
        best_score: of the weights in `best`.
        evaluated_step: step of the last evaluation.
        skipped_steps: steps left out because their loss or gradient was not finite.
        evaluations_since_best: evaluations after that of `best`.
    """

    step: int = 0
    draws: int = 0
    best_score: float = float("-inf")
    evaluated_step: int = 0
    skipped_steps: int = 0
    evaluations_since_best: int = 0

    def is_due(self, max_steps: int, eval_every: int) -> bool:
        """Whether an evaluation belongs here that has not been made."""
        at_end = self.step == max_steps
        return self.evaluated_step < self.step and (at_end or self.step % eval_every == 0)

    def take_score(self, score: float) -> bool:
        """Take note of an evaluation of the weights of now; whether they are the best."""
        is_best = score > self.best_score
        self.best_score = max(score, self.best_score)
        self.evaluated_step = self.step
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def save(self, folder: Path, optimizer: Optimizer, trained: dict[str, Tensor] | None = None) -> None:
        """Write the state and the moments of the optimizer; `trained` if the weights in the folder are averages."""
        moments, names = optimizer.state_dict()["state"], _names(optimizer)
        moments = {names[index]: value for index, value in moments.items()}
        torch.save(asdict(self) | {"optimizer": moments, "trained": trained}, folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path, optimizer: Optimizer, average: WeightAverage | None = None) -> "TrainingState":
        """Read what `save` wrote, and give `optimizer` its moments and the model the weights that are trained back.

        Hyperparameters of the optimizer stay as they are: a run may go on with another learning rate or weight decay.

        Raises:
            ValueError: if the optimizer has other parameters than the saved one or keeps other moments of them, or
                only one of the runs averages.
        """
        values = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        moments, names = values.pop("optimizer"), _names(optimizer)
        if not moments.keys() <= set(names):
            raise ValueError(
                f"{folder / STATE_FILE} holds an optimizer of {len(moments)} parameters, but the model trains "
                f"{len(names)}, or others: resume with the --model and --freeze of that run."
            )
        for group in optimizer.param_groups:
            moment = "exp_avg" if "betas" in group else "momentum_buffer"  # AdamW's or Muon's
            if any(name in moments and moment not in moments[name] for name in group["param_names"]):
                raise ValueError(f"{folder} is of a run with another --optimizer: resume it with that.")
        trained = values.pop("trained")
        if (trained is None) != (average is None):
            raise ValueError(f"{folder} is of a run {'without' if average else 'with'} --ema_decay: resume it so.")
        optimizer.load_state_dict(
            {
                "state": {index: moments[name] for index, name in enumerate(names) if name in moments},
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
        if average is not None:
            average.restore(trained)
        return cls(**values)


def _names(optimizer: Optimizer) -> list[str]:
    """Names of the parameters in the order in which the optimizer numbers them."""
    return [name for group in optimizer.state_dict()["param_groups"] for name in group["param_names"]]


def _write_manifest(folder: Path, step: int) -> None:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)  # of a copied folder
    manifest = {"step": step, "files": {name: _describe(path) for name, path in files.items()}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in (*files.values(), folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        # Else a power cut may keep the rename and lose the content.
        flush(path)


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def flush(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk, so that a power cut leaves them."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retire(former: Path, keep: int, newest: int | None = None) -> None:
    """Put what was replaced among the `keep` earlier folders if it is intact and not of `newest`; or remove it."""
    earlier = former.parent / EARLIER
    is_intact = keep and former.exists() and find_damage(former) is None
    step = json.loads((former / MANIFEST).read_text())["step"] if is_intact else newest
    if step != newest:
        kept = earlier / f"step_{step:08d}"
        shutil.rmtree(kept, ignore_errors=True)
        earlier.mkdir(exist_ok=True)
        former.rename(kept)
    shutil.rmtree(former, ignore_errors=True)
    if keep:
        for folder in sorted(earlier.glob("step_*"))[:-keep]:
            shutil.rmtree(folder)


def _former(target: Path) -> Path:
    return target.with_name(f"{target.name}.former")


__all__ = [
    "BEST",
    "LAST",
    "MANIFEST",
    "STATE_FILE",
    "TrainingState",
    "find_damage",
    "find_folder",
    "flush",
    "replace_file",
    "replace_folder",
    "starting_point",
]
