"""What does not fit when a model moves: weights of other names or shapes, and preprocessing that is lost."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..image_processing_sam_hf import SamHfImageProcessor
from ..processing_sam_hf import SamHfProcessor

HOW_TO_MERGE = "call `merge_and_unload()` of the PEFT model and save what it returns"
NEEDS_INSTANCES = (
    "instance_decoder_config.guides_masks or .proposes_masks is True: masks need the instance decoder, which no other "
    "package has"
)
ADAPTER = re.compile(r"lora_|base_layer|modules_to_save|\.adapters?\.")


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Weights too many, too few, or of another shape, one line per group or weight."""
    shapes = [
        f"{name} is {list(found[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    return [*name_problems(set(found) - set(expected), set(expected) - set(found)), *shapes]


def name_problems(unexpected: set[str], missing: set[str]) -> list[str]:
    adapters = {name for name in unexpected if ADAPTER.search(name)}
    # Where an adapter wraps a layer, the layer itself has another name.
    wrapped = {re.sub(r"\.base_layer\b", "", name) for name in adapters}
    problems = [f"{len(adapters)} weights of adapters that are not merged; {HOW_TO_MERGE}"] if adapters else []
    for kind, names in (("unexpected", unexpected - adapters), ("missing", missing - wrapped)):
        groups = Counter(".".join(name.split(".")[:2]) for name in names)
        examples = {group: min(name for name in names if name.startswith(group)) for group in groups}
        problems += [f"{kind}: {groups[group]} of {group}, such as {examples[group]}" for group in sorted(groups)]
    return problems


def is_same(value: Any, other: Any) -> bool:
    """Equal, and lists and tuples as well."""
    return value == other or (isinstance(value, (list, tuple)) and list(value) == list(other))


def refuse(what: str, problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  - ".join([f"{what}:", *problems]))


def processor_notes(processor: SamHfProcessor) -> list[str]:
    """Preprocessing that the other packages do not do by themselves."""
    image_processor, notes = processor.image_processor, []
    if getattr(image_processor, "do_stretch_contrast", False):
        notes.append("this model was trained on images of stretched contrast; stretch them before the processor")
    if (tile_size := getattr(image_processor, "tile_size", None)) is not None:
        notes.append(f"this model was trained on tiles of {tile_size} pixels of larger images; cut them before")
    fitted = {name: getattr(image_processor, name, None) for name in ("pred_iou_thresh", "stability_score_thresh")}
    if any(value is not None for value in fitted.values()):
        told = ", ".join(f"{name}={value}" for name, value in fitted.items())
        notes.append(f"thresholds of automatic masks are not kept; give them: {told}")
    return notes


def meta_processor_notes(processor: SamHfProcessor) -> list[str]:
    """The same for Meta's code, which normalises by ImageNet's numbers."""
    ours, theirs, notes = processor.image_processor, SamHfImageProcessor(), processor_notes(processor)
    for name in ("image_mean", "image_std"):
        has, gets = getattr(ours, name), getattr(theirs, name)
        if not is_same(has, gets):
            notes.append(f"{name} is {list(has)}, and Meta's code has {list(gets)}")
    return notes


__all__ = [
    "HOW_TO_MERGE",
    "NEEDS_INSTANCES",
    "differences",
    "is_same",
    "meta_processor_notes",
    "name_problems",
    "processor_notes",
    "refuse",
]
