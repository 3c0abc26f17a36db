"""Cross-attention between few tokens and many image positions without projecting the image positions.

With T tokens and `heads` heads, `(q W_q)(k W_k)'` is the same as `(q W_q W_k') k'`: the projection of the L image
positions moves to the other side of the product, where it costs T instead of L rows. The same holds for values, whose
projection commutes with the weighted sum. Exact up to rounding; autograd goes through.

These functions read the weights of `SamHfAttention` directly, so they must not be used when a projection is anything
but a bare linear layer (`is_absorbable`): an adapter or a hook would be skipped without a word.
"""

import torch
from torch import Tensor, nn

from .layers import separate_heads


class ImagePositions:
    """Positional embeddings of the image tokens, [1, L, C], and their projections once they have been asked for.

    Projections are the same for all objects; for a single one it takes less to add the embeddings to its tokens.
    """

    def __init__(self, embeddings: Tensor, num_objects: int):
        self.embeddings = embeddings
        self.is_projected = num_objects > 1
        self.projections: dict[nn.Module, Tensor] = {}

    def through(self, projection: nn.Module) -> Tensor:
        if projection not in self.projections:
            self.projections[projection] = projection(self.embeddings)
        return self.projections[projection]

    def scores(self, tokens: Tensor, projection: nn.Linear, keys: Tensor) -> Tensor:
        """Products of tokens with `projection(keys + positions)`.

        Args:
            tokens: [B * N, heads, T, D], already projected.
            keys: [B, N, L, C]; or [B, 1, L, C], shared by the objects of an image, whose tokens then form a sequence.

        Returns:
            [B * N, heads * T, L].
        """
        # Not `len`, which fixes the number of images and objects in an exported graph.
        heads, keys = tokens.shape[1], keys.flatten(0, 1)
        if self.is_projected:
            positions = separate_heads(self.through(projection), heads)[0]  # [heads, L, D]
            # A broadcast product would first repeat the positions for every object.
            by_position = torch.einsum("nhtd,hld->nhtl", tokens, positions).flatten(1, 2)
        else:
            by_position = (tokens @ per_head(projection.bias, heads)[..., None]).flatten(1, 2)
            keys = keys + self.embeddings
        absorbed = (tokens @ per_head(projection.weight, heads)).reshape(keys.shape[0], -1, keys.shape[-1])
        scores = torch.baddbmm(by_position.view(keys.shape[0], absorbed.shape[1], -1), absorbed, keys.transpose(1, 2))
        return scores.view(*by_position.shape[:2], -1)


def is_bare(module: nn.Module, kind: type) -> bool:
    """Whether the weights of a module are all it does."""
    return (
        type(module) is kind
        and "forward" not in vars(module)  # replaced by accelerate where weights are offloaded
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    )


def is_absorbable(attention: nn.Module) -> bool:
    """Whether all projections are bare linear layers."""
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj
    return all(is_bare(projection, nn.Linear) for projection in projections)


def attend_to_image(attention: nn.Module, query: Tensor, keys: Tensor, positions: ImagePositions) -> Tensor:
    """`attention(query, keys + positions, keys)` for tokens [B, N, T, C] over image tokens [B, N or 1, L, C].

    Returns [B, N, T, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    if keys.shape[1] == 1:  # shared by the objects of an image: their tokens form one sequence
        query = query.flatten(1, 2)[:, None]
    query = separate_heads(attention.q_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    scores = positions.scores(query, attention.k_proj, keys)
    keys = keys.flatten(0, 1)  # [B*N, L, C]
    weights = scores.softmax(dim=-1).to(keys.dtype)
    output = torch.bmm(weights, keys).unflatten(1, (heads, -1))  # [B*N, heads, T, C]
    output = (output @ per_head(attention.v_proj.weight, heads).transpose(-2, -1)).transpose(1, 2).flatten(2)
    output = attention.out_proj(output + attention.v_proj.bias)
    return output.reshape(batch, num_objects, length, -1)


def attend_to_tokens(
    attention: nn.Module,
    keys: Tensor,
    positions: ImagePositions,
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
    scores = positions.scores(key, attention.q_proj, keys).unflatten(1, (heads, length))
    if token_mask is not None:
        scores = scores + token_mask.transpose(-2, -1)
    weights = scores.softmax(dim=2).to(keys.dtype).flatten(1, 2)
    # The weights of a head sum to one over the tokens, so each head can carry its share of the bias.
    out_weight = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # [heads, D, C]
    values = (value @ out_weight + attention.out_proj.bias / heads).flatten(1, 2).to(keys.dtype)
    keys = keys.expand(-1, num_objects, -1, -1).flatten(0, 1)
    return torch.baddbmm(keys, weights.transpose(1, 2), values).unflatten(0, (batch, num_objects))


def per_head(weight: Tensor, heads: int) -> Tensor:
    """[heads * D, ...] -> [heads, D, ...]."""
    return weight.unflatten(0, (heads, -1))


__all__ = ["ImagePositions", "attend_to_image", "attend_to_tokens", "is_absorbable", "is_bare"]
