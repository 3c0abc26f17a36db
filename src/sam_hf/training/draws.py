"""The order of training samples as a pure function of the seed, so that a run can stop and go on anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from ..data import Records, SoundRecords
from ..data.faults import wants_empty


@dataclass(frozen=True)
class Draw:
    """The `number`-th sample of a training stream is `dataset[index]`."""

    number: int
    index: int


class DrawSampler(Sampler[Draw]):
    """Draws `start, start + 1, ..., stop - 1` of an endless stream that shuffles the data anew in every epoch.

    Args:
        num_samples: size of the data set.
        stop: number of the last draw + 1.
        start: number of the first draw; a resumed run passes how many it has used.
        seed: the permutation of epoch e is that of `(seed, e)`.
    """

    def __init__(self, num_samples: int, stop: int, start: int = 0, seed: int = 0):
        if num_samples < 1:
            raise ValueError("the data set is empty: there is nothing to draw.")
        self.num_samples, self.start, self.stop, self.seed = num_samples, start, stop, seed

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[Draw]:
        order_epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in range(self.start, self.stop):
            epoch, position = divmod(number, self.num_samples)
            if epoch != order_epoch:
                order_epoch = epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            yield Draw(number, int(order[position]))


class DrawnRecords(Dataset):
    """Records of a data set by `Draw`, each with its `draw` number for the collator.

    Args:
        dataset: records by index.
        negatives: share of the draws that may be images without objects, of `SoundRecords`; the other draws of such an
            image take another in its place.
        seed: decides which draws these are.
    """

    def __init__(self, dataset: Any, negatives: float = 0.0, seed: int = 0):
        self.dataset, self.negatives, self.seed = dataset, negatives, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        takes_empty = wants_empty(self.negatives, self.seed, draw.number)
        record = self.dataset.read(draw.index, takes_empty=True) if takes_empty else self.dataset[draw.index]
        return {**record, "draw": draw.number}


def numbered_draws(
    dataset: Records, *, start: int, stop: int, seed: int, negatives: float = 0.0
) -> tuple[DrawnRecords, DrawSampler]:
    """What a `DataLoader` takes as data set and sampler to make the draws from `start` to `stop`.

    All processes get the same sampler, which Accelerate deals to them. `negatives` is the share of draws that may be
    images without objects.
    """
    return DrawnRecords(SoundRecords(dataset), negatives, seed), DrawSampler(len(dataset), stop, start, seed)


def seed_of(*key: int) -> int:
    """A seed for `torch.manual_seed` from several numbers, such as (seed, draw, process)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


__all__ = ["Draw", "DrawSampler", "DrawnRecords", "numbered_draws", "seed_of"]
