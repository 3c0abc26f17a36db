"""Muon for matrices between hidden states, AdamW for everything else, as one optimizer."""

from functools import partial
from itertools import islice
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
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
        for is_matrix, kind in ((False, AdamW), (True, partial(Muon, adjust_lr_fn="match_rms_adamw"))):
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

    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


__all__ = ["MuonWithAdamW", "block_matrices"]
