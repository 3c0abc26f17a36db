"""An image as the decoder sees it before any object has changed it, for all objects together."""

import torch
from torch import Tensor, nn

from .layers import per_head, separate_heads
from .mask_upscaling import cut_cells


class SharedImage:
    """What the objects of an image have in common, with its projections once they have been asked for.

    Args:
        embeddings, positional_embeddings, dense: as `SamHfMaskDecoder.forward` takes them.
        num_objects: N. Projections pay only if several objects share them.
    """

    def __init__(self, embeddings: list[Tensor], positional_embeddings: Tensor, dense: Tensor, num_objects: int):
        *self.high_res, self.embedding = embeddings
        self.fine_cells = [cut_cells(features, times) for times, features in enumerate(reversed(self.high_res), 1)]
        self.positions = positional_embeddings.to(self.embedding.dtype).flatten(2).transpose(1, 2)  # [1, L, C]
        self.keys = self.image_tokens(dense) if dense.shape[1] == 1 else None
        self.located = self.keys + self.positions if self.keys is not None and num_objects > 1 else None
        self.is_projected = self.embedding.shape[0] * num_objects > 1
        self.projections: dict[nn.Module, Tensor] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(h/4, w/4), in image tokens."""
        return self.embedding.shape[-2:]

    def image_tokens(self, dense: Tensor) -> Tensor:
        """The embedding plus dense prompts, broadcastable to [B, N, C, h/4, w/4], as sequences [B, N, L, C]."""
        return (self.embedding[:, None] + dense).flatten(3).transpose(2, 3).contiguous()

    def is_shared(self, keys: Tensor) -> bool:
        """Whether keys are those of several objects, so that projecting them once takes less than absorption."""
        return self.located is not None and keys is self.keys

    def through(self, projection: nn.Module, tokens: Tensor) -> Tensor:
        """`projection(tokens)`, the first time; each projection must be given the same tokens always."""
        if projection not in self.projections:
            self.projections[projection] = projection(tokens)
        return self.projections[projection]

    def scores(self, tokens: Tensor, projection: nn.Linear, keys: Tensor) -> Tensor:
        """Products of tokens with `projection(keys + positions)`.

        Args:
            tokens: [B * N, heads, T, D], already projected.
            keys: [B, N, L, C]; or [B, 1, L, C], the same for all objects of an image.

        Returns:
            [B * N, heads * T, L].
        """
        # Not `len`, which fixes the number of images and objects in an exported graph.
        heads, batch = tokens.shape[1], keys.shape[0]
        if self.is_shared(keys):
            image = separate_heads(self.through(projection, self.located)[:, 0], heads)  # [B, heads, L, D]
            scores = torch.einsum("bnhtd,bhld->bnhtl", tokens.unflatten(0, (batch, -1)), image)
            return scores.flatten(2, 3).flatten(0, 1)
        keys = keys.flatten(0, 1)
        if self.is_projected:
            positions = separate_heads(self.through(projection, self.positions), heads)[0]  # [heads, L, D]
            # A broadcast product would first repeat the positions for every object.
            by_position = torch.einsum("nhtd,hld->nhtl", tokens, positions).flatten(1, 2)
        else:
            by_position = (tokens @ per_head(projection.bias, heads)[..., None]).flatten(1, 2)
            keys = keys + self.positions
        absorbed = (tokens @ per_head(projection.weight, heads)).flatten(1, 2)
        return torch.baddbmm(by_position, absorbed, keys.transpose(1, 2))


__all__ = ["SharedImage"]
