"""Exponential moving average of the weights in training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


__all__ = ["WeightAverage"]
