"""Published recipes of an interactive training step; `docs/training.md` tells papers, released code and this apart."""

from dataclasses import dataclass, field
from typing import Any

FOCAL = {"focal_weight": 20.0, "focal_alpha": 0.25, "focal_gamma": 2.0, "focal_normalized": False}
# Points are where the model is in doubt already, which focal loss would count twice.
CROSS_ENTROPY = {"focal_weight": 1.0, "focal_alpha": -1.0, "focal_gamma": 0.0, "focal_normalized": False}


@dataclass(frozen=True)
class Recipe:
    """What makes a step besides the switches of a run.

    Args:
        repeats: two more rounds without a new click, one between the corrections and one in the end.
        object_share: chance that a corrective click is anywhere in the object instead of the error.
        feedback: how a mask goes into the next round, one of `FEEDBACK`.
        box_noise: distribution of the noise of boxes, "uniform" or "gaussian".
        sum_rounds: add the losses of the rounds, instead of their mean.
        losses: fields of `SamHfConfig`; those that are not named are the model's own.
        options: of `Options`, unless they are given.
    """

    repeats: bool = False
    object_share: float = 0.0
    feedback: str = "clamped"
    box_noise: str = "uniform"
    sum_rounds: bool = False
    losses: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


# A script may add its own.
RECIPES: dict[str, Recipe] = {
    "fast": Recipe(),
    "sam": Recipe(
        repeats=True,
        feedback="detached",
        box_noise="gaussian",
        losses={"iou_loss": "mse", "relaxation": 0.0, **FOCAL},
        options={"num_corrections": 8, "box_probability": 0.5, "loss_resolution": "mask"},
    ),
    "sam2": Recipe(
        object_share=0.1,
        feedback="attached",
        sum_rounds=True,
        losses={"iou_loss": "l1", "relaxation": 0.0, **FOCAL},
        options={"num_corrections": 7, "box_probability": 0.5, "loss_resolution": "input"},
    ),
}


__all__ = ["CROSS_ENTROPY", "RECIPES", "Recipe"]
