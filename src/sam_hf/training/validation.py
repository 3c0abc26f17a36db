"""Evaluations on the way and at the end."""

from contextlib import nullcontext

import numpy as np
from peft import PeftModel
from torch.utils.data import Dataset

from ..data import FaultLog
from ..evaluation import ClickSummary, simulate_clicks, summarise_clicks
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from .ema import WeightAverage


def evaluate(
    model: SamHfModel | PeftModel,
    processor: SamHfProcessor,
    dataset: Dataset,
    faults: FaultLog,
    num_images: int | None = None,
    average: WeightAverage | None = None,
) -> ClickSummary:
    """Five clicks on objects of `num_images` evenly spaced images, or of all that can be read.

    Leaves the model in training mode.

    With `average`, the weights are the averaged ones.
    """
    num_images = min(num_images or len(dataset), len(dataset))
    indices = np.linspace(0, len(dataset) - 1, num_images).round().astype(int).tolist()
    model.eval()
    with average.applied() if average else nullcontext():
        summary = summarise_clicks(simulate_clicks(model, processor, faults.sound(dataset, indices)))
    model.train()
    return summary


__all__ = ["evaluate"]
