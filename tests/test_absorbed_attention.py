"""The absorbed cross-attention against the module-by-module path, forward and backward."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sam_hf import SamHfMaskDecoderConfig, mask_decoder, mask_upscaling
from sam_hf.absorbed_attention import attend_to_tokens, is_absorbable
from sam_hf.mask_decoder import SamHfAttention, SamHfMaskDecoder, additive_mask, tokens_to_image
from sam_hf.shared_image import SharedImage

B, N, T, L, C = 2, 3, 5, 12, 32


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Both paths in float64, so that what remains between them is an error and not rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Adapter(nn.Linear):
    """A linear layer that is more than its weight, as LoRA makes them."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1.0


def config(depth: int = 2) -> SamHfMaskDecoderConfig:
    decoder = SamHfMaskDecoderConfig(
        hidden_size=C,
        num_attention_heads=4,
        mlp_dim=48,
        iou_head_hidden_dim=16,
        num_hidden_layers=depth,
        use_object_score=True,
    )
    decoder._attn_implementation = "sdpa"
    return decoder


@pytest.fixture
def attention() -> SamHfAttention:
    torch.manual_seed(0)
    module = SamHfAttention(config(), downsample_rate=2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights).sum(), inputs)


def assert_same(ours: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-7)
    for one, other in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def image_and_keys(batch: int, num_objects: int, shared: bool) -> tuple[SharedImage, torch.Tensor]:
    embedding, positions = torch.randn(batch, C, 3, 4, requires_grad=True), torch.randn(1, C, 3, 4)
    image = SharedImage([embedding], positions, torch.zeros(1, 1 if shared else num_objects + 1, C, 1, 1), num_objects)
    return image, image.keys if shared else torch.randn(batch, num_objects, L, C, requires_grad=True)


def decoder_image(*high_res: torch.Tensor) -> SharedImage:
    return SharedImage([*high_res, torch.randn(B, C, 3, 4)], torch.randn(1, C, 3, 4), torch.zeros(1, 1, C, 1, 1), N)


sizes = pytest.mark.parametrize(("batch", "num_objects"), [(B, N), (1, N), (B, 1), (1, 1)])


@sizes
@pytest.mark.parametrize("shared", [True, False])
def test_tokens_to_image(attention: SamHfAttention, shared: bool, batch: int, num_objects: int):
    query = torch.randn(batch, num_objects, T, C, requires_grad=True)
    image, keys = image_and_keys(batch, num_objects, shared)
    ours = tokens_to_image(attention, query, keys, image)
    plain = attention(query, keys + image.positions, keys)
    assert_same(ours, plain, [query, keys, *attention.parameters()])


@sizes
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_image_to_tokens(attention: SamHfAttention, shared: bool, masked: bool, batch: int, num_objects: int):
    query, value = (torch.randn(batch, num_objects, T, C, requires_grad=True) for _ in range(2))
    image, keys = image_and_keys(batch, num_objects, shared)
    visible = torch.rand(batch, num_objects, T - 1) < 0.5
    mask = additive_mask(visible, 1, torch.float64) if masked else None
    ours = attend_to_tokens(attention, keys, image, query, value, mask)
    plain = keys + attention(keys + image.positions, query, value, mask)
    assert_same(ours, plain, [query, value, keys, *attention.parameters()])


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_a_changed_projection_is_never_skipped(attention: SamHfAttention, name: str):
    assert is_absorbable(attention)
    projection = getattr(attention, name)
    handle = projection.register_forward_hook(lambda *_: None)
    assert not is_absorbable(attention)
    handle.remove()
    setattr(attention, name, Adapter(projection.in_features, projection.out_features))
    assert not is_absorbable(attention)


@pytest.mark.parametrize("high_res", [True, False])
def test_masks_by_products_equal_transposed_convolutions(high_res: bool):
    torch.manual_seed(0)
    decoder = SamHfMaskDecoder(config())
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    keys = torch.randn(B, N, 3 * 4, C, requires_grad=True)
    tokens = torch.randn(B, N, 6, C, requires_grad=True)
    fine = [torch.randn(B, C // 8, 12, 16, requires_grad=True), torch.randn(B, C // 4, 6, 8, requires_grad=True)]
    fine = fine if high_res else []
    image = decoder_image(*fine)
    ours = decoder.predict_masks(tokens, keys, image)
    decoder.upscale_conv1.register_forward_hook(lambda *_: None)
    plain = decoder.predict_masks(tokens, keys, image)
    weights = [parameter for name, parameter in decoder.named_parameters() if name.startswith("upscale")]
    assert_same(ours, plain, [tokens, keys, *fine, *weights])


@pytest.mark.parametrize("high_res", [True, False])
def test_upscaling_in_pieces_equals_the_whole(monkeypatch: pytest.MonkeyPatch, high_res: bool):
    decoder, pieces = SamHfMaskDecoder(config()).eval(), []
    decoder.activation.register_forward_hook(lambda *_: pieces.append(1))
    tokens, keys = torch.randn(B, N, 6, C), torch.randn(B, N, 3 * 4, C)
    fine = [torch.randn(B, C // 8, 12, 16), torch.randn(B, C // 4, 6, 8)] if high_res else []
    image = decoder_image(*fine)
    whole = decoder.predict_masks(tokens, keys, image)
    monkeypatch.setattr(mask_upscaling, "CELLS_AT_ONCE", 5 * B * N)
    with torch.no_grad():
        torch.testing.assert_close(decoder.predict_masks(tokens, keys, image), whole)
    assert len(pieces) == 2 + 2 * 3


@pytest.mark.parametrize("name", ["upscale_conv1", "upscale_conv2", "upscale_layer_norm"])
def test_a_hook_on_the_upscaling_is_never_skipped(name: str):
    decoder, calls = SamHfMaskDecoder(config()), []
    getattr(decoder, name).register_forward_hook(lambda *_: calls.append(name))
    decoder.predict_masks(torch.randn(B, N, 6, C), torch.randn(B, N, 12, C), decoder_image())
    assert calls == [name]


@pytest.mark.parametrize("dense", [(1, 1, C, 1, 1), (1, N, C, 3, 4), (B, N, C, 3, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_objects_in_turns_equal_all_at_once(monkeypatch: pytest.MonkeyPatch, dense: tuple, masked: bool):
    torch.manual_seed(0)
    decoder, calls = SamHfMaskDecoder(config()).eval(), []
    visible = torch.rand(B, N, 2) < 0.5 if masked else None
    arguments = (
        [torch.randn(B, C, 3, 4)],
        torch.randn(1, C, 3, 4),
        torch.randn(B, N, 2, C),
        visible,
        torch.randn(dense),
    )
    expected = decoder(*arguments)
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *inputs: calls.append(inputs[1].shape[1]) or decode(*inputs))
    for at_once in (1, 2, 3):
        monkeypatch.setattr(mask_decoder, "CPU_TOKENS", at_once * arguments[0][0].nbytes)
        calls.clear()
        with torch.no_grad():
            for one, other in zip(decoder(*arguments), expected, strict=True):
                torch.testing.assert_close(one, other.detach(), atol=1e-9, rtol=1e-7)
        assert max(calls) == at_once and sum(calls) == N


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_decoder_is_the_same_either_way(depth: int):
    torch.manual_seed(0)
    decoder = SamHfMaskDecoder(config(depth))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    embedding = torch.randn(B, C, 3, 4, requires_grad=True)
    visible = torch.rand(B, N, 2) < 0.5
    arguments = ([embedding], torch.randn(1, C, 3, 4), torch.randn(B, N, 2, C), visible, torch.randn(1, 1, C, 1, 1))
    fast = decoder(*arguments)
    for module in decoder.modules():
        if isinstance(module, SamHfAttention):
            module.v_proj.register_forward_hook(lambda *_: None)
    plain = decoder(*arguments)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)
    assert_same(fast[0], plain[0], [embedding, *decoder.transformer.parameters()])
