"""Records that cannot be used: replaced, counted and named, and an error when they are too many.

An image that is annotated with nothing is no fault: it is a negative, or another is taken in its place.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .schema import DrawnRecord, Record, Records, check_record

__all__ = [
    "FaultLog",
    "SoundRecords",
    "check_usable",
    "first_sound",
    "left_out",
    "read_checked",
    "wants_empty",
    "why_empty",
]

logger = logging.getLogger(__name__)

# So many in a row mean that the data set as a whole is unreadable, as when a disk is gone.
MAX_ATTEMPTS = 50
# So many images without objects in a row are no data set to train on.
MAX_EMPTY = 1000
# Fewer faults than this tell no rate.
MIN_FAULTS = 10
_REASON = "it was annotated with none, or the limits min_area, max_area, min_share and max_share took all"


class SoundRecords(Dataset):
    """A data set in which another record stands for each one that cannot be read, is malformed, or has no object.

    Which one depends on the index only, so that a batch is the same in any worker and after a resume. Where one was
    replaced, the record has the messages of what failed under `faults`, for `FaultLog`. Images that are annotated with
    nothing are replaced without one; `read` can give them, too. Those whose objects were taken by a filter, or are all
    to be ignored, may well show one: they are faults.
    """

    def __init__(self, dataset: Records) -> None:
        self.dataset = dataset
        self._checked: set[int] = set()  # as looking at all objects may take as long as reading them
        self._empty: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> DrawnRecord:
        """
        Raises:
            ValueError: if 50 records in a row cannot be used; it lists them.
        """
        return self.read(index)

    def read(self, index: int, takes_empty: bool = False) -> DrawnRecord:
        """The same; `takes_empty` says whether an image that is annotated with nothing will do."""
        return first_sound(partial(self._read, place, takes_empty) for place in self._candidates(index))

    def _read(self, index: int, takes_empty: bool) -> Record | None:
        if index in self._empty and not takes_empty:
            return None
        record = self.dataset[index]
        if index not in self._checked:
            self._check(record, index)
            self._checked.add(index)
        if not record["objects"]:
            self._empty.add(index)
        return record if record["objects"] or takes_empty else None

    def _check(self, record: Record, index: int) -> None:
        why = "" if any(not item["iscrowd"] for item in record["objects"]) else why_empty(self.dataset, index)
        if record["objects"] or why:
            check_usable(record, why)
        else:
            check_record(record)

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        rng = np.random.default_rng(index)
        while True:
            yield int(rng.integers(len(self.dataset)))


class FaultLog:
    """Counts records that could not be used, logs each once, and stops the run when their share is too large.

    Args:
        max_share: of all records that were tried.
    """

    def __init__(self, max_share: float = 0.2) -> None:
        self.max_share = max_share
        self.num_tried = 0
        self.num_failed = 0
        self.messages: dict[str, None] = {}

    def note(self, faults: Sequence[str], num_used: int, *, is_told: bool = True) -> None:
        """Add what failed beside `num_used` records that did not; `is_told` False logs nothing.

        Raises:
            ValueError: if too many have failed; it lists all.
        """
        self.num_failed += len(faults)
        self.num_tried += len(faults) + num_used
        for fault in faults:
            if fault not in self.messages and is_told:
                logger.warning("left out: %s", fault)
            self.messages[fault] = None
        if self.num_failed >= MIN_FAULTS and self.num_failed > self.max_share * self.num_tried:
            raise ValueError(
                f"{self.num_failed} of {self.num_tried} records could not be used, more than a share of "
                f"{self.max_share}:{_listed(self.messages)}"
            )

    def sound(self, dataset: Records, indices: Iterable[int]) -> Iterator[Record]:
        """Records by index, without those that cannot be used, which are noted; for evaluation, where none may stand
        for another."""
        for index in indices:
            try:
                record = read_checked(dataset, index)
            except (OSError, ValueError) as error:
                self.note([str(error)], 0)
            else:
                self.note([], 1)
                yield record


def read_checked(dataset: Records, index: int) -> Record:
    """A record that is well formed.

    Raises:
        OSError, ValueError: that names it, if it cannot be read or is not.
    """
    record = dataset[index]
    check_record(record)
    return record


def why_empty(dataset: Records, index: int) -> str:
    """What took the objects of a record that has none left; empty if it had none, or its reader cannot tell."""
    found = getattr(dataset, "object_filter", None), getattr(dataset, "read_objects", None)
    annotated = found[1](index) if found[0] and found[1] else []
    return found[0].reason(annotated) if found[0] and annotated else ""


def left_out(*datasets: Records) -> list[str]:
    """A message for each file that readers passed over when they were opened with `strict=False`.

    The readers of two splits of a folder both name what is wrong with the folder: that counts once.
    """
    found: dict[tuple[Any, str], str] = {}
    for dataset in datasets:
        for what, names in getattr(dataset, "problems", {}).items():
            found |= {(getattr(dataset, "root", None), f"{what}: {name}"): f"{what}: {name}" for name in names}
    return list(found.values())


def check_usable(record: Record, why: str = "") -> None:
    """Check that a record is well formed and has an object to segment; `why` says why it has none, if that is known.

    Raises:
        ValueError: that names the record.
    """
    check_record(record)
    if all(item["iscrowd"] for item in record["objects"]):
        reason = why or (
            f"all {len(record['objects'])} are regions to ignore (iscrowd)" if record["objects"] else _REASON
        )
        raise ValueError(f"record {record['image_id']!r} has no object to segment: {reason}")


def wants_empty(share: float, *key: int) -> bool:
    """Whether the draw of this key, such as (seed, number), is of the `share` that may be images without objects."""
    return share > 0 and np.random.default_rng(key).random() < share


def first_sound(attempts: Iterable[Callable[[], Record | None]]) -> DrawnRecord:
    """The first record that can be used, with `faults` if others had to be passed over; None is no fault.

    Raises:
        ValueError: if the attempts are over, 50 fail, or 1000 give None.
    """
    faults: list[str] = []
    num_empty = 0
    for read in attempts:
        try:
            record = read()
        except (OSError, ValueError) as error:
            faults.append(str(error))
        else:
            if record is not None:
                found: DrawnRecord = {**record}
                return {**found, "faults": faults} if faults else found
            num_empty += 1
        if len(faults) == MAX_ATTEMPTS or num_empty == MAX_EMPTY:
            break
    empty = f", and {num_empty} are annotated with no object" if num_empty else ""
    raise ValueError(f"{len(faults)} records in a row cannot be used{empty}:{_listed(faults)}")


def _listed(messages: Iterable[str]) -> str:
    return "".join(f"\n- {message}" for message in messages)
