"""Where things are: the frame that positions refer to, Fourier features, and stored positions on another grid."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps

from .configuration_sam_hf import SamHfPromptEncoderConfig


class PositionFrame(NamedTuple):
    """The image, (height, width) in pixels, that positions refer to, and where in it the model input begins.

    Whole images are their own frame. Training on crops gives them the positions that they would have in a whole one.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0


def normalise(points: Tensor, frame: PositionFrame) -> Tensor:
    """Pixel coordinates (x, y) of the model input, centre of the first pixel at (0, 0), to [0, 1] of the frame."""
    # Not by tensors of the frame, which would fix it in an exported graph.
    x, y = points.float().unbind(-1)
    return torch.stack([(x + frame.left + 0.5) / frame.width, (y + frame.top + 0.5) / frame.height], dim=-1)


class SamHfPositionalEmbedding(nn.Module):
    """Random Fourier features of image positions (Tancik et al. 2020), shared by image and prompts.

    The matrix is a buffer: it is drawn once, with standard deviation `config.position_scale`, and not trained.
    """

    positional_embedding: Tensor

    def __init__(self, config: SamHfPromptEncoderConfig):
        super().__init__()
        self.scale = config.position_scale
        # float32 whatever the default dtype says: see `_keep_in_fp32_modules_strict` of the model.
        self.register_buffer("positional_embedding", torch.zeros(2, config.hidden_size // 2, dtype=torch.float32))

    def deviations(self) -> Tensor:
        """Standard deviation of every frequency, [C / 2]."""
        first, *_, last = self.scale if isinstance(self.scale, (list, tuple)) else [self.scale] * 2
        matrix = self.positional_embedding
        return torch.logspace(math.log10(first), math.log10(last), matrix.shape[1], device=matrix.device)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(x, y) in [0, 1] of the `PositionFrame`, float [..., 2] -> float32 [..., C]."""
        # float32 whatever the weights and autocast say: a pixel of a 1024 image is finer than bfloat16 resolves.
        x, y = (2 * coordinates.float() - 1).unsqueeze(-2).unbind(-1)
        along_x, along_y = self.positional_embedding.float()
        angles = 2 * math.pi * (x * along_x + y * along_y)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Centres (x, y) in [0, 1] of `height x width` cells that tile the image: float32 [height, width, 2]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def interpolate_absolute_positions(pos_embed: Tensor, height: int, width: int) -> Tensor:
    """Resample stored positions [1, h, w, C] to another patch grid [1, height, width, C]; as is when it fits."""
    if pos_embed.shape[1:3] == (height, width):
        return pos_embed
    resized = F.interpolate(
        pos_embed.permute(0, 3, 1, 2).float(),
        (height, width),
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype)


def interpolate_relative_positions(rel_pos: Tensor, length: int) -> Tensor:
    """Resample a table [2 * l - 1, D] linearly to [2 * length - 1, D]; as is when it fits."""
    num_distances = 2 * length - 1
    if rel_pos.shape[0] == num_distances:
        return rel_pos
    table = F.interpolate(rel_pos.float().T[None], size=num_distances, mode="linear")[0]
    return table.T.to(rel_pos.dtype)


def relative_positions(rel_pos: Tensor, length: int, frame_length: int) -> Tensor:
    """Relative position embedding of every (query, key) pair along one axis.

    Args:
        rel_pos: [2 * l - 1, D], for distances -(l - 1) ... l - 1.
        length: number of positions along the axis.
        frame_length: of the axis that they are a part of, so that a distance means the same in the part as in the
            whole; other than `l` resamples the table linearly.

    Returns:
        [length, length, D]; entry [q, k] is for distance q - k.
    """
    steps = torch.arange(length, device=rel_pos.device)
    return interpolate_relative_positions(rel_pos, frame_length)[steps[:, None] - steps[None, :] + frame_length - 1]


class ResamplePositions(ConversionOps):
    """What `from_pretrained` does to stored positions when the config asks for another `image_size`."""

    def convert(  # type: ignore[override]  # so do the operations of transformers that look at the model
        self,
        input_dict: dict[str, list[Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str,
        model: nn.Module,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        ((stored,),) = input_dict.values()
        shape = model.get_parameter(full_layer_name).shape
        if stored.dim() == 4:
            stored = interpolate_absolute_positions(stored, *shape[1:3])
        else:
            stored = interpolate_relative_positions(stored, (shape[0] + 1) // 2)
        return {target_patterns[0]: stored.contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        return KeepPositions()


class FirstStored(ConversionOps):
    """What `from_pretrained` does to a tensor that files hold under either of two names, or under both."""

    def convert(  # type: ignore[override]  # one tensor, as the operations of transformers that end a chain
        self,
        input_dict: dict[str, list[Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        ((stored, *_), *_) = (input_dict[name] for name in source_patterns if name in input_dict)
        return {target_patterns[0]: stored}

    @property
    def reverse_op(self) -> ConversionOps:
        return FirstStored()  # `save_pretrained` writes the first name


class KeepPositions(ConversionOps):
    """What `save_pretrained` does to positions: the size of the model is the one to store."""

    def convert(
        self,
        input_dict: dict[str, list[Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        return input_dict


__all__ = [
    "FirstStored",
    "PositionFrame",
    "ResamplePositions",
    "SamHfPositionalEmbedding",
    "grid_centers",
    "interpolate_absolute_positions",
    "interpolate_relative_positions",
    "normalise",
    "relative_positions",
]
