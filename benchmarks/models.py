"""The same random weights in our model and in those that it is compared with."""

from dataclasses import dataclass
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from transformers import SamConfig as StockSamConfig
from transformers import SamImageProcessor
from transformers import SamModel as StockSamModel

from sam_hf import SamHfConfig, SamHfModel
from sam_hf.convert import meta_name

SIZES = {
    "vit-b": {"image_size": 1024},
    "small": {
        "image_size": 256,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "window_size": 8,
        "global_attn_indexes": [2, 5],
    },
    "tiny": {
        "image_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": 3,
        "global_attn_indexes": [1],
    },
}


@dataclass(frozen=True)
class Setup:
    """What to measure, and how.

    Args:
        size, training_size: of `SIZES`, for everything and for the training step.
        prompts: decoded together; masks: for click sampling, of `mask_side` squared pixels.
        points_per_side: of the grid for automatic masks.
        image: path of a photograph for them, None for a painted one.
        seconds: that the repetitions of a row may take, once everything has run.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool
    size: str
    training_size: str
    prompts: int
    masks: int
    mask_side: int
    points_per_side: int
    image: str | None
    seconds: float


def stock_image_processor(side: int) -> SamImageProcessor:
    """That of transformers for inputs of `side` pixels."""
    return SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": side // 4},
        mask_pad_size={"height": side // 4, "width": side // 4},
    )


def our_model(setup: Setup, size: str, dtype: torch.dtype | None = None) -> SamHfModel:
    torch.manual_seed(0)
    model = SamHfModel(SamHfConfig(vision_config=SIZES[size], mask_decoder_config={"layer_norm_eps": 1e-5})).eval()
    return prepare(model, setup, dtype, model.vision_encoder, model.mask_decoder)


def stock_model(setup: Setup, size: str, dtype: torch.dtype | None = None) -> StockSamModel:
    ours = our_model(setup, size, torch.float32).cpu()
    vision = ours.config.vision_config
    model = StockSamModel(
        StockSamConfig(
            vision_config=SIZES[size],
            prompt_encoder_config={"image_size": vision.image_size, "patch_size": vision.patch_size},
            mask_decoder_config={"layer_norm_eps": 1e-5},
        )
    ).eval()
    positions = "shared_image_embedding.positional_embedding"
    weights = ours.state_dict()
    model.load_state_dict(weights | {"prompt_encoder.shared_embedding.positional_embedding": weights[positions]})
    return prepare(model, setup, dtype, model.vision_encoder, model.mask_decoder)


def meta_model(setup: Setup, size: str, dtype: torch.dtype | None = None) -> Sam:
    ours = our_model(setup, size, torch.float32).cpu()
    vision = ours.config.vision_config
    grid = vision.image_size // vision.patch_size
    model = Sam(
        ImageEncoderViT(
            img_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
        ),
        PromptEncoder(256, (grid, grid), (vision.image_size, vision.image_size), mask_in_chans=16),
        MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)),
    ).eval()
    model.load_state_dict({meta_name(name): value for name, value in ours.state_dict().items()})
    return prepare(model, setup, dtype, model.image_encoder, model.mask_decoder)


def prepare(model: nn.Module, setup: Setup, dtype: torch.dtype | None, *parts: nn.Module) -> nn.Module:
    """To the device and dtype of the setup, with its heavy parts compiled if it says so."""
    if setup.compile:
        for part in parts:
            part.compile()
    return model.to(setup.device, dtype or setup.dtype)


def random_prompts(setup: Setup, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The embedding of one image, as `image_embeddings`, and a click on each of `count` objects."""
    generator = torch.Generator().manual_seed(0)
    side = SIZES[setup.size]["image_size"]
    return {
        "image_embeddings": torch.randn(1, 256, side // 16, side // 16, generator=generator).to(setup.device, dtype),
        "input_points": side * torch.rand(1, count, 1, 2, generator=generator).to(setup.device),
        "input_labels": torch.ones(1, count, 1, dtype=torch.long, device=setup.device),
    }
