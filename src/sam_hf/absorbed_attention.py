"""Cross-attention between few tokens and many image positions without projecting the image positions.

With T tokens and `heads` heads, `(q W_q)(k W_k)'` is the same as `(q W_q W_k') k'`: the projection of the L image
positions moves to the other side of the product, where it costs T instead of L rows. The same holds for values, whose
projection commutes with the weighted sum. Exact up to rounding; autograd goes through.

These functions read the weights of `SamHfAttention` directly, so they must not be used when a projection is anything
but a bare linear layer (`is_absorbable`): an adapter or a hook would be skipped without a word.
"""

import torch
from torch import Tensor, nn

from .layers import per_head, separate_heads
from .shared_image import SharedImage


def is_bare(module: nn.Module, kind: type) -> bool:
    """Whether the weights of a module are all it does."""
    return (
        type(module) is kind
        and "forward" not in vars(module)  # replaced by accelerate where weights are offloaded
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def is_absorbable(attention: nn.Module) -> bool:
    """Whether all projections are bare linear layers."""
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
    return all(is_bare(projection, nn.Linear) for projection in projections)


def attend_to_image(attention: nn.Module, query: Tensor, keys: Tensor, image: SharedImage) -> Tensor:
    """`attention(query, keys + positions, keys)` for tokens [B, N, T, C] over image tokens [B, N, L, C].

    Returns [B, N, T, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    query = separate_heads(attention.q_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    scores = image.scores(query, attention.k_proj, keys)
    keys = keys.flatten(0, 1)  # [B*N, L, C]
    weights = scores.softmax(dim=-1).to(keys.dtype)
    output = torch.bmm(weights, keys).unflatten(1, (heads, -1))  # [B*N, heads, T, C]
    output = (output @ per_head(attention.v_proj.weight, heads).transpose(-2, -1)).transpose(1, 2).flatten(2)
    output = attention.out_proj(output + attention.v_proj.bias)
    return output.reshape(batch, num_objects, length, -1)


def attend_to_tokens(
    attention: nn.Module,
    keys: Tensor,
    image: SharedImage,
    query: Tensor,
    value: Tensor,
    token_mask: Tensor | None,
) -> Tensor:
    """`keys + attention(keys + positions, query, value)` for image tokens [B, N or 1, L, C] over tokens [B, N, T, C].

    `token_mask` is additive, [B * N, 1, 1, T]. Returns [B, N, L, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    key = separate_heads(attention.k_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    value = separate_heads(attention.v_proj(value).flatten(0, 1), heads)
    scores = image.scores(key, attention.q_proj, keys).unflatten(1, (heads, length))
    if token_mask is not None:
        scores = scores + token_mask.transpose(-2, -1)
    weights = scores.softmax(dim=2).to(keys.dtype).flatten(1, 2)
    # The weights of a head sum to one over the tokens, so each head can carry its share of the bias.
    out_weight = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # [heads, D, C]
    values = (value @ out_weight + attention.out_proj.bias / heads).flatten(1, 2).to(keys.dtype)
    keys = keys.expand(-1, num_objects, -1, -1).flatten(0, 1)
    return torch.baddbmm(keys, weights.transpose(1, 2), values).unflatten(0, (batch, num_objects))


__all__ = ["attend_to_image", "attend_to_tokens", "is_absorbable", "is_bare"]
