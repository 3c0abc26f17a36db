"""Parts of a training script: interactive rounds, the order of samples, optimisation, checkpoints, reports."""

from .adapters import ADAPTER, LORA_PRESETS, PARTS, add_lora, freeze, load_adapter, save_model
from .checkpoints import BEST, LAST, TrainingState, find_folder, replace_folder, starting_point
from .draws import Draw, DrawnRecords, DrawSampler, seed_of
from .interactive import InteractiveOutput, InteractiveTrainer
from .model_card import build_model_card
from .muon import MuonWithAdamW, block_matrices
from .optimization import check_finite, parameter_groups, set_learning_rate, warmup_cosine
from .progress import TrainingProgress

__all__ = [
    "ADAPTER",
    "BEST",
    "LAST",
    "LORA_PRESETS",
    "PARTS",
    "Draw",
    "DrawSampler",
    "DrawnRecords",
    "InteractiveOutput",
    "InteractiveTrainer",
    "MuonWithAdamW",
    "TrainingProgress",
    "TrainingState",
    "add_lora",
    "block_matrices",
    "build_model_card",
    "check_finite",
    "find_folder",
    "freeze",
    "load_adapter",
    "parameter_groups",
    "replace_folder",
    "save_model",
    "seed_of",
    "set_learning_rate",
    "starting_point",
    "warmup_cosine",
]
