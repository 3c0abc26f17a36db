"""From the embedding of an image and clicks to masks."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from measuring import Limits, Row, alternate, count_flops, largest_difference, peak_memory
from models import Setup, meta_model, our_model, random_prompts, stock_model
from torch import Tensor

Decode = Callable[[], Tensor]  # three masks for each click, [1, N, 3, h, w]


def hugging_face(build: Callable, setup: Setup, prompts: dict[str, Tensor]) -> Decode:
    """Ours or that of transformers, which are called alike."""
    model = build(setup, setup.size)
    return torch.no_grad()(lambda: model(**prompts, multimask_output=True).pred_masks)


def meta(setup: Setup, prompts: dict[str, Tensor]) -> Decode:
    model = meta_model(setup, setup.size)
    clicks = prompts["input_points"][0], prompts["input_labels"][0]

    @torch.no_grad()
    def decode() -> Tensor:
        sparse, dense = model.prompt_encoder(clicks, boxes=None, masks=None)
        positions = model.prompt_encoder.get_dense_pe()
        return model.mask_decoder(prompts["image_embeddings"], positions, sparse, dense, True)[0][None]

    return decode


DECODERS = {
    "ours": partial(hugging_face, our_model),
    "transformers": partial(hugging_face, stock_model),
    "segment_anything": meta,
}


def decode_rows(setup: Setup, limits: Limits, count: int) -> Iterator[Row]:
    prompts = random_prompts(setup, count, setup.dtype)
    functions = {name: decoder(setup, prompts) for name, decoder in DECODERS.items()}
    if setup.dtype != torch.float32:
        del functions["segment_anything"]  # its prompt encoder takes float32 only
    limit = count_flops(functions["ours"]) / limits.flops
    times, masks = alternate(functions, setup)
    for peer in list(functions)[1:]:
        difference = largest_difference(masks["ours"], masks[peer])
        name = f"decode {count} prompts" if count > 1 else "decode 1 prompt"
        yield Row(name, peer, times["ours"], times[peer], limit=limit, difference=difference)


def memory_rows(setup: Setup) -> Iterator[Row]:
    peaks = {name: peak_memory("decode", name, setup) for name in DECODERS}
    for peer in list(peaks)[1:]:
        yield Row(f"peak memory, {setup.prompts} prompts", peer, peaks["ours"], peaks[peer], unit="bytes")
