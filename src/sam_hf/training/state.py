"""What a run needs beside the weights to go on exactly."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from .ema import WeightAverage
from .options import Options

STATE_FILE = "training_state.pt"


@dataclass
class TrainingState:
    """Where a run stands.

    All chance in training is keyed by the number of a draw, so no state of a random generator belongs here.

    Args:
        step: optimizer steps done, skipped ones included.
        draws: samples used by all processes together; the next one drawn has this number.
        best_score: of the weights in `best`.
        evaluated_step: step of the last evaluation.
        skipped_steps: steps left out because their loss or gradient was not finite.
    """

    step: int = 0
    draws: int = 0
    best_score: float = float("-inf")
    evaluated_step: int = 0
    skipped_steps: int = 0

    def is_due(self, options: Options) -> bool:
        """Whether an evaluation belongs here that has not been made."""
        at_end = self.step == options.max_steps
        return self.evaluated_step < self.step and (at_end or self.step % options.eval_every == 0)

    def save(self, folder: Path, optimizer: Optimizer, trained: dict[str, Tensor] | None = None) -> None:
        """Write the state and the moments of the optimizer; `trained` if the weights in the folder are averages."""
        moments, names = optimizer.state_dict()["state"], _names(optimizer)
        moments = {names[index]: value for index, value in moments.items()}
        torch.save(asdict(self) | {"optimizer": moments, "trained": trained}, folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path, optimizer: Optimizer, average: WeightAverage | None = None) -> "TrainingState":
        """Read what `save` wrote, and give `optimizer` its moments and the model the weights that are trained back.

        Hyperparameters of the optimizer stay as they are: a run may go on with another learning rate or weight decay.

        Raises:
            ValueError: if the optimizer has other parameters than the saved one or keeps other moments of them, or
                only one of the runs averages.
        """
        values = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        moments, names = values.pop("optimizer"), _names(optimizer)
        if not moments.keys() <= set(names):
            raise ValueError(
                f"{folder / STATE_FILE} holds an optimizer of {len(moments)} parameters, but the model trains "
                f"{len(names)}, or others: resume with the --model and --freeze of that run."
            )
        for group in optimizer.param_groups:
            moment = "exp_avg" if "betas" in group else "momentum_buffer"  # AdamW's or Muon's
            if any(name in moments and moment not in moments[name] for name in group["param_names"]):
                raise ValueError(f"{folder} is of a run with another --optimizer: resume it with that.")
        trained = values.pop("trained")
        if (trained is None) != (average is None):
            raise ValueError(f"{folder} is of a run {'without' if average else 'with'} --ema_decay: resume it so.")
        optimizer.load_state_dict(
            {
                "state": {index: moments[name] for index, name in enumerate(names) if name in moments},
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
        if average is not None:
            average.restore(trained)
        return cls(**values)


def _names(optimizer: Optimizer) -> list[str]:
    """Names of the parameters in the order in which the optimizer numbers them."""
    return [name for group in optimizer.state_dict()["param_groups"] for name in group["param_names"]]


__all__ = ["STATE_FILE", "TrainingState"]
