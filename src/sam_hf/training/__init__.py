"""Parts of a training script: interactive rounds, the order of samples, optimisation, checkpoints, reports."""

from .checkpoints import BEST, LAST, TrainingState, find_folder, replace_folder, starting_point
from .draws import Draw, DrawnRecords, DrawSampler, seed_of
from .interactive import InteractiveOutput, InteractiveTrainer
from .model_card import build_model_card
from .optimization import check_finite, parameter_groups, set_learning_rate, warmup_cosine
from .progress import TrainingProgress

__all__ = [
    "BEST",
    "LAST",
    "Draw",
    "DrawSampler",
    "DrawnRecords",
    "InteractiveOutput",
    "InteractiveTrainer",
    "TrainingProgress",
    "TrainingState",
    "build_model_card",
    "check_finite",
    "find_folder",
    "parameter_groups",
    "replace_folder",
    "seed_of",
    "set_learning_rate",
    "starting_point",
    "warmup_cosine",
]
