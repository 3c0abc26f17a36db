"""Image encoder: plain ViT or SAM's ViTDet, from pixels to the image embedding and high-resolution features."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .cpu_inference import blocked_attention, is_cpu_inference
from .layers import AttentionLayer, LayerNorm2d, MLPBlock, configured_attention, height_and_width
from .positions import PositionFrame, interpolate_absolute_positions, relative_positions
from .vision_configuration import SamHfTinyVitConfig, SamHfVisionConfig, VisionConfig

logger = logging.get_logger(__name__)


def check_pixels(pixel_values: Tensor, config: VisionConfig) -> None:
    """
    Raises:
        ValueError: if the input has another rank, number of channels, or a side that cells do not fill.
    """
    shape, multiple = list(pixel_values.shape), config.size_multiple
    if len(shape) != 4 or shape[1] != config.num_channels or shape[2] % multiple or shape[3] % multiple:
        raise ValueError(
            f"pixel_values should be [B, {config.num_channels}, H, W] with H and W multiples of {multiple}, but got "
            f"{shape}; let the processor resize and pad the images."
        )


def keeps_attentions(config: VisionConfig) -> bool:
    """Whether the attention implementation makes weights that can be returned; a warning says if not."""
    is_eager = config._attn_implementation == "eager"
    if not is_eager:
        logger.warning_once(
            f"attn_implementation={config._attn_implementation!r} makes no attention weights to return; load the "
            "model with attn_implementation='eager'."
        )
    return is_eager


class SamHfPatchEmbeddings(nn.Module):
    """Non-overlapping patches of pixels to vectors: [B, 3, H, W] -> [B, H/patch, W/patch, C]."""

    def __init__(self, config: SamHfVisionConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).permute(0, 2, 3, 1)


class SamHfVisionAttention(AttentionLayer):
    """Self-attention over windows of `window_size` patches, or over the whole grid when that is 0."""

    config: SamHfVisionConfig

    def __init__(self, config: SamHfVisionConfig, window_size: int):
        super().__init__()
        self.config = config
        self.window_size = window_size
        self.num_attention_heads = config.num_attention_heads
        head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = head_dim**-0.5
        self.reference_length = max(2, (config.image_size // config.patch_size) ** 2)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.use_rel_pos = config.use_rel_pos
        if self.use_rel_pos:
            length = window_size or config.image_size // config.patch_size
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * length - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * length - 1, head_dim))

    def forward(self, hidden_states: Tensor, frame_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """[B, h, w, C] -> [B, h, w, C], and weights [B * windows, heads, L, L] where `configured_attention` has them.

        `frame_size`, (height, width) in patches, is the size of the image that the input is all or a part of.
        """
        height, width = hidden_states.shape[1:3]
        grid_size = (height, width)
        window = (self.window_size, self.window_size) if self.window_size else grid_size
        # Projecting before the windows are cut spares the padded positions the work; SAM pads its input by zeros,
        # whose projection fills in here.
        parts = self.qkv(hidden_states).chunk(3, dim=-1)
        fills: Sequence[Tensor | None] = [None] * 3
        if any(length % side for length, side in zip(grid_size, window, strict=True)):
            fills = self.qkv(hidden_states.new_zeros(1, hidden_states.shape[-1])).chunk(3, dim=-1)
        query, key, value = (
            cut_windows(part, window, self.num_attention_heads, fill) for part, fill in zip(parts, fills, strict=True)
        )
        if self.config.log_length_attention and not self.window_size:
            query = query * (math.log(height * width) / math.log(self.reference_length))
        output, weights = self.attend_with_positions(query, key, value, window if self.window_size else frame_size)
        return self.proj(merge_windows(output.unflatten(1, window), grid_size)), weights

    def attend_with_positions(
        self, query: Tensor, key: Tensor, value: Tensor, frame_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """[B * windows, heads, rows, columns, D] each -> [B * windows, L, C], and weights as in `forward`."""
        along = self.relative_scores(query, frame_size) if self.use_rel_pos else None
        query, key, value = (part.flatten(2, 3) for part in (query, key, value))
        if along is None:
            bias = None
        elif self.config._attn_implementation == "sdpa" and is_cpu_inference(self, query):
            return blocked_attention(query, key, value, *along, self.scaling), None
        else:
            bias = (along[0][..., :, None] + along[1][..., None, :]).flatten(4).flatten(2, 3)
        return configured_attention(self, query, key, value, bias, dropout=self.config.attention_dropout)

    def relative_scores(self, query: Tensor, frame_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decomposed relative positions (MViTv2, section 4.1) of [B, heads, rows, columns, D] queries.

        `frame_size`: (rows, columns) that the tables are for.

        Returns:
            q . r_h for each row of keys, [B, heads, rows, columns, rows], and q . r_w for each column.
        """
        rows, columns = query.shape[2:4]
        return (
            torch.einsum("bnhwc,hkc->bnhwk", query, relative_positions(self.rel_pos_h, rows, frame_size[0])),
            torch.einsum("bnhwc,wkc->bnhwk", query, relative_positions(self.rel_pos_w, columns, frame_size[1])),
        )


def cut_windows(grid: Tensor, window: tuple[int, int], num_heads: int, fill: Tensor | None) -> Tensor:
    """[B, h, w, C] -> [B * windows, heads, *window, D]; `fill` [1, C] is for cells beyond the border, if any."""
    height, width = grid.shape[1:3]
    pad_height, pad_width = -height % window[0], -width % window[1]
    if fill is not None:
        grid = F.pad(grid, (0, 0, 0, pad_width, 0, pad_height))
        grid[:, height:] += fill
        grid[:, :height, width:] += fill
    grid = grid.unflatten(3, (num_heads, -1)).unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return grid.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 2)  # from [B, rows, *, columns, *, heads, D]


def merge_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `cut_windows` once heads are joined: [B * windows, *window, C] -> [B, h, w, C]."""
    rows, columns = (-(-length // side) for length, side in zip(size, windows.shape[1:3], strict=True))
    grid = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return grid[:, : size[0], : size[1]]


def drop_path(residual: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al. 2016): drop the whole branch of a sample, scale the others up."""
    if not training or rate == 0.0:
        return residual
    keep = residual.new_empty(residual.shape[0], *[1] * (residual.dim() - 1)).bernoulli_(1 - rate)
    return residual * (keep / (1 - rate))


class SamHfVisionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block on a grid [B, h, w, C]; also returns the attention weights, or None."""

    def __init__(self, config: SamHfVisionConfig, window_size: int, drop_path_rate: float):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SamHfVisionAttention(config, window_size)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLPBlock(config.hidden_size, config.mlp_dim, config.hidden_act)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: Tensor, frame_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        attention, weights = self.attn(self.layer_norm1(hidden_states), frame_size)
        hidden_states = hidden_states + drop_path(attention, self.drop_path_rate, self.training)
        mlp = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + drop_path(mlp, self.drop_path_rate, self.training), weights


class SamHfVisionNeck(nn.Module):
    """From the width of the transformer to that of the image embedding: [B, h, w, C'] -> [B, C, h, w]."""

    def __init__(self, config: SamHfVisionConfig | SamHfTinyVitConfig):
        super().__init__()
        channels = config.output_channels
        self.conv1 = nn.Conv2d(config.hidden_size, channels, kernel_size=1, bias=False)
        self.layer_norm1 = LayerNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.layer_norm2 = LayerNorm2d(channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.layer_norm1(self.conv1(hidden_states.permute(0, 3, 1, 2)))
        return self.layer_norm2(self.conv2(hidden_states))


class SamHfHighResolutionBranch(nn.Module):
    """Upscale the hidden states of one block 2 ** depth times: [B, h, w, C'] -> [B, out, h * 2**depth, ...].

    `proj_out` starts at zero (`SamHfPreTrainedModel._init_weights`): a pretrained SAM that gets these branches
    answers exactly as before.
    """

    def __init__(self, config: SamHfVisionConfig, depth: int, output_channels: int):
        super().__init__()
        widths = [config.hidden_size, *(config.output_channels // 2 ** (1 + i) for i in range(depth))]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.upscale = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, kernel_size=2, stride=2)
            for wide, narrow in zip(widths[:-1], widths[1:], strict=True)
        )
        self.activation = nn.GELU()
        self.proj_out = nn.Conv2d(widths[-1], output_channels, kernel_size=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.layer_norm(hidden_states).permute(0, 3, 1, 2)
        for upscale in self.upscale:
            hidden_states = self.activation(upscale(hidden_states))
        return self.proj_out(hidden_states)


class SamHfVisionEncoder(nn.Module):
    """Patches, positions, transformer blocks, neck; with high-resolution features where the config asks for them."""

    def __init__(self, config: SamHfVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = SamHfPatchEmbeddings(config)
        grid = config.image_size // config.patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.hidden_size)) if config.use_abs_pos else None
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            SamHfVisionLayer(
                config,
                window_size=0 if index in config.global_attn_indexes else config.window_size,
                drop_path_rate=config.drop_path_rate * index / max(depth - 1, 1),
            )
            for index in range(depth)
        )
        self.neck = SamHfVisionNeck(config)
        if config.high_res_layers is not None:
            self.high_res_s0 = SamHfHighResolutionBranch(config, 2, config.output_channels // 8)
            self.high_res_s1 = SamHfHighResolutionBranch(config, 1, config.output_channels // 4)

    def get_input_embeddings(self) -> nn.Conv2d:
        return self.patch_embed.projection

    def forward(
        self,
        pixel_values: Tensor,
        frame: PositionFrame | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Encode images.

        Args:
            pixel_values: float [B, 3, H, W]; H and W multiples of the patch size.
            frame: what positions, absolute and relative, refer to; None is the input itself. In multiples of the
                patch size.
            output_attentions: keep the attention weights, which only the attention implementation "eager" makes.
            output_hidden_states: keep what goes into and out of every block.

        Returns:
            features: finest first, `[s0 [B, C/8, 4h, 4w], s1 [B, C/4, 2h, 2w], embedding [B, C, h, w]]` with the patch
                grid `h = H / patch_size`, or `[embedding]` without high-resolution features.
            hidden_states: input of the first block and output of every block, each [B, h, w, C'], if asked for; else
                empty.
            attentions: weights of every block if asked for, [B * windows, heads, L, L] or [B, heads, h * w, h * w];
                else empty.

        Raises:
            ValueError: if the input has another rank, number of channels, or a side that patches do not fill.
        """
        check_pixels(pixel_values, self.config)
        output_attentions = output_attentions and keeps_attentions(self.config)
        patch = self.config.patch_size
        hidden_states = self.patch_embed(pixel_values)
        frame = frame or PositionFrame(*height_and_width(pixel_values))
        frame_size = (frame.height // patch, frame.width // patch)
        if self.pos_embed is not None:
            height, width = hidden_states.shape[1:3]
            positions = interpolate_absolute_positions(self.pos_embed, *frame_size)
            top, left = frame.top // patch, frame.left // patch
            hidden_states = hidden_states + positions[:, top : top + height, left : left + width]
        history, attentions = [hidden_states] if output_hidden_states else [], []
        # All of them are 0.7 GB of an image for ViT-H: without autograd, only these outlive their block.
        branches = self.config.high_res_layers or ()
        branch_inputs = {}
        for index, layer in enumerate(self.layers):
            hidden_states, weights = layer(hidden_states, frame_size)
            if output_hidden_states:
                history.append(hidden_states)
            if output_attentions:
                attentions.append(weights)
            if index in branches:
                branch_inputs[index] = hidden_states
        embedding = self.neck(hidden_states)
        if not branches:
            return [embedding], history, attentions
        s0, s1 = branches
        features = [self.high_res_s0(branch_inputs[s0]), self.high_res_s1(branch_inputs[s1]), embedding]
        return features, history, attentions


__all__ = [
    "SamHfHighResolutionBranch",
    "SamHfVisionAttention",
    "SamHfVisionEncoder",
    "SamHfVisionLayer",
    "SamHfVisionNeck",
    "check_pixels",
    "cut_windows",
    "drop_path",
    "keeps_attentions",
    "merge_windows",
]
