"""Prompts and masks as people write them, brought to one nesting: a list of images, each a list of objects.

One rule for all arguments. With a list of images the first axis is the image, and each of its entries is
written as for a single image. For a single image the axis of images may be left out, and so may the axis of
objects when there is one object:

| argument | one object | N objects | with the image axis |
|---|---|---|---|
| `input_points` | [x, y] or [P][2] | [N][P][2] | [B][N][P][2] |
| `input_labels` | a label or [P] | [N][P] | [B][N][P] |
| `input_boxes` | [4] | [N][4] | [B][N][4] |
| `input_masks` | [H][W] | [N][H][W] | [B][N][H][W] |
| `segmentation_maps` | a label map [H][W] holds any number | [N][H][W] | [B][N][H][W] |

Lists, arrays and tensors mix freely, every axis may be ragged, and None stands for an object, or a whole
image, without that prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .prompt_encoder import FOREGROUND

__all__ = ["Nested", "describe", "nest_all"]

# Per image a list of objects, or None for an image without the prompt; an object without it is None.
Nested = list[Sequence | None]


@dataclass(frozen=True)
class Nesting:
    """How an argument of numbers is nested for a single image; depths count axes."""

    name: str
    least_depth: int
    object_depth: int
    forms: str


NUMBERS = {
    "input_points": Nesting("input_points", 1, 2, "[x, y] or [P][2] for one object, [N][P][2] for N objects"),
    "input_labels": Nesting("input_labels", 0, 1, "a label or [P] for one object, [N][P] for N objects"),
    "input_boxes": Nesting("input_boxes", 1, 1, "[4] for one object, [N][4] for N objects"),
}


def nest_all(given: dict[str, Any], num_images: int, is_batch: bool) -> dict[str, Nested]:
    """Bring arguments of `SamHfProcessor` to the nesting [B][N].

    Args:
        given: value by argument name; None is not there.
        num_images: B.
        is_batch: whether the images came as a list, so that every first axis is the image axis.

    Returns:
        By argument name: points, labels (all foreground if there are none) and boxes as nested lists of numbers;
        `input_masks` as one tensor [H, W] per object, float for logits and uint8 0 and 1 for masks;
        `segmentation_maps` likewise as uint8 0 and 1, or float32 with NaN where to ignore.

    Raises:
        ValueError: labels without points; wrong nesting, with the one received, the one expected and what to change;
            masks with values other than 0 and 1, or 0 and 255.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "input_labels" in given and "input_points" not in given:
        raise ValueError("input_labels came without input_points: pass the point of each label.")
    nested = {}
    for name, value in given.items():
        if name in NUMBERS:
            nested[name] = _nest_numbers(value, NUMBERS[name], num_images, is_batch)
        else:
            read = _mask_prompts if name == "input_masks" else _ground_truth
            entries = _raster_entries(value, name, num_images, is_batch)
            nested[name] = [None if entry is None else read(entry, name) for entry in entries]
    if "input_points" in nested and "input_labels" not in nested:
        nested["input_labels"] = [None if entry is None else _foreground(entry) for entry in nested["input_points"]]
    return nested


def _foreground(objects: Sequence) -> list:
    """A foreground label for each point of each object."""
    points = [p if isinstance(p, list) else [p] for p in objects]
    return [None if p == [None] else [FOREGROUND for xy in p if xy != []] for p in points]


def describe(value: Any) -> str:
    """The axes of a nested list, `[2][1 to 3][2]`, or of an array, `shape (2, 3, 2)`."""
    if hasattr(value, "shape"):
        return f"shape {tuple(value.shape)}"
    axes: list[str] = []
    level = [value]
    while any(isinstance(item, (list, tuple)) for item in level):
        lists = [item for item in level if isinstance(item, (list, tuple))]
        if any(not isinstance(item, (list, tuple, type(None))) for item in level):
            return "".join(axes) + " then numbers beside lists"
        short, long = min(map(len, lists)), max(map(len, lists))
        axes.append(f"[{short}]" if short == long else f"[{short} to {long}]")
        level = [item for entry in lists for item in entry]
    return "".join(axes) or repr(value)


def _nest_numbers(value: Any, nesting: Nesting, num_images: int, is_batch: bool) -> Nested:
    value = _to_lists(value, nesting.name)
    if not is_batch and _depth(value) == nesting.object_depth + 2:
        value = _drop_image_axis(value, nesting.name)
    entries = _entries(value, nesting.name, num_images) if is_batch else [value]
    return [_objects(entry, nesting) for entry in entries]


def _mask_prompts(entry: Any, name: str) -> Sequence[Tensor | None]:
    planes = _planes(entry, name)
    return [m if m is None or m.is_floating_point() else _binary(m, name) for m in planes]


def _ground_truth(entry: Any, name: str) -> Sequence[Tensor | None]:
    if _ndim(entry) == 2:
        plane = _plane(entry, name)
        return [_binary(plane, name)] if plane.is_floating_point() else _split_label_map(plane, name)
    return [None if mask is None else _binary(mask, name) for mask in _planes(entry, name)]


def _to_lists(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    elif isinstance(value, (list, tuple)):
        value = [_to_lists(item, name) for item in value]
    elif not isinstance(value, (int, float, type(None))):
        raise ValueError(f"{name} holds a {type(value).__name__}: expected numbers in lists, arrays or tensors.")
    return value


def _depth(value: Any) -> int:
    if not isinstance(value, list):
        return 0
    return 1 + max((_depth(item) for item in value), default=0)


def _drop_image_axis(value: Any, name: str) -> Any:
    if len(value) != 1:
        raise ValueError(
            f"{name} has {len(value)} images ({describe(value)}) but images is a single image: drop the "
            "first axis, or pass images as a list."
        )
    return value[0]


def _entries(value: Any, name: str, num_images: int) -> list:
    is_sequence = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0
    if not is_sequence or len(value) != num_images:
        raise ValueError(
            f"{name} came as {describe(value)} for a list of {num_images} image(s): its first axis must be "
            f"the image axis, of length {num_images}. Wrap it in one more list, or pass a single image "
            "without a list."
        )
    return list(value)


def _objects(entry: Any, nesting: Nesting) -> list | None:
    if entry is None or (isinstance(entry, list) and all(item is None for item in entry)):
        return entry
    depth = _depth(entry)
    if not nesting.least_depth <= depth <= nesting.object_depth + 1:
        raise ValueError(
            f"{nesting.name} of one image came as {describe(entry)}, expected {nesting.forms}. For a list "
            "of images put the image axis first."
        )
    for _ in range(nesting.object_depth + 1 - depth):
        entry = [entry]
    return entry


def _raster_entries(value: Any, name: str, num_images: int, is_batch: bool) -> list:
    if is_batch:
        return _entries(value, name, num_images)
    return [_drop_image_axis(value, name) if _ndim(value) == 4 else value]


def _ndim(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return 1 + next((_ndim(item) for item in value if item is not None), 2)
    if isinstance(value, PIL.Image.Image):
        return 2
    return getattr(value, "ndim", 0)


def _planes(entry: Any, name: str) -> list[Tensor | None]:
    """One image's masks as two-dimensional tensors."""
    ndim = _ndim(entry)
    if ndim not in (2, 3):
        raise ValueError(
            f"{name} of one image came as {describe(entry)}, expected [H][W] or [N][H][W]. For a list of "
            "images put the image axis first."
        )
    return [None if plane is None else _plane(plane, name) for plane in ([entry] if ndim == 2 else entry)]


def _plane(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} holds a {type(value).__name__}, expected numbers or bool in [H, W].")
        value = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if value.ndim != 2 or value.numel() == 0:
        raise ValueError(f"{name} holds a mask of {describe(value)}, expected [H, W] for each object.")
    # torch hardly computes with the wide unsigned types that label maps come in.
    is_wide = value.dtype in (torch.uint16, torch.uint32, torch.uint64)
    return value.detach().cpu().to(torch.int64 if is_wide else value.dtype)


def _binary(mask: Tensor, name: str) -> Tensor:
    """0 and 1 as uint8, or as float32 where NaN marks pixels to ignore."""
    if mask.dtype == torch.bool:
        return mask.to(torch.uint8)
    high = 255 if not mask.is_floating_point() and mask.max() == 255 else 1
    if not ((mask == 0) | (mask == high) | mask.isnan()).all():
        values = mask.unique()
        listed = ", ".join(f"{v:g}" for v in values[:8].tolist()) + (", ..." if len(values) > 8 else "")
        raise ValueError(
            f"{name}: the mask of one object holds {listed}; expected bool, or 0 and 1, or integers 0 and "
            "255. Threshold a soft mask; pass a label map [H, W] as integers, not in a list of objects."
        )
    return mask.to(torch.float32) if mask.is_floating_point() else (mask != 0).to(torch.uint8)


def _split_label_map(label_map: Tensor, name: str) -> list[Tensor]:
    values = label_map.unique()
    if values[0] < 0:
        raise ValueError(
            f"{name}: a label map holds {values[0].item()}; labels are 0 for background and positive for objects."
        )
    return [(label_map == value).to(torch.uint8) for value in values if value != 0]
