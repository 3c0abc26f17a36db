"""What is decayed, and how fast which part of the model learns."""

import math
import re
from typing import Any

from torch import nn
from torch.optim import Optimizer

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
    """
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


__all__ = ["parameter_groups", "set_learning_rate", "warmup_cosine"]
