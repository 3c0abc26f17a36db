"""What the values of masks mean: a number for each object, or one object each. Files prove it, or somebody says it.

Where nobody says it, files are looked at until enough of them prove one meaning. What holds nothing proves nothing,
and neither does a mask of 0 and 1, which is the same object in both meanings. A later file that contradicts is an
error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np

from .reader import UNREADABLE

__all__ = [
    "NUM_PROOFS",
    "Evidence",
    "MaskMeaning",
    "Meaning",
    "described",
    "evidence_of",
    "guess_meaning",
    "stated_meaning",
]

Meaning = Literal["labels", "binary"]
# Compression with loss leaves black and white regions within these, and noise around them within NOISE.
WHITE = 251
NOISE = 32
# Labels lie in regions, whose pixels are in blocks of equal ones; on a soft border a pixel is like few others. Of
# label maps of cells at least 0.98 are in blocks, of smooth vessels that are nothing but border at most 0.1.
MIN_FLAT_LABELS = 0.5
MAX_FLAT_BORDER = 0.25
# A soft mask has bright pixels for its borders, and not only a label or two that happen to be near 255.
MIN_BRIGHT = 0.04
NUM_PROOFS = 8
# Many, as label maps of one object each look the same.
NUM_ONES = 100
SAYS = {
    "labels": "label maps (a number for each object)",
    "binary": "binary masks (one object each, from the middle of the range up)",
}
REMEDY = 'Say what masks mean: masks="labels" or "binary" in Python, --masks labels or --masks binary of commands'


class Evidence(Enum):
    """What the values of one mask are proof of."""

    EMPTY = "nothing"
    ONES = "0 and 1"
    LABELS = "labels"
    BINARY = "a binary mask"
    MIXED = "255 in most of the mask, and regions of other values"
    UNCLEAR = "single pixels of many values"


CONTRADICTIONS = {"labels": (Evidence.BINARY,), "binary": (Evidence.LABELS, Evidence.MIXED)}


@dataclass(frozen=True)
class MaskMeaning:
    """What the masks of a data set mean.

    Args:
        kind: "labels" or "binary".
        proof: the name of the file that proved it and what it holds; None where it is not guessed.
        nothing: values that are no object, and prove nothing.
        source: who says it, where it is not guessed.
    """

    kind: Meaning
    proof: str | None = None
    nothing: tuple[int, ...] = (0,)
    source: str = "as was said"

    def text(self) -> str:
        """For people: the meaning, and why."""
        return f"{SAYS[self.kind]}, {f'proved by {self.proof}' if self.proof else self.source}"

    def check(self, name: str, values: np.ndarray) -> None:
        """
        Raises:
            ValueError: if a mask contradicts what was guessed; it names both files.
        """
        if self.proof is None:
            return
        found = evidence_of(_without(values, self.nothing))
        if found in CONTRADICTIONS[self.kind]:
            raise ValueError(
                f"{name} holds {found.value} ({described(values)}), but masks were taken for {SAYS[self.kind]}, "
                f"proved by {self.proof}. {REMEDY}"
            )


def stated_meaning(masks: str) -> MaskMeaning:
    """
    Raises:
        ValueError: if it is neither "labels" nor "binary".
    """
    if masks not in SAYS:
        raise ValueError(f"masks is {masks!r}: expected 'labels' or 'binary', or None for what the files prove")
    return MaskMeaning("labels" if masks == "labels" else "binary")


def evidence_of(values: np.ndarray, *, lossy: bool = False) -> Evidence:
    """What a mask is proof of.

    Args:
        values: integers [H, W]; 0 is no object.
        lossy: whether dark values are noise, as in JPEG files, and no labels.
    """
    low, top = int(values.min()), int(values.max())
    if low == top == 0:
        return Evidence.EMPTY
    if low < 0:
        return Evidence.LABELS
    if top == 1:
        return Evidence.ONES
    if top > 255:
        # 16 bits of a mask are like 8; numbers of objects end long before.
        if not (256 - NOISE) << 8 <= top < 1 << 16:
            return Evidence.LABELS
        values = values >> 8
    grey = (values > (NOISE if lossy else 0)) & (values < WHITE)
    # Compression may have made another value of black, too, with noise around it.
    black = int(np.bincount(values[values <= NOISE].astype(np.intp), minlength=1).argmax())
    if (noise := grey & (values != black)).any():
        grey = noise
    num_grey, num_white = np.count_nonzero(grey), np.count_nonzero(values >= WHITE)
    if not num_grey:
        return Evidence.BINARY if num_white else Evidence.UNCLEAR
    num_flat = np.count_nonzero(grey & _in_blocks(values))
    if num_flat >= MIN_FLAT_LABELS * num_grey:
        return Evidence.MIXED if num_white > num_flat else Evidence.LABELS
    num_bright = np.count_nonzero(values > 255 - NOISE)
    if not num_bright:
        return Evidence.UNCLEAR
    is_border = num_flat <= MAX_FLAT_BORDER * num_grey and num_bright >= MIN_BRIGHT * num_grey
    return Evidence.BINARY if is_border else Evidence.MIXED


def guess_meaning(
    names: Sequence[str], read: Callable[[int], np.ndarray], nothing: tuple[int, ...] = (0,)
) -> MaskMeaning:
    """What masks mean, by as many of them as it takes.

    Args:
        names: of all masks.
        read: integers [H, W] of a mask by its number.
        nothing: values that are no object: the background, and what is to be ignored.

    Raises:
        ValueError: if masks contradict each other or prove no meaning, or none can be read.
    """
    found: dict[Evidence, list[str]] = {}
    fault: Exception | None = None
    # Neighbours are alike, such as slices of one volume.
    for place in np.random.default_rng(0).permutation(len(names)).tolist():
        try:
            values = read(place)
        except (*UNREADABLE, ValueError) as error:
            fault = error  # whoever reads the record says it
            continue
        found.setdefault(evidence_of(_without(values, nothing)), []).append(f"{names[place]} ({described(values)})")
        num_proofs = sum(len(found.get(kind, ())) for kind in (Evidence.LABELS, Evidence.BINARY, Evidence.MIXED))
        if num_proofs >= NUM_PROOFS or (not num_proofs and len(found.get(Evidence.ONES, ())) >= NUM_ONES):
            break
    if not found and fault is not None:
        raise ValueError(f"no mask can be read: {fault}") from fault
    return _judged(found, nothing)


def _judged(found: dict[Evidence, list[str]], nothing: tuple[int, ...]) -> MaskMeaning:
    first = {kind: names[0] for kind, names in found.items()}
    labels, binary, mixed = (first.get(kind) for kind in (Evidence.LABELS, Evidence.BINARY, Evidence.MIXED))
    if labels and binary:
        raise ValueError(f"masks contradict each other: {labels} holds labels, {binary} a binary mask. {REMEDY}")
    if labels:
        return MaskMeaning("labels", labels, nothing)
    if mixed:
        raise ValueError(f"{mixed} could be a soft binary mask or a label map, with {Evidence.MIXED.value}. {REMEDY}")
    if binary or Evidence.ONES in first:
        return MaskMeaning("binary", binary or first[Evidence.ONES], nothing)
    if Evidence.UNCLEAR in first:
        unclear = first[Evidence.UNCLEAR]
        raise ValueError(f"{unclear} proves no meaning: it holds {Evidence.UNCLEAR.value}. {REMEDY}")
    return MaskMeaning("labels", "no file, as all masks are empty", nothing)


def described(values: np.ndarray) -> str:
    """The values of a mask in a few words."""
    low, top = int(values.min()), int(values.max())
    return f"values {low} to {top}" if low != top else f"value {low}"


def _without(values: np.ndarray, nothing: tuple[int, ...]) -> np.ndarray:
    return values if nothing == (0,) else np.where(np.isin(values, nothing), 0, values)


def _in_blocks(values: np.ndarray) -> np.ndarray:
    """Pixels in a block of two by two equal ones, bool [H, W]."""
    rows = values[:-1] == values[1:]
    blocks = rows[:, :-1] & rows[:, 1:] & (values[:-1, :-1] == values[:-1, 1:])
    pixels = np.zeros(values.shape, dtype=bool)
    ends = slice(None, -1), slice(1, None)
    for vertical in ends:
        for horizontal in ends:
            pixels[vertical, horizontal] |= blocks
    return pixels
