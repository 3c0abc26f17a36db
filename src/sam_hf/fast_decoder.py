"""The mask decoder with less work: what `SamHfMaskDecoder.decode` computes, up to rounding; autograd goes through.

- Objects share the image until the first layer has changed it for each: it is projected once.
- With T tokens and `heads` heads, `(q W_q)(k W_k)'` is the same as `(q W_q W_k') k'`: the projection of the L image
  positions moves to the other side of the product, where it costs T instead of L rows. The same holds for values,
  whose projection commutes with the weighted sum.
- A transposed convolution whose kernel is its stride turns each cell into 2 x 2 cells by itself, a matrix product, so
  cells may stay where they are in memory until only mask logits are left to rearrange.

These functions read weights directly, so that an adapter, a hook or a quantised weight would be skipped without a
word: `is_as_built` says where they may be used.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_inference import CELLS_AT_ONCE, is_cpu_inference
from .layers import height_and_width, image_to_tokens, is_bare, of_objects, per_head, separate_heads

if TYPE_CHECKING:
    from .mask_decoder import SamHfAttention, SamHfMaskDecoder, SamHfTwoWayAttentionBlock


def is_as_built(decoder: "SamHfMaskDecoder", parts: frozenset[type]) -> bool:
    """Whether everything in a decoder is of one of the types `parts`, with plain weights and without any hook.

    Activations may be anything: they are called in either way, and so are hooks of the decoder itself.
    """
    return type(decoder) in parts and all(
        name.endswith(("act", "activation")) or is_bare(module, parts)
        for name, module in decoder.named_modules()
        if module is not decoder
    )


class FastDecoder:
    """Decodes the objects of some images, a few at a time, in place of `SamHfMaskDecoder.decode`; arguments as there.

    What the first layer makes of the tokens is computed here for all objects, where they share the image.
    """

    def __init__(
        self,
        decoder: "SamHfMaskDecoder",
        image_embeddings: list[Tensor],
        image_positional_embeddings: Tensor,
        tokens: Tensor,
        token_mask: Tensor | None,
        dense_prompt_embeddings: Tensor,
    ):
        self.decoder, self.dense = decoder, dense_prompt_embeddings
        self.tokens, self.token_mask = tokens, token_mask
        self.image = ImageOfObjects(
            image_embeddings, image_positional_embeddings, dense_prompt_embeddings, tokens.shape[1]
        )
        self.queries = None
        if self.image.is_shared:
            first, keys = decoder.transformer.layers[0], self.image.keys(dense_prompt_embeddings)
            self.queries = update_tokens(first, tokens, keys, tokens, self.image, token_mask, is_shared=True)

    def __call__(
        self, objects: slice, keep: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `SamHfMaskDecoder.decode`."""
        tokens, keys = self.transform(objects)
        iou_scores, object_scores = self.decoder.predict_scores(tokens)
        if keep is None:
            return self.predict_masks(tokens, keys), iou_scores, object_scores
        kept = keep(iou_scores)
        has_kept = kept[0].any(-1)
        if not has_kept.all():  # else a needless copy
            tokens, keys = tokens[:, has_kept], keys[:, has_kept]
        return self.predict_masks(tokens, keys)[0, kept[0, has_kept]], iou_scores, object_scores

    def transform(self, objects: slice) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens [B, n, T, C] and the image as each object sees it [B, n, L, C]."""
        transformer, image = self.decoder.transformer, self.image
        tokens = self.tokens[:, objects]
        mask = None if self.token_mask is None else self.token_mask[:, objects]
        keys, queries = image.keys(of_objects(self.dense, objects)), tokens
        for index, layer in enumerate(transformer.layers):
            is_shared = index == 0 and image.is_shared  # until the first layer has changed the image
            if self.queries is not None and is_shared:
                queries = self.queries[:, objects]
            else:
                queries = update_tokens(layer, queries, keys, tokens, image, mask, is_shared)
            keys = update_image(layer, queries, keys, tokens, image, mask, is_shared)
        last = transformer.final_attn_token_to_image
        queries = queries + tokens_to_image(last, queries + tokens, keys, image, is_shared=False)
        return transformer.layer_norm_final_attn(queries), keys

    def predict_masks(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Mask logits [B, n, M, h, w]."""
        decoder, image = self.decoder, self.image
        convolutions = decoder.upscale_conv1, decoder.upscale_conv2
        weights = decoder.hypernetwork_weights(tokens)
        return masks_by_products(
            convolutions,
            decoder.upscale_layer_norm,
            decoder.activation,
            keys,
            weights,
            image.size,
            image.fine_cells,
        )


class ImageOfObjects:
    """What the objects of an image have in common, with its projections once they have been asked for.

    Args:
        embeddings, positional_embeddings, dense: as `SamHfMaskDecoder.forward` takes them.
        num_objects: N.

    Attributes:
        is_shared: whether several objects see the same image, so that to project it once takes less than absorption.
        positions: [1, L, C].
        size: (h/4, w/4), in image tokens.
        fine_cells: of the high-resolution features, see `cut_cells`; empty without these.
    """

    def __init__(self, embeddings: list[Tensor], positional_embeddings: Tensor, dense: Tensor, num_objects: int):
        *high_res, self.embedding = embeddings
        self.fine_cells = [cut_cells(features, times) for times, features in enumerate(reversed(high_res), 1)]
        self.positions = image_to_tokens(positional_embeddings.to(self.embedding.dtype))
        self.size = height_and_width(self.embedding)
        self.is_shared = dense.shape[1] == 1 and num_objects > 1
        self.shared_keys = self.add(dense) if dense.shape[1] == 1 else None
        self.shared_located = None
        if self.is_shared and self.shared_keys is not None:
            self.shared_located = self.shared_keys + self.positions
        self.projects_positions = self.embedding.shape[0] * num_objects > 1
        self.projections: dict[nn.Module, Tensor] = {}

    def add(self, dense: Tensor) -> Tensor:
        return image_to_tokens(self.embedding[:, None] + dense).contiguous()

    def keys(self, dense: Tensor) -> Tensor:
        """Image tokens of some objects from their dense prompts, [B, N, L, C]; where all share them [B, 1, L, C]."""
        return self.add(dense) if self.shared_keys is None else self.shared_keys

    def project_once(self, projection: nn.Module, tokens: Tensor) -> Tensor:
        """`projection(tokens)`, computed the first time; a projection has to get the same tokens every time."""
        if projection not in self.projections:
            self.projections[projection] = projection(tokens)
        return self.projections[projection]

    def scores(self, tokens: Tensor, projection: nn.Linear, keys: Tensor, is_shared: bool) -> Tensor:
        """Products of tokens with `projection(keys + positions)`.

        Args:
            tokens: [B * N, heads, T, D], already projected.
            keys: [B, N, L, C]; or [B, 1, L, C], the same for all objects of an image, if `is_shared`.

        Returns:
            [B * N, heads * T, L].
        """
        # Not `len`, which fixes the number of images and objects in an exported graph.
        heads, batch = tokens.shape[1], keys.shape[0]
        if is_shared and self.shared_located is not None:
            image = separate_heads(self.project_once(projection, self.shared_located)[:, 0], heads)  # [B, heads, L, D]
            scores = torch.einsum("bnhtd,bhld->bnhtl", tokens.unflatten(0, (batch, -1)), image)
            return scores.flatten(2, 3).flatten(0, 1)
        keys = keys.flatten(0, 1)
        if self.projects_positions:
            positions = separate_heads(self.project_once(projection, self.positions), heads)[0]  # [heads, L, D]
            # A broadcast product would first repeat the positions for every object.
            by_position = torch.einsum("nhtd,hld->nhtl", tokens, positions).flatten(1, 2)
        else:
            by_position = (tokens @ per_head(projection.bias, heads)[..., None]).flatten(1, 2)
            keys = keys + self.positions
        absorbed = (tokens @ per_head(projection.weight, heads)).flatten(1, 2)
        return torch.baddbmm(by_position, absorbed, keys.transpose(1, 2))


def update_tokens(
    layer: "SamHfTwoWayAttentionBlock",
    queries: Tensor,
    keys: Tensor,
    query_pe: Tensor,
    image: ImageOfObjects,
    token_mask: Tensor | None,
    is_shared: bool,
) -> Tensor:
    """The half of a block that changes the tokens: [B, N, T, C]."""
    queries = layer.attend_among_tokens(queries, query_pe, token_mask)
    attention = layer.cross_attn_token_to_image
    queries = queries + tokens_to_image(attention, queries + query_pe, keys, image, is_shared)
    queries = layer.layer_norm2(queries)
    return layer.layer_norm3(queries + layer.mlp(queries))


def update_image(
    layer: "SamHfTwoWayAttentionBlock",
    queries: Tensor,
    keys: Tensor,
    query_pe: Tensor,
    image: ImageOfObjects,
    token_mask: Tensor | None,
    is_shared: bool,
) -> Tensor:
    """The half of a block that changes the image, from updated queries: [B, N, L, C]."""
    attention, query = layer.cross_attn_image_to_token, queries + query_pe
    return layer.layer_norm4(add_tokens_to_image(attention, keys, image, query, queries, token_mask, is_shared))


def tokens_to_image(
    attention: "SamHfAttention", query: Tensor, keys: Tensor, image: ImageOfObjects, is_shared: bool
) -> Tensor:
    """`attention(query, keys + positions, keys)` for tokens [B, N, T, C] over image tokens [B, N or 1, L, C].

    Returns [B, N, T, C].
    """
    if is_shared and image.shared_located is not None:
        key = image.project_once(attention.k_proj, image.shared_located)
        return attention.of_projected(attention.q_proj(query), key, image.project_once(attention.v_proj, keys))
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    query = separate_heads(attention.q_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    scores = image.scores(query, attention.k_proj, keys, is_shared)
    keys = keys.flatten(0, 1)  # [B*N, L, C]
    weights = scores.softmax(dim=-1).to(keys.dtype)
    output = torch.bmm(weights, keys).unflatten(1, (heads, -1))  # [B*N, heads, T, C]
    output = (output @ per_head(attention.v_proj.weight, heads).transpose(-2, -1)).transpose(1, 2).flatten(2)
    output = attention.out_proj(output + attention.v_proj.bias)
    return output.reshape(batch, num_objects, length, -1)


def add_tokens_to_image(
    attention: "SamHfAttention",
    keys: Tensor,
    image: ImageOfObjects,
    query: Tensor,
    value: Tensor,
    token_mask: Tensor | None,
    is_shared: bool,
) -> Tensor:
    """`keys + attention(keys + positions, query, value)` for image tokens [B, N or 1, L, C] over tokens [B, N, T, C].

    `token_mask` is additive, [B, N, 1, 1, T]. Returns [B, N, L, C].
    """
    batch, num_objects, length = query.shape[:3]
    heads = attention.num_attention_heads
    key = separate_heads(attention.k_proj(query).flatten(0, 1), heads) * attention.scaling  # [B*N, heads, T, D]
    value = separate_heads(attention.v_proj(value).flatten(0, 1), heads)
    scores = image.scores(key, attention.q_proj, keys, is_shared).unflatten(1, (heads, length))
    if token_mask is not None:
        scores = scores + token_mask.flatten(0, 1).transpose(-2, -1)
    weights = scores.softmax(dim=2).to(keys.dtype).flatten(1, 2)
    # The weights of a head sum to one over the tokens, so each head can carry its share of the bias.
    out_weight = attention.out_proj.weight.T.unflatten(0, (heads, -1))  # [heads, D, C]
    values = (value @ out_weight + attention.out_proj.bias / heads).flatten(1, 2).to(keys.dtype)
    keys = keys.expand(-1, num_objects, -1, -1).flatten(0, 1)
    return torch.baddbmm(keys, weights.transpose(1, 2), values).unflatten(0, (batch, num_objects))


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


def multiply_cells(conv: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed 2 x 2 convolution of cells [..., C], each by itself: [..., 4, C'], row by row."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * C', C]
    bias = None if conv.bias is None else conv.bias.repeat(4)
    return F.linear(cells, weight, bias).unflatten(-1, (4, -1))


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


__all__ = ["FastDecoder", "is_as_built"]
