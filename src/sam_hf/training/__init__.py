"""The parts of a training script, each in its own file: see `examples/train.py` for how they fit together."""

from .accumulation import StepResult, accumulate
from .adapters import ADAPTER, LORA_PRESETS, PARTS, add_lora, freeze, load_adapter, save_model
from .allocator import keep_freed_memory
from .batches import build_collator, draw_windows
from .checkpoints import BEST, LAST, find_folder, replace_folder, starting_point
from .data_options import DataOptions
from .draws import Draw, DrawnRecords, DrawSampler, numbered_draws, seed_of
from .ema import WeightAverage
from .embedding_cache import EmbeddingCache, open_cache
from .interactive import InteractiveOutput, InteractiveTrainer
from .memory import report_memory
from .model_card import build_model_card
from .muon import MuonWithAdamW, block_matrices
from .non_finite import check_finite
from .optimization import parameter_groups, set_learning_rate, warmup_cosine
from .options import Options, parse_options
from .progress import TrainingProgress
from .publishing import push
from .recipes import RECIPES
from .run_folder import RunFolder
from .run_log import RunLog
from .signals import StopSignals
from .starting_model import build_processor, load_model, prepare_model
from .state import TrainingState
from .validation import evaluate

__all__ = [
    "ADAPTER",
    "BEST",
    "LAST",
    "LORA_PRESETS",
    "PARTS",
    "RECIPES",
    "DataOptions",
    "Draw",
    "DrawSampler",
    "DrawnRecords",
    "EmbeddingCache",
    "InteractiveOutput",
    "InteractiveTrainer",
    "MuonWithAdamW",
    "Options",
    "RunFolder",
    "RunLog",
    "StepResult",
    "StopSignals",
    "TrainingProgress",
    "TrainingState",
    "WeightAverage",
    "accumulate",
    "add_lora",
    "block_matrices",
    "build_collator",
    "build_model_card",
    "build_processor",
    "check_finite",
    "draw_windows",
    "evaluate",
    "find_folder",
    "freeze",
    "keep_freed_memory",
    "load_adapter",
    "load_model",
    "numbered_draws",
    "open_cache",
    "parameter_groups",
    "parse_options",
    "prepare_model",
    "push",
    "replace_folder",
    "report_memory",
    "save_model",
    "seed_of",
    "set_learning_rate",
    "starting_point",
    "warmup_cosine",
]
