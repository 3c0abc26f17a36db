"""What several test files share: a model of 64 x 64 pixels and width 32 with random weights, and prompts for it."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sam_hf import SamHfConfig, SamHfModel

IMAGE, PATCH, WIDTH = 64, 8, 32
GRID = IMAGE // PATCH
MASK = 4 * GRID


def tiny_config(*, vision: dict | None = None, decoder: dict | None = None, **model: Any) -> SamHfConfig:
    """SAM in small: a windowed layer whose windows do not fill the grid, then a global one."""
    return SamHfConfig(
        vision_config={
            "image_size": IMAGE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "output_channels": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "window_size": 3,
            "global_attn_indexes": [1],
            **(vision or {}),
        },
        prompt_encoder_config={"hidden_size": WIDTH},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "mlp_dim": 2 * WIDTH,
            "iou_head_hidden_dim": WIDTH,
            **(decoder or {}),
        },
        **model,
    )


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, those that start at zero too, a random value under which activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.dim() == 0:  # a counter of batch norm
            continue
        noise = torch.randn(value.shape, generator=generator)
        if "positional" in name or "gaussian" in name:
            value.copy_(noise)
        elif value.dim() == 1:
            value.copy_(0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        else:
            value.copy_(noise * value[0].numel() ** -0.5)
    return module


def tiny_model(seed: int = 0, **config: Any) -> SamHfModel:
    """In eval mode; keyword arguments of `tiny_config`."""
    return randomise(SamHfModel(tiny_config(**config)), seed).eval()


def sam2_backbone() -> dict[str, Any]:
    """The config of a Hiera of transformers, for images of `IMAGE` pixels."""
    return {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [IMAGE, IMAGE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }


def unpack_trained_model(folder: Path) -> Path:
    """A model that was trained on scenes for minutes, with its processor, in a folder."""
    with zipfile.ZipFile(Path(__file__).with_name("trained_on_scenes.zip")) as file:
        file.extractall(folder)
    return folder


def random_prompts(
    kinds: str, batch: int = 2, num_objects: int = 2, num_points: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Prompts of the given kinds, such as "points boxes masks", for a model of `IMAGE` pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, num_objects)
    prompts = {}
    if "points" in kinds:
        prompts["input_points"] = IMAGE * torch.rand(*shape, num_points, 2, generator=generator)
        prompts["input_labels"] = torch.randint(0, 2, (*shape, num_points), generator=generator)
    if "boxes" in kinds:
        corner = IMAGE / 2 * torch.rand(*shape, 2, generator=generator)
        size = 4 + IMAGE / 3 * torch.rand(*shape, 2, generator=generator)
        prompts["input_boxes"] = torch.cat([corner, corner + size], dim=-1)
    if "masks" in kinds:
        prompts["input_masks"] = 5 * torch.randn(*shape, MASK, MASK, generator=generator)
    return prompts


def random_pixels(batch: int = 2, height: int = IMAGE, width: int = IMAGE, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_labels(batch: int = 2, num_objects: int = 2, height: int = MASK, width: int = MASK) -> Tensor:
    """Rectangles, float [batch, num_objects, height, width]."""
    labels = torch.zeros(batch, num_objects, height, width)
    for b in range(batch):
        for n in range(num_objects):
            labels[b, n, 3 + n : height // 2 + 2 * n, 4 + b : width // 2 + 3 * b + n] = 1.0
    return labels


def random_loss(tensors: list[Tensor], seed: int = 0) -> Tensor:
    """A scalar in which every element of every tensor has its own random weight: its gradient hides no mistake."""
    generator: Generator = torch.Generator().manual_seed(seed)
    return sum((tensor * torch.randn(tensor.shape, generator=generator)).mean() for tensor in tensors)
