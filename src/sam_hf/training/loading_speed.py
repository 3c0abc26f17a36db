"""How fast a data loader makes training batches, without any model."""

import time
from itertools import islice

from torch.utils.data import DataLoader

from ..configuration_sam_hf import SamHfConfig
from ..data import Records
from ..processing_sam_hf import SamHfProcessor
from .batches import build_collator
from .collator import ClickSamplingCollator
from .draws import numbered_draws
from .options import Options

__all__ = ["measure_loader", "training_collator"]


def training_collator(image_size: int, crop_size: int, max_objects: int) -> ClickSamplingCollator:
    """The collator of `examples/train.py` with its defaults, for a model with patches of 16 pixels."""
    processor = SamHfProcessor.from_config(SamHfConfig(), image_size)
    return build_collator(processor, crop_size, Options(max_objects=max_objects))


def measure_loader(
    dataset: Records, collator: ClickSamplingCollator, batch_size: int, num_workers: int, num_batches: int
) -> tuple[float, float]:
    """Images and objects per second, after one batch of each worker that is not counted."""
    warm = max(num_workers, 1)
    stop = batch_size * (warm + num_batches)
    draws, sampler = numbered_draws(dataset, start=0, stop=stop, seed=0)
    loader = iter(DataLoader(draws, batch_size, sampler=sampler, collate_fn=collator, num_workers=num_workers))
    for _ in islice(loader, warm):
        pass
    began, num_objects = time.perf_counter(), 0
    for batch in loader:
        num_objects += int((batch["labels"] == 1).flatten(2).any(dim=2).sum())
    seconds = time.perf_counter() - began
    return batch_size * num_batches / seconds, num_objects / seconds
