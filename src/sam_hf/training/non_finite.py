"""What happens when a loss or a gradient is not finite: the weights are never touched."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from .options import Options
from .state import TrainingState


def check_finite(
    accelerator: Accelerator,
    window: list[dict[str, Any]],
    losses: Tensor,
    grad_norm: Tensor,
    state: TrainingState,
    options: Options,
) -> bool:
    """Whether the optimizer may step; the same on all processes. If not, the step is counted in `state`.

    Args:
        window: the batches of this process, with the `image_ids` of each.
        losses: float [batches].
        grad_norm: float scalar, of the reduced gradient.

    Raises:
        FloatingPointError: if more steps than `skip_nonfinite` would be left out. Names the images of the batches
            whose loss is not finite, or of all when only the gradient is not.
    """
    is_bad = ~losses.isfinite()
    found = torch.stack([is_bad.sum(), (~grad_norm.isfinite()).sum()])
    bad_losses, bad_norms = accelerator.reduce(found, "sum").tolist()
    if not bad_losses and not bad_norms:
        return True
    state.skipped_steps += 1
    blamed = [batch["image_ids"] for batch, bad in zip(window, is_bad.tolist(), strict=True) if bad or not bad_losses]
    names = ", ".join(name for image_ids in gather_object(blamed) for name in image_ids)
    message = (
        f"step {state.step + 1}: the loss or the gradient is not finite (norm {grad_norm.item()}) with the images "
        f"{names}."
    )
    if state.skipped_steps > options.skip_nonfinite:
        raise FloatingPointError(
            f"{message} The last checkpoint is from before; continue it with --resume and a lower --learning_rate, "
            "without mixed precision, or with --skip_nonfinite to leave some steps out."
        )
    accelerator.print(f"{message} Left out, {state.skipped_steps} of at most {options.skip_nonfinite}.")
    return False


__all__ = ["check_finite"]
