"""What of a model is trained: whole parts, or low-rank adapters (LoRA, Hu et al. 2021) by the `peft` library."""

import copy
from collections.abc import Iterable
from pathlib import Path

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)

from ..modeling_sam_hf import SamHfModel

ADAPTER = "adapter"
PARTS = {"encoder": "vision_encoder", "prompt_encoder": "prompt_encoder", "decoder": "mask_decoder"}
ENCODER_ATTENTION = r"vision_encoder\.layers\.\d+\.attn\.(qkv|proj)"
DECODER_ATTENTION = r"mask_decoder\.transformer\..*\.(q_proj|k_proj|v_proj|out_proj)"
# Parts whose attention projections get adapters, and the full names of those.
LORA_PRESETS = {
    "encoder": (("encoder",), ENCODER_ATTENTION),
    "decoder": (("decoder",), DECODER_ATTENTION),
    "all": (("encoder", "decoder"), f"{ENCODER_ATTENTION}|{DECODER_ATTENTION}"),
}


def freeze(model: SamHfModel, parts: Iterable[str]) -> None:
    """Leave the weights of `parts`, names of `PARTS`, as they are in training; a frozen encoder has no drop path.

    Raises:
        ValueError: if there is no such part, or nothing is left to train.
    """
    parts = check_parts(parts)
    if parts == PARTS.keys():
        raise ValueError(f"freezing {', '.join(PARTS)} leaves nothing to train; leave one out.")
    for part in parts:
        model.get_submodule(PARTS[part]).requires_grad_(False)
    if "encoder" in parts:
        _keep_paths(model)


def add_lora(
    model: SamHfModel, preset: str, rank: int = 8, alpha: float | None = None, frozen: Iterable[str] = PARTS
) -> PeftModel:
    """Give the attention projections of a part adapters, which start at zero, and freeze its own weights.

    Args:
        model: is changed in place.
        preset: one of `LORA_PRESETS`.
        rank: inner width of the adapters.
        alpha: an update counts `alpha / rank` times; `rank` when None.
        frozen: of the parts without adapters, those that do not train. The others train in full, and are saved with
            the adapter (`modules_to_save` of peft).

    Returns:
        The model with adapters; its methods are those of `model`, but for saving.

    Raises:
        ValueError: if there is no such preset or part.
    """
    if preset not in LORA_PRESETS:
        raise ValueError(f"there is no LoRA preset {preset!r}; choose one of {', '.join(LORA_PRESETS)}.")
    adapted, modules = LORA_PRESETS[preset]
    trained = PARTS.keys() - check_parts(frozen) - set(adapted)
    if "encoder" not in trained.union(adapted):
        _keep_paths(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=modules,
        modules_to_save=sorted(PARTS[part] for part in trained) or None,
    )
    return get_peft_model(model, config)


def _keep_paths(model: SamHfModel) -> None:
    """Turn off drop path of the encoder, which would only make its embeddings worse if nothing in it learns."""
    for layer in model.vision_encoder.layers:
        layer.drop_path_rate = 0.0


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
            "resume with the preset, rank and frozen parts of that run."
        )
    set_peft_model_state_dict(model, weights)


def save_model(model: SamHfModel | PeftModel, folder: Path) -> SamHfModel:
    """Write weights that load without peft: adapters merged, and by themselves in the sub-folder `adapter`.

    Returns:
        The model that was written.
    """
    if isinstance(model, PeftModel):
        # Without looking for embeddings of tokens, which peft would ask the Hub about.
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)
    return model


def check_parts(parts: Iterable[str]) -> set[str]:
    """`parts` as a set.

    Raises:
        ValueError: if one is no name of `PARTS`.
    """
    parts = set(parts)
    if parts - PARTS.keys():
        raise ValueError(f"there is no part {sorted(parts - PARTS.keys())}; choose from {', '.join(PARTS)}.")
    return parts


__all__ = ["ADAPTER", "LORA_PRESETS", "PARTS", "add_lora", "freeze", "load_adapter", "save_model"]
