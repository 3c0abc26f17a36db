"""The processes of a run: device, precision, threads, memory, signals, and the workers of a loader."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from multiprocessing import forkserver, get_all_start_methods, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    set_seed,
)

# SIGUSR1 is what Slurm sends before the time is up; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
# Of <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Forked workers may hang, since this process has threads by now; where there is no server, nothing forks.
WORKER_START = "forkserver" if "forkserver" in get_all_start_methods() else None


def start_accelerator(
    output_dir: str | Path, mixed_precision: str | None, seed: int, log_with: str = "tensorboard"
) -> Accelerator:
    """Processes, device, precision, threads and seed.

    Args:
        output_dir: takes the folder of TensorBoard.
        mixed_precision: that of `accelerate launch` when None.
        log_with: names of trackers, see `choose_trackers`.

    Raises:
        ValueError: for trackers that are unknown or not installed, for float16, which needs a loss scale, or if
            weights would be shared out to the processes: the main one saves alone.
    """
    # From random weights a CPU meets many numbers near zero, each of which costs it a hundred others.
    torch.set_flush_denormal(True)
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # Steps are accumulated by `shared_batches`; a launcher's variable would divide the gradient once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=choose_trackers(log_with) or None,  # of an empty list accelerate warns
        project_dir=output_dir,
        kwargs_handlers=[
            # The other processes wait while the main one saves.
            InitProcessGroupKwargs(timeout=timedelta(hours=3)),
            # Else gradients are kept twice.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"{accelerator.distributed_type.value} shares the weights out to the processes, but each evaluates with "
            "all of them, and the main one saves alone: this is not built. Launch without it: SAM ViT-H with AdamW "
            "takes 10 GB in each process; if activations do not fit, add --checkpoint_activations."
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("gradients overflow in float16: launch with --mixed_precision bf16, or no.")
    if accelerator.device.type == "cpu":
        share_cores()
        keep_freed_memory()
    set_seed(seed)
    return accelerator


def share_cores() -> None:
    """Use all cores, divided by the processes here; `accelerate launch` leaves one thread to each unless told else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def choose_trackers(names: str) -> list[str]:
    """Trackers of accelerate by name, with commas between them; "none" is none.

    Raises:
        ValueError: for one that accelerate does not know, or whose package is not installed.
    """
    chosen = [] if names == "none" else [name.strip() for name in names.split(",")]
    known, installed = set(LOGGER_TYPE_TO_CLASS), {str(tracker) for tracker in get_available_trackers()}
    for name in chosen:
        if name not in known:
            raise ValueError(f"--log_with {name} is no tracker of accelerate: choose from {', '.join(sorted(known))}.")
        if name not in installed:
            raise ValueError(f"--log_with {name} needs its package, which is not installed: pip install {name}")
    return chosen


def peak_memory(device: torch.device) -> float:
    """The most that this process has taken so far, in bytes: of a GPU if it has one; NaN where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return math.nan
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def process_seconds() -> float:
    """How long this process has been there; elsewhere than on Linux what it has computed for, which imports are."""
    if not sys.platform.startswith("linux"):
        return time.process_time()
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # the 22nd field
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def keep_freed_memory() -> None:
    """Keep what is freed for the next allocation, where glibc manages memory; elsewhere do nothing.

    By default it returns large blocks to the system, which hands them out again page by page and filled with zeros.
    `cpu_inference.reuse_freed_memory` is enough for inference in small pieces, but a step keeps all its activations.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


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


def start_worker_server(module: str) -> None:
    """Start the process that loader processes are forked from, with `module` imported and deaf to SIGTERM.

    Schedulers send that to every process of a job, but the batches in work are needed until this one has saved.
    """
    if WORKER_START is None:
        return
    get_context(WORKER_START).set_forkserver_preload([module])
    deaf_to = [number for number in SIGNALS if number != signal.SIGINT]
    handlers = [signal.signal(number, signal.SIG_IGN) for number in deaf_to]  # inherited
    forkserver.ensure_running()
    for number, handler in zip(deaf_to, handlers, strict=True):
        signal.signal(number, handler)


def live_and_die_with_parent(*worker: Any) -> None:
    """`worker_init_fn` of a data loader.

    Ctrl-C and SIGTERM reach all processes, but the batches in work are needed until the parent has saved. When it is
    killed, workers that were started by a server would wait for each other forever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that is."""
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


__all__ = [
    "WORKER_START",
    "StopSignals",
    "choose_trackers",
    "end_with_parent",
    "keep_freed_memory",
    "live_and_die_with_parent",
    "peak_memory",
    "process_seconds",
    "share_cores",
    "start_accelerator",
    "start_worker_server",
]
