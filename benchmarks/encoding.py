"""From an image to its embedding."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from measuring import Limits, Row, alternate, count_flops, largest_difference, machine_limits
from models import SIZES, Setup, meta_model, our_model, stock_model


def encode_rows(setup: Setup, limits: Limits, dtype: torch.dtype) -> Iterator[Row]:
    side = SIZES[setup.size]["image_size"]
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(setup.device, dtype)
    ours, stock, meta = (model(setup, setup.size, dtype) for model in (our_model, stock_model, meta_model))
    functions = {
        "ours": torch.no_grad()(lambda: ours.get_image_embeddings(pixels)[-1]),
        "transformers": torch.no_grad()(lambda: stock.vision_encoder(pixels).last_hidden_state),
        "segment_anything": torch.no_grad()(lambda: meta.image_encoder(pixels)),
    }
    if dtype != setup.dtype:
        limits = machine_limits(replace(setup, dtype=dtype))
    limit = count_flops(functions["ours"]) / limits.flops
    times, embeddings = alternate(functions, setup)
    name = f"encode {side} x {side}, {str(dtype).removeprefix('torch.')}"
    for peer in list(functions)[1:]:
        difference = largest_difference(embeddings["ours"], embeddings[peer])
        yield Row(name, peer, times["ours"], times[peer], limit=limit, difference=difference)
