"""Which weights of a model train: whole parts of it, by their names."""

from collections.abc import Iterable

from peft import PeftModel
from torch import nn

from ..backbone_encoder import SamHfBackboneEncoder
from ..modeling_sam_hf import SamHfModel

PARTS = {
    "encoder": "vision_encoder",
    "prompt_encoder": "prompt_encoder",
    "decoder": "mask_decoder",
    "instances": "instance_decoder",
    "backbone": "vision_encoder.backbone",  # within the encoder, where it is of another package
}


def parts_of(model: SamHfModel) -> set[str]:
    """The names of `PARTS` that the model has and that no other one is in."""
    return set(PARTS) - {"backbone"} - ({"instances"} if model.instance_decoder is None else set())


def check_parts(parts: Iterable[str]) -> set[str]:
    """`parts` as a set.

    Raises:
        ValueError: if one is no name of `PARTS`.
    """
    parts = set(parts)
    if parts - PARTS.keys():
        raise ValueError(f"there is no part {sorted(parts - PARTS.keys())}; choose from {', '.join(PARTS)}.")
    return parts


def freeze(model: SamHfModel, parts: Iterable[str]) -> None:
    """Leave the weights of `parts`, names of `PARTS`, as they are in training; a frozen encoder has no drop path.

    Raises:
        ValueError: if there is no such part, or no backbone, or nothing is left to train.
    """
    parts = check_parts(parts)
    present = parts_of(model)
    if present <= parts:
        raise ValueError(f"freezing {', '.join(sorted(present))} leaves nothing to train; leave one out.")
    if "backbone" in parts:
        if not isinstance(model.vision_encoder, SamHfBackboneEncoder):
            raise ValueError("there is no backbone of another package to freeze in this model: freeze the encoder.")
        present.add("backbone")
    for part in parts & present:
        model.get_submodule(PARTS[part]).requires_grad_(False)
    if "encoder" in parts:
        keep_paths(model.vision_encoder.layers)


def freeze_object_score(model: SamHfModel | PeftModel) -> None:
    """Leave the head of an object score as it is whose loss has no weight: weight decay alone would spoil it."""
    if not model.config.object_score_weight:
        for name, parameter in model.named_parameters():
            if "pred_obj_score_head." in name:
                parameter.requires_grad_(False)


def keep_paths(layers: Iterable[nn.Module]) -> None:
    """Turn off drop path of encoder layers that do not learn, nor any below: it would only spoil what they give."""
    for layer in layers:
        for module in layer.modules():  # a layer of TinyViT is a stage of several blocks
            if hasattr(module, "drop_path_rate"):
                module.drop_path_rate = 0.0  # type: ignore[assignment]  # no module, but a number


__all__ = ["PARTS", "check_parts", "freeze", "freeze_object_score", "keep_paths", "parts_of"]
