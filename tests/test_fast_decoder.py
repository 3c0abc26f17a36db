"""The fast decoder against the plain one, forward and backward, and where it must not run."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import random_pixels, random_prompts, tiny_model
from torch import Tensor, nn

from sam_hf import SamHfMaskDecoderConfig, cpu_inference, fast_decoder
from sam_hf.fast_decoder import (
    FastDecoder,
    ImageOfObjects,
    add_tokens_to_image,
    is_as_built,
    tokens_to_image,
)
from sam_hf.mask_decoder import PARTS, SamHfAttention, SamHfMaskDecoder, additive_mask

B, N, T, L, C = 2, 3, 5, 12, 32
SIZE = (3, 4)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Both in float64, so that what remains between them is an error and not rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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


def random_decoder(depth: int = 2) -> SamHfMaskDecoder:
    torch.manual_seed(0)
    decoder = SamHfMaskDecoder(config(depth))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return decoder


@pytest.fixture
def attention() -> SamHfAttention:
    torch.manual_seed(0)
    module = SamHfAttention(config(), downsample_rate=2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def decoder_inputs(
    batch: int = B, num_objects: int = N, *, masked: bool = False, high_res: bool = False, dense: tuple | None = None
) -> tuple:
    """Arguments of `SamHfMaskDecoder.forward`."""
    fine = [torch.randn(batch, C // 8, 12, 16, requires_grad=True), torch.randn(batch, C // 4, 6, 8)]
    embedding = torch.randn(batch, C, *SIZE, requires_grad=True)
    return (
        [*(fine if high_res else []), embedding],
        torch.randn(1, C, *SIZE),
        torch.randn(batch, num_objects, 2, C, requires_grad=True),
        torch.rand(batch, num_objects, 2) < 0.5 if masked else None,
        torch.randn(dense or (1, 1, C, 1, 1)),
    )


def plain(decoder: SamHfMaskDecoder, *inputs: Any, keep: Callable[[Tensor], Tensor] | None = None) -> tuple:
    """The algorithm of `mask_decoder`, for all objects at once."""
    images, positions, prompts, token_mask, dense = inputs
    tokens, mask = decoder.collect_tokens(prompts, token_mask, len(images[-1]), dense)
    return decoder.decode(images, positions, tokens, mask, dense, slice(None), keep)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights).sum(), inputs, materialize_grads=True)


def assert_same(ours: Tensor, plain: Tensor, inputs: list[Tensor] | None = None) -> None:
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-7)
    if inputs is None:
        return
    for one, other in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def image_and_keys(batch: int, num_objects: int, shared: bool) -> tuple[ImageOfObjects, Tensor]:
    dense = torch.zeros(1, 1 if shared else num_objects + 1, C, 1, 1)
    image = ImageOfObjects([torch.randn(batch, C, *SIZE)], torch.randn(1, C, *SIZE), dense, num_objects)
    if not shared:
        return image, torch.randn(batch, num_objects, L, C, requires_grad=True)
    image.shared_keys = torch.randn(batch, 1, L, C, requires_grad=True)
    image.shared_located = image.shared_keys + image.positions
    return image, image.shared_keys


sizes = pytest.mark.parametrize(("batch", "num_objects"), [(B, N), (1, N), (B, 1), (1, 1)])


@sizes
@pytest.mark.parametrize("shared", [True, False])
def test_tokens_to_image(attention: SamHfAttention, shared: bool, batch: int, num_objects: int):
    query = torch.randn(batch, num_objects, T, C, requires_grad=True)
    image, keys = image_and_keys(batch, num_objects, shared)
    ours = tokens_to_image(attention, query, keys, image, image.is_shared)
    expected = attention(query, keys + image.positions, keys)
    assert_same(ours, expected, [query, keys, *attention.parameters()])


@sizes
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_image_to_tokens(attention: SamHfAttention, shared: bool, masked: bool, batch: int, num_objects: int):
    query, value = (torch.randn(batch, num_objects, T, C, requires_grad=True) for _ in range(2))
    image, keys = image_and_keys(batch, num_objects, shared)
    visible = torch.rand(batch, num_objects, T - 1) < 0.5
    mask = additive_mask(visible, 1, torch.float64) if masked else None
    ours = add_tokens_to_image(attention, keys, image, query, value, mask, image.is_shared)
    expected = keys + attention(keys + image.positions, query, value, mask)
    assert_same(ours, expected, [query, value, keys, *attention.parameters()])


@pytest.mark.parametrize("high_res", [True, False])
@pytest.mark.parametrize("dense", [(1, 1, C, 1, 1), (1, N, C, *SIZE), (B, N, C, *SIZE)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_decoder_is_the_same_either_way(depth: int, dense: tuple, high_res: bool):
    decoder = random_decoder(depth)
    inputs = decoder_inputs(masked=True, dense=dense, high_res=high_res)
    fast, expected = decoder(*inputs), plain(decoder, *inputs)
    for one, other in zip(fast, expected, strict=True):
        assert_same(one, other)
    assert_same(fast[0], expected[0], [inputs[0][0], inputs[0][-1], inputs[2], *decoder.parameters()])


@pytest.mark.parametrize("dense", [(1, 1, C, 1, 1), (1, N, C, *SIZE)])
@pytest.mark.parametrize("way", ["fast", "plain"])
def test_kept_masks_are_some_of_all(monkeypatch: pytest.MonkeyPatch, way: str, dense: tuple):
    decoder, inputs = random_decoder().eval(), decoder_inputs(1, dense=dense)
    if way == "plain":
        decoder.transformer.layers[0].register_forward_hook(lambda *_: None)
    masks, scores, object_scores = decoder(*inputs)
    values = scores.detach().flatten().sort().values
    for threshold in (values[0] - 1, values[4:6].mean(), values[-2:].mean(), values[-1] + 1):
        kept = scores > threshold
        for at_once in (1, 2, 3):
            monkeypatch.setattr(cpu_inference, "DECODER_BUDGET", at_once * 10 * inputs[0][-1].nbytes)
            with torch.no_grad():
                ours = decoder(*inputs, keep=lambda part: part > threshold)  # noqa: B023
            assert len(ours[0]) == kept.sum()
            for one, other in zip(ours, (masks[kept], scores, object_scores), strict=True):
                assert_same(one, other.detach())


def test_kept_masks_are_those_of_one_image():
    with pytest.raises(ValueError, match="keep is for the objects of one image, but there are 2"):
        random_decoder()(*decoder_inputs(), keep=lambda scores: scores > 0)


@pytest.mark.parametrize("high_res", [True, False])
def test_upscaling_in_pieces_equals_the_whole(monkeypatch: pytest.MonkeyPatch, high_res: bool):
    decoder, pieces = random_decoder().eval(), []
    inputs = decoder_inputs(high_res=high_res)
    whole = decoder(*inputs)[0]
    decoder.activation.register_forward_hook(lambda *_: pieces.append(1))
    monkeypatch.setattr(fast_decoder, "CELLS_AT_ONCE", 5 * B * N)
    with torch.no_grad():
        torch.testing.assert_close(decoder(*inputs)[0], whole)
    assert len(pieces) == 2 * 3


@pytest.mark.parametrize("dense", [(1, 1, C, 1, 1), (1, N, C, *SIZE), (B, N, C, *SIZE)])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", ["fast", "plain"])
def test_objects_in_turns_equal_all_at_once(monkeypatch: pytest.MonkeyPatch, way: str, dense: tuple, masked: bool):
    decoder, calls = random_decoder().eval(), []
    inputs = decoder_inputs(masked=masked, dense=dense)
    expected = decoder(*inputs)
    decoder.pred_obj_score_head.activation.register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
    if way == "plain":
        decoder.transformer.layers[0].register_forward_hook(lambda *_: None)
    for at_once in (1, 2, 3):
        monkeypatch.setattr(cpu_inference, "DECODER_BUDGET", at_once * 10 * inputs[0][0].nbytes)
        calls.clear()
        with torch.no_grad():
            for one, other in zip(decoder(*inputs), expected, strict=True):
                torch.testing.assert_close(one, other.detach(), atol=1e-9, rtol=1e-7)
        assert max(calls) == at_once and sum(calls) == N * 2  # two hidden layers of the head


# Where it must not run.


class Doubled(nn.Linear):
    """A linear layer that is more than its weight, as LoRA makes them."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


class Blind(SamHfAttention):
    def forward(self, *args: Any) -> Tensor:
        return 0 * super().forward(*args)


class Quantised(Tensor):
    """Stands for what torchao and DTensor put in the place of a weight."""


MODULES = [name for name, module in SamHfMaskDecoder(config()).named_modules() if name and "mlps" not in name]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("layers")])  # lists are not called
def test_a_hook_at_any_level_is_called(name: str):
    decoder, calls = random_decoder(), []
    inputs = decoder_inputs()
    expected = decoder(*inputs)[0]
    decoder.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    assert_same(decoder(*inputs)[0], expected)
    assert calls


@pytest.mark.parametrize(
    "name",
    ["transformer", "transformer.layers.1", "transformer.layers.1.cross_attn_image_to_token", "upscale_conv2"],
)
@pytest.mark.parametrize("kind", ["forward_pre", "full_backward", "full_backward_pre", "forward"])
def test_no_kind_of_hook_is_skipped(name: str, kind: str):
    decoder = random_decoder()
    assert is_as_built(decoder, PARTS)
    hook = lambda *_: None  # noqa: E731
    handle = getattr(decoder.get_submodule(name), f"register_{kind}_hook")(hook)
    assert not is_as_built(decoder, PARTS)
    handle.remove()
    assert is_as_built(decoder, PARTS)


def test_what_a_hook_returns_counts():
    """faults: `register_forward_hook(lambda m, a, o: o * 0)` on a whole attention changed nothing."""
    decoder, inputs = random_decoder(), decoder_inputs()
    before = decoder(*inputs)[0]
    for name in ("cross_attn_image_to_token", "cross_attn_token_to_image"):
        decoder_with = copy.deepcopy(decoder)
        getattr(decoder_with.transformer.layers[1], name).register_forward_hook(lambda m, a, output: output * 0)
        after = decoder_with(*inputs)[0]
        assert_same(after, plain(decoder_with, *inputs)[0])
        assert (after - before).abs().max() > 1e-3


def test_hooks_for_all_modules_are_called():
    decoder, calls = random_decoder(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module)))
    try:
        decoder(*decoder_inputs())
    finally:
        handle.remove()
    assert SamHfAttention in calls and nn.ConvTranspose2d in calls


def replace(decoder: SamHfMaskDecoder, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(parent), attribute, module)


def doubled(decoder: SamHfMaskDecoder) -> None:
    name = "transformer.layers.0.cross_attn_token_to_image.v_proj"
    linear = decoder.get_submodule(name)
    replace(decoder, name, Doubled(linear.in_features, linear.out_features))


def blind(decoder: SamHfMaskDecoder) -> None:
    replace(decoder, "transformer.layers.1.cross_attn_image_to_token", Blind(config(), 2))


def without_norm(decoder: SamHfMaskDecoder) -> None:
    replace(decoder, "upscale_layer_norm", nn.Identity())


def with_other_forward(decoder: SamHfMaskDecoder) -> None:
    layer = decoder.transformer.layers[1]
    forward = layer.forward
    layer.forward = lambda *args: tuple(2 * part for part in forward(*args))


@pytest.mark.parametrize("change", [doubled, blind, without_norm, with_other_forward])
def test_a_changed_module_is_never_skipped(change: Callable):
    decoder, inputs = random_decoder(), decoder_inputs()
    before = decoder(*inputs)[0]
    change(decoder)
    assert not is_as_built(decoder, PARTS)
    after = decoder(*inputs)[0]
    assert_same(after, plain(decoder, *inputs)[0])
    assert (after - before).abs().max() > 1e-3


def test_a_subclass_of_the_decoder_decodes_by_itself():
    class Mine(SamHfMaskDecoder):
        def decode(self, *args: Any) -> tuple:
            return tuple(2 * part for part in super().decode(*args))

    torch.manual_seed(0)
    decoder, inputs = Mine(config()), decoder_inputs()
    assert_same(decoder(*inputs)[0], plain(decoder, *inputs)[0])


@pytest.mark.parametrize("name", ["upscale_conv1", "transformer.final_attn_token_to_image.k_proj"])
def test_a_weight_of_another_type_is_left_to_its_module(name: str):
    decoder = random_decoder()
    module = decoder.get_submodule(name)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Quantised))
    assert type(module.weight) is Quantised and not is_as_built(decoder, PARTS)


def test_any_activation_will_do():
    decoder, inputs = random_decoder(), decoder_inputs()
    decoder.activation, decoder.transformer.layers[0].mlp.act = nn.SiLU(), nn.Tanh()
    assert is_as_built(decoder, PARTS)
    assert_same(decoder(*inputs)[0], plain(decoder, *inputs)[0])


def replicate(module: nn.Module) -> nn.Module:
    """What `nn.DataParallel` runs on each device: modules without parameters, whose weights are plain tensors."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.detach().clone())
    return replica


def test_replicas_of_data_parallel_answer():
    torch.set_default_dtype(torch.float32)
    model = tiny_model(vision={"high_res_layers": [0, 1]}, decoder={"use_object_score": True})
    inputs = {"pixel_values": random_pixels(), **random_prompts("points boxes masks")}
    with torch.no_grad():
        torch.testing.assert_close(replicate(model)(**inputs).pred_masks, model(**inputs).pred_masks)


def test_the_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch):
    calls = []
    transform = FastDecoder.transform
    monkeypatch.setattr(FastDecoder, "transform", lambda self, objects: calls.append(1) or transform(self, objects))
    random_decoder()(*decoder_inputs())
    assert calls
