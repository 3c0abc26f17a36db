"""The parts of a training script, each in its own file: see `examples/train.py` for how they fit together."""

from .adapters import ADAPTER, LORA_PRESETS, add_lora, load_adapter
from .batches import build_collator, draw_windows
from .card import build_model_card
from .checkpoints import BEST, LAST, TrainingState, find_folder, replace_folder, starting_point
from .collator import ClickSamplingCollator
from .draws import Draw, DrawnRecords, DrawSampler, numbered_draws, seed_of
from .embedding_cache import EmbeddingCache, open_cache
from .interactive import InteractiveOutput, InteractiveTrainer, Prediction, Prompts, RoundLoss, TrainingBatch
from .machine_fit import compare_with_plan, fit_to_machine
from .models import build_processor, has_weights, load_model, prepare_model, save_model
from .optimization import (
    MuonWithAdamW,
    WeightAverage,
    block_matrices,
    parameter_groups,
    set_learning_rate,
    warmup_cosine,
)
from .options import DataOptions, Options, option, parse_options
from .parts import PARTS, freeze
from .process import StopSignals, keep_freed_memory, share_cores, start_accelerator
from .recipes import RECIPES, Recipe
from .rehearsal import Builders
from .reporting import RunLog, TrainingProgress, report_memory
from .run import Run, push
from .step import StepResult, shared_batches

__all__ = [
    "ADAPTER",
    "BEST",
    "LAST",
    "LORA_PRESETS",
    "PARTS",
    "RECIPES",
    "Builders",
    "ClickSamplingCollator",
    "DataOptions",
    "Draw",
    "DrawSampler",
    "DrawnRecords",
    "EmbeddingCache",
    "InteractiveOutput",
    "InteractiveTrainer",
    "MuonWithAdamW",
    "Options",
    "Prediction",
    "Prompts",
    "Recipe",
    "RoundLoss",
    "Run",
    "RunLog",
    "StepResult",
    "StopSignals",
    "TrainingBatch",
    "TrainingProgress",
    "TrainingState",
    "WeightAverage",
    "add_lora",
    "block_matrices",
    "build_collator",
    "build_model_card",
    "build_processor",
    "compare_with_plan",
    "draw_windows",
    "find_folder",
    "fit_to_machine",
    "freeze",
    "has_weights",
    "keep_freed_memory",
    "load_adapter",
    "load_model",
    "numbered_draws",
    "open_cache",
    "option",
    "parameter_groups",
    "parse_options",
    "prepare_model",
    "push",
    "replace_folder",
    "report_memory",
    "save_model",
    "seed_of",
    "set_learning_rate",
    "share_cores",
    "shared_batches",
    "start_accelerator",
    "starting_point",
    "warmup_cosine",
]
