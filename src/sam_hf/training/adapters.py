"""Low-rank adapters (LoRA, Hu et al. 2021) by the `peft` library, instead of whole parts or beside them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn

from ..backbone_encoder import SamHfBackboneEncoder
from ..modeling_sam_hf import SamHfModel
from .parts import PARTS, check_parts, keep_paths, parts_of

ADAPTER = "adapter"
ENCODER_ATTENTION = r"vision_encoder\.layers\.\d+\.(blocks\.\w+\.)?attn\.(qkv|proj)"
DECODER_ATTENTION = r"mask_decoder\.transformer\..*\.(q_proj|k_proj|v_proj|out_proj)"


class LoraPreset(NamedTuple):
    """Which attention projections get adapters, and what trains beside them if nothing is said.

    Args:
        parts: of `PARTS`, those with adapters.
        modules: pattern of the full names of the projections.
        frozen: of the other parts, those that do not train.
        is_late: only in the last half of the encoder's layers, of an odd number the larger one. What is below has no
            backward pass, and keeps nothing for one.
    """

    parts: tuple[str, ...]
    modules: str
    frozen: tuple[str, ...] = ()
    is_late: bool = False

    def first_layer(self, depth: int) -> int:
        """The first of `depth` encoder layers that learns: `depth` if none does."""
        if "encoder" not in self.parts:
            return depth
        return depth // 2 if self.is_late else 0

    def targets(self, depth: int) -> str:
        """`modules` of an encoder of `depth` layers."""
        layers = "|".join(map(str, range(self.first_layer(depth), depth)))
        return self.modules.replace(r"\d+", f"({layers})") if self.is_late else self.modules


# An encoder with adapters is best beside a decoder that trains in full (PEFT-SAM, Teuber et al. 2025).
LORA_PRESETS = {
    "encoder": LoraPreset(("encoder",), ENCODER_ATTENTION),
    "encoder_late": LoraPreset(("encoder",), ENCODER_ATTENTION, is_late=True),
    "decoder": LoraPreset(("decoder",), DECODER_ATTENTION, frozen=("encoder", "prompt_encoder", "instances")),
    "all": LoraPreset(
        ("encoder", "decoder"), f"{ENCODER_ATTENTION}|{DECODER_ATTENTION}", frozen=("prompt_encoder", "instances")
    ),
}


def add_lora(
    model: SamHfModel, preset: str, rank: int = 8, alpha: int | None = None, frozen: Iterable[str] | None = None
) -> PeftModel:
    """Give the attention projections of a part adapters, which start at zero, and freeze its own weights.

    Args:
        model: is changed in place.
        preset: one of `LORA_PRESETS`.
        rank: inner width of the adapters.
        alpha: an update counts `alpha / rank` times; `rank` when None.
        frozen: of the parts without adapters, those that do not train; those of the preset when None. The others train
            in full, and are saved with the adapter (`modules_to_save` of peft).

    Returns:
        The model with adapters; its methods are those of `model`, but for saving.

    Raises:
        ValueError: if there is no such preset or part, or a backbone of another package has no layers for it.
    """
    if preset not in LORA_PRESETS:
        raise ValueError(f"there is no LoRA preset {preset!r}; choose one of {', '.join(LORA_PRESETS)}.")
    chosen = LORA_PRESETS[preset]
    trained = parts_of(model) - check_parts(chosen.frozen if frozen is None else frozen) - set(chosen.parts)
    layers = model.vision_encoder.layers
    if "encoder" not in trained:
        keep_paths(layers[: chosen.first_layer(len(layers))])
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=backbone_targets(model, preset) or chosen.targets(len(layers)),
        modules_to_save=sorted(PARTS[part] for part in trained) or None,
    )
    return get_peft_model(model, config)


def backbone_targets(model: SamHfModel, preset: str) -> str | None:
    """Pattern of what gets adapters where the encoder has a backbone, whose linear layers all do; else None."""
    chosen = LORA_PRESETS[preset]
    if "encoder" not in chosen.parts or not isinstance(model.vision_encoder, SamHfBackboneEncoder):
        return None
    if chosen.is_late:
        raise ValueError(f"--lora {preset}: which half of a backbone is the upper one is not known; use encoder.")
    start = PARTS["backbone"]
    linear = [
        re.escape(f"{start}.{name}")
        for name, module in model.get_submodule(start).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not linear:
        raise ValueError(
            f"--lora {preset}: the backbone has no linear layers, only convolutions; use decoder, or --freeze encoder."
        )
    return chosen.modules.replace(ENCODER_ATTENTION, "|".join(linear))


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Load the weights of an adapter that `save_model` wrote to `folder`.

    Raises:
        ValueError: if it has other weights than `model` trains.
    """
    weights = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tensor.shape for name, tensor in expected.items()}
    if expected != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(
            f"{folder} holds {len(weights)} weights, but the adapter in training has {len(expected)}, or others: "
            "resume with the preset, rank and frozen parts of that run. (Adapters of the encoder once "
            "froze all else, which is --freeze prompt_encoder,decoder now.)"
        )
    set_peft_model_state_dict(model, weights)


__all__ = ["ADAPTER", "LORA_PRESETS", "LoraPreset", "add_lora", "load_adapter"]
