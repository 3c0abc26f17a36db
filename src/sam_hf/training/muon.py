"""Muon for the matrices of the transformer blocks, AdamW for everything else, as one optimizer."""

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trainable weights of the linear layers inside transformer blocks, those of the encoder and of the decoder."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and (".layers." in name or ".transformer." in name)
    ]


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum (Jordan 2024) where weights are matrices between hidden states, AdamW elsewhere.

    Updates have the size of AdamW's (Liu et al. 2025), so that learning rate and weight decay are shared.

    Args:
        model: whose `block_matrices` are Muon's.
        groups: of `parameter_groups` for `model`.
        lr: learning rate of groups without one.
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], lr: float = 1e-3):
        matrices = {id(parameter) for parameter in block_matrices(model)}
        parts = []
        for is_matrix in (False, True):
            chosen = [[item for item in group["params"] if (id(item[1]) in matrices) == is_matrix] for group in groups]
            parts.append([{**group, "params": named} for group, named in zip(groups, chosen, strict=True) if named])
        self.adamw = AdamW(parts[0], lr=lr)
        self.muon = Muon(parts[1], lr=lr, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self.adamw.param_groups, *self.muon.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and moments of the two are those of this optimizer: what is set or loaded here is set there."""
        count = len(self.adamw.param_groups)
        self.adamw.param_groups, self.muon.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.adamw.state = self.muon.state = self.state

    def step(self, closure: None = None) -> None:
        self.adamw.step()
        self.muon.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


__all__ = ["MuonWithAdamW", "block_matrices"]
