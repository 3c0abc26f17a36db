"""Checkpoints of Meta's `segment_anything`, and of MobileSAM: their names of weights, and what their shapes tell."""

import math
import os
import pickle
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..configuration_sam_hf import SamHfConfig
from ..vision_configuration import TINY_VIT, SamHfTinyVitConfig

# What names of ours begin with, and what Meta's do instead; longer ones first.
PREFIXES = {
    "vision_encoder.patch_embed.projection.": "image_encoder.patch_embed.proj.",
    "vision_encoder.layers.": "image_encoder.blocks.",
    "vision_encoder.neck.conv1.": "image_encoder.neck.0.",
    "vision_encoder.neck.layer_norm1.": "image_encoder.neck.1.",
    "vision_encoder.neck.conv2.": "image_encoder.neck.2.",
    "vision_encoder.neck.layer_norm2.": "image_encoder.neck.3.",
    "vision_encoder.": "image_encoder.",
    "shared_image_embedding.positional_embedding": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "prompt_encoder.point_embed.": "prompt_encoder.point_embeddings.",
    "prompt_encoder.mask_embed.conv1.": "prompt_encoder.mask_downscaling.0.",
    "prompt_encoder.mask_embed.layer_norm1.": "prompt_encoder.mask_downscaling.1.",
    "prompt_encoder.mask_embed.conv2.": "prompt_encoder.mask_downscaling.3.",
    "prompt_encoder.mask_embed.layer_norm2.": "prompt_encoder.mask_downscaling.4.",
    "prompt_encoder.mask_embed.conv3.": "prompt_encoder.mask_downscaling.6.",
    "mask_decoder.upscale_conv1.": "mask_decoder.output_upscaling.0.",
    "mask_decoder.upscale_layer_norm.": "mask_decoder.output_upscaling.1.",
    "mask_decoder.upscale_conv2.": "mask_decoder.output_upscaling.3.",
}
PERCEPTRON = re.compile(
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\.(proj_in|layers\.\d+|proj_out)\.(\w+)"
)
# Parts that only MobileSAM's image encoder has; they have its names.
TINY_VIT_LAYERS = re.compile(r"vision_encoder\.(layers\.\d+\.(blocks|downsample)\..*)")
TINY_VIT_START = "image_encoder.patch_embed.seq.0.c.weight"
# What it has and does not use: a classifier of 1000 kinds. Indices into biases follow from the size of the window.
NOT_USED = re.compile(r"image_encoder\.(norm_head\..*|head\..*|.*\.attention_bias_idxs)")
NUM_CLASSES = 1000
# Weights that only relatives of SAM have, which are no models of this package.
RELATIVES = {
    "mask_decoder.hf_token.weight": "SAM-HQ, whose decoder has a token and features of its own",
    "mask_decoder.final_output_upscaling_layers.0.0.weight": "EfficientSAM, whose decoder takes no masks",
    "sam_mask_decoder.hf_token.weight": "SAM-HQ 2, whose decoder has a token and features of its own",
    "spatial_perceiver.latents": "EdgeTAM, which transformers has as `EdgeTamModel`",
    "tracker.no_mem_embed": "SAM 3, whose part for clicks transformers has as `Sam3TrackerModel`",
}
# Numbers that no shape tells: constants of Meta's code.
DECODER_HEADS = 8
DECODER_LAYER_NORM_EPS = 1e-5
HYPERNETWORK_DEPTH = 3


def meta_name(name: str, iou_head_depth: int = 3) -> str:
    """What Meta's package calls a weight of `SamHfModel` and of `transformers.SamModel`."""
    if perceptron := PERCEPTRON.fullmatch(name):
        head, layer, kind = perceptron.groups()
        depth = iou_head_depth if head.endswith("iou_prediction_head") else HYPERNETWORK_DEPTH
        ends = {"proj_in": 0, "proj_out": depth - 1}
        index = ends[layer] if layer in ends else int(layer.removeprefix("layers.")) + 1
        return f"{head}.layers.{index}.{kind}"
    if within := TINY_VIT_LAYERS.fullmatch(name):
        return f"image_encoder.{within[1]}"
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    return name.replace(".layer_norm", ".norm")


def read_meta_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a `.pth` or `.pt` file that a model uses, under Meta's names; the file may hold no code.

    Raises:
        ValueError: if it is damaged, has anything else in it than named tensors, or is of a relative of SAM.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        with open(path, "rb") as file:
            is_pickled = file.read(2) in (b"PK", b"\x80\x02")  # and no page, or pointer to the file
        if not (is_pickled and isinstance(error, pickle.UnpicklingError)):
            raise ValueError(f"{path} is no whole file of torch.save; download or copy it again. ({error})") from error
        raise ValueError(
            f"{path} holds more than tensors, and such a file could run code when it is read; save the state dict "
            "alone, by `torch.save(model.state_dict(), path)`."
        ) from error
    if isinstance(weights, dict) and isinstance(weights.get("model"), dict):  # SAM 2; in training beside other things
        weights = weights["model"]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        found = sorted(map(str, weights))[:8] if isinstance(weights, dict) else type(weights).__name__
        raise ValueError(f"{path} should hold a state dict of named tensors at its top, but holds {found}.")
    for name in RELATIVES.keys() & weights.keys():
        raise ValueError(
            f"{name} is of {RELATIVES[name]}: its files are no models of this package. A small image encoder to train "
            "is the preset hiera_tiny, or a backbone such as timm/repvit_m1.dist_in1k."
        )
    return {name: value for name, value in weights.items() if not NOT_USED.fullmatch(name)}


def unused_classifier(config: SamHfTinyVitConfig) -> dict[str, Tensor]:
    """Zeros for the weights that MobileSAM's code loads without using them."""
    width = config.hidden_size
    shapes = {"norm_head.weight": [width], "norm_head.bias": [width]}
    shapes |= {"head.weight": [NUM_CLASSES, width], "head.bias": [NUM_CLASSES]}
    return {f"image_encoder.{name}": torch.zeros(shape) for name, shape in shapes.items()}


def config_from_meta(weights: Mapping[str, Tensor]) -> SamHfConfig:
    """The model that weights under Meta's names are for: ViT-B, L, H, MobileSAM, or any other size of these layouts.

    Raises:
        ValueError: if a weight that tells a size is absent, or windows differ between blocks.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    try:
        return SamHfConfig(
            vision_config=(tiny_vit_fields if TINY_VIT_START in shapes else vision_fields)(shapes),
            prompt_encoder_config={
                "hidden_size": shapes["prompt_encoder.no_mask_embed.weight"][1],
                "mask_input_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
                "num_point_embeddings": count(shapes, r"prompt_encoder\.point_embeddings\.\d+\.weight"),
            },
            mask_decoder_config=decoder_fields(shapes),
        )
    except KeyError as missing:
        raise ValueError(
            f"there is no weight {missing}, which every checkpoint of Meta's segment_anything has; the first names "
            f"are {sorted(shapes)[:3]}."
        ) from None


def vision_fields(shapes: dict[str, tuple[int, ...]]) -> dict:
    hidden_size, channels, patch_size, _ = shapes["image_encoder.patch_embed.proj.weight"]
    grid = shapes["image_encoder.pos_embed"][1]
    depth = count(shapes, r"image_encoder\.blocks\.\d+\.norm1\.weight")
    # Tables of 2 * length - 1 relative positions; blocks that see the whole grid are global.
    tables = [shapes[f"image_encoder.blocks.{index}.attn.rel_pos_h"] for index in range(depth)]
    lengths = [(rows + 1) // 2 for rows, _ in tables]
    windows = sorted(set(lengths) - {grid})
    if len(windows) > 1:
        raise ValueError(f"blocks of the image encoder have windows of {windows} patches, expected a single size.")
    mlp_dim = shapes["image_encoder.blocks.0.mlp.lin1.weight"][0]
    return {
        "hidden_size": hidden_size,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "num_hidden_layers": depth,
        "num_attention_heads": hidden_size // tables[0][1],
        "mlp_dim": mlp_dim,
        "mlp_ratio": mlp_dim / hidden_size,
        "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in shapes,
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": [index for index, length in enumerate(lengths) if length == grid],
        "output_channels": shapes["image_encoder.neck.0.weight"][0],
    }


def tiny_vit_fields(shapes: dict[str, tuple[int, ...]]) -> dict:
    blocks = [f"image_encoder.layers.{stage}.blocks" for stage in range(4)]
    tables = [shapes[f"{stage}.0.attn.attention_biases"] for stage in blocks[1:]]
    return {
        "model_type": TINY_VIT,
        "embed_dims": [
            shapes[f"{blocks[0]}.0.conv3.c.weight"][0],
            *(shapes[f"{stage}.0.attn.proj.weight"][0] for stage in blocks[1:]),
        ],
        "depths": [count(shapes, rf"{re.escape(stage)}\.\d+\.(conv3\.c|attn\.proj)\.weight") for stage in blocks],
        "num_heads": [heads for heads, _ in tables],
        "window_sizes": [math.isqrt(cells) for _, cells in tables],
        "num_channels": shapes[TINY_VIT_START][1],
        "output_channels": shapes["image_encoder.neck.0.weight"][0],
    }


def decoder_fields(shapes: dict[str, tuple[int, ...]]) -> dict:
    num_masks, hidden_size = shapes["mask_decoder.mask_tokens.weight"]
    inner = shapes["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"][0]
    return {
        "hidden_size": hidden_size,
        "mlp_dim": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "num_hidden_layers": count(shapes, r"mask_decoder\.transformer\.layers\.\d+\.norm1\.weight"),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": hidden_size // inner,
        "num_multimask_outputs": num_masks - 1,
        "iou_head_depth": count(shapes, r"mask_decoder\.iou_prediction_head\.layers\.\d+\.weight"),
        "iou_head_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        "layer_norm_eps": DECODER_LAYER_NORM_EPS,
    }


def count(names: Mapping[str, object], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


__all__ = ["config_from_meta", "count", "meta_name", "read_meta_checkpoint", "unused_classifier"]
