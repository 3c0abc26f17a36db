"""Published recipes of an interactive training step; `docs/training.md` tells papers, released code and this apart."""

from typing import Any

FOCAL = {"focal_weight": 20.0, "focal_alpha": 0.25, "focal_gamma": 2.0, "focal_normalized": False}
# Points are where the model is in doubt already, which focal loss would count twice.
CROSS_ENTROPY = {"focal_weight": 1.0, "focal_alpha": -1.0, "focal_gamma": 0.0, "focal_normalized": False}

# By name, values of `Options`; all others have their defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "fast": {},
    "sam": {
        "num_corrections": 8,
        "repeats": True,
        "box_probability": 0.5,
        "box_noise": "gaussian",
        "feedback": "detached",
        "iou_loss": "mse",
        "loss_resolution": "mask",
        **FOCAL,
    },
    "sam2": {
        "num_corrections": 7,
        "object_share": 0.1,
        "box_probability": 0.5,
        "box_noise": "uniform",
        "feedback": "attached",
        "iou_loss": "l1",
        "loss_resolution": "input",
        "sum_rounds": True,
        **FOCAL,
    },
}


def recipe_for(name: str, loss_resolution: str | None) -> dict[str, Any]:
    """The options of a recipe, with cross-entropy where the loss is that at sampled points."""
    return RECIPES[name] | (CROSS_ENTROPY if loss_resolution == "points" else {})


__all__ = ["RECIPES", "recipe_for"]
