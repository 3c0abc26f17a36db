"""Image encoder of MobileSAM (Zhang et al. 2023): TinyViT (Wu et al. 2022), convolutions, then attention in windows.

Parameter names are those of the published weights. Grids are [B, C, h, w], within blocks with attention [B, h, w, C].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .image_encoder import SamHfVisionNeck, check_pixels, cut_windows, drop_path, keeps_attentions, merge_windows
from .layers import AttentionLayer, configured_attention, keep_statistics
from .positions import PositionFrame
from .vision_configuration import SamHfTinyVitConfig

# Width within convolutional blocks and perceptrons, in widths of the stage.
EXPANSION = 4


class SamHfTinyVitConv(nn.Sequential):
    """A convolution without bias, and batch norm."""

    def __init__(self, width: int, wider: int, kernel_size: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.c = nn.Conv2d(width, wider, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(wider)


class SamHfTinyVitPatchEmbeddings(nn.Module):
    """Overlapping patches of pixels to vectors: [B, 3, H, W] -> [B, C, H/4, W/4]."""

    def __init__(self, config: SamHfTinyVitConfig):
        super().__init__()
        width = config.embed_dims[0]
        self.seq = nn.Sequential(
            SamHfTinyVitConv(config.num_channels, width // 2, kernel_size=3, stride=2),
            nn.GELU(),
            SamHfTinyVitConv(width // 2, width, kernel_size=3, stride=2),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.seq(pixel_values)


class SamHfTinyVitConvs(nn.Module):
    """To `inner` channels, over the neighbours in each of them alone, and to `wider` channels."""

    def __init__(self, width: int, inner: int, wider: int, stride: int = 1):
        super().__init__()
        self.conv1 = SamHfTinyVitConv(width, inner)
        self.conv2 = SamHfTinyVitConv(inner, inner, kernel_size=3, stride=stride, groups=inner)
        self.conv3 = SamHfTinyVitConv(inner, wider)

    def convolve(self, grid: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(grid)))))


class SamHfTinyVitDownsample(SamHfTinyVitConvs):
    """From the width of one stage to that of the next, and with a stride of 2 to half its grid."""

    def __init__(self, width: int, wider: int, stride: int):
        super().__init__(width, wider, wider, stride)

    def forward(self, grid: Tensor) -> Tensor:
        return self.convolve(grid)


class SamHfTinyVitConvBlock(GradientCheckpointingLayer, SamHfTinyVitConvs):
    """Block of the first stage, without attention; returns as `SamHfTinyVitBlock` does."""

    def __init__(self, width: int, drop_path_rate: float):
        super().__init__(width, EXPANSION * width, width)
        self.drop_path_rate = drop_path_rate

    def forward(self, grid: Tensor) -> tuple[Tensor, None]:
        return F.gelu(grid + drop_path(self.convolve(grid), self.drop_path_rate, self.training)), None


class SamHfTinyVitAttention(AttentionLayer):
    """Self-attention over windows of `window_size` cells, with a bias for each distance in rows and columns."""

    def __init__(self, config: SamHfTinyVitConfig, width: int, num_heads: int, window_size: int):
        super().__init__()
        self.config = config
        self.window_size = window_size
        self.num_attention_heads = num_heads
        self.scaling = (width // num_heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, h, w, C] -> [B, h, w, C], and weights as of `configured_attention`, with windows beside images."""
        height, width = hidden_states.shape[1:3]
        window = (self.window_size, self.window_size)
        fill = None
        if height % self.window_size or width % self.window_size:
            # TinyViT pads its input by zeros; nothing keeps the others from seeing what becomes of them.
            fill = self.qkv(self.norm(hidden_states.new_zeros(1, hidden_states.shape[-1])))
        windows = cut_windows(self.qkv(self.norm(hidden_states)), window, self.num_attention_heads, fill)
        query, key, value = (part.flatten(2, 3) for part in windows.chunk(3, dim=-1))
        output, weights = configured_attention(self, query, key, value, self.biases().to(query.dtype))
        return self.proj(merge_windows(output.unflatten(1, window), (height, width))), weights

    def biases(self) -> Tensor:
        """[1, heads, L, L] of the cells of a window."""
        places = torch.arange(self.window_size, device=self.attention_biases.device)
        distances = (places[:, None] - places).abs()
        table = self.attention_biases.unflatten(1, (self.window_size, self.window_size))
        return table[:, distances[:, None, :, None], distances[:, None]].flatten(3).flatten(1, 2)[None]


class SamHfTinyVitMLP(nn.Module):
    """The perceptron of a block, with its normalisation."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(hidden_states))))


class SamHfTinyVitBlock(GradientCheckpointingLayer):
    """Attention, convolution and perceptron on a grid [B, C, h, w]; also returns the attention weights, or None."""

    def __init__(
        self, config: SamHfTinyVitConfig, width: int, num_heads: int, window_size: int, drop_path_rate: float
    ):
        super().__init__()
        self.attn = SamHfTinyVitAttention(config, width, num_heads, window_size)
        self.local_conv = SamHfTinyVitConv(width, width, kernel_size=3, groups=width)
        self.mlp = SamHfTinyVitMLP(width)
        self.drop_path_rate = drop_path_rate

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_states = grid.permute(0, 2, 3, 1)
        attention, weights = self.attn(hidden_states)
        hidden_states = hidden_states + drop_path(attention, self.drop_path_rate, self.training)
        hidden_states = self.local_conv(hidden_states.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden_states = hidden_states + drop_path(self.mlp(hidden_states), self.drop_path_rate, self.training)
        return hidden_states.permute(0, 3, 1, 2), weights


class SamHfTinyVitStage(nn.Module):
    """Blocks of one width on one grid, and what takes both to those of the next stage, if there is one."""

    def __init__(self, config: SamHfTinyVitConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        width, *later = config.embed_dims[stage:]
        self.blocks = nn.ModuleList(
            SamHfTinyVitBlock(config, width, config.num_heads[stage - 1], config.window_sizes[stage - 1], rate)
            if stage
            else SamHfTinyVitConvBlock(width, rate)
            for rate in drop_path_rates
        )
        # The last stage has the grid of the one before.
        self.downsample = SamHfTinyVitDownsample(width, later[0], stride=2 if later[1:] else 1) if later else None


class SamHfTinyVitEncoder(nn.Module):
    """Patches, stages of blocks, SAM's neck.

    Positions are those of convolutions and windows: crops are encoded as images of their own. In training, batch norms
    keep their statistics, so that what an image gives does not depend on the batch that it is in.
    """

    def __init__(self, config: SamHfTinyVitConfig):
        super().__init__()
        self.config = config
        self.patch_embed = SamHfTinyVitPatchEmbeddings(config)
        depth = config.num_hidden_layers
        rates = iter(config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth))
        self.layers = nn.ModuleList(
            SamHfTinyVitStage(config, stage, [next(rates) for _ in range(count)])
            for stage, count in enumerate(config.depths)
        )
        self.neck = SamHfVisionNeck(config)

    def get_input_embeddings(self) -> nn.Conv2d:
        return next(module for module in self.patch_embed.modules() if isinstance(module, nn.Conv2d))

    def train(self, mode: bool = True) -> "SamHfTinyVitEncoder":
        super().train(mode)
        keep_statistics(self)
        return self

    def forward(
        self,
        pixel_values: Tensor,
        frame: PositionFrame | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As of `SamHfVisionEncoder.forward`; hidden states have the grid of their stage, attentions the windows."""
        check_pixels(pixel_values, self.config)
        output_attentions = output_attentions and keeps_attentions(self.config)
        grid = self.patch_embed(pixel_values)
        history, attentions = [grid] if output_hidden_states else [], []
        stage: Any
        for stage in self.layers:
            for block in stage.blocks:
                grid, weights = block(grid)
                if output_hidden_states:
                    history.append(grid)
                if output_attentions and weights is not None:
                    attentions.append(weights)
            if stage.downsample is not None:
                grid = stage.downsample(grid)
        embedding = self.neck(grid.permute(0, 2, 3, 1))
        return [embedding], [grid.permute(0, 2, 3, 1) for grid in history], attentions


__all__ = ["SamHfTinyVitAttention", "SamHfTinyVitBlock", "SamHfTinyVitConvBlock", "SamHfTinyVitEncoder"]
