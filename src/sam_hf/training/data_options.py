"""The options of a run that say what data it trains on, and how that is opened."""

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset

from ..data import FaultLog, RecordStream, open_dataset, stream_dataset
from ..data.faults import left_out

SPLITS = ("train", "validation")


def option(default: Any, description: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": description, **metadata})


@dataclass
class DataOptions:
    """Data set, filters of its objects, and how much of it may be damaged."""

    dataset: str = option("scenes", '"scenes" (procedural), a folder or file in a known format, or a Hub data set')
    streaming: bool = option(False, "read tar files of SA-1B, Parquet or a Hub data set in order, without listing it")
    image_column: str | None = option(None, "of a table with several columns of images")
    mask_column: str | None = option(None, "of a table with several columns of images")
    min_area: int = option(10, "leave out objects of fewer pixels")
    max_share: float = option(0.9, "leave out objects above this share of the image")
    split_regions: bool = option(False, "make unconnected pieces of an object objects of their own")
    max_fault_share: float = option(0.2, "stop when more of the records cannot be used; others stand for fewer")

    def open_data(self, num_evaluated: int) -> tuple[Dataset | RecordStream, Dataset, FaultLog]:
        """The data of training and of validation, and the log of what cannot be used.

        Files that do not fit together are left out and noted.

        Args:
            num_evaluated: records of the validation data, if it is streamed.

        Raises:
            ValueError: if too many do not fit, or the data cannot be opened.
        """
        faults = FaultLog(self.max_fault_share)
        if self.dataset == "scenes":
            return open_dataset("scenes", "train"), open_dataset("scenes", "validation"), faults
        names = ("image_column", "mask_column", "min_area", "max_share", "split_regions")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.streaming:
            train, validation = (stream_dataset(self.dataset, split, **given) for split in SPLITS)
            return train, validation.first(num_evaluated), faults
        train, validation = (open_dataset(self.dataset, split, strict=False, **given) for split in SPLITS)
        opening = FaultLog(self.max_fault_share)  # of its own, as nothing has been read yet
        for opened in (train, validation):
            opening.note(left_out(opened), len(opened))
        return train, validation, faults


__all__ = ["DataOptions", "option"]
