"""How inference works on a CPU: in pieces that fit its cache, in memory that was used before.

The scores of all heads of a 1024 x 1024 image are 0.8 GB per layer. To write them, and to ask the system for that much
memory again and again, takes longer than the arithmetic.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

# In bytes. Image tokens of every object are what decoding needs memory for; there are so many copies at the peak.
MEMORY_BUDGET = 2**31
TOKEN_COPIES = 10
# What stays in the cache of a CPU.
SCORES_AT_ONCE = 2**20  # of an attention with relative positions
HIDDEN_AT_ONCE = 2**21  # activations of an MLP
CELLS_AT_ONCE = 1024  # image tokens that are upscaled together
DECODER_BUDGET = TOKEN_COPIES * 2**23  # of decoding: two objects of a 1024 x 1024 image


def is_cpu_inference(module: nn.Module, tensor: Tensor) -> bool:
    """Whether to work in pieces that fit the cache and take no fresh memory from the system, which is slow on CPUs.

    Autograd would keep all pieces anyway, a compiler unroll the loop over them, and an accelerator wait for each. The
    first time it is so, the allocator is told to keep what is freed.
    """
    is_recorded = module.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if tensor.device.type != "cpu" or is_recorded:
        return False
    reuse_freed_memory()
    return True


@functools.cache
def reuse_freed_memory() -> None:
    """Make glibc keep 64 MB of what is freed for the next piece; other allocators take no notice.

    It keeps twice the size of the largest mapped block that has been freed, among those up to 32 MB, and returns the
    rest to the system, whose pages then come back one by one. To ask for a block and not write to it takes no memory.
    """
    torch.empty(2**25 - 2**14, dtype=torch.uint8, device="cpu")


def blocked_attention(
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


def objects_within(memory_budget: int, embedding: Tensor) -> int:
    """How many objects of images [B, C, h/4, w/4] can be decoded together in so many bytes; one at least."""
    return max(1, memory_budget // (TOKEN_COPIES * embedding.nbytes))


def decode_in_turns(
    decode: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
    num_objects: int,
    embedding: Tensor,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`decode(objects, keep)` for slices of the objects that fit into memory and cache; all at once for autograd.

    Args:
        decode: masks [B, n, ...] of some objects, or with `keep` [k, ...], their scores, and [B, n, ...] or None.
        num_objects: N.
        embedding: of the images, [B, C, h/4, w/4].
        keep: see `SamHfMaskDecoder.forward`.
    """
    is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
    budget = MEMORY_BUDGET if embedding.device.type != "cpu" else DECODER_BUDGET
    at_once = num_objects if is_recorded else objects_within(budget, embedding)
    if num_objects <= at_once:
        return decode(slice(0, num_objects), keep)
    kept: list[Tensor] = []
    outputs: list[Tensor] = []
    for first in range(0, num_objects, at_once):
        objects = slice(first, first + at_once)
        parts = [part for part in decode(objects, keep) if part is not None]
        if keep is not None:
            kept.append(parts.pop(0))
        outputs = outputs or [part.new_empty(part.shape[0], num_objects, *part.shape[2:]) for part in parts]
        for output, part in zip(outputs, parts, strict=True):
            output[:, objects] = part
    masks, iou_scores, *object_scores = [torch.cat(kept), *outputs] if kept else outputs
    return masks, iou_scores, object_scores[0] if object_scores else None


__all__ = [
    "CELLS_AT_ONCE",
    "DECODER_BUDGET",
    "HIDDEN_AT_ONCE",
    "MEMORY_BUDGET",
    "blocked_attention",
    "decode_in_turns",
    "is_cpu_inference",
    "objects_within",
]
