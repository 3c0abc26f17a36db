"""Layers that encoder, prompt encoder and mask decoder share. Parameter names are those of `transformers.SamModel`."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cpu_inference import HIDDEN_AT_ONCE, is_cpu_inference


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """The two-layer perceptron of a transformer block."""

    def __init__(self, hidden_size: int, mlp_dim: int, hidden_act: str):
        super().__init__()
        self.lin1 = nn.Linear(hidden_size, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, hidden_size)
        self.act = ACT2FN[hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not is_cpu_inference(self, hidden_states):
            return self.lin2(self.act(self.lin1(hidden_states)))
        parts = hidden_states.flatten(0, -2).split(max(HIDDEN_AT_ONCE // self.lin1.out_features, 1))
        return torch.cat([self.lin2(self.act(self.lin1(part))) for part in parts]).view_as(hidden_states)


class FeedForward(nn.Module):
    """`depth` linear layers with ReLU between them: hypernetworks, IoU head and object-score head."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, depth: int):
        super().__init__()
        self.activation = nn.ReLU()
        self.proj_in = nn.Linear(input_dim, hidden_dim)
        self.layers = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(depth - 2))
        self.proj_out = nn.Linear(hidden_dim, output_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.activation(self.proj_in(hidden_states))
        for layer in self.layers:
            hidden_states = self.activation(layer(hidden_states))
        return self.proj_out(hidden_states)


class AttentionLayer(nn.Module):
    """What `configured_attention` knows of a module: `scaling` is of the products, before the softmax."""

    config: PreTrainedConfig
    scaling: float
    is_causal = False


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations; the interface of transformers' attention functions."""
    weights = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def configured_attention(
    module: AttentionLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention with the implementation that the module's config asks for.

    Args:
        query, key, value: [B, heads, L, D], number of keys may differ from number of queries.
        attention_mask: additive, broadcastable to [B, heads, queries, keys].
        dropout: probability, in training mode only.

    Returns:
        output: [B, L, heads * D].
        weights: [B, heads, queries, keys] where the implementation makes them ("eager"), else None.
    """
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention)
    output, weights = implementation(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=module.scaling,
        dropout=dropout if module.training else 0.0,
        is_causal=False,
    )
    return output.flatten(2), weights


def embedding_vectors(embedding: nn.Embedding, count: int, device: torch.device | None) -> Tensor:
    """The first `count` vectors, [count, C], by a call: the weight itself may be elsewhere until then (offloading)."""
    return embedding(torch.arange(count, device=device))


def is_bare(module: nn.Module, parts: Collection[type]) -> bool:
    """Whether a module is of one of the types `parts`, with plain weights and without any hook.

    For those who read its weights: an adapter, a hook or a quantised weight would be skipped without a word.
    """
    return (
        type(module) in parts
        and "forward" not in vars(module)  # replaced by accelerate where weights are offloaded
        and not _has_any_global_hook()
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        # Quantised and sharded weights are tensors of types of their own.
        and all(type(weight) in (nn.Parameter, Tensor, type(None)) for weight in module._parameters.values())
    )


def keep_statistics(module: nn.Module) -> None:
    """Let batch norms normalise by what they have stored, whatever the mode of the others."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def separate_heads(hidden_states: Tensor, num_heads: int) -> Tensor:
    """[B, L, heads * D] -> [B, heads, L, D]."""
    return hidden_states.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def height_and_width(grid: Tensor) -> tuple[int, int]:
    """(H, W) of [..., H, W]."""
    height, width = grid.shape[-2:]
    return height, width


def image_to_tokens(grid: Tensor) -> Tensor:
    """[..., C, h, w] -> [..., h * w, C]."""
    return grid.flatten(-2).transpose(-2, -1)


def of_objects(value: Tensor, objects: slice) -> Tensor:
    """Those objects of [B, N, ...]; as it is if there is one entry for all of them."""
    return value if value.shape[1] == 1 else value[:, objects]


def per_head(weight: Tensor, num_heads: int) -> Tensor:
    """[heads * D, ...] -> [heads, D, ...]."""
    return weight.unflatten(0, (num_heads, -1))


__all__ = [
    "AttentionLayer",
    "FeedForward",
    "LayerNorm2d",
    "MLPBlock",
    "configured_attention",
    "eager_attention",
    "embedding_vectors",
    "height_and_width",
    "image_to_tokens",
    "is_bare",
    "keep_statistics",
    "of_objects",
    "per_head",
    "separate_heads",
]
