"""Metrics that store something else than they are given: masks become run lengths, or numbers."""

from collections.abc import Iterable
from typing import Any

import evaluate
import numpy as np
from datasets import List, Value
from pycocotools import mask as coco

from ...data.rle import encode_segmentation, rle_fault
from ...data.schema import decode_rles

RUN_LENGTHS = {"size": List(Value("int32"), length=2), "counts": Value("string")}


class StoredInputs(evaluate.Metric):
    """A metric with inputs that may be left out, of which it stores what `stored` makes.

    Attributes:
        required, optional: names of the inputs, all with one entry per example.
    """

    required: tuple[str, ...] = ("predictions", "references")
    optional: tuple[str, ...] = ()

    def stored(self, **example: Any) -> dict[str, Any]:
        """The features of one example, whose inputs have the names above; those that were left out are absent."""
        raise NotImplementedError

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one example, its inputs in the form that those of a batch have for each.

        Raises:
            ValueError: if an input is missing, unknown, or not what is described.
        """
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
            **{name: None if value is None else [value] for name, value in kwargs.items()},
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add some examples.

        Raises:
            ValueError: if an input is missing, unknown, or not what is described, or inputs differ in length.
        """
        inputs = {"predictions": predictions, "references": references, **kwargs}
        given = {name: value for name, value in inputs.items() if value is not None}
        missing = [name for name in self.required if name not in given]
        unknown = sorted(given.keys() - {*self.required, *self.optional})
        if missing or unknown:
            raise ValueError(
                f"got the inputs {sorted(given)}, expected {list(self.required)}"
                + (f" and, if there are any, {list(self.optional)}" if self.optional else "")
            )
        lengths = {name: len(value) for name, value in given.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"inputs have the lengths {lengths}, expected an entry of each for every example")
        examples = [
            self.stored(**dict(zip(given, values, strict=True))) for values in zip(*given.values(), strict=True)
        ]
        super().add_batch(**{name: [example[name] for example in examples] for name in self._feature_names()})

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The numbers of all examples, added before and given here; None but in the first of several processes.

        Raises:
            ValueError: as `add_batch`.
        """
        names = {*self.required, *self.optional}
        inputs = {"predictions": predictions, "references": references}
        inputs |= {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        if any(value is not None for value in inputs.values()):
            self.add_batch(**inputs)
        return super().compute(**kwargs)


def run_lengths(mask: Any) -> dict[str, Any]:
    """A mask as compressed run lengths, `{"size": [H, W], "counts": str}`.

    Args:
        mask: bool [H, W]; or run lengths with counts as text, bytes or a list.

    Raises:
        ValueError: if it is neither, or the run lengths do not fill their size.
    """
    if isinstance(mask, dict):
        size = mask.get("size", ())
        if len(size) != 2:
            raise ValueError(f"run lengths have the size {size}, expected [height, width]")
        rle = encode_segmentation(mask, (int(size[0]), int(size[1])))
        fault = rle_fault(rle, rle["size"])
        if fault:
            raise ValueError(f"{fault}; encode the mask again with pycocotools.mask.encode")
        return rle
    pixels = np.asarray(mask)
    if pixels.dtype != bool or pixels.ndim != 2:
        raise ValueError(
            f"got a mask {pixels.dtype} {list(pixels.shape)}, expected bool [H, W] or run lengths "
            "{'size', 'counts'}; compare logits with 0, and split label maps into one mask per object"
        )
    rle = coco.encode(np.asfortranarray(pixels.view(np.uint8)))
    return {"size": list(pixels.shape), "counts": rle["counts"].decode("ascii")}


def all_run_lengths(masks: Iterable[Any]) -> list[dict[str, Any]]:
    """`run_lengths` of each: bool [N, H, W], or a list."""
    return [run_lengths(mask) for mask in masks]


def pixels_of(rle: dict[str, Any]) -> np.ndarray:
    """bool [H, W] of compressed run lengths."""
    return decode_rles([rle])[0]


__all__ = ["RUN_LENGTHS", "StoredInputs", "all_run_lengths", "pixels_of", "run_lengths"]
