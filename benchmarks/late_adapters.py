"""What the encoder keeps for the backward pass with adapters in its upper half, against all of its layers."""

from collections.abc import Iterator

import torch
from measuring import Row
from models import SIZES, Setup, our_model

from sam_hf.training import add_lora
from sam_hf.training.memory_use import KeptForBackward


def kept_bytes(setup: Setup, preset: str) -> int:
    side = SIZES[setup.size]["image_size"]
    model = add_lora(our_model(setup, setup.size, torch.float32), preset).train()
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(setup.device)
    with KeptForBackward() as kept:
        features = model.get_image_embeddings(pixels)
    assert features[-1].requires_grad
    return kept.num_bytes(model)


def adapter_rows(setup: Setup) -> Iterator[Row]:
    late, whole = (kept_bytes(setup, preset) for preset in ("encoder_late", "encoder"))
    work = "encode one image, kept for the backward pass, `--lora encoder_late`"
    yield Row(work, "`--lora encoder`", late, whole, unit="bytes", note=f"{late / whole:.2f} of it")
