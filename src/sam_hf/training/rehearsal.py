"""Training that is thrown away, to measure what a step takes before a run begins."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from ..data.schema import objects_from_masks
from ..modeling_sam_hf import SamHfModel
from .batches import build_collator
from .interactive import InteractiveTrainer
from .memory_use import KeptForBackward
from .models import build_processor
from .options import Options


class Builders(NamedTuple):
    """How a script builds what it trains."""

    model: Callable[[Options, Path | None], nn.Module]
    trainer: Callable[[nn.Module, Options], InteractiveTrainer]
    optimizer: Callable[[nn.Module, Options], torch.optim.Optimizer]


class Rehearsal:
    """Model, trainer and optimizer as a run has them, in one process and without anything on the disk.

    It takes from the generators of torch; to be used where these are restored.

    Args:
        options: of the run, of which the embedding cache is left out.
        accelerator: tells device and precision.
        builders: of the script.

    Raises:
        ValueError: if the model does not take images or crops of the sizes in `options`.
    """

    def __init__(self, options: Options, accelerator: Accelerator, builders: Builders):
        self.options, self.accelerator = replace(options, embedding_cache=None), accelerator
        # Adapters leave the methods of the model as they are.
        self.model = cast(SamHfModel, builders.model(self.options, None).to(accelerator.device))
        self.phases = options.phases(options.image_size or self.model.config.image_size)
        sides = [phase.side for phase in self.phases]
        self.processor = build_processor(self.model, options.image_size, sides, **options.preprocessing)
        self.trainer = builders.trainer(self.model, self.options).to(accelerator.device).train()
        self.optimizer = builders.optimizer(self.model, self.options)

    def full_batch(self, side: int, batch_size: int, num_objects: int) -> dict[str, Any]:
        """A batch as the loader makes them, with all objects that there may be, on inputs of `side` pixels."""
        options = replace(self.options, augment=False, max_objects=num_objects)
        masks = np.zeros((num_objects, side, side), dtype=bool)
        masks[:, side // 4 : side // 2, side // 4 : side // 2] = True
        record = {"image": np.zeros((side, side, 3), np.uint8), "objects": objects_from_masks(masks), "image_id": ""}
        collator = build_collator(self.processor, side, options, self.model.config)
        return collator([{**record, "draw": number} for number in range(batch_size)])

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss."""
        inputs = {name: value for name, value in batch.items() if name not in ("image_ids", "num_objects")}
        with self.accelerator.autocast():
            return self.trainer(**send_to_device(inputs, self.accelerator.device)).loss

    def step(self, window: Sequence[dict[str, Any]]) -> None:
        """An optimizer step on some batches, finished when this returns."""
        for batch in window:
            self.forward(batch).backward()
        nn.utils.clip_grad_norm_(self.trainer.parameters(), self.options.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def kept_bytes(self, batch: dict[str, Any]) -> int:
        """What a forward pass keeps for the backward pass."""
        with KeptForBackward() as kept:
            loss = self.forward(batch)
        assert loss.requires_grad
        return kept.num_bytes(self.trainer)


__all__ = ["Builders", "Rehearsal"]
