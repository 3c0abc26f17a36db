"""Attention with relative positions for inference on a CPU: a block of scores at a time, which stays in the cache.

The scores of all heads of a 1024 x 1024 image are 0.8 GB per layer. To write them, and to ask the system for that much
memory again and again, takes longer than the arithmetic.
"""

import torch
from torch import Tensor

SCORES_AT_ONCE = 2**20


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, along_height: Tensor, along_width: Tensor, scaling: float
) -> Tensor:
    """Scaled dot-product attention with decomposed relative positions as the bias.

    Args:
        query, key, value: [B, heads, h * w, D].
        along_height: [B, heads, h, w, h], what to add to the score of a query for the row of the key.
        along_width: [B, heads, h, w, w], and for its column.
        scaling: of the product of query and key.

    Returns:
        [B, h * w, heads * D].
    """
    batch, num_heads = query.shape[:2]
    rows, columns = along_height.shape[2:4]
    query, key, value, along_height, along_width = (
        part.contiguous().flatten(0, 1) for part in (query * scaling, key, value, along_height, along_width)
    )
    rows_at_once = min(max(SCORES_AT_ONCE // (rows * columns**2), 1), rows)
    heads_at_once = max(SCORES_AT_ONCE // (rows * columns) ** 2, 1)
    output = torch.empty_like(query)
    for first in range(0, len(query), heads_at_once):
        heads = slice(first, first + heads_at_once)
        for top in range(0, rows, rows_at_once):
            band = slice(top, top + rows_at_once)
            queries = slice(top * columns, (top + rows_at_once) * columns)
            scores = along_height[heads, band, :, :, None] + along_width[heads, band, :, None]
            scores = scores.flatten(3).flatten(1, 2).baddbmm_(query[heads, queries], key[heads].transpose(1, 2))
            output[heads, queries] = scores.softmax(dim=-1) @ value[heads]
    return output.unflatten(0, (batch, num_heads)).transpose(1, 2).flatten(2)


__all__ = ["attend_in_blocks"]
