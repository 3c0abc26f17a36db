"""What `SamHfModel.forward` may be asked: whether prompts fit each other, and what they leave to be filled in."""

from typing import Any

import torch
from torch import Tensor
from transformers.utils import TransformersKwargs

from .prompt_encoder import FOREGROUND, PADDING


def check_known(arguments: dict[str, Any]) -> None:
    """
    Raises:
        TypeError: for keyword arguments that transformers does not give to models either.
    """
    unknown = sorted(arguments.keys() - TransformersKwargs.__annotations__.keys())
    if unknown:
        raise TypeError(f"SamHfModel.forward got {', '.join(unknown)}, which neither it nor transformers has.")


def labels_of(points: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Labels [B, N, P] of points [B, N, P, 2]: all foreground when None."""
    if points is None or labels is not None:
        return labels
    return torch.full_like(points[..., 0], FOREGROUND, dtype=torch.long)


def is_ambiguous(
    input_labels: Tensor | None,
    input_boxes: Tensor | None,
    input_masks: Tensor | None,
    has_input_masks: Tensor | None,
) -> bool:
    """Whether no object is prompted by more than a single click (SAM paper, section 3: three masks, then one)."""
    if input_labels is None:
        return False
    if input_masks is not None and (has_input_masks is None or has_input_masks.any()):
        return False
    if input_boxes is not None and input_boxes.isfinite().all(dim=-1).any():
        return False
    return input_labels.shape[-1] == 1 or bool(((input_labels != PADDING).sum(dim=-1) <= 1).all())


def check_prompts(
    num_features: int,
    image_embeddings: list[Tensor],
    input_points: Tensor | None,
    input_labels: Tensor | None,
    input_boxes: Tensor | None,
    input_masks: Tensor | None,
    has_input_masks: Tensor | None,
    labels: Tensor | None,
) -> None:
    """Check arguments of `SamHfModel.forward`, of which the model has `num_features` feature maps of an image.

    Raises:
        ValueError: that names the argument whose shape does not fit the contract.
    """
    if len(image_embeddings) != num_features:
        raise ValueError(
            f"image_embeddings of this model are {num_features} feature maps, as `get_image_embeddings` returns "
            f"them, but got {len(image_embeddings)}."
        )
    batch, _, height, width = image_embeddings[-1].shape
    expected = {
        "input_points": (input_points, "[B, N, P, 2]", 4, {3: 2}),
        "input_labels": (input_labels, "[B, N, P]", 3, {}),
        "input_boxes": (input_boxes, "[B, N, 4]", 3, {2: 4}),
        "input_masks": (input_masks, "[B, N, h, w]", 4, {2: 4 * height, 3: 4 * width}),
        "has_input_masks": (has_input_masks, "[B, N]", 2, {}),
        "labels": (labels, "[B, N, H, W]", 4, {}),
    }
    counts = {}
    for name, (value, shape, rank, sizes) in expected.items():
        if value is None:
            continue
        if value.dim() != rank or any(value.shape[axis] != size for axis, size in sizes.items()):
            fixed = {shape.strip("[]").split(", ")[axis]: size for axis, size in sizes.items()}
            raise ValueError(f"{name} should be {shape} {fixed or ''}, but got {list(value.shape)}.")
        if value.shape[0] != batch:
            raise ValueError(
                f"{name} is for {value.shape[0]} images, but there are {batch}; for several objects in one image "
                "use the second axis."
            )
        if value.shape[1] == 0:
            raise ValueError(f"{name} is for no object, {list(value.shape)}; pad it to one or skip the images.")
        counts[name] = value.shape[1]
    prompts = counts.keys() - {"labels"}
    if counts.get("input_masks") == 1 and len(prompts) > 1:
        del counts["input_masks"]  # one mask for all objects
    if not prompts:
        counts["no prompt"] = 1
    if any(count != next(iter(counts.values())) for count in counts.values()):
        raise ValueError(f"all prompts (and labels) should be for the same number of objects N, but got {counts}.")
    for name, owner in (("input_labels", "input_points"), ("has_input_masks", "input_masks")):
        if expected[name][0] is not None and expected[owner][0] is None:
            raise ValueError(f"{name} came without {owner}; give both or neither.")
    if input_points is not None and input_labels is not None and input_labels.shape != input_points.shape[:3]:
        raise ValueError(
            f"input_labels should have one label per point, {list(input_points.shape[:3])}, but got "
            f"{list(input_labels.shape)}."
        )


__all__ = ["check_known", "check_prompts", "is_ambiguous", "labels_of"]
