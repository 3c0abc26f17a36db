"""Image encoder around a backbone of transformers or timm, by the feature pyramid of SAM 2 or the necks of SAM 3."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoBackbone, AutoModel, PreTrainedConfig

from .feature_pyramid import SamHfFeaturePyramid, SamHfNeck, SamHfUpscalingNeck
from .image_encoder import check_pixels
from .layers import height_and_width, keep_statistics
from .positions import PositionFrame
from .vision_configuration import SAM3_BACKBONE, SamHfBackboneConfig

# They give maps, but are no backbones to transformers.
NO_BACKBONES = ("timm_wrapper", SAM3_BACKBONE)


class SamHfBackboneEncoder(nn.Module):
    """A backbone and what makes the features of the mask decoder of its maps.

    Positions are those of the backbone: crops are encoded as images of their own, but for SAM 3's. In training, batch
    norms keep their statistics, so that what an image gives does not depend on the batch that it is in, and a backbone
    none of whose weights train has no dropout of any kind.
    """

    layers = ()  # none whose paths this package drops: `drop_path_rate` is the backbone's
    gradient_checkpointing = False

    def __init__(self, config: SamHfBackboneConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone_config)
        self.widths = map_widths(self.backbone)
        if len(config.strides) == 1:
            self.neck: SamHfNeck = SamHfUpscalingNeck(self.widths[-1], config.output_channels)
        else:
            self.neck = SamHfFeaturePyramid(self.widths, config.output_channels)
        # Else the backbone as a whole is computed again.
        self.has_checkpoints = any(hasattr(module, "gradient_checkpointing") for module in self.backbone.modules())

    def get_input_embeddings(self) -> nn.Conv2d:
        return next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))

    def train(self, mode: bool = True) -> "SamHfBackboneEncoder":
        super().train(mode)
        if not any(weight.requires_grad for weight in self.backbone.parameters()):
            self.backbone.eval()
        keep_statistics(self.backbone)
        return self

    def forward(
        self,
        pixel_values: Tensor,
        frame: PositionFrame | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As of `SamHfVisionEncoder.forward`; hidden states are the maps of the backbone, and there are no attentions.

        Raises:
            ValueError: also if the backbone gives other maps than `strides` of the config says.
        """
        check_pixels(pixel_values, self.config)
        size = height_and_width(pixel_values)
        if self.config.backbone_config.model_type == SAM3_BACKBONE:
            place_globals(self.backbone, frame or PositionFrame(*size), size)
        if self.gradient_checkpointing and self.training and not self.has_checkpoints:
            output = checkpoint(self.backbone, pixel_values, use_reentrant=False)
        else:
            output = self.backbone(pixel_values)
        maps = maps_of(output, size, self.config.strides)
        self.check_maps(maps, size)
        features = self.neck(maps)
        return features, [grid.permute(0, 2, 3, 1) for grid in maps] if output_hidden_states else [], []

    def check_maps(self, maps: list[Tensor], size: tuple[int, int]) -> None:
        height, width = size
        expected = [
            (channels, height // stride, width // stride)
            for channels, stride in zip(self.widths, self.config.strides, strict=False)
        ]
        found = [tuple(grid.shape[1:]) for grid in maps]
        if found != expected:
            raise ValueError(
                f"the backbone gives maps [C, h, w] of {found} for an input of {height} x {width}, expected "
                f"{expected} by strides={list(self.config.strides)}; correct `strides`, or the outputs in "
                "`backbone_config`."
            )


def build_backbone(config: PreTrainedConfig | None) -> Any:
    """With random weights.

    Raises:
        ValueError: without a configuration, and for arguments that the model of timm does not take.
    """
    if config is None:
        raise ValueError('backbone_config is None, expected a configuration such as {"model_type": "convnext"}.')
    builder = AutoModel if config.model_type in NO_BACKBONES else AutoBackbone
    try:
        return builder.from_config(config)
    except TypeError as error:
        name = getattr(config, "architecture", config.model_type)
        raise ValueError(f"the arguments of {name} do not fit it: {error}.") from error


def map_widths(backbone: Any) -> list[int]:
    """Channels of the maps of a backbone, finest first."""
    if hasattr(backbone, "timm_model"):
        return list(backbone.timm_model.feature_info.channels())
    if hasattr(backbone, "channels"):
        return list(backbone.channels)
    return [backbone.config.hidden_size]


def maps_of(output: Any, size: tuple[int, int], strides: list[int] | tuple[int, ...]) -> list[Tensor]:
    """The maps [B, C', h', w'] in what a backbone returns for an input of `size`, finest first."""
    maps = output.feature_maps if hasattr(output, "feature_maps") else output.last_hidden_state
    if isinstance(maps, Tensor):  # SAM 3's one map, [B, h' * w', C']
        maps = [maps.transpose(1, 2).unflatten(2, tuple(side // strides[0] for side in size))]
    return list(maps)


def place_globals(backbone: Any, frame: PositionFrame, size: tuple[int, int]) -> None:
    """Let SAM 3's global blocks, which know one grid, see the part of `frame` that an input of `size` is."""
    patch, window = backbone.config.patch_size, backbone.config.window_size
    rows, columns, top, left = (length // patch for length in frame)
    height, width = (side // patch for side in size)
    device = backbone.layers[0].position_ids.device
    y, x = torch.meshgrid(
        (torch.arange(height, dtype=torch.float, device=device) + top) * (window / rows),
        (torch.arange(width, dtype=torch.float, device=device) + left) * (window / columns),
        indexing="ij",
    )
    for layer in backbone.layers:
        if layer.window_size == 0:
            layer.position_ids = torch.stack([x.flatten(), y.flatten()], dim=-1)


__all__ = ["SamHfBackboneEncoder", "build_backbone", "map_widths", "maps_of"]
