"""SAM 2 of transformers and this package on the same random weights: answers, gradients, configurations, files."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from accelerate import infer_auto_device_map
from sam2_models import SIDE, sam2_model, sam2_parts
from tiny_models import random_labels, random_loss
from torch import Tensor
from torch.export import Dim, export
from transformers import Sam2Config, Sam2Model

from sam_hf import PADDING, SamHfConfig, SamHfModel
from sam_hf.feature_pyramid import SamHfFeaturePyramid
from sam_hf.positions import PositionFrame
from sam_hf.sam2_config import fields_from_sam2
from sam_hf.training import InteractiveTrainer
from sam_hf.vision_configuration import SamHfHieraConfig

TOLERANCE = 1e-5
KINDS = ["points", "boxes", "points boxes", "masks", "points masks", "boxes masks", "points boxes masks", ""]
OUTPUTS = ("pred_masks", "iou_scores", "object_score_logits")


@pytest.fixture(scope="module", params=[False, True], ids=["image", "video"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("sam2")
    sam2_model(video=request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SamHfModel:
    path = tmp_path_factory.mktemp("sam2")
    sam2_model().save_pretrained(path)
    return SamHfModel.from_pretrained(path).eval()


def pixels(batch: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def prompts(kinds: str, batch: int = 2, num_objects: int = 3, num_points: int = 2) -> dict[str, Tensor]:
    """As `Sam2Model` takes them: one mask for all objects of an image."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    if "points" in kinds:
        found["input_points"] = SIDE * torch.rand(batch, num_objects, num_points, 2, generator=generator)
        found["input_labels"] = torch.randint(0, 2, (batch, num_objects, num_points), generator=generator)
    if "boxes" in kinds:
        corner = SIDE / 2 * torch.rand(batch, num_objects, 2, generator=generator)
        size = 4 + SIDE / 3 * torch.rand(batch, num_objects, 2, generator=generator)
        found["input_boxes"] = torch.cat([corner, corner + size], dim=-1)
    if "masks" in kinds:
        found["input_masks"] = 5 * torch.randn(batch, 1, SIDE // 4, SIDE // 4, generator=generator)
    return found


def assert_equal(ours, stock) -> None:
    for name in OUTPUTS:
        assert stock[name].std() > 1e-4
        torch.testing.assert_close(ours[name], stock[name], atol=TOLERANCE, rtol=0)


def test_outputs_equal_those_of_stock(folder):
    ours, info = SamHfModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    stock = Sam2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        for kinds in KINDS:
            for multimask_output in (True, False):
                inputs = {"pixel_values": pixels(), **prompts(kinds), "multimask_output": multimask_output}
                assert_equal(ours.eval()(**inputs), stock(**inputs))


def test_the_image_embedding_is_that_of_stock(folder):
    ours, stock = SamHfModel.from_pretrained(folder).eval(), Sam2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        found, expected = ours.get_image_embeddings(pixels()), stock.get_image_embeddings(pixels())
    assert [part.shape for part in found] == [part.shape for part in expected]
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, atol=TOLERANCE, rtol=0)


def test_all_gradients_equal_those_of_stock(tmp_path):
    stock = sam2_model()
    stock.save_pretrained(tmp_path)
    ours = SamHfModel.from_pretrained(tmp_path)
    inputs = {"pixel_values": pixels(), **prompts("points boxes masks"), "multimask_output": True}
    sums = []
    for each in (ours.train(), stock.train()):
        output = each(**inputs)
        random_loss([output[name] for name in OUTPUTS]).backward()
        # Every weight of one has a counterpart of the same values in the other, by which they are found.
        sums.append({})
        for parameter in each.parameters():
            parts = parameter.split(1) if parameter.shape == (4, parameter.shape[-1]) else [parameter]
            grads = (
                [None] * len(parts) if parameter.grad is None else parameter.grad.split(len(parameter) // len(parts))
            )
            for part, grad in zip(parts, grads, strict=True):
                sums[-1][tuple(part.flatten()[:8].tolist()), part.numel()] = grad
    found, expected = sums
    assert found.keys() == expected.keys() and sum(size for _, size in found) == ours.num_parameters()
    for key, grad in expected.items():
        if grad is None:
            assert found[key] is None
        else:
            scale = grad.abs().max()
            assert (found[key].view_as(grad) - grad).abs().max() < 1e-4 * scale + 1e-7


def test_each_object_is_as_alone(model):
    """Boxes, clicks, both and neither in one batch."""
    inputs = prompts("points boxes", batch=1, num_objects=4)
    inputs["input_boxes"][0, [0, 2]] = float("nan")
    inputs["input_labels"][0, [1, 2]] = PADDING
    alone = [
        {name: value[:, :1] for name, value in inputs.items() if name != "input_boxes"},
        {"input_boxes": inputs["input_boxes"][:, 1:2]},
        {},
        {name: value[:, 3:] for name, value in inputs.items()},
    ]
    with torch.no_grad():
        embeddings = model.get_image_embeddings(pixels(1))
        together = model(image_embeddings=embeddings, **inputs, multimask_output=True)
        for index, prompt in enumerate(alone):
            single = model(image_embeddings=embeddings, **prompt, multimask_output=True)
            for name in OUTPUTS:
                torch.testing.assert_close(together[name][:, index : index + 1], single[name], atol=1e-5, rtol=0)


def test_saved_weights_have_our_names(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, info = SamHfModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.to_dict() == model.config.to_dict() | {"_name_or_path": str(tmp_path)}
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize(
    ("preset", "stock"),
    [
        ("hiera_tiny", {}),
        ("hiera_small", {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]}),
    ],
)
def test_presets_are_what_stock_configurations_are_read_as(preset, stock, tmp_path):
    Sam2Config(vision_config={"backbone_config": {"model_type": "sam2_hiera_det_model", **stock}}).save_pretrained(
        tmp_path
    )
    read, ours = SamHfConfig.from_pretrained(tmp_path).to_dict(), SamHfConfig.from_preset(preset).to_dict()
    for fields in (read, ours):
        fields["vision_config"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in fields["vision_config"].items()
        }
    assert read == ours


def test_other_architectures_are_refused():
    parts = sam2_parts()
    parts["vision_config"]["backbone_config"] |= {"query_stride": [4, 4], "num_query_pool_stages": 2}
    with pytest.raises(ValueError, match=r"query_stride is \[4, 4\], expected \[2, 2\]\n.*num_query_pool_stages is 2"):
        fields_from_sam2({"model_type": "sam2", **parts})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 1000}, "image_size=1000 is not a multiple of 32; use 992"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
    ],
)
def test_configurations_that_cannot_run_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        SamHfHieraConfig(**fields)
    with pytest.raises(ValueError, match="no image encoder; expected one of sam_hf_vision_model"):
        SamHfConfig(vision_config={"model_type": "resnet"})


def test_another_size_equals_stock_of_that_size(model):
    smaller = sam2_model(side=96)
    ours = SamHfModel.from_pretrained(model.config.name_or_path, image_size=96).eval()
    assert ours.config.vision_config.image_size == 96
    inputs = {"pixel_values": pixels(side=96), "multimask_output": True}
    with torch.no_grad():
        stock = smaller(**inputs)
        assert_equal(ours(**inputs), stock)
        assert_equal(model(**inputs), stock)
        shapes = [list(part.shape[2:]) for part in model.get_image_embeddings(pixels(1)[..., :96])]
        assert shapes == [[32, 24], [16, 12], [8, 6]]
    with pytest.raises(ValueError, match="multiples of 32"):
        model.get_image_embeddings(pixels(1, 112))


def test_a_crop_has_the_positions_of_its_place(model):
    encoder, whole = model.vision_encoder, pixels(1)
    crop = whole[..., 32:96, 64:128]
    frame = PositionFrame(SIDE, SIDE, 32, 64)
    expected = encoder.positions(PositionFrame(SIDE, SIDE), whole)[:, 8:24, 16:32]
    assert torch.equal(encoder.positions(frame, crop), expected)
    assert not torch.equal(model.get_image_embeddings(crop, frame)[-1], model.get_image_embeddings(crop)[-1])


def test_masks_may_be_finer():
    config = SamHfConfig.from_preset("hiera_mini", image_size=64)
    assert (config.vision_config.stride, config.vision_config.size_multiple) == (8, 16)
    output = SamHfModel(config)(torch.zeros(1, 3, 64, 64), input_points=torch.zeros(1, 1, 1, 2), upscale_masks=True)
    assert output.pred_masks.shape[-2:] == (32, 32) and output.masks.shape[-2:] == (64, 64)


def test_three_maps_make_the_same_features_as_four_without_the_coarsest():
    pyramid, three = SamHfFeaturePyramid([4, 6, 8, 10], 16), SamHfFeaturePyramid([4, 6, 8], 16)
    maps = [torch.randn(1, width, 32 // 2**level, 32 // 2**level) for level, width in enumerate([4, 6, 8, 10])]
    three.load_state_dict(
        {
            name.replace("convs.1", "convs.0").replace("convs.2", "convs.1").replace("convs.3", "convs.2"): value
            for name, value in pyramid.state_dict().items()
            if not name.startswith("convs.0")
        }
    )
    with torch.no_grad():
        pyramid.convs[0].weight.zero_()
        pyramid.convs[0].bias.zero_()
        for part, expected in zip(three(maps[:3]), pyramid(maps), strict=True):
            assert torch.equal(part, expected)


def test_projections_are_multiplied_only_where_nothing_else_happens():
    pyramid = SamHfFeaturePyramid([4, 6, 8], 16)
    maps = [torch.randn(1, width, 16 // 2**level, 16 // 2**level) for level, width in enumerate([4, 6, 8])]
    plain = pyramid(maps)
    seen = []
    pyramid.conv_s0.register_forward_hook(lambda *call: seen.append(call[-1]))
    hooked = pyramid(maps)
    assert len(seen) == 1
    for part, expected in zip(hooked, plain, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-5)


def test_bfloat16_is_not_worse_than_stock(model):
    inputs = {"pixel_values": pixels(), **prompts("points boxes", num_objects=8)}
    low = {name: value if name == "input_labels" else value.bfloat16() for name, value in inputs.items()}
    errors = []
    with torch.no_grad():
        expected = model(**inputs, multimask_output=True).pred_masks
        # Stock takes prompts in the precision of its weights.
        for kind, given in ((SamHfModel, inputs), (Sam2Model, low)):
            rounded = kind.from_pretrained(model.config.name_or_path, dtype=torch.bfloat16).eval()
            masks = rounded(**given | {"pixel_values": low["pixel_values"]}, multimask_output=True).pred_masks
            errors.append((masks.float() - expected).square().mean())
    assert errors[0] <= errors[1]


def test_hidden_states_and_attentions_are_those_of_stock(folder):
    ours = SamHfModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        output = ours.encode(pixels(), output_hidden_states=True, output_attentions=True)
        stock = Sam2Model.from_pretrained(folder).eval().vision_encoder.backbone(pixels())
    assert len(output.hidden_states) == 9 and len(output.attentions) == 8
    assert [state.shape[1] for state in output.hidden_states] == [32, 32, 16, 16, 8, 8, 8, 4, 4]
    torch.testing.assert_close(output.hidden_states[-1], stock.last_hidden_state, atol=TOLERANCE, rtol=0)


def test_compiles_to_one_graph(model):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for kinds in ("", "points boxes masks"):
            inputs = {"pixel_values": pixels(), **prompts(kinds), "multimask_output": False}
            assert_equal(compiled(**inputs), model(**inputs))
    torch.compiler.reset()


def test_encoder_exports_for_any_batch(model):
    program = export(model.vision_encoder, (pixels(2),), dynamic_shapes=({0: Dim("B")},))
    with torch.no_grad():
        for batch in (1, 3):
            features, _, _ = program.module()(pixels(batch))
            torch.testing.assert_close(features, model.get_image_embeddings(pixels(batch)), atol=1e-5, rtol=0)


def test_decoder_exports_for_any_number_of_images_objects_and_points(model):
    with torch.no_grad():
        embeddings = {batch: model.get_image_embeddings(pixels(batch)) for batch in (1, 2, 3)}
    images, objects, points = Dim("B"), Dim("N"), Dim("P")
    example = prompts("points boxes")
    axes = {name: {0: images, 1: objects} for name in example}
    axes["input_points"][2] = axes["input_labels"][2] = points
    program = export(
        model,
        (),
        kwargs={"image_embeddings": embeddings[2], **example, "multimask_output": False},
        dynamic_shapes={"image_embeddings": [{0: images}] * 3, **axes, "multimask_output": None},
    )
    for batch, num_objects, num_points in ((1, 5, 2), (3, 2, 4)):
        inputs = {"image_embeddings": embeddings[batch], **prompts("points boxes", batch, num_objects, num_points)}
        with torch.no_grad():
            assert_equal(program.module()(**inputs, multimask_output=False), model(**inputs, multimask_output=False))


def test_weights_may_stay_on_disk(model, tmp_path):
    inputs = {"pixel_values": pixels(), **prompts("points boxes masks"), "multimask_output": True}
    model.save_pretrained(tmp_path / "model")
    memory = {"cpu": int(0.6 * model.get_memory_footprint())}
    device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=model._no_split_modules)
    assert set(device_map.values()) == {"cpu", "disk"}
    offloaded = SamHfModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk")
    with torch.no_grad():
        assert_equal(offloaded(**inputs), model(**inputs))


def test_code_goes_with_the_weights(model, tmp_path):
    """In a process without the package."""
    model.save_pretrained(tmp_path / "coded", include_code=True)
    inputs = {"pixel_values": pixels(), **prompts("points boxes"), "multimask_output": True}
    with torch.no_grad():
        torch.save([inputs, dict(model(**inputs))["pred_masks"]], tmp_path / "expected.pt")
    code = """
import sys
sys.modules["sam_hf"] = None
import torch
from transformers import AutoModel
inputs, expected = torch.load("expected.pt")
model = AutoModel.from_pretrained("coded", trust_remote_code=True).eval()
with torch.no_grad():
    torch.testing.assert_close(model(**inputs).pred_masks, expected, atol=1e-5, rtol=0)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_trains_alike_with_less_memory(model):
    inputs = {"pixel_values": pixels(), "labels": random_labels(2, 3, SIDE, SIDE)}
    inputs |= prompts("points boxes", num_points=1)
    inputs["click_draws"] = torch.randint(2**31, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    losses = []
    for checkpoint_activations in (False, True):
        trained = copy.deepcopy(model)
        output = InteractiveTrainer(trained, checkpoint_activations=checkpoint_activations).train()(**inputs)
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())
        losses.append(output.loss.item())
    assert losses[0] == losses[1]
