"""SAM 2 for images, with random weights, in our model and in that of transformers."""

from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import Limits, Row, alternate, count_flops, largest_difference
from models import Setup, prepare
from torch import Tensor, nn
from training_step import OBJECTS, ROUNDS, step_functions, training_batch
from transformers import Sam2Config, Sam2Model

from sam_hf import SamHfModel
from sam_hf.training.memory_use import KeptForBackward

# Of the published tiny one, at its size, and the same narrow, at 64 pixels.
SIZES: dict[str, dict[str, Any]] = {
    "vit-b": {"side": 1024},
    "small": {"side": 256},
    "tiny": {
        "side": 64,
        "hidden_size": 8,
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "blocks_per_stage": [1, 1, 2, 1],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    },
}


def models(setup: Setup, size: str) -> tuple[SamHfModel, Sam2Model]:
    hiera = dict(SIZES[size])
    side = hiera.pop("side")
    widths = hiera.get("embed_dim_per_stage", [96, 192, 384, 768])
    config = Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [side, side], **hiera},
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
        },
        prompt_encoder_config={"image_size": side},
    )
    torch.manual_seed(0)
    stock = Sam2Model(config).eval()
    for weight in stock.parameters():  # those of its own would answer next to nothing
        if weight.dim() > 1:
            nn.init.xavier_uniform_(weight)
    with TemporaryDirectory() as folder:
        stock.save_pretrained(folder)
        ours = SamHfModel.from_pretrained(folder).eval()
    # Two buffers there, of which random weights are not the same.
    stock.prompt_encoder.shared_embedding.positional_embedding.copy_(stock.shared_image_embedding.positional_embedding)
    ours.shared_image_embedding.positional_embedding.copy_(stock.shared_image_embedding.positional_embedding)
    return tuple(
        prepare(model, setup, torch.float32, model.vision_encoder, model.mask_decoder) for model in (ours, stock)
    )


def with_gradient(stock: Sam2Model, pixels: Tensor) -> list[Tensor]:
    """`Sam2Model.get_image_embeddings` has none."""
    return Sam2Model.get_image_embeddings.__wrapped__(stock, pixels)


def kept_bytes(encode: Any, model: nn.Module, pixels: Tensor) -> int:
    with KeptForBackward() as kept:
        features = encode(pixels)
    assert features[-1].requires_grad
    return kept.num_bytes(model)


def sam2_rows(setup: Setup, limits: Limits) -> Iterator[Row]:
    ours, stock = models(setup, setup.size)
    side, generator = SIZES[setup.size]["side"], torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, side, side, generator=generator).to(setup.device)
    encoders = {
        "ours": torch.no_grad()(lambda: ours.get_image_embeddings(pixels)),
        "transformers": lambda: stock.get_image_embeddings(pixels),
    }
    limit = count_flops(encoders["ours"]) / limits.flops
    times, found = alternate(encoders, setup)
    difference = max(largest_difference(*pair) for pair in zip(*found.values(), strict=True))
    work = f"SAM 2 tiny, encode {side} x {side}"
    yield Row(work, "Sam2Model", times["ours"], times["transformers"], limit=limit, difference=difference)

    prompts = {
        "image_embeddings": found["ours"],
        "input_points": side * torch.rand(1, setup.prompts, 1, 2, generator=generator).to(setup.device),
        "input_labels": torch.ones(1, setup.prompts, 1, dtype=torch.long, device=setup.device),
    }
    decoders = {
        name: torch.no_grad()(lambda model=model: model(**prompts, multimask_output=True).pred_masks)
        for name, model in (("ours", ours), ("transformers", stock))
    }
    limit = count_flops(decoders["ours"]) / limits.flops
    times, masks = alternate(decoders, setup)
    difference = largest_difference(*masks.values())
    work = f"SAM 2 tiny, decode {setup.prompts} prompts"
    yield Row(work, "Sam2Model", times["ours"], times["transformers"], limit=limit, difference=difference)

    kept = [
        kept_bytes(encode, model.train(), pixels)
        for encode, model in ((ours.get_image_embeddings, ours), (partial(with_gradient, stock), stock))
    ]
    yield Row("SAM 2 tiny, encode, kept for the backward pass", "Sam2Model", *kept, unit="bytes")
    yield step_row(setup, limits)


def step_row(setup: Setup, limits: Limits) -> Row:
    ours, stock = models(setup, setup.training_size)
    side = SIZES[setup.training_size]["side"]
    functions = step_functions(ours.train(), stock.train(), training_batch(setup, side), partial(with_gradient, stock))
    limit = count_flops(functions["ours"]) / limits.flops
    times, _ = alternate(functions, setup)
    work = f"SAM 2 tiny, training step, {ROUNDS} rounds of {OBJECTS} objects, {side} x {side}"
    return Row(work, "loop over Sam2Model", times["ours"], times["transformers"], limit=limit)
