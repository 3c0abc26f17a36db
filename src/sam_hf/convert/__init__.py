"""Move a SAM or SAM 2 between Meta's files, transformers and this package, with weights unchanged to the bit."""

from .command import main
from .conversion import FORMATS, Checkpoint, load_checkpoint, save_checkpoint, stock_config
from .meta import config_from_meta, meta_name, read_meta_checkpoint

__all__ = [
    "FORMATS",
    "Checkpoint",
    "config_from_meta",
    "load_checkpoint",
    "main",
    "meta_name",
    "read_meta_checkpoint",
    "save_checkpoint",
    "stock_config",
]
