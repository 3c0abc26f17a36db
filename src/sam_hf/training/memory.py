"""How much memory a step takes, told before the run is far."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..processing_sam_hf import SamHfProcessor
from .options import Options

MEGABYTE = 2**20


def report_memory(
    trainer: nn.Module, processor: SamHfProcessor, options: Options, write: Callable[[str], None]
) -> None:
    """Measure the next forward pass of `trainer` and write a line on what a step of AdamW takes in each process.

    Weights, gradients and moments are counted; activations are what autograd keeps for the backward pass, and grow
    with the pixels of the input. What is computed and dropped on the way is not counted.

    Args:
        trainer: an `InteractiveTrainer`, before it is wrapped; its input is `pixel_values` [B, 3, H, W].
        processor: of whole images, which the last steps see.
        options: say how many of these a batch has, and whether a `WeightAverage` is kept.
        write: takes the line.
    """
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = processor.image_processor.size["longest_edge"]
    whole = (options.whole_batch_size or options.batch_size, side)
    hooks = saved_tensors_hooks(keep, lambda tensor: tensor)

    def begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hooks.__enter__()

    def end(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        hooks.__exit__(None, None, None)
        for handle in handles:
            handle.remove()
        for parameter in trainer.parameters():
            storages.pop(parameter.untyped_storage().data_ptr(), None)
        activations = sum(storages.values())
        write(describe_memory(trainer, activations, kwargs["pixel_values"], whole, bool(options.ema_decay)))

    handles = [
        trainer.register_forward_pre_hook(begin, with_kwargs=True),
        trainer.register_forward_hook(end, with_kwargs=True, always_call=True),
    ]


def describe_memory(
    trainer: nn.Module, activations: int, pixel_values: Tensor, whole: tuple[int, int], has_average: bool
) -> str:
    """The line of `report_memory`; `activations` in bytes, `whole` images in a batch and side of these in pixels."""
    weights, trained = (
        sum(part.nbytes for part in trainer.parameters() if part.requires_grad or not only_trained)
        for only_trained in (False, True)
    )
    # Gradient, two moments, and the average of every weight that trains.
    fixed = (weights + (4 if has_average else 3) * trained) / MEGABYTE
    kept = activations / MEGABYTE
    batch_size, side = whole
    largest = kept * batch_size * side**2 / pixel_values[:, 0].numel()
    of_whole = f", {largest:,.0f} MB of {batch_size} whole images" if largest > kept else ""
    return (
        f"memory of a step: {fixed:,.0f} MB for weights, gradients and AdamW, {kept:,.0f} MB kept for the backward "
        f"pass of a batch {list(pixel_values.shape)}{of_whole}"
    )


__all__ = ["describe_memory", "report_memory"]
