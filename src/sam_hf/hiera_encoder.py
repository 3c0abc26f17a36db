"""Image encoder of SAM 2: Hiera (Ryali et al. 2023), a transformer whose stages halve the grid, and a pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .feature_pyramid import SamHfFeaturePyramid
from .image_encoder import check_pixels, cut_windows, drop_path, keeps_attentions, merge_windows
from .layers import AttentionLayer, MLPBlock, configured_attention, height_and_width
from .positions import PositionFrame
from .vision_configuration import SamHfHieraConfig


class SamHfHieraPatchEmbeddings(nn.Module):
    """Overlapping patches of pixels to vectors: [B, 3, H, W] -> [B, H/stride, W/stride, C]."""

    def __init__(self, config: SamHfHieraConfig):
        super().__init__()
        width, stride = config.embed_dim_per_stage[0], config.patch_stride
        self.projection = nn.Conv2d(config.num_channels, width, kernel_size=7, stride=stride, padding=3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).permute(0, 2, 3, 1)


class SamHfHieraAttention(AttentionLayer):
    """Self-attention over windows of `window_size` cells, or over the whole grid when that is 0.

    Where `halves`, the largest of 2 x 2 queries stands for all four, so that the grid that comes out is half.
    """

    def __init__(
        self, config: SamHfHieraConfig, width: int, wider: int, num_heads: int, window_size: int, halves: bool
    ):
        super().__init__()
        self.config = config
        self.window_size = window_size
        self.halves = halves
        self.num_attention_heads = num_heads
        self.scaling = (wider // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * wider)
        self.proj = nn.Linear(wider, wider)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, h, w, C] -> [B, h', w', C'], and weights as of `configured_attention`, with windows beside images."""
        height, width = hidden_states.shape[1:3]
        size = (height, width)
        window = (self.window_size, self.window_size) if self.window_size else size
        fill = None
        if height % window[0] or width % window[1]:
            # SAM 2 pads its input by zeros, whose projection fills in here; nothing keeps the others from seeing it.
            fill = self.qkv(hidden_states.new_zeros(1, hidden_states.shape[-1]))
        windows = cut_windows(self.qkv(hidden_states), window, 3 * self.num_attention_heads, fill)
        query, key, value = windows.chunk(3, dim=1)  # [B * windows, heads, *window, D] each
        if self.halves:
            query = halve(query.flatten(0, 1)).unflatten(0, query.shape[:2])
            size, window = (height // 2, width // 2), (window[0] // 2, window[1] // 2)
        query, key, value = (part.flatten(2, 3) for part in (query, key, value))
        output, weights = configured_attention(self, query, key, value)
        return self.proj(merge_windows(output.unflatten(1, window), size)), weights


def halve(grid: Tensor) -> Tensor:
    """The largest of every 2 x 2 cells: [B, h, w, C] -> [B, h/2, w/2, C]."""
    return F.max_pool2d(grid.permute(0, 3, 1, 2), kernel_size=2).permute(0, 2, 3, 1)


class SamHfHieraLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block on a grid [B, h, w, C]; also returns the attention weights, or None.

    Args:
        halves: whether it is the first block of a later stage, which still has the windows of the one before, and
            takes its grid and width to its own.
    """

    def __init__(self, config: SamHfHieraConfig, stage: int, halves: bool, is_global: bool, drop_path_rate: float):
        super().__init__()
        before = stage - halves
        width, wider = config.embed_dim_per_stage[before], config.embed_dim_per_stage[stage]
        num_heads = config.num_attention_heads_per_stage[stage]
        window_size = 0 if is_global else config.window_size_per_stage[before]
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = SamHfHieraAttention(config, width, wider, num_heads, window_size, halves)
        self.layer_norm2 = nn.LayerNorm(wider, eps=config.layer_norm_eps)
        self.mlp = MLPBlock(wider, int(wider * config.mlp_ratio), config.hidden_act)
        self.proj = nn.Linear(width, wider) if halves else None
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        normed = self.layer_norm1(hidden_states)
        residual = hidden_states if self.proj is None else halve(self.proj(normed))
        attention, weights = self.attn(normed)
        hidden_states = residual + drop_path(attention, self.drop_path_rate, self.training)
        mlp = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + drop_path(mlp, self.drop_path_rate, self.training), weights


class SamHfHieraEncoder(nn.Module):
    """Patches, positions, transformer blocks in stages, feature pyramid."""

    def __init__(self, config: SamHfHieraConfig):
        super().__init__()
        self.config = config
        width, window = config.embed_dim_per_stage[0], config.window_size_per_stage[0]
        self.patch_embed = SamHfHieraPatchEmbeddings(config)
        # A coarse map over the image, and one window that repeats (Bolya et al. 2023).
        self.pos_embed = nn.Parameter(torch.zeros(1, width, *config.window_positional_embedding_background_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, window, window))
        stages = [stage for stage, count in enumerate(config.blocks_per_stage) for _ in range(count)]
        self.layers = nn.ModuleList(
            SamHfHieraLayer(
                config,
                stage,
                halves=stage > 0 and index == stages.index(stage),
                is_global=index in config.global_attention_blocks,
                drop_path_rate=config.drop_path_rate * index / max(len(stages) - 1, 1),
            )
            for index, stage in enumerate(stages)
        )
        self.last_layers = [sum(config.blocks_per_stage[: stage + 1]) - 1 for stage in range(4)]
        self.neck = SamHfFeaturePyramid(config.embed_dim_per_stage, config.output_channels)

    def get_input_embeddings(self) -> nn.Conv2d:
        return self.patch_embed.projection

    def forward(
        self,
        pixel_values: Tensor,
        frame: PositionFrame | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Arguments and results as of `SamHfVisionEncoder.forward`; hidden states have the grid of their stage."""
        check_pixels(pixel_values, self.config)
        output_attentions = output_attentions and keeps_attentions(self.config)
        hidden_states = self.patch_embed(pixel_values)
        hidden_states = hidden_states + self.positions(
            frame or PositionFrame(*height_and_width(pixel_values)), pixel_values
        )
        history, attentions, maps = [hidden_states] if output_hidden_states else [], [], []
        for index, layer in enumerate(self.layers):
            hidden_states, weights = layer(hidden_states)
            if output_hidden_states:
                history.append(hidden_states)
            if output_attentions:
                attentions.append(weights)
            if index in self.last_layers:
                maps.append(hidden_states.permute(0, 3, 1, 2))
        return self.neck(maps), history, attentions

    def positions(self, frame: PositionFrame, pixel_values: Tensor) -> Tensor:
        """[1, h, w, C]: of the coarse map the part of the frame that the input is, and windows from its corner."""
        stride, window = self.config.patch_stride, self.config.window_size_per_stage[0]
        height, width, top, left = (length // stride for length in frame)
        rows, columns = (side // stride for side in height_and_width(pixel_values))
        coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        coarse = coarse[..., top : top + rows, left : left + columns]
        repeated = self.pos_embed_window.tile(1, 1, rows // window, columns // window)
        return (coarse + repeated).permute(0, 2, 3, 1)


__all__ = ["SamHfHieraAttention", "SamHfHieraEncoder", "SamHfHieraLayer"]
