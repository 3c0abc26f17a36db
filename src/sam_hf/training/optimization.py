"""What is decayed, how fast the model learns, and when training has failed."""

import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

# The learning rate ends at this share of its peak.
FINAL_SHARE = 0.02


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for AdamW, in two groups: weights of linear layers and convolutions, and all others.

    Biases, norms, embeddings, tokens and positions have no decay: pulling those to zero means nothing.
    """
    projections = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, projections)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, hold_steps: int = 0) -> float:
    """Share of the peak learning rate for step 0, 1, ...: linear warmup, then half a cosine down to `FINAL_SHARE`.

    The cosine starts after `hold_steps`, until when the rate stays at its peak. A function of the step instead of a
    scheduler: nothing to save, and a resumed run may change the peak.
    """
    progress = min(1.0, max(0, step - hold_steps) / max(1, max_steps - hold_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_finite(loss: Tensor, grad_norm: Tensor, step: int) -> None:
    """Stop before a step that would spoil the weights; gradients are reduced, so all processes stop together.

    Raises:
        FloatingPointError: if the loss or the gradient norm is not finite.
    """
    if not (loss.isfinite() & grad_norm.isfinite()):
        raise FloatingPointError(
            f"step {step}: loss {loss.item()}, gradient norm {grad_norm.item()}. The last checkpoint is from before; "
            "continue it with --resume and a lower --learning_rate, or without mixed precision."
        )


__all__ = ["check_finite", "parameter_groups", "set_learning_rate", "warmup_cosine"]
