"""From feature maps of several sizes to what the mask decoder takes: SAM 2's feature pyramid and its projections."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import is_bare


class SamHfNeck(nn.Module):
    """What SAM 2 has behind maps of `channels` at three strides, and SAM 3 likewise."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_s0 = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, kernel_size=1)
        # What SAM 2 adds to an image that no memory of a video precedes.
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, channels))


class SamHfFeaturePyramid(SamHfNeck):
    """The high-resolution features and the image embedding of maps whose sides halve from one to the next.

    Args:
        widths: channels of the maps, finest first: three, the last of which makes the embedding, or a coarser fourth.
        channels: C of the embedding.
    """

    def __init__(self, widths: Sequence[int], channels: int):
        super().__init__(channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in reversed(widths))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C', h', w'], finest first, to s0 [B, C/8, 4h, 4w], s1 [B, C/4, 2h, 2w], embedding [B, C, h, w]."""
        conv_0, conv_1, *convs = reversed(self.convs)
        embedding, *coarser = (conv(features) for conv, features in zip(convs, maps[2:], strict=True))
        for features in coarser:
            embedding = embedding + F.interpolate(features, scale_factor=2.0, mode="nearest")
        embedding = embedding + self.no_memory_embedding.view(-1, 1, 1)
        s0, s1 = project_twice(conv_0, maps[0], self.conv_s0), project_twice(conv_1, maps[1], self.conv_s1)
        return [s0, s1, embedding]


class SamHfUpscalingNeck(SamHfNeck):
    """The same of a single map, by transposed convolutions: ViTDet's simple pyramid (Li et al. 2022), as of SAM 3.

    Args:
        width: channels of the map.
        channels: C of the embedding.
    """

    def __init__(self, width: int, channels: int):
        super().__init__(channels)
        self.fpn_layers = nn.ModuleList(SamHfUpscaling(width, channels, doublings) for doublings in (2, 1, 0))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The last of maps [B, C', h, w] to features as of `SamHfFeaturePyramid`."""
        s0, s1, embedding = (layer(maps[-1]) for layer in self.fpn_layers)
        return [self.conv_s0(s0), self.conv_s1(s1), embedding + self.no_memory_embedding.view(-1, 1, 1)]


class SamHfUpscaling(nn.Module):
    """[B, C', h, w] -> [B, C, h * 2**doublings, ...]."""

    def __init__(self, width: int, channels: int, doublings: int):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(doublings):
            halves = nn.ConvTranspose2d(width >> index, width >> (index + 1), kernel_size=2, stride=2)
            layers += [nn.GELU(), halves] if layers else [halves]
        self.scale_layers = nn.Sequential(*layers)
        self.proj1 = nn.Conv2d(width >> doublings, channels, kernel_size=1)
        self.proj2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj2(self.proj1(self.scale_layers(features)))


def project_twice(first: Any, features: Tensor, second: Any) -> Tensor:
    """`second(first(features))` of two 1 x 1 convolutions; where they are no more, by the product of their weights.

    At SAM 2's sizes that spares 80 MB of an image, which training would keep for the backward pass.
    """
    if not (is_bare(first, {nn.Conv2d}) and is_bare(second, {nn.Conv2d})):
        return second(first(features))
    outer = second.weight.flatten(1)
    weight, bias = outer @ first.weight.flatten(1), outer @ first.bias + second.bias
    return F.conv2d(features, weight[..., None, None].to(features.dtype), bias.to(features.dtype))


__all__ = ["SamHfFeaturePyramid", "SamHfNeck", "SamHfUpscaling", "SamHfUpscalingNeck", "project_twice"]
