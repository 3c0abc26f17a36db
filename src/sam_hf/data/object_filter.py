"""Which objects of a data set are used: by area, by share of the image, and whole or in pieces."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..regions import label_regions
from .schema import SegmentedObject, decode_masks, objects_from_label_map

__all__ = ["ObjectFilter"]


@dataclass(frozen=True)
class ObjectFilter:
    """Keep the objects whose area is within all limits; crowd regions are always kept, as they are.

    A crowd region (`iscrowd` 1) is never a target to segment, but tells where clicks and losses must not go.

    Args:
        min_area, max_area: in pixels of the image, both included; None is no limit.
        min_share, max_share: in shares of the image, both included. A `max_share` of 0.9 is SAM's; 0.6 suits maps
            that label every pixel, where the largest region is what others would call background.
        split_regions: make each piece of an object that is not connected (pixels touch by sides or corners) an object
            of its own, before the limits apply. Every object is decoded for this when its image is first read.

    Raises:
        ValueError: for limits that no object can meet.
    """

    min_area: int = 10
    max_area: int | None = None
    min_share: float = 0.0
    max_share: float = 0.9
    split_regions: bool = False

    def __post_init__(self) -> None:
        if self.max_area is not None and self.max_area < self.min_area:
            raise ValueError(f"max_area must be at least min_area={self.min_area} pixels, got {self.max_area}")
        if not 0 <= self.min_share <= self.max_share <= 1:
            raise ValueError(
                f"min_share and max_share must be ascending shares of the image in 0 to 1, got {self.min_share} and "
                f"{self.max_share}"
            )

    def __call__(self, objects: Sequence[SegmentedObject]) -> list[SegmentedObject]:
        if self.split_regions:
            objects = [piece for item in objects for piece in ([item] if item["iscrowd"] else _pieces(item))]
        return [item for item in objects if item["iscrowd"] or self._passes(item)]

    def or_fault(self, objects: Sequence[SegmentedObject]) -> list[SegmentedObject]:
        """The same, where nobody can later ask for the `reason`.

        Raises:
            ValueError: if there were objects, of which none is left: the image does show something.
        """
        kept = self(objects)
        if objects and not kept:
            raise ValueError(f"no object to segment: {self.reason(objects)}")
        return kept

    def reason(self, objects: Sequence[SegmentedObject]) -> str:
        """Which limits took how many of the objects of an image, before the filter, of which none is left."""
        crowds = sum(bool(item["iscrowd"]) for item in objects)
        if not objects:
            return "it is annotated with none"
        pieces = dataclasses.replace(self, min_area=0, max_area=None, min_share=0.0, max_share=1.0)(objects)
        taken = Counter(self._limit(item) for item in pieces if not item["iscrowd"])
        counts = [f"{limit} took {count} of {len(pieces)}" for limit, count in sorted(taken.items())]
        ignored = [f"{crowds} of {len(pieces)} are regions to ignore (iscrowd)"] if crowds else []
        return ", ".join([*counts, *ignored]) + "; change the option to keep them"

    def _passes(self, item: SegmentedObject) -> bool:
        return not self._limit(item)

    def _limit(self, item: SegmentedObject) -> str:
        """The first limit that takes an object, as an option with its value; empty if none does."""
        share = item["area"] / np.prod(item["segmentation"]["size"])
        if item["area"] < self.min_area:
            return f"min_area {self.min_area}"
        if self.max_area is not None and item["area"] > self.max_area:
            return f"max_area {self.max_area}"
        if share < self.min_share:
            return f"min_share {self.min_share}"
        return f"max_share {self.max_share}" if share > self.max_share else ""


def _pieces(item: SegmentedObject) -> list[SegmentedObject]:
    labels, areas = label_regions(decode_masks([item])[0])
    return [item] if len(areas) < 3 else objects_from_label_map(labels)
