"""Memory: what autograd keeps of it for a backward pass, and what a process may still take."""

import os
import sys
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

MEGABYTE = 2**20


class Kept:
    """A tensor that autograd keeps for the backward pass; gone as soon as that is."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()  # else an output would keep itself alive


class KeptForBackward(saved_tensors_hooks):
    """Inside a `with` block takes note of what autograd keeps for a backward pass."""

    def __init__(self) -> None:
        self.alive: WeakSet[Kept] = WeakSet()
        super().__init__(self.keep, lambda part: part.tensor)

    def __enter__(self) -> "KeptForBackward":  # type: ignore[override]  # which returns nothing
        super().__enter__()
        return self

    def keep(self, tensor: Tensor) -> Kept:
        part = Kept(tensor)
        self.alive.add(part)
        return part

    def num_bytes(self, module: nn.Module) -> int:
        """What is still kept, each storage once, without the weights of `module`."""
        found = [part.tensor.untyped_storage() for part in self.alive]
        storages = {storage.data_ptr(): storage.nbytes() for storage in found}
        for parameter in module.parameters():
            storages.pop(parameter.untyped_storage().data_ptr(), None)
        return sum(storages.values())


def weight_bytes(module: nn.Module, has_average: bool) -> int:
    """Weights, and for those that train the gradient, two moments of AdamW, and an average if there is one."""
    copies = 4 if has_average else 3
    return sum(part.nbytes * (1 + copies * part.requires_grad) for part in module.parameters())


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of a GPU, else its share of what the machine or its control group has.

    Raises:
        ValueError: where the system does not tell.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if not sys.platform.startswith("linux"):
        raise ValueError(f"--batch_size auto cannot tell how much memory is free on {sys.platform}: give a number.")
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
    return min([free, *allowed_memory()]) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def allowed_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What control groups (version 2) of containers and schedulers leave of their limits, from the inside out."""
    names = [line[3:].lstrip("/") for line in own.read_text().splitlines() if line.startswith("0::")]
    left = []
    for name in names:
        for folder in (root / name, *(root / name).parents):
            limit, statistics = (folder / file for file in ("memory.max", "memory.stat"))
            if limit.exists() and (value := limit.read_text().strip()).isdigit():
                used: dict[str, Any] = dict(line.split() for line in statistics.read_text().splitlines())
                left.append(int(value) - int(used["anon"]))
    return left


__all__ = ["MEGABYTE", "KeptForBackward", "available_memory", "weight_bytes"]
