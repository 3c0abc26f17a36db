"""Cross-attention between few tokens and many image positions without projecting the image positions.

With T tokens and `heads` heads, `(q W_q)(k W_k)'` is the same as `(q W_q W_k') k'`: the projection of the L image
positions moves to the other side of the product, where it costs T instead of L rows. The same holds for values, whose
projection commutes with the weighted sum. Exact up to rounding; autograd goes through.

These functions read the weights of `SamHfAttention` directly, so they must not be used when a projection is anything
but a plain linear layer (`is_absorbable`): an adapter or a hook would be skipped without a word.
"""

import torch
from torch import Tensor, nn

from .layers import separate_heads


def is_absorbable(attention: nn.Module) -> bool:
    """Whether all projections are bare linear layers, so that their weights are all they do."""
    return all(
        type(projection) is nn.Linear
        and "forward" not in vars(projection)  # replaced by accelerate where weights are offloaded
        and not (projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    )


def attend_to_image(attention: nn.Module, query: Tensor, keys: Tensor, key_pe: Tensor) -> Tensor:
    """`attention(query, keys + key_pe, keys)` for tokens [B, N, T, C] over image positions [B, N or 1, L, C].

    `key_pe` is [1, 1, L, C]. Returns [B, N, T, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    if keys.shape[1] == 1:  # shared by the objects of an image: their tokens form one sequence
        query = query.flatten(1, 2)[:, None]
    query = separate_heads(attention.q_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    into_image = per_head(attention.k_proj.weight, heads)  # [heads, D, C]
    position_keys = separate_heads(attention.k_proj(key_pe[0]), heads)
    keys = keys.flatten(0, 1)  # [B*N, L, C]
    scores = torch.baddbmm(
        (query @ position_keys.transpose(-2, -1)).flatten(1, 2),
        (query @ into_image).flatten(1, 2),
        keys.transpose(1, 2),
    )
    weights = scores.softmax(dim=-1).to(keys.dtype)
    output = torch.bmm(weights, keys).unflatten(1, (heads, -1))  # [B*N, heads, T, C]
    output = (output @ per_head(attention.v_proj.weight, heads).transpose(-2, -1)).transpose(1, 2).flatten(2)
    output = attention.out_proj(output + attention.v_proj.bias)
    return output.reshape(batch, num_objects, length, -1)


def attend_to_tokens(
    attention: nn.Module, keys: Tensor, key_pe: Tensor, query: Tensor, value: Tensor, token_mask: Tensor | None
) -> Tensor:
    """`keys + attention(keys + key_pe, query, value)` for image positions [B, N or 1, L, C] over tokens [B, N, T, C].

    `token_mask` is additive, [B * N, 1, 1, T]. Returns [B, N, L, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    key = separate_heads(attention.k_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    value = separate_heads(attention.v_proj(value).flatten(0, 1), heads)
    position_queries = separate_heads(attention.q_proj(key_pe[0]), heads)
    position_scores = (key @ position_queries.transpose(-2, -1)).flatten(1, 2)  # [B*N, heads*T, L]
    absorbed = (key @ per_head(attention.q_proj.weight, heads)).flatten(1, 2)
    if keys.shape[1] == 1:
        absorbed = absorbed.unflatten(0, (batch, num_objects)).flatten(1, 2)  # [B, N*heads*T, C]
        scores = (absorbed @ keys[:, 0].transpose(1, 2)).view_as(position_scores) + position_scores
    else:
        scores = torch.baddbmm(position_scores, absorbed, keys.flatten(0, 1).transpose(1, 2))
    scores = scores.unflatten(1, (heads, length))
    if token_mask is not None:
        scores = scores + token_mask.transpose(-2, -1)
    weights = scores.softmax(dim=2).to(keys.dtype).flatten(1, 2)
    # The weights of a head sum to one over the tokens, so each head can carry its share of the bias.
    out_weight = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # [heads, D, C]
    values = (value @ out_weight + attention.out_proj.bias / heads).flatten(1, 2).to(keys.dtype)
    keys = keys.expand(-1, num_objects, -1, -1).flatten(0, 1)
    return torch.baddbmm(keys, weights.transpose(1, 2), values).unflatten(0, (batch, num_objects))


def per_head(weight: Tensor, heads: int) -> Tensor:
    """[heads * D, C] -> [heads, D, C]."""
    return weight.unflatten(0, (heads, -1))


__all__ = ["attend_to_image", "attend_to_tokens", "is_absorbable"]
