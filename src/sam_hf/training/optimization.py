"""How weights change in a step: which decay, how fast each part learns, by what optimizer, and their average."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

# The learning rate ends at this share of its peak.
FINAL_SHARE = 0.02


def parameter_groups(
    model: nn.Module, weight_decay: float, encoder_rate: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters for AdamW, with their names, by what decays and how fast it learns.

    Weights of linear layers and convolutions decay. Biases, norms, embeddings, tokens and positions do not: pulling
    those to zero means nothing.

    Args:
        model: `SamHfModel`, with or without adapters, or any other.
        weight_decay: AdamW's.
        encoder_rate: learning rate of the image encoder as a share of that of prompt encoder and decoder.
        layer_decay: every encoder layer learns at this share of the rate of the next one (Clark et al. 2020).

    Returns:
        Groups with `weight_decay` and `rate_share`, for `set_learning_rate`.

    Raises:
        ValueError: for a `layer_decay` of an image encoder with a backbone of another package, whose layers are not
            numbered from end to end.
    """
    if layer_decay != 1 and any("vision_encoder.backbone." in name for name, _ in model.named_parameters()):
        raise ValueError(
            f"layer_decay={layer_decay} goes by the layers of the image encoder, which are not known of a backbone of "
            "another package: let it be 1, and lower encoder_rate."
        )
    projections = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, projections)}
    depth = 1 + max((_encoder_layer(name) or 0 for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = _encoder_layer(name)
            share = (encoder_rate if "vision_encoder." in name else 1.0) * (
                1.0 if layer is None else layer_decay ** (depth - layer)
            )
            decay = weight_decay if id(parameter) in decayed else 0.0
            groups.setdefault((decay, share), []).append((name, parameter))
    return [{"params": named, "weight_decay": decay, "rate_share": share} for (decay, share), named in groups.items()]


def _encoder_layer(name: str) -> int | None:
    """Index of the encoder layer that a parameter belongs to, -1 for what comes before the first."""
    if found := re.search(r"vision_encoder\.layers\.(\d+)\.", name):
        return int(found[1])
    return -1 if re.search(r"vision_encoder\.(patch_embed|pos_embed)", name) else None


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, hold_steps: int = 0) -> float:
    """Share of the peak learning rate for step 0, 1, ...: linear warmup, then half a cosine down to `FINAL_SHARE`.

    The cosine starts after `hold_steps`, until when the rate stays at its peak. A function of the step instead of a
    scheduler: nothing to save, and a resumed run may change the peak.
    """
    progress = min(1.0, max(0, step - hold_steps) / max(1, max_steps - hold_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the rate of every group of `parameter_groups` to its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_share"]


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum (Jordan 2024) where weights are matrices between hidden states, AdamW elsewhere.

    Updates have the size of AdamW's (Liu et al. 2025), so that learning rate and weight decay are shared.

    Args:
        model: whose `block_matrices` are Muon's, if any of them trains.
        groups: of `parameter_groups` for `model`.
        lr: learning rate of groups without one.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], lr: float = 1e-3):
        matrices = {id(parameter) for parameter in block_matrices(model)}
        self.parts: list[Optimizer] = []
        muon = partial(Muon, adjust_lr_fn="match_rms_adamw")
        for is_matrix, kind in ((False, partial(AdamW, fused=True)), (True, muon)):
            chosen = [[item for item in group["params"] if (id(item[1]) in matrices) == is_matrix] for group in groups]
            part = [{**group, "params": named} for group, named in zip(groups, chosen, strict=True) if named]
            if part:
                self.parts.append(kind(part, lr=lr))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and moments of the parts are those of this optimizer: what is set or loaded here is set there."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = list(islice(groups, len(part.param_groups)))
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # there is no closure to call twice
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def block_matrices(model: nn.Module) -> list[Tensor]:
    """Trainable weights of linear layers in the transformer blocks and of hidden layers in the decoder's heads.

    Not those of low-rank adapters: their factors are no maps between hidden states, and half of them start at zero.
    """
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and (".layers." in name or ".transformer." in name)
        and ".lora_" not in name
    ]


class WeightAverage:
    """The average of the trainable weights over the last steps, on the device of each; starts as what they are now.

    Args:
        model: is left as it is, but for `applied`.
        decay: weight of the past at each step, in (0, 1). Less in the beginning, (1 + step) / (10 + step) at most, so
            that the first weights do not count for long.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"the decay of the average should be between 0 and 1, such as 0.999, but got {decay}.")
        self.decay = decay
        self.parameters = {name: part for name, part in model.named_parameters() if part.requires_grad}
        self.averages = {name: part.detach().clone() for name, part in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, ..."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[dict[str, Tensor]]:
        """Inside the block the model has the averages for weights; yields those that are trained, by name."""
        self._swap()
        try:
            yield self.averages
        finally:
            self._swap()

    def restore(self, trained: dict[str, Tensor]) -> None:
        """Go on with the averages that the model was loaded with, training `trained`."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(trained[name])

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data


__all__ = [
    "MuonWithAdamW",
    "WeightAverage",
    "block_matrices",
    "parameter_groups",
    "set_learning_rate",
    "warmup_cosine",
]
