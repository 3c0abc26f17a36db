"""Times in alternation, limits of the machine, and peak memory of a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from models import Setup
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MAX_ROUNDS = 15
SAME_WORK = {torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}  # in place, for which there is no formula
PEAK_MEMORY = Path(__file__).with_name("peak_memory.py")


@dataclass
class Row:
    """One line of the table.

    Args:
        ours, theirs: in `unit`, seconds or bytes; lower is better.
        limit: seconds that the machine needs at the least for the arithmetic (or the reading) of ours.
        difference: how far the answers are apart at most, None where they are random or counts of masks say it.
    """

    work: str
    peer: str
    ours: float
    theirs: float
    unit: str = "s"
    limit: float | None = None
    difference: float | None = None
    note: str = ""


@dataclass
class Limits:
    """What the machine does at best: floating-point operations and bytes copied (read and written), per second."""

    flops: float
    bandwidth: float


def alternate(functions: dict[str, Callable], setup: Setup) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each function, run in turns so that a slow moment of the machine hits all of them.

    Returns:
        the seconds, and what each function returned.
    """
    times = {name: [] for name in functions}
    started = time.perf_counter()
    first = {name: run(function, setup) for name, function in functions.items()}
    outputs = {name: output for name, (_, output) in first.items()}
    if sum(seconds for seconds, _ in first.values()) > setup.seconds:  # too slow to throw a warm-up away
        return {name: seconds for name, (seconds, _) in first.items()}, outputs
    while not all(times.values()) or (
        time.perf_counter() - started < setup.seconds and len(next(iter(times.values()))) < MAX_ROUNDS
    ):
        for name, function in functions.items():
            times[name].append(run(function, setup)[0])
    return {name: median(values) for name, values in times.items()}, outputs


def run(function: Callable, setup: Setup) -> tuple[float, Any]:
    """Seconds, and the output."""
    started = time.perf_counter()
    output = function()
    if setup.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, output


def machine_limits(setup: Setup) -> Limits:
    """Of a product of large matrices in the dtype of the setup, and a copy that no cache holds."""
    side, length = (4096, 2**28) if setup.device.type == "cuda" else (2048, 2**24)
    a = torch.rand(side, side, device=setup.device, dtype=setup.dtype)
    source = torch.rand(length, device=setup.device)
    target = torch.empty_like(source)
    times, _ = alternate({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, replace(setup, seconds=5.0))
    return Limits(2 * side**3 / times["product"], 2 * 4 * length / times["copy"])


class FlopCounter(TorchDispatchMode):
    """`FlopCounterMode` without its book of modules, which fails on views of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(SAME_WORK.get(func._overloadpacket, func._overloadpacket)):
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def count_flops(function: Callable) -> int:
    """Operations of matrix products, convolutions and attention."""
    with FlopCounter() as counter:
        function()
    return counter.total


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return (ours.float() - theirs.float()).abs().max().item()


def peak_memory(work: str, who: str, setup: Setup) -> int:
    """Bytes that `work` of `peak_memory.py` takes at its peak beyond what was in use before."""
    options = [setup.size, str(setup.prompts), str(setup.masks), str(setup.mask_side), setup.device.type]
    command = [sys.executable, str(PEAK_MEMORY), work, who, *options, str(torch.get_num_threads())]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])
