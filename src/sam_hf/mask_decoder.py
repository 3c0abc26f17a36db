"""Mask decoder: two-way transformer between tokens and image, upscaling, hypernetworks, IoU and object heads."""

import torch
from torch import Tensor, nn

from .absorbed_attention import attend_to_image, attend_to_tokens, is_absorbable, is_bare
from .configuration_sam_hf import SamHfMaskDecoderConfig
from .layers import FeedForward, LayerNorm2d, MLPBlock, attend, rows, separate_heads
from .mask_upscaling import masks_by_products
from .shared_image import SharedImage

# In bytes. Image tokens of every object are what decoding needs memory for; there are so many copies at the peak.
MEMORY_BUDGET = 2**31
TOKEN_COPIES = 10
CPU_TOKENS = 2**23  # two objects of a 1024 x 1024 image; more take longer


class SamHfAttention(nn.Module):
    """Attention whose inner width is `hidden_size / downsample_rate`, for `N` objects in each of `B` images."""

    def __init__(self, config: SamHfMaskDecoderConfig, downsample_rate: int):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        inner = config.hidden_size // downsample_rate
        self.scaling = (inner // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, inner)
        self.v_proj = nn.Linear(config.hidden_size, inner)
        self.out_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, N, L, C] queries over [B, N, S, C] keys and values -> [B, N, L, C].

        Either side may have one entry instead of N, shared by all objects of an image: it is then projected once.
        """
        return self.mix(self.q_proj(query), self.k_proj(key), self.v_proj(value), attention_mask)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`forward`, of what is projected already."""
        batch, length = query.shape[0], query.shape[2]
        num_objects = max(query.shape[1], key.shape[1])
        if key.shape[1] == 1:
            # Queries do not see each other, so those of all objects can attend to the shared keys as one sequence.
            query = query.flatten(1, 2)
            key, value = key.squeeze(1), value.squeeze(1)
        else:
            query = query.expand(-1, num_objects, -1, -1).flatten(0, 1)
            key, value = key.flatten(0, 1), value.flatten(0, 1)
        query, key, value = (separate_heads(part, self.num_attention_heads) for part in (query, key, value))
        output, _ = attend(self, query, key, value, attention_mask)
        return self.out_proj(output).reshape(batch, num_objects, length, -1)


def tokens_to_image(attention: SamHfAttention, query: Tensor, keys: Tensor, image: SharedImage) -> Tensor:
    """Tokens [B, N, T, C] attend to image tokens [B, N or 1, L, C], projected once or not at all where possible."""
    if image.is_shared(keys):
        key = image.through(attention.k_proj, image.located)
        return attention.mix(attention.q_proj(query), key, image.through(attention.v_proj, keys))
    if is_absorbable(attention):
        return attend_to_image(attention, query, keys, image)
    return attention(query, keys + image.positions, keys)


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
        image: SharedImage,
        token_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """queries, query_pe [B, N, T, C]; keys [B, N or 1, L, C]; token_mask additive."""
        queries = self.update_tokens(queries, keys, query_pe, image, token_mask)
        return queries, self.update_image(queries, keys, query_pe, image, token_mask)

    def update_tokens(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, image: SharedImage, token_mask: Tensor | None
    ) -> Tensor:
        """The half of `forward` that changes the tokens: [B, N, T, C]."""
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries, token_mask)
        else:
            query = queries + query_pe
            queries = queries + self.self_attn(query, query, queries, token_mask)
        queries = self.layer_norm1(queries)
        queries = queries + tokens_to_image(self.cross_attn_token_to_image, queries + query_pe, keys, image)
        queries = self.layer_norm2(queries)
        return self.layer_norm3(queries + self.mlp(queries))

    def update_image(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, image: SharedImage, token_mask: Tensor | None
    ) -> Tensor:
        """The half of `forward` that changes the image, from updated queries: [B, N, L, C]."""
        query = queries + query_pe
        if is_absorbable(self.cross_attn_image_to_token):
            keys = attend_to_tokens(self.cross_attn_image_to_token, keys, image, query, queries, token_mask)
        else:
            located = keys + image.positions
            keys = keys + self.cross_attn_image_to_token(located, query, queries, token_mask)
        return self.layer_norm4(keys)


class SamHfTwoWayTransformer(nn.Module):
    """`num_hidden_layers` two-way blocks and a last attention from tokens to image."""

    def __init__(self, config: SamHfMaskDecoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            SamHfTwoWayAttentionBlock(config, skip_first_layer_pe=index == 0)
            for index in range(config.num_hidden_layers)
        )
        self.final_attn_token_to_image = SamHfAttention(config, config.attention_downsample_rate)
        self.layer_norm_final_attn = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        image: SharedImage,
        token_mask: Tensor | None,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, T, C] and keys [B, N or 1, L, C] to both, the keys for each object; token_mask is additive.

        `queries` [B, N, T, C]: what the first layer makes of the tokens, if that is known already.
        """
        first, *others = self.layers
        if queries is None:
            queries, keys = first(tokens, keys, tokens, image, token_mask)
        else:
            keys = first.update_image(queries, keys, tokens, image, token_mask)
        for layer in others:
            queries, keys = layer(queries, keys, tokens, image, token_mask)
        attention = tokens_to_image(self.final_attn_token_to_image, queries + tokens, keys, image)
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
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode all mask tokens of every object.

        Args:
            image_embeddings: `[embedding [B, C, h/4, w/4]]`, or with the high-resolution features before it.
            image_positional_embeddings: [1, C, h/4, w/4].
            sparse_prompt_embeddings: [B, N, T, C] or None; token_mask: bool [B, N, T] or None, False where padded.
            dense_prompt_embeddings: broadcastable to [B, N, C, h/4, w/4].

        Returns:
            masks: logits [B, N, 1 + num_multimask_outputs, h, w]; the first candidate is for unambiguous prompts.
            iou_scores: [B, N, 1 + num_multimask_outputs].
            object_score_logits: [B, N, 1], or None without object-score token.
        """
        prompts, dense = sparse_prompt_embeddings, dense_prompt_embeddings
        num_objects = (dense if prompts is None else prompts).shape[1]
        image = SharedImage(image_embeddings, image_positional_embeddings, dense, num_objects)
        is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
        at_once = num_objects if is_recorded else objects_at_once(image.embedding)
        if num_objects <= at_once:
            return self.decode(image, prompts, token_mask, dense)
        queries, outputs = self.start(image, prompts, token_mask, dense), None
        for first in range(0, num_objects, at_once):
            of_objects = slice(first, first + at_once)
            inputs = (
                value if value is None or value.shape[1] == 1 else value[:, of_objects]
                for value in (prompts, token_mask, dense, queries)
            )
            parts = self.decode(image, *inputs)
            outputs = outputs or [
                None if part is None else part.new_empty(part.shape[0], num_objects, *part.shape[2:]) for part in parts
            ]
            for output, part in zip(outputs, parts, strict=True):
                if part is not None:
                    output[:, of_objects] = part
        return tuple(outputs)

    def decode(
        self,
        image: SharedImage,
        prompts: Tensor | None,
        token_mask: Tensor | None,
        dense: Tensor,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`forward`, for all objects at once."""
        tokens, keys = self.attend(image, prompts, token_mask, dense, queries)
        return self.predict_masks(tokens, keys, image), *self.predict_scores(tokens)

    def start(
        self, image: SharedImage, prompts: Tensor | None, token_mask: Tensor | None, dense: Tensor
    ) -> Tensor | None:
        """What the first layer makes of the tokens of all objects, [B, N, T, C], before `attend` takes a few of them.

        None where that cannot be: mask prompts have made the image another for each object, or the layer has hooks.
        """
        first = self.transformer.layers[0]
        if image.located is None or not is_bare(first, SamHfTwoWayAttentionBlock):
            return None
        tokens, mask = self.collect_tokens(image, prompts, token_mask, dense)
        return first.update_tokens(tokens, image.keys, tokens, image, mask)

    def attend(
        self,
        image: SharedImage,
        prompts: Tensor | None,
        token_mask: Tensor | None,
        dense: Tensor,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The two-way transformer, which is all that scores need; arguments as in `forward`, `queries` of `start`.

        Returns:
            tokens: [B, N, T', C], the output tokens in the order object score, IoU, masks.
            keys: [B, N, h/4 * w/4, C], the image as each object sees it.
        """
        tokens, mask = self.collect_tokens(image, prompts, token_mask, dense)
        keys = image.image_tokens(dense) if image.keys is None else image.keys
        tokens, keys = self.transformer(tokens, keys, image, mask, queries)
        return tokens[:, :, : self.num_output_tokens], keys

    def predict_scores(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """`iou_scores` and `object_score_logits` of `forward` from the output tokens [B, N, T', C]."""
        iou_scores = self.iou_prediction_head(tokens[:, :, -self.num_mask_tokens - 1])
        if self.config.iou_prediction_use_sigmoid:
            iou_scores = iou_scores.sigmoid()
        return iou_scores, self.pred_obj_score_head(tokens[:, :, 0]) if self.config.use_object_score else None

    def predict_masks(self, tokens: Tensor, keys: Tensor, image: SharedImage) -> Tensor:
        """`masks` of `forward` from the output tokens [B, N, T', C] and the image tokens [B, N, L, C] of objects."""
        mask_tokens = tokens[:, :, -self.num_mask_tokens :].unbind(2)
        weights = torch.stack(
            [mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, mask_tokens, strict=True)], dim=2
        )
        convolutions, layer_norm = (self.upscale_conv1, self.upscale_conv2), self.upscale_layer_norm
        if is_bare(layer_norm, LayerNorm2d) and all(is_bare(conv, nn.ConvTranspose2d) for conv in convolutions):
            return masks_by_products(
                convolutions, layer_norm, self.activation, keys, weights, image.size, image.fine_cells
            )
        upscaled = self.upscale(keys, image.size, image.high_res)  # [B, N, C/8, h, w]
        return (weights @ upscaled.flatten(3)).unflatten(-1, upscaled.shape[-2:])

    def collect_tokens(
        self, image: SharedImage, prompts: Tensor | None, token_mask: Tensor | None, dense: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Output tokens, in the order object score, IoU, masks, and then prompts: [B, N, T, C]; and additive mask."""
        output_tokens = [
            rows(self.iou_token, 1, dense.device),
            rows(self.mask_tokens, self.num_mask_tokens, dense.device),
        ]
        if self.config.use_object_score:
            output_tokens.insert(0, rows(self.obj_score_token, 1, dense.device))
        tokens = torch.cat(output_tokens)
        if prompts is None:
            return tokens.expand(image.embedding.shape[0], dense.shape[1], -1, -1), None
        tokens = torch.cat([tokens.expand(*prompts.shape[:2], -1, -1), prompts], dim=2)
        return tokens, additive_mask(token_mask, self.num_output_tokens, tokens.dtype)

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

    def select_candidates(self, masks: Tensor, iou_scores: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
        """Of all candidates [B, N, 1 + M, ...] those for ambiguous prompts, or the one for all others.

        The stability-based choice of SAM 2 (its paper, appendix D.1) applies in eval mode only, so that training
        always sees the output of the token that it trains.
        """
        if multimask_output:
            return masks[:, :, 1:], iou_scores[:, :, 1:]
        if not self.config.dynamic_multimask_via_stability or self.training:
            return masks[:, :, :1], iou_scores[:, :, :1]
        delta = self.config.dynamic_multimask_stability_delta
        inner = (masks[:, :, 0] > delta).sum(dim=(-2, -1))
        outer = (masks[:, :, 0] > -delta).sum(dim=(-2, -1))
        stable = inner >= self.config.dynamic_multimask_stability_thresh * outer
        choice = torch.where(stable, 0, 1 + iou_scores[:, :, 1:].argmax(dim=-1))[..., None]
        # Not `take_along_dim`, which fixes the number of objects in an exported graph.
        grid = choice[..., None, None].expand(-1, -1, -1, *masks.shape[-2:])
        return masks.gather(2, grid), iou_scores.gather(2, choice)


def objects_at_once(embedding: Tensor, memory_budget: int = MEMORY_BUDGET) -> int:
    """How many objects of each image to decode together: as memory allows, and as the cache of a CPU likes."""
    tokens = memory_budget // TOKEN_COPIES
    if embedding.device.type == "cpu":
        tokens = min(tokens, CPU_TOKENS)
    return max(1, tokens // (embedding.numel() * embedding.element_size()))


def additive_mask(token_mask: Tensor | None, num_output_tokens: int, dtype: torch.dtype) -> Tensor | None:
    """Mask over output tokens and prompts for attention, [B * N, 1, 1, T]; output tokens always count."""
    if token_mask is None:
        return None
    hidden = nn.functional.pad(~token_mask, (num_output_tokens, 0)).flatten(0, 1)[:, None, None]
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)


__all__ = [
    "MEMORY_BUDGET",
    "SamHfAttention",
    "SamHfMaskDecoder",
    "SamHfTwoWayAttentionBlock",
    "SamHfTwoWayTransformer",
    "objects_at_once",
]
