"""From features of an image on several grids to one fine grid: the high-resolution features, and instance maps."""

from collections.abc import Sequence

from torch import Tensor, nn

from .configuration_sam_hf import SamHfVisionConfig
from .layers import LayerNorm2d


class SamHfConvolutionalStem(nn.Module):
    """Strided convolutions in place of patches, which a transformer learns from in fewer steps (Xiao et al. 2021).

    [B, 3, H, W] to vectors [B, h/4, w/4, C'], and on the way the grids [B, widths[0], h, w] and [B, widths[1], h/2,
    w/2].

    Args:
        config: whose `patch_size` is a power of two, at least 8, and h = 4 H / patch_size.
        widths: channels of the two finer grids.
    """

    def __init__(self, config: SamHfVisionConfig, widths: Sequence[int]):
        super().__init__()
        halvings, hidden_size, eps = config.patch_size.bit_length() - 1, config.hidden_size, config.layer_norm_eps
        # At least three: what is finer than h has the width of h.
        coarser = [*[widths[0]] * (halvings - 2), widths[1], hidden_size]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(wide, narrow, kernel_size=3, stride=2, padding=1)
            for wide, narrow in zip([config.num_channels, *coarser[:-1]], coarser, strict=True)
        )
        self.layer_norms = nn.ModuleList(LayerNorm2d(width, eps=eps) for width in coarser)
        self.activation = nn.GELU()
        self.projection = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        grids, features = [], pixel_values
        for convolution, layer_norm in zip(self.convolutions, self.layer_norms, strict=True):
            features = self.activation(layer_norm(convolution(features)))
            grids.append(features)
        return self.projection(features).permute(0, 2, 3, 1), grids[-3:-1]


class SamHfResidualConvolutions(nn.Module):
    """Two convolutions that look at the neighbours: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = LayerNorm2d(width, eps=eps), LayerNorm2d(width, eps=eps)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in range(2))
        self.activation = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv1(self.activation(self.layer_norm1(features)))
        return features + self.conv2(self.activation(self.layer_norm2(inner)))


class SamHfFeaturePyramid(nn.Module):
    """The way back from the embedding to the mask grid, with what finer grids know (U-Net, Ronneberger et al. 2015).

    Args:
        embedding_width: channels of the embedding.
        side_widths: channels of what is joined at h and at h/2, finest first; empty if there is nothing.
        widths: channels of what comes out at h and at h/2.
    """

    def __init__(self, embedding_width: int, side_widths: Sequence[int], widths: Sequence[int], eps: float):
        super().__init__()
        fine, middle = widths
        self.upscale1 = nn.ConvTranspose2d(embedding_width, middle, kernel_size=2, stride=2)
        self.upscale0 = nn.ConvTranspose2d(middle, fine, kernel_size=2, stride=2)
        self.sides = nn.ModuleList(
            nn.Conv2d(side, width, kernel_size=1) for side, width in zip(side_widths, widths, strict=False)
        )
        self.block1, self.block0 = SamHfResidualConvolutions(middle, eps), SamHfResidualConvolutions(fine, eps)

    def forward(self, embedding: Tensor, sides: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Embedding [B, C, h/4, w/4] and what is finer to [B, widths[0], h, w] and [B, widths[1], h/2, w/2]."""
        middle = self.upscale1(embedding)
        if sides:
            middle = middle + self.sides[1](sides[1])
        middle = self.block1(middle)
        fine = self.upscale0(middle)
        if sides:
            fine = fine + self.sides[0](sides[0])
        return self.block0(fine), middle


__all__ = ["SamHfConvolutionalStem", "SamHfFeaturePyramid", "SamHfResidualConvolutions"]
