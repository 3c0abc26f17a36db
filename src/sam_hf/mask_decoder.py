"""Mask decoder: two-way transformer between tokens and image, upscaling, hypernetworks, IoU and object heads.

Here is the algorithm and nothing else. `fast_decoder` computes the same with less work.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .configuration_sam_hf import SamHfMaskDecoderConfig
from .cpu_inference import decode_in_turns
from .fast_decoder import FastDecoder, is_as_built
from .layers import (
    AttentionLayer,
    FeedForward,
    LayerNorm2d,
    MLPBlock,
    configured_attention,
    embedding_vectors,
    height_and_width,
    image_to_tokens,
    of_objects,
    separate_heads,
)


class Guidance(NamedTuple):
    """A target for the decoder to look for, as PerSAM gives it (Zhang et al. 2023, section 3.2).

    Args:
        similarity: float [B, N, heads, T, L], added to the scores of tokens for the image.
        embedding: float [B, N, T, C], added to the tokens before each block.
    """

    similarity: Tensor | None = None
    embedding: Tensor | None = None

    def of_objects(self, objects: slice) -> "Guidance":
        return Guidance(*(None if part is None else part[:, objects] for part in self))


class SamHfAttention(AttentionLayer):
    """Attention whose inner width is `hidden_size / downsample_rate`, for `N` objects in each of `B` images."""

    def __init__(self, config: SamHfMaskDecoderConfig, downsample_rate: int):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        inner = config.hidden_size // downsample_rate
        self.scaling = (inner // config.num_attention_heads) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, inner)
        self.v_proj = nn.Linear(config.hidden_size, inner)
        self.out_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, L, C] queries over [B, N, S, C] keys and values -> [B, N, L, C].

        Either side may have one entry instead of N, shared by all objects of an image: it is then projected once.
        `mask` is additive, [B, N, heads or 1, L or 1, S].
        """
        return self.of_projected(self.q_proj(query), self.k_proj(key), self.v_proj(value), mask)

    def of_projected(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """`forward`, of what is projected already."""
        batch, length = query.shape[0], query.shape[2]
        num_objects = max(query.shape[1], key.shape[1])
        if key.shape[1] == 1 and mask is None:
            # Queries do not see each other, so those of all objects can attend to the shared keys as one sequence.
            query = query.flatten(1, 2)
            key, value = key.squeeze(1), value.squeeze(1)
        else:
            query, key, value = (part.expand(-1, num_objects, -1, -1).flatten(0, 1) for part in (query, key, value))
        mask = None if mask is None else mask.flatten(0, 1)
        query, key, value = (separate_heads(part, self.num_attention_heads) for part in (query, key, value))
        output, _ = configured_attention(self, query, key, value, mask)
        return self.out_proj(output).reshape(batch, num_objects, length, -1)


class SamHfTwoWayAttentionBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens; post-norm."""

    def __init__(self, config: SamHfMaskDecoderConfig, skip_first_layer_pe: bool):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.skip_first_layer_pe = skip_first_layer_pe
        self.self_attn = SamHfAttention(config, downsample_rate=1)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.cross_attn_token_to_image = SamHfAttention(config, config.attention_downsample_rate)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLPBlock(width, config.mlp_dim, config.hidden_act)
        self.layer_norm3 = nn.LayerNorm(width, eps=eps)
        self.cross_attn_image_to_token = SamHfAttention(config, config.attention_downsample_rate)
        self.layer_norm4 = nn.LayerNorm(width, eps=eps)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        query_pe: Tensor,
        key_pe: Tensor,
        token_mask: Tensor | None,
        similarity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Queries, query_pe [B, N, T, C] and keys [B, N or 1, L, C], key_pe [1, L, C] to both, keys per object."""
        queries = self.attend_among_tokens(queries, query_pe, token_mask)
        queries = queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys, similarity)
        queries = self.layer_norm2(queries)
        queries = self.layer_norm3(queries + self.mlp(queries))
        keys = keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, token_mask)
        return queries, self.layer_norm4(keys)

    def attend_among_tokens(self, queries: Tensor, query_pe: Tensor, token_mask: Tensor | None) -> Tensor:
        """The self-attention of `forward`."""
        if self.skip_first_layer_pe:
            return self.layer_norm1(self.self_attn(queries, queries, queries, token_mask))
        query = queries + query_pe
        return self.layer_norm1(queries + self.self_attn(query, query, queries, token_mask))


class SamHfTwoWayTransformer(nn.Module):
    """`num_hidden_layers` two-way blocks and a last attention from tokens to image."""

    def __init__(self, config: SamHfMaskDecoderConfig):
        super().__init__()
        self.layers: Sequence[SamHfTwoWayAttentionBlock] = nn.ModuleList(  # type: ignore[assignment]  # not generic
            SamHfTwoWayAttentionBlock(config, skip_first_layer_pe=index == 0)
            for index in range(config.num_hidden_layers)
        )
        self.final_attn_token_to_image = SamHfAttention(config, config.attention_downsample_rate)
        self.layer_norm_final_attn = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        key_pe: Tensor,
        token_mask: Tensor | None,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, T, C] and keys [B, N or 1, L, C] to both, for each object; the rest as in the blocks."""
        similarity, target = guidance or Guidance()
        if target is not None:
            # PerSAM's code and stock's add it in place, and so to the tokens' positions once, too.
            tokens = tokens + target
        queries = tokens
        for index, layer in enumerate(self.layers):
            if target is not None and index > 0:
                queries = queries + target
            queries, keys = layer(queries, keys, tokens, key_pe, token_mask, similarity)
        attention = self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.layer_norm_final_attn(queries + attention), keys


class SamHfMaskDecoder(nn.Module):
    """Predicts all mask candidates of every object; `select_candidates` picks those that the caller sees."""

    def __init__(self, config: SamHfMaskDecoderConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.num_mask_tokens = config.num_multimask_outputs + 1
        self.num_output_tokens = self.num_mask_tokens + 1 + config.use_object_score
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, width)
        self.transformer = SamHfTwoWayTransformer(config)
        self.upscale_conv1 = nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2)
        self.upscale_layer_norm = LayerNorm2d(width // 4)
        self.upscale_conv2 = nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2)
        self.activation = nn.GELU()
        self.output_hypernetworks_mlps = nn.ModuleList(
            FeedForward(width, width, width // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = FeedForward(
            width, config.iou_head_hidden_dim, self.num_mask_tokens, config.iou_head_depth
        )
        if config.use_object_score:
            self.obj_score_token = nn.Embedding(1, width)
            self.pred_obj_score_head = FeedForward(width, width, 1, 3)

    def forward(
        self,
        image_embeddings: list[Tensor],
        image_positional_embeddings: Tensor,
        sparse_prompt_embeddings: Tensor | None,
        token_mask: Tensor | None,
        dense_prompt_embeddings: Tensor,
        keep: Callable[[Tensor], Tensor] | None = None,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode all mask tokens of every object.

        Args:
            image_embeddings: `[embedding [B, C, h/4, w/4]]`, or with the high-resolution features before it.
            image_positional_embeddings: [1, C, h/4, w/4].
            sparse_prompt_embeddings: [B, N, T, C] or None; token_mask: bool [B, N, T] or None, False where padded.
            dense_prompt_embeddings: broadcastable to [B, N, C, h/4, w/4].
            keep: which masks are wanted, a function of some objects' `iou_scores` [1, n, 1 + num_multimask_outputs]
                to bool of that shape, for a single image. Objects without any are spared the upscaling.
            attention_similarity, target_embedding: as in `SamHfModel.forward`.

        Returns:
            masks: logits [B, N, 1 + num_multimask_outputs, h, w]; the first candidate is for unambiguous prompts. With
                `keep` [K, h, w], those that it wants, object by object.
            iou_scores: [B, N, 1 + num_multimask_outputs].
            object_score_logits: [B, N, 1], or None without object-score token.

        Raises:
            ValueError: for `keep` with several images, and for a target that does not fit the tokens.
        """
        *_, embedding = image_embeddings
        batch = embedding.shape[0]  # not `len`, which fixes it in an exported graph
        if keep is not None and batch > 1:
            raise ValueError(f"keep is for the objects of one image, but there are {batch}.")
        tokens, mask = self.collect_tokens(sparse_prompt_embeddings, token_mask, batch, dense_prompt_embeddings)
        inputs = image_embeddings, image_positional_embeddings, tokens, mask, dense_prompt_embeddings
        decode: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
        if attention_similarity is not None or target_embedding is not None:
            guidance = self.guide(attention_similarity, target_embedding, tokens, embedding[0, 0].numel())
            decode = partial(self.decode, *inputs, guidance=guidance)
        else:
            decode = FastDecoder(self, *inputs) if is_as_built(self, PARTS) else partial(self.decode, *inputs)
        return decode_in_turns(decode, tokens.shape[1], embedding, keep)

    def guide(self, similarity: Tensor | None, target: Tensor | None, tokens: Tensor, length: int) -> Guidance:
        """What stock takes, as each of the tokens [B, N, T, C] and image tokens `length` has it."""
        batch, num_objects, num_tokens = tokens.shape[:3]
        if similarity is not None:
            shape = batch * num_objects, self.config.num_attention_heads, num_tokens, length
            similarity = broadcast(similarity.to(tokens), shape, "attention_similarity", "[B * N, heads, T, L]")
            similarity = similarity.unflatten(0, (batch, num_objects))
        if target is not None:
            target = broadcast(target.to(tokens), tuple(tokens.shape), "target_embedding", "[B, N, T, C]")
        return Guidance(similarity, target)

    def decode(
        self,
        image_embeddings: list[Tensor],
        image_positional_embeddings: Tensor,
        tokens: Tensor,
        token_mask: Tensor | None,
        dense_prompt_embeddings: Tensor,
        objects: slice,
        keep: Callable[[Tensor], Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`forward` for some of the objects, from `collect_tokens`."""
        *high_res, embedding = image_embeddings
        dense = of_objects(dense_prompt_embeddings, objects)
        keys = image_to_tokens(embedding[:, None] + dense)  # [B, n or 1, L, C]
        key_pe = image_to_tokens(image_positional_embeddings.to(keys.dtype))
        mask = None if token_mask is None else token_mask[:, objects]
        guidance = None if guidance is None else guidance.of_objects(objects)
        tokens, keys = self.transformer(tokens[:, objects], keys, key_pe, mask, guidance)
        iou_scores, object_scores = self.predict_scores(tokens)
        kept = None if keep is None else keep(iou_scores)
        if kept is not None:
            tokens, keys = tokens[:, kept[0].any(-1)], keys[:, kept[0].any(-1)]
        upscaled = self.upscale(keys, height_and_width(embedding), high_res)  # [B, n, C/8, h, w]
        masks = self.hypernetwork_weights(tokens) @ upscaled.flatten(3)
        masks = masks.unflatten(-1, upscaled.shape[-2:])
        return masks if kept is None else masks[0, kept[kept.any(-1)]], iou_scores, object_scores

    def collect_tokens(
        self, prompts: Tensor | None, token_mask: Tensor | None, batch: int, dense: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Output tokens, in the order object score, IoU, masks, and then prompts: [B, N, T, C]; and additive mask."""
        embeddings = [(self.iou_token, 1), (self.mask_tokens, self.num_mask_tokens)]
        if self.config.use_object_score:
            embeddings.insert(0, (self.obj_score_token, 1))
        tokens = torch.cat([embedding_vectors(embedding, count, dense.device) for embedding, count in embeddings])
        if prompts is None:
            return tokens.expand(batch, dense.shape[1], -1, -1), None
        tokens = torch.cat([tokens.expand(*prompts.shape[:2], -1, -1), prompts], dim=2)
        return tokens, additive_mask(token_mask, self.num_output_tokens, tokens.dtype)

    def predict_scores(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """`iou_scores` and `object_score_logits` of `forward` from the tokens [B, N, T, C] after the transformer."""
        iou_scores = self.iou_prediction_head(tokens[:, :, self.num_output_tokens - self.num_mask_tokens - 1])
        if self.config.iou_prediction_use_sigmoid:
            iou_scores = iou_scores.sigmoid()
        return iou_scores, self.pred_obj_score_head(tokens[:, :, 0]) if self.config.use_object_score else None

    def hypernetwork_weights(self, tokens: Tensor) -> Tensor:
        """What each mask token makes of the upscaled image, [B, N, M, C/8], from the tokens [B, N, T, C]."""
        mask_tokens = tokens[:, :, self.num_output_tokens - self.num_mask_tokens : self.num_output_tokens].unbind(2)
        perceptrons = zip(self.output_hypernetworks_mlps, mask_tokens, strict=True)
        return torch.stack([perceptron(token) for perceptron, token in perceptrons], dim=2)

    def upscale(self, keys: Tensor, size: tuple[int, int], high_res: list[Tensor]) -> Tensor:
        """Image tokens [B, N, L, C] to [B, N, C/8, h, w], four times finer, plus the image's own fine features."""
        batch, num_objects = keys.shape[:2]
        grid = keys.flatten(0, 1).transpose(1, 2).unflatten(2, size)
        grid = self.upscale_conv1(grid)
        if high_res:
            grid = (grid.unflatten(0, (batch, num_objects)) + high_res[1][:, None]).flatten(0, 1)
        grid = self.upscale_conv2(self.activation(self.upscale_layer_norm(grid)))
        grid = grid.unflatten(0, (batch, num_objects))
        if high_res:
            grid = grid + high_res[0][:, None]
        return self.activation(grid)

    def candidates(self, multimask_output: bool) -> slice:
        """Which of the 1 + `num_multimask_outputs` masks may answer: to an ambiguous prompt, or else the first one."""
        if not multimask_output:
            return slice(0, 1)
        return slice(0 if self.config.ambiguous_candidates == "all" else 1, None)

    def select_candidates(self, masks: Tensor, iou_scores: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
        """Of all masks [B, N, 1 + M, ...] the candidates for ambiguous prompts, or the one for all others.

        The stability-based choice of SAM 2 (its paper, appendix D.1) applies in eval mode only, so that training
        always sees the output of the token that it trains.
        """
        config, candidates = self.config, self.candidates(multimask_output)
        is_fine = max(masks.shape[-2:]) >= config.dynamic_multimask_min_grid
        if multimask_output or self.training or not (config.dynamic_multimask_via_stability and is_fine):
            return masks[:, :, candidates], iou_scores[:, :, candidates]
        delta = config.dynamic_multimask_stability_delta
        inner = (masks[:, :, 0] > delta).sum(dim=(-2, -1))
        outer = (masks[:, :, 0] > -delta).sum(dim=(-2, -1))
        stable = inner >= config.dynamic_multimask_stability_thresh * outer
        choice = torch.where(stable, 0, 1 + iou_scores[:, :, 1:].argmax(dim=-1))[..., None]
        # Not `take_along_dim`, which fixes the number of objects in an exported graph.
        grid = choice[..., None, None].expand(-1, -1, -1, *masks.shape[-2:])
        return masks.gather(2, grid), iou_scores.gather(2, choice)


def broadcast(value: Tensor, shape: tuple[int, ...], name: str, axes: str) -> Tensor:
    try:
        return value.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} should broadcast to {axes}, here {list(shape)}, but got {list(value.shape)}; T counts the output "
            "tokens and then those of the prompts, L the cells of the embedding."
        ) from None


def additive_mask(token_mask: Tensor | None, num_output_tokens: int, dtype: torch.dtype) -> Tensor | None:
    """Mask over output tokens and prompts for attention, [B, N, 1, 1, T]; output tokens always count."""
    if token_mask is None:
        return None
    hidden = nn.functional.pad(~token_mask, (num_output_tokens, 0))[:, :, None, None]
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)


# What a decoder is built of. `fast_decoder` reads the weights of these and of nothing else.
PARTS = frozenset(
    {
        SamHfMaskDecoder,
        SamHfTwoWayTransformer,
        SamHfTwoWayAttentionBlock,
        SamHfAttention,
        FeedForward,
        MLPBlock,
        LayerNorm2d,
        nn.LayerNorm,
        nn.Linear,
        nn.ConvTranspose2d,
        nn.Embedding,
        nn.ModuleList,
    }
)

__all__ = ["SamHfAttention", "SamHfMaskDecoder", "SamHfTwoWayAttentionBlock", "SamHfTwoWayTransformer"]
