"""What inference on a CPU does in pieces, against the same as a whole."""

import pytest
import torch
from tiny_models import random_pixels, tiny_model

from sam_hf import cpu_inference, image_encoder, layers
from sam_hf.cpu_inference import blocked_attention
from sam_hf.layers import MLPBlock, eager_attention

BATCH, HEADS, ROWS, COLUMNS, WIDTH = 2, 3, 4, 5, 8


@pytest.mark.parametrize("at_once", [1, 150, 500, 2**20])
def test_blocks_equal_attention_with_a_bias(monkeypatch, at_once):
    monkeypatch.setattr(cpu_inference, "SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    sizes = [(ROWS * COLUMNS, WIDTH)] * 3 + [(ROWS, COLUMNS, ROWS), (ROWS, COLUMNS, COLUMNS)]
    query, key, value, along_height, along_width = (
        torch.randn(BATCH, HEADS, *size, generator=generator, dtype=torch.float64) for size in sizes
    )
    bias = torch.zeros(BATCH, HEADS, ROWS * COLUMNS, ROWS * COLUMNS, dtype=torch.float64)
    for one in range(ROWS * COLUMNS):
        for other in range(ROWS * COLUMNS):
            row, column = divmod(one, COLUMNS)
            bias[:, :, one, other] = (
                along_height[:, :, row, column, other // COLUMNS] + along_width[:, :, row, column, other % COLUMNS]
            )
    expected, _ = eager_attention(torch.nn.Identity(), query, key, value, bias, scaling=0.7)
    blocks = blocked_attention(query, key, value, along_height, along_width, 0.7)
    torch.testing.assert_close(blocks, expected.flatten(2), atol=1e-6, rtol=0)  # softmax of `expected` is in float32


@pytest.mark.parametrize("shape", [(7, 8), (2, 3, 5, 8)])
def test_pieces_of_an_mlp_equal_the_whole(monkeypatch, shape):
    monkeypatch.setattr(layers, "HIDDEN_AT_ONCE", 40)
    mlp = MLPBlock(8, 20, "gelu").eval()
    hidden_states = torch.randn(shape)
    expected = mlp(hidden_states)
    pieces = []
    mlp.lin1.register_forward_hook(lambda *_: pieces.append(1))
    with torch.no_grad():
        torch.testing.assert_close(mlp(hidden_states), expected)
    assert len(pieces) == -(-hidden_states[..., 0].numel() // 2)


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_only_inference_works_in_blocks_with_the_same_result(monkeypatch, size):
    calls = []
    monkeypatch.setattr(
        image_encoder, "blocked_attention", lambda *args: calls.append(args[0].shape) or blocked_attention(*args)
    )
    model = tiny_model()
    pixels = random_pixels(2, *size)
    expected = model.get_image_embeddings(pixels)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(model.get_image_embeddings(pixels), expected, atol=1e-5, rtol=0)
        assert len(calls) == len(model.vision_encoder.layers)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model.get_image_embeddings(pixels), expected, atol=1e-5, rtol=0)
        model.set_attn_implementation("sdpa")
        model.train().get_image_embeddings(pixels)
    assert len(calls) == len(model.vision_encoder.layers)
