"""SIGTERM and Ctrl-C as a request that the training loop follows after its current step."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Inside a `with` block, notes a signal in `received` instead of ending the process.

    A second Ctrl-C interrupts at once. SIGTERM never does: `torchrun` sends it after the user's Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self.previous = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any process received: to be called by all at the same step, so that all stop there."""
        received = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(received).max()) or None


def live_and_die_with_parent(*worker: Any) -> None:
    """`worker_init_fn` of a data loader.

    Ctrl-C and SIGTERM reach all processes, but the batches in work are needed until the parent has saved. When it is
    killed, workers that were started by a server would wait for each other forever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


__all__ = ["StopSignals", "live_and_die_with_parent"]
