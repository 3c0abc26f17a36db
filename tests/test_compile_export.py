"""One graph for `torch.compile` and `torch.export`, of encoder and decoder; and weights offloaded to disk.

A graph cannot choose the number of candidates by the values of prompts, so these calls give `multimask_output`.
"""

import shutil
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from tiny_models import GRID, WIDTH, random_labels, random_pixels, random_prompts, tiny_model
from torch import Tensor
from torch.export import Dim, export

from sam_hf import PADDING, SamHfModel

PLAIN: dict[str, Any] = {}
FULL: dict[str, Any] = {
    "vision": {"high_res_layers": [0, 1], "use_rel_pos": False},
    "decoder": {
        "use_object_score": True,
        "iou_prediction_use_sigmoid": True,
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_min_grid": 0,
    },
}
# Tracing takes a second per layer.
SHALLOW: dict[str, Any] = {
    "vision": {"high_res_layers": [0, 0], "num_hidden_layers": 1},
    "decoder": {"use_object_score": True, "num_hidden_layers": 1},
}
both = pytest.mark.parametrize("config", [PLAIN, FULL], ids=["plain", "full"])
# What the C++ compiler is spared: the test is of what the kernels compute, not of how fast. Without workers, too,
# which would each import torch.
PLAIN_KERNELS = {"cpp.vec_isa_ok": False, "compile_threads": 1}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def padded_prompts(kinds: str, batch: int = 2, num_objects: int = 3, num_points: int = 2) -> dict[str, Tensor]:
    """Prompts of which some objects lack a click, a box or a mask."""
    prompts = random_prompts(kinds, batch, num_objects, num_points)
    prompts["input_labels"][0, 1, 1:] = PADDING
    if "boxes" in kinds:
        prompts["input_boxes"][0, 0] = float("nan")
    if "masks" in kinds:
        prompts["has_input_masks"] = torch.arange(batch * num_objects).view(batch, num_objects) % 2 == 0
    return prompts


def assert_same(graph: Any, eager: Any, atol: float = 1e-5) -> None:
    for name in {"pred_masks", "iou_scores", "object_score_logits"} & eager.keys():
        torch.testing.assert_close(graph[name], eager[name], atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("config", "kinds", "multimask_output"),
    [(PLAIN, "points", True), (FULL, "points boxes masks", False)],
    ids=["plain", "full"],
)
def test_compiles_to_one_graph(config, kinds, multimask_output):
    model = tiny_model(**config)
    inputs = {"pixel_values": random_pixels(), **padded_prompts(kinds), "multimask_output": multimask_output}
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True, backend="eager")(**inputs), model(**inputs))


def test_the_default_choice_of_candidates_compiles_with_breaks():
    model = tiny_model(**SHALLOW)
    compiled = torch.compile(model, backend="eager")
    embeddings = model.get_image_embeddings(random_pixels())
    for num_points, candidates in ((1, 3), (2, 1)):
        inputs = {"image_embeddings": embeddings, **random_prompts("points", num_points=num_points)}
        with torch.no_grad():
            output = compiled(**inputs)
            assert output.pred_masks.shape[2] == candidates
            assert_same(output, model(**inputs))


def test_training_compiles_to_one_graph():
    model = tiny_model(**SHALLOW).train()
    inputs = {"pixel_values": random_pixels(), **padded_prompts("points boxes masks")}
    inputs |= {"labels": random_labels(2, 3), "multimask_output": True}
    gradients = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        call(**inputs).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor():
    model = tiny_model(**SHALLOW)
    embeddings = model.get_image_embeddings(random_pixels())
    inputs = {"image_embeddings": embeddings, **padded_prompts("points"), "multimask_output": True}
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, options=PLAIN_KERNELS)
        assert_same(compiled(**inputs), model(**inputs), atol=1e-4)


@both
def test_encoder_exports_for_any_batch(config):
    model = tiny_model(**config)
    program = export(model.vision_encoder, (random_pixels(2),), dynamic_shapes=({0: Dim("B")},))
    with torch.no_grad():
        for batch in (1, 3):
            pixels = random_pixels(batch, seed=batch)
            features, _, _ = program.module()(pixels)
            torch.testing.assert_close(features, model.get_image_embeddings(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("config", "kinds"), [(PLAIN, "points"), (FULL, "points boxes masks")], ids=["plain", "full"])
def test_decoder_exports_for_any_number_of_images_objects_and_points(config, kinds):
    model = tiny_model(**config)
    with torch.no_grad():
        embeddings = {batch: model.get_image_embeddings(random_pixels(batch)) for batch in (1, 2, 3)}
    example = padded_prompts(kinds)
    images, objects, points = Dim("B"), Dim("N"), Dim("P")
    axes = {name: {0: images, 1: objects} for name in example}
    axes["input_points"][2] = axes["input_labels"][2] = points
    program = export(
        model,
        (),
        kwargs={"image_embeddings": embeddings[2], **example, "multimask_output": False},
        dynamic_shapes={"image_embeddings": [{0: images}] * len(embeddings[2]), **axes, "multimask_output": None},
    )
    for batch, num_objects, num_points in ((1, 5, 2), (3, 2, 4)):
        inputs = {"image_embeddings": embeddings[batch], "multimask_output": False}
        inputs |= padded_prompts(kinds, batch, num_objects, num_points)
        with torch.no_grad():
            assert_same(program.module()(**inputs), model(**inputs))


def test_decoder_exports_for_any_grid():
    model, prompts = tiny_model(), random_prompts("points boxes", batch=1)
    inputs = {"image_embeddings": torch.randn(1, WIDTH, GRID, GRID), **prompts, "multimask_output": True}
    axes = {2: Dim("h", min=2, max=64), 3: Dim("w", min=2, max=64)}
    program = export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs) | {"image_embeddings": axes})
    for size in ((GRID - 2, GRID + 1), (4, 3)):
        inputs["image_embeddings"] = torch.randn(1, WIDTH, *size)
        with torch.no_grad():
            assert_same(program.module()(**inputs), model(**inputs))


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_weights_may_stay_on_disk(tmp_path, share):
    """Parts are fetched when they are called: nothing may read a weight of a part that it does not call."""
    model = tiny_model(**FULL)
    inputs = {"pixel_values": random_pixels(), **padded_prompts("points boxes masks"), "multimask_output": True}
    model.save_pretrained(tmp_path / "model")
    device_map = infer_auto_device_map(
        model,
        max_memory={"cpu": int(share * model.get_memory_footprint())},
        no_split_module_classes=model._no_split_modules,
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    offloaded = SamHfModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    with torch.no_grad():
        assert_same(offloaded(**inputs), model(**inputs))
