"""Muon for the matrices of the transformer blocks, AdamW for everything else, as one optimizer."""

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from .optimization import parameter_groups


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trainable weights of the linear layers inside transformer blocks, those of the encoder and of the decoder."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() == 2 and (".layers." in name or ".transformer." in name)
    ]


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum (Jordan 2024) where weights are matrices between hidden states, AdamW elsewhere.

    Updates have the size of AdamW's (Liu et al. 2025), so that learning rate and weight decay are shared.

    Args:
        model: whose trainable parameters are optimised.
        lr: learning rate.
        weight_decay: of weights, as in `parameter_groups`.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float):
        matrices = block_matrices(model)
        chosen = {id(parameter) for parameter in matrices}
        groups = parameter_groups(model, weight_decay)
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        self.adamw = AdamW(groups, lr=lr)
        self.muon = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self.adamw.param_groups, *self.muon.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The groups are those of the two optimizers themselves: a learning rate set here is set there."""
        self.param_groups = [*self.adamw.param_groups, *self.muon.param_groups]

    def step(self, closure: None = None) -> None:
        self.adamw.step()
        self.muon.step()

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state_dict["adamw"])
        self.muon.load_state_dict(state_dict["muon"])
        self._share_groups()


__all__ = ["MuonWithAdamW", "block_matrices"]
