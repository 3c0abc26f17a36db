"""Open what an evaluation clicks on, by its name."""

import importlib
import os
import re
import sys
import warnings
from typing import Any

import torch
from transformers import PreTrainedConfig

from ...modeling_sam_hf import SamHfModel
from ...processing_sam_hf import SamHfProcessor
from .classical import CLASSICAL_METHODS
from .own import SamHfPredictor
from .predictor import Predictor
from .stock import STOCK_FAMILIES, open_stock

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
NEEDED = ("predict", "set_image", "stretch_contrast")
POSSIBLE = f"""
- a folder or Hub id of a model of this package (sam_hf)
- a folder or Hub id of transformers: {", ".join(STOCK_FAMILIES)}
- {" or ".join(CLASSICAL_METHODS)}: without a model
- package.module:callable, which is called without arguments and returns a `Predictor`"""


def open_predictor(
    source: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Predictor:
    """Open a model of this package or of transformers, a classical method, or what a callable returns.

    "grabcut" and "random_walker" are the methods; a folder of that name is "./grabcut". A folder without an image
    processor gets the default one for its model.

    Args:
        source: one of `POSSIBLE`.
        device, dtype: of a model; the others have none, or see to it themselves.

    Raises:
        ValueError: if the source is nothing of that; the message lists what is possible. Or if what it needs is not
            installed, or what the callable returns is no predictor; the message says what is missing.
    """
    name = os.fspath(source)
    if name in CLASSICAL_METHODS:
        return CLASSICAL_METHODS[name]()
    if CALLABLE.fullmatch(name) and not os.path.exists(name):
        return call_by_name(name)
    model_type = find_model_type(name)
    if model_type == "sam_hf":
        return open_sam_hf(name, device, dtype)
    if model_type not in STOCK_FAMILIES:
        raise ValueError(f"{name} holds a model of type {model_type!r}, which takes no clicks. Possible:{POSSIBLE}")
    return open_stock(name, model_type, device, dtype)


def find_model_type(source: str) -> str | None:
    """What the config of a folder or Hub id says.

    Raises:
        ValueError: if there is no config.
    """
    try:
        # Unlike AutoConfig it also reads types that this transformers does not know, so that the error can name them.
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{source!r} cannot be opened ({reason}). Possible:{POSSIBLE}") from error
    return config.get("model_type")


def open_sam_hf(source: str, device: str | torch.device, dtype: torch.dtype) -> SamHfPredictor:
    model = SamHfModel.from_pretrained(source, dtype=dtype).eval()
    try:
        processor = SamHfProcessor.from_pretrained(source)
    except OSError as error:  # not every folder has one, but a download may fail, too
        warnings.warn(f"{source} has no processor ({error}): a default one, without contrast stretch", stacklevel=2)
        processor = SamHfProcessor.from_config(model.config)
    return SamHfPredictor(model.to(device), processor)


def call_by_name(name: str) -> Predictor:
    """What the callable "package.module:callable" returns.

    Modules of the current directory are found after all others, and stay so for what the module itself imports later.

    Raises:
        ValueError: if there is no such module or callable, or it returns no predictor.
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # What the module itself fails to import is another matter.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{name}: there is no module {error.name}. Possible:{POSSIBLE}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name}: there is no {part} in {getattr(found, '__name__', module_name)}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} is a {type(found).__name__}, expected a callable that returns a `Predictor`.")
    predictor = found()
    missing = [needed for needed in NEEDED if not hasattr(predictor, needed)]
    if missing:
        raise ValueError(
            f"{name} returned a {type(predictor).__name__} without {', '.join(missing)}, expected a `Predictor`."
        )
    return predictor


__all__ = ["call_by_name", "open_predictor"]
