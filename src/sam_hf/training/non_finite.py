"""What happens when a loss or a gradient is not finite: the weights are never touched."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from .draws import DrawSampler
from .options import Options
from .state import TrainingState


def check_finite(
    accelerator: Accelerator,
    losses: Tensor,
    grad_norm: Tensor,
    dataset: Dataset,
    state: TrainingState,
    options: Options,
) -> bool:
    """Whether the optimizer may step; the same on all processes. If not, the step is counted in `state`.

    Args:
        losses: float [batches], those of this process.
        grad_norm: float scalar, of the reduced gradient.

    Raises:
        FloatingPointError: if more steps than `skip_nonfinite` would be left out, with the names of the images.
    """
    batches = bad_batches(accelerator, losses, grad_norm)
    if not batches:
        return True
    state.skipped_steps += 1
    draws = [state.draws + batch * options.batch_size + k for batch in batches for k in range(options.batch_size)]
    message = (
        f"step {state.step + 1}: the loss or the gradient is not finite (norm {grad_norm.item()}) with the images "
        f"{', '.join(image_ids(dataset, draws, options.seed))}."
    )
    if state.skipped_steps > options.skip_nonfinite:
        raise FloatingPointError(
            f"{message} The last checkpoint is from before; continue it with --resume and a lower --learning_rate, "
            "without mixed precision, or with --skip_nonfinite to leave some steps out."
        )
    accelerator.print(f"{message} Left out, {state.skipped_steps} of at most {options.skip_nonfinite}.")
    return False


def bad_batches(accelerator: Accelerator, losses: Tensor, grad_norm: Tensor) -> list[int]:
    """Which batches of a step to blame, by their place in the order in which those of all processes were drawn.

    All of them when no loss, but the gradient is not finite; none when all is well.
    """
    is_bad = torch.cat([~losses.isfinite(), ~grad_norm.isfinite().reshape(1)])
    is_bad = accelerator.gather(is_bad.int()).view(accelerator.num_processes, -1).bool().cpu()
    of_batches = is_bad[:, :-1].T.flatten()
    if is_bad[:, -1].any() and not of_batches.any():
        return list(range(len(of_batches)))
    return of_batches.nonzero().flatten().tolist()


def image_ids(dataset: Dataset, draws: list[int], seed: int) -> list[str]:
    """Names of the images of some draws, see `DrawSampler`."""
    samplers = (DrawSampler(len(dataset), stop=draw + 1, start=draw, seed=seed) for draw in draws)
    return [str(dataset[drawn.index]["image_id"]) for sampler in samplers for drawn in sampler]


__all__ = ["bad_batches", "check_finite", "image_ids"]
