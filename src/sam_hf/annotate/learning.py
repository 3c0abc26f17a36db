"""Learns while somebody annotates: rounds of training in a process of its own, and a better model to take.

A round (`learning_round.py`) begins when `NUM_OBJECTS` more objects in `NUM_IMAGES` images are saved. The process is
started for it, gives way to others, and ends with it, or with this one; whatever becomes of it, annotation goes on.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from ..convert import load_checkpoint
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .folder import AnnotationFolder

if TYPE_CHECKING:
    from .learning_round import Outcome, Round

# Twenty objects take about as long to annotate as a round takes to learn. Those of one image are alike.
NUM_OBJECTS, NUM_IMAGES = 20, 4
NICENESS = 10
NUM_KEPT = 2  # models of this session


class Learner:
    """Starts rounds, and tells what came of them. It may be used by several threads.

    Args:
        folder: what is annotated. `models/` in its `output` takes `001`, `002`, ..., each better than the one before,
            of which the last two are kept, and `embeddings`.
        model: that annotation begins with, as `load_checkpoint` takes it, with `image_size`.
        device: of the models.
        num_threads: for the process; half of the cores when None.
        seed: of all chance.
        recipe: of `Round`.
    """

    def __init__(
        self,
        folder: AnnotationFolder,
        model: str,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
        num_threads: int | None = None,
        seed: int = 0,
        recipe: dict[str, Any] | None = None,
    ):
        from .learning_round import RECIPE, Round, learned_from  # which takes seconds

        self.folder, self.models = folder, folder.output / "models"
        self.model, self.device = model, torch.device(device)
        self.num_threads = num_threads or max(1, (os.cpu_count() or 1) // 2)
        self._image_size, self._round = image_size, Round
        self._seed, self._recipe = seed, RECIPE if recipe is None else recipe
        self._lock = threading.Lock()
        self._offer: Path | None = None
        self._made: list[Path] = []
        self._process: BaseProcess | None = None
        self._news: Connection | None = None
        self._target: Path = self.models
        self._progress, self._result = "", ""
        self._counts = {index: self._count(index) for index in range(len(folder.files))}
        known = learned_from(model)
        self._learned = {index: count for index, count in self._counts.items() if folder.ids[index] in known}

    def note(self, index: int) -> None:
        """An object of an image was saved."""
        with self._lock:
            self._counts[index] = self._count(index)
            self._listen()
            if self._process is None and self._missing() == (0, 0):
                self._start()

    def status(self) -> dict[str, Any]:
        """`isOn`, `text`: one line for people, and `isBetter`: whether there is something to take."""
        with self._lock:
            self._listen()
            if self._process is not None:
                text = f"learning from what is annotated: {self._progress}"
            else:
                objects, images = self._missing()
                text = f"learns after {objects} more objects" + (f" in {images} more images" if images else "")
            return {
                "isOn": True,
                "text": ". ".join(part for part in (self._result, text) if part),
                "isBetter": self._offer is not None,
            }

    def take(self) -> tuple[SamHfModel, SamHfProcessor]:
        """The better model, in eval mode on the device.

        Raises:
            ValueError: if there is none.
        """
        with self._lock:
            if self._offer is None:
                raise ValueError("there is no better model")
            model, processor, _ = load_checkpoint(self._offer)
            self._result, self._offer = f"{self._offer.name} is in use", None
        model.to(self.device)  # type: ignore[arg-type]
        return model, processor

    def _count(self, index: int) -> int:
        try:
            return len(self.folder.objects(index)) if self.folder.is_annotated(index) else 0
        except (OSError, ValueError):  # the page tells
            return 0

    def _missing(self) -> tuple[int, int]:
        """How many objects and images are to come before the next round."""
        new = [count - self._learned.get(index, 0) for index, count in self._counts.items()]
        new = [number for number in new if number > 0]
        return max(0, NUM_OBJECTS - sum(new)), max(0, NUM_IMAGES - len(new))

    def _start(self) -> None:
        self._learned = dict(self._counts)
        self._seed += 1
        number = 1 + max((int(path.name) for path in self.models.glob("*") if path.name.isdigit()), default=0)
        self._target = self.models / f"{number:03d}"
        given = self._round(
            data=self.folder.output,
            images=None if self.folder.is_beside else self.folder.images,
            model=self.model,
            image_size=self._image_size,
            target=self._target,
            cache=self.models / "embeddings",
            device=self.device.type,
            seed=self._seed,
            recipe=self._recipe,
        )
        context = multiprocessing.get_context("spawn")
        self._news, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(given, sender, self.num_threads), daemon=True)
        self._process.start()
        sender.close()
        self._progress = "starting"

    def _listen(self) -> None:
        """Take what the process has told; if it has ended, what came of it."""
        if self._process is None or self._news is None:
            return
        try:
            while self._news.poll():
                told = self._news.recv()
                if isinstance(told, str):
                    self._progress = told
                else:
                    return self._end(told)
        except (EOFError, OSError):
            self._process.join()
            self._end(RuntimeError(f"its process ended with {self._process.exitcode}"))

    def _end(self, outcome: "Outcome | Exception") -> None:
        assert self._process is not None
        self._process.join()
        self._process = None
        if isinstance(outcome, Exception):
            self._result = f"learning failed: {outcome}"
            return
        if outcome.is_better:
            self.model, self._image_size, self._offer = str(self._target), None, self._target
            self._made.append(self._target)
            for superseded in self._made[:-NUM_KEPT]:
                shutil.rmtree(superseded, ignore_errors=True)
        self._result = _told(outcome)


def _told(outcome: "Outcome") -> str:
    before, after = (" ".join(f"{value:.2f}" for value in values) for values in (outcome.before, outcome.after))
    verdict = "is better" if outcome.is_better else "is not better, and not offered"
    return (
        f"a model that learned from {outcome.num_images} images {verdict}: IoU {after} after 1, 3 and 5 clicks on "
        f"{outcome.num_telling} objects of other images, {before} before; in the mean {outcome.gain:+.3f} ± "
        f"{outcome.error:.3f}"
    )


def _work(given: "Round", sender: Connection, num_threads: int) -> None:
    """The process of a round."""
    from ..training.process import end_with_parent
    from .learning_round import learn

    # Ctrl-C is for the server, which ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    torch.set_num_threads(num_threads)
    logging.disable_progress_bar()
    try:
        sender.send(learn(given, sender.send))
    except Exception as error:
        sender.send(RuntimeError(f"{type(error).__name__}: {error}"))


__all__ = ["Learner"]
