"""From image tokens to mask logits by matrix products, channels last.

A transposed convolution whose kernel is its stride turns each cell into 2 x 2 cells by itself, so cells may stay where
they are in memory until only mask logits are left to rearrange.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import is_cpu_inference

CELLS_AT_ONCE = 1024


def multiply_cells(conv: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed 2 x 2 convolution of cells [..., C], each by itself: [..., 4, C'], row by row."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * C', C]
    return F.linear(cells, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))


def cut_cells(features: Tensor, times: int) -> Tensor:
    """[B, C, h * 2**times, w * 2**times] as `multiply_cells` nests them: [B, 1, h * w, *[4] * times, C]."""
    pairs = [2] * times
    grid = features.unflatten(3, (-1, *pairs)).unflatten(2, (-1, *pairs))  # [B, C, h, 2, ..., w, 2, ...]
    rows, columns = range(2, 3 + times), range(3 + times, 4 + 2 * times)
    order = [axis for level in zip(rows, columns, strict=True) for axis in level]
    cells = grid.permute(0, *order, 1).flatten(1, 2)
    for level in range(times):
        cells = cells.flatten(2 + level, 3 + level)
    return cells[:, None]


def join_cells(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `cut_cells` for [B, N, h * w, 4, 4, M] at the patch grid (h, w): [B, N, M, 4h, 4w]."""
    grid = cells.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, size)  # [B, N, h, w, 2, 2, 2, 2, M]
    # Pixels first, then masks: to move single numbers in one go takes three times as long.
    pixels = grid.permute(0, 1, 2, 4, 6, 3, 5, 7, 8).flatten(2, 7)
    return pixels.transpose(2, 3).contiguous().unflatten(3, (4 * size[0], 4 * size[1]))


def masks_by_products(
    convolutions: tuple[nn.ConvTranspose2d, nn.ConvTranspose2d],
    layer_norm: nn.LayerNorm,
    activation: nn.Module,
    keys: Tensor,
    weights: Tensor,
    size: tuple[int, int],
    fine_cells: list[Tensor],
) -> Tensor:
    """`weights` times the upscaled image of each object.

    Args:
        convolutions, layer_norm, activation: of the decoder, bare modules.
        keys: image tokens [B, N, h * w, C]; size: (h, w).
        weights: [B, N, M, C/8].
        fine_cells: of the image's own features, [B, 1, h * w, 4, C/4] and [B, 1, h * w, 4, 4, C/8]; or empty.

    Returns:
        logits [B, N, M, 4h, 4w].
    """
    batch, num_objects, length = keys.shape[:3]
    at_once = CELLS_AT_ONCE // max(1, batch * num_objects) if is_cpu_inference(layer_norm, keys) else length
    parts = []
    for first in range(0, length, max(1, at_once)):
        part = slice(first, first + at_once)
        cells = multiply_cells(convolutions[0], keys[:, :, part])
        if fine_cells:
            cells = cells + fine_cells[0][:, :, part]
        # Not its own forward, which takes channels first.
        cells = multiply_cells(convolutions[1], activation(nn.LayerNorm.forward(layer_norm, cells)))
        if fine_cells:
            cells = cells + fine_cells[1][:, :, part]
        cells = activation(cells)  # [B, N, cells, 4, 4, C/8]
        # In this order the gradient of the cells is laid out as they are, for the activation's backward.
        parts.append((cells.flatten(2, 4) @ weights.transpose(2, 3)).unflatten(2, (-1, 4, 4)))
    return join_cells(torch.cat(parts, dim=2), size)


__all__ = ["cut_cells", "masks_by_products"]
