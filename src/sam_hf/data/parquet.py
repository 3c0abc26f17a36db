"""Write records as Parquet files that `open_dataset`, and anyone with the `datasets` library, can read."""

import io
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image

from .damage import refusing_damage
from .reader import RecordReader
from .schema import FEATURES, Records, check_record, rgb_array

__all__ = ["check_parquet", "write_parquet"]

# Formats by PIL mode.
LOSSLESS = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG") | dict.fromkeys(("I", "F"), "TIFF")


def write_parquet(
    splits: Mapping[str, tuple[Records, Iterable[int]]], folder: str | Path, records_per_shard: int = 500
) -> tuple[dict[str, int], list[str]]:
    """Write the records of every split to `<split>-00000.parquet`, `<split>-00001.parquet`, ... in `folder`.

    Image files are copied as they are, without loss. Records that cannot be read or are malformed are left out. The
    folder appears when all is written.

    Args:
        splits: by name, a data set and which of its records.
        folder: must not exist.
        records_per_shard: records of one file, which are in memory together.

    Returns:
        counts: records written, by split.
        faults: what was wrong with the records that were left out; each message names its record.

    Raises:
        ValueError: if the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: name a new folder, or delete it")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts: dict[str, int] = {}
    faults: list[str] = []
    for split, (dataset, indices) in splits.items():
        rows = _rows(dataset, indices, faults)
        counts[split] = 0
        for number in count():
            shard = list(islice(rows, records_per_shard))
            if not shard:
                break
            table = datasets.Dataset.from_list(shard, features=FEATURES)
            table.to_parquet(partial / f"{split}-{number:05d}.parquet")
            counts[split] += len(shard)
    partial.rename(folder)
    return counts, faults


def check_parquet(file: Path) -> None:
    """Read a Parquet file through.

    Raises:
        ValueError: that names it, if it is damaged.
    """
    with refusing_damage(file), pyarrow.parquet.ParquetFile(file) as table:
        deque(table.iter_batches(batch_size=100), maxlen=0)


def _rows(dataset: Records, indices: Iterable[int], faults: list[str]) -> Iterator[dict[str, Any]]:
    for index in indices:
        try:
            record = dataset[index]
            check_record(record)
            content = (
                dataset.image_source(index).content if isinstance(dataset, RecordReader) else _encoded(record["image"])
            )
        except (OSError, ValueError) as error:
            faults.append(str(error))
            continue
        yield {**record, "image": {"bytes": content, "path": None}}


def _encoded(image: Any) -> bytes:
    """The image without loss: PNG, or TIFF of values that PNG does not hold; colours of more than 8 bits as 8-bit."""
    if isinstance(image, np.ndarray) and image.ndim == 2 and image.dtype in (np.uint16, np.int32, np.float32):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image) or image.mode not in LOSSLESS:
        image = Image.fromarray(rgb_array(image))
    file = io.BytesIO()
    image.save(file, LOSSLESS[image.mode])
    return file.getvalue()
