"""Data sets too large to list or to store, as endless streams of records that processes and workers share."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .damage import fault_of
from .faults import check_usable, first_sound, wants_empty
from .object_filter import ObjectFilter
from .reader import ExifFrame, ImageSource, read_record
from .schema import DrawnRecord, Record, check_record
from .tables import TableColumns, row_name

__all__ = ["FirstRecords", "RecordStream", "Shard", "TableShard", "told_by_first_rows"]

NUM_PROBED = 100

# Names of records in the order of storage, each with a function that decodes it.
Shard = Iterable[tuple[str, Callable[[], Record]]]


class RecordStream(IterableDataset):
    """Records from shards, endlessly, each shard read from its beginning to its end.

    Every epoch takes the shards in another order, and `buffer_size` records wait, encoded, to be drawn at random. A
    process reads only its own shards; where there are fewer shards than workers of all processes, some read the same
    one and take turns in its records. What is drawn depends on the seed and the numbers of processes and workers; a
    stream that starts at a later batch draws what it would have drawn then, and decodes nothing before.

    A record has its place in the stream as `draw`, for the collator. Records that cannot be used are replaced by
    others from the buffer, with `faults`, as in `SoundRecords`; so is a shard that breaks off.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        chosen: Callable[[str], bool] | None = None,
        *,
        buffer_size: int = 100,
        guesses: dict[str, str] | None = None,
        names_every_object: bool = True,
    ) -> None:
        """
        Args:
            shards: all shards; the loader sends them to its workers.
            chosen: which records are used, by `image_id`; None for all.
            buffer_size: records that wait to be drawn in each worker.
            guesses, names_every_object: as in `RecordReader`.

        Raises:
            ValueError: if there is no shard.
        """
        if not shards:
            raise ValueError("a stream needs at least one shard")
        self.shards, self.chosen, self.buffer_size, self.guesses = shards, chosen, buffer_size, guesses or {}
        self.names_every_object = names_every_object
        self.seed, self.rank, self.num_ranks = 0, 0, 1
        self.drawn: Sequence[tuple[int, int]] = ()
        self.negatives = 0.0

    def share(
        self,
        *,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        batch_size: int = 1,
        start: int = 0,
        drawn: Sequence[tuple[int, int]] = (),
        negatives: float = 0.0,
    ) -> "RecordStream":
        """This stream for process `rank` of `num_ranks`, whose loader makes batches of `batch_size` and begins with
        the `start`-th. Before these it made `drawn`: so many batches of so many records, of each size. `negatives` is
        the share of draws that may be images without objects."""
        stream = copy.copy(self)
        stream.negatives = negatives
        stream.seed, stream.rank, stream.num_ranks = seed, rank, num_ranks
        stream.drawn = [*drawn, (start, batch_size)]
        return stream

    def __iter__(self) -> Iterator[DrawnRecord]:
        """
        Raises:
            ValueError: if an epoch has no record for this worker, or 50 in a row cannot be used.
        """
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        # A loader begins with worker 0, and takes a batch from each in turn.
        turn = (worker + sum(number for number, _ in self.drawn)) % num_workers
        skipped, first = 0, 0
        for number, batch_size in self.drawn:
            skipped += len(range(first + (turn - first) % num_workers, first + number, num_workers)) * batch_size
            first += number
        lane, num_lanes = self.rank * num_workers + turn, self.num_ranks * num_workers
        rng = np.random.default_rng([self.seed, lane])
        records = self._records(lane, num_lanes)
        waiting = list(islice(records, self.buffer_size))
        for draw, following in enumerate(records):
            place = int(rng.integers(len(waiting)))
            drawn, waiting[place] = waiting[place], following
            if draw >= skipped:
                takes_empty = wants_empty(self.negatives, self.seed, lane, draw)
                others = chain(waiting[place:], waiting[:place])
                attempts = (partial(_usable, read, takes_empty) for read in chain([drawn], others))
                yield {**first_sound(attempts), "draw": draw}

    def first(self, number: int) -> "FirstRecords":
        """The first records of all shards in their order, for evaluation; fewer if there are not so many.

        Raises:
            ValueError: if there is none.
        """
        records = list(islice(chain.from_iterable(map(self._read, self.shards)), number))
        if not records:
            where = ", ".join(map(str, self.shards[:3]))[:200]
            raise ValueError(f"{where}: the split has no record, so there is nothing to evaluate on")
        return FirstRecords(records)

    def _records(self, lane: int, num_lanes: int) -> Iterator[Callable[[], Record]]:
        """Epoch after epoch, what is for one of the lanes that all shards are dealt to."""
        for epoch in count():
            is_empty = True
            for record in self._epoch(epoch, lane, num_lanes):
                is_empty = False
                yield record
            if is_empty:
                raise ValueError(f"the split has no record for worker {lane} of {num_lanes}: take fewer workers")

    def _epoch(self, epoch: int, lane: int, num_lanes: int) -> Iterator[Callable[[], Record]]:
        num_shards = len(self.shards)
        turn, first = divmod(lane, num_shards)
        # Lanes beyond the number of shards take turns in the records of one.
        num_turns = len(range(first, num_lanes, num_shards)) if num_lanes > num_shards else 1
        order = np.random.default_rng([self.seed, epoch]).permutation(num_shards)
        for shard in order[first :: min(num_shards, num_lanes)]:
            yield from islice(self._read(self.shards[shard]), turn, None, num_turns)

    def _read(self, shard: Shard) -> Iterator[Callable[[], Record]]:
        try:
            for name, read in shard:
                if self.chosen is None or self.chosen(name):
                    yield read
        except Exception as error:  # of a format or a library, for a file that is damaged
            yield partial(_break_off, f"{shard}: {fault_of(error)}")


@dataclass(frozen=True)
class FirstRecords(Dataset):
    """Records by index that are in memory as they were stored, and decoded when they are asked for."""

    records: list[Callable[[], Record]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]()


@dataclass(frozen=True)
class TableShard:
    """One shard of a data set that `datasets` streams.

    Args:
        table: the shard, with images as files: `IterableDataset.decode(False)`.
        number: of the shard, for the names of rows without a name.
        columns: where images and objects are.
        object_filter: which objects are used.
        exif: which frame masks are made for, as in `ImageSource`.
        place: where the table is, for messages.
    """

    table: datasets.IterableDataset
    number: int
    columns: TableColumns
    object_filter: ObjectFilter
    exif: ExifFrame | None = None
    place: str = "the table"

    def __str__(self) -> str:
        return f"{self.place}, shard {self.number}"

    def __iter__(self) -> Iterator[tuple[str, Callable[[], Record]]]:
        columns = self.columns
        # By `iter`, as in worker processes the table itself would yield their share of its shards only.
        for number, row in enumerate(self.table.iter(batch_size=1)):
            name = f"{self.number}-{row_name(number)}"
            if columns.kind == "objects":
                name = str(row[columns.name][0])  # unique as our own files have it
            elif columns.name:
                name = f"{name}-{row[columns.name][0]}"  # by itself it may be that of a class or a patient
            yield name, partial(self._decode, name, row[columns.image][0], row[columns.objects][0])

    def _decode(self, name: str, image: Any, objects: Any) -> Record:
        return read_record(
            name,
            lambda: self.object_filter.or_fault(self.columns.read_objects(objects)),
            lambda _: self._source(image, objects),
        )

    def _source(self, image: Any, objects: Any) -> ImageSource:
        return replace(self.columns.image_source(image, self.columns.size_of(objects)), exif=self.exif)


def told_by_first_rows(columns: TableColumns, table: datasets.IterableDataset, masks: str | None) -> TableColumns:
    """Columns with the meaning of masks: as `masks` says, or as the first rows of a stream prove it.

    Raises:
        ValueError: as `TableColumns.told`.
    """
    is_told = columns.kind == "objects" or masks is not None or columns.ignore_label is not None
    rows = [] if is_told else [row[columns.objects] for row in table.take(NUM_PROBED)]
    return columns.told(masks, [str(number) for number in range(len(rows))], rows.__getitem__)


def _usable(read: Callable[[], Record], takes_empty: bool) -> Record | None:
    record = read()
    if record["objects"]:
        check_usable(record)
    else:
        check_record(record)
    return record if record["objects"] or takes_empty else None


def _break_off(message: str) -> Record:
    raise OSError(message)
