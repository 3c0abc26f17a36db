"""The interactor for CVAT, as Nuclio calls it: a context and events of our own, without Docker."""

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_models import unpack_trained_model

from sam_hf.data.scenes import SyntheticScenes
from sam_hf.data.schema import decode_masks, rgb_array
from sam_hf.evaluation import Prompts, SamHfPredictor
from sam_hf.prompted import answer_in_turn, open_image

FOLDER = Path(__file__).parents[1] / "examples" / "cvat"


@pytest.fixture(scope="module")
def main() -> Any:
    spec = importlib.util.spec_from_file_location("cvat_main", FOLDER / "main.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def context(main, tmp_path_factory) -> SimpleNamespace:
    context = SimpleNamespace(user_data=SimpleNamespace(), Response=SimpleNamespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(unpack_trained_model(tmp_path_factory.mktemp("trained"))))
        main.init_context(context)
    return context


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """An image that is wider than high, and masks of objects in it that have their middles."""
    record = SyntheticScenes(3, size=(64, 96))[1]
    masks = decode_masks(record["objects"])
    middles = [np.argwhere(mask).mean(axis=0).round().astype(int) for mask in masks]
    return rgb_array(record["image"]), masks[[mask[y, x] for mask, (y, x) in zip(masks, middles, strict=True)]]


def body(image: np.ndarray, **prompts: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return {"image": text, "pos_points": [], "neg_points": [], "obj_bbox": None} | prompts


def answer(main, context, given: dict[str, Any]) -> np.ndarray:
    response = main.handler(context, SimpleNamespace(body=given))
    assert (response.status_code, response.content_type) == (200, "application/json")
    (mask,) = json.loads(response.body).values()
    return np.array(mask)


def middle(mask: np.ndarray) -> list[float]:
    """In the units of CVAT."""
    y, x = np.argwhere(mask).mean(axis=0) + 0.5
    return [float(x), float(y)]


def test_clicks_get_the_objects(main, context, scene):
    image, masks = scene
    ious = []
    for mask in masks:
        answered = answer(main, context, body(image, pos_points=[middle(mask)]))
        assert answered.shape == mask.shape and set(np.unique(answered)) <= {0, 1}
        ious.append((answered & mask).sum() / (answered | mask).sum())
    assert len(ious) > 2 and np.median(ious) > 0.7, ious


def test_an_image_is_encoded_once(main, context, scene):
    before = context.user_data.encoded.cache_info().misses
    image = 255 - scene[0]
    for x in (10.5, 20.5, 30.5):
        answer(main, context, body(image, pos_points=[[x, 20.5]]))
    assert context.user_data.encoded.cache_info().misses == before + 1


def test_prompts_are_in_pixels_and_in_order(main):
    given = {"pos_points": [[0.5, 1.5], [3, 4]], "neg_points": [[9.5, 8.5]], "obj_bbox": [[20.5, 4.5], [2.5, 30.5]]}
    prompts = main.to_prompts(given)
    assert prompts["points"] == [[0.0, 1.0], [2.5, 3.5], [9.0, 8.0]] and prompts["labels"] == [1, 1, 0]
    assert prompts["box"] == [2.0, 4.0, 20.0, 30.0]
    for none in ({"pos_points": [[1, 1]], "obj_bbox": []}, {"pos_points": [[1, 1]], "neg_points": None}):
        assert main.to_prompts(none) == {"points": [[0.5, 0.5]], "labels": [1], "box": None}


def test_no_prompt_is_refused(main, context, scene):
    with pytest.raises(ValueError, match="expected a click or a box"):
        answer(main, context, body(scene[0]))


@pytest.mark.parametrize("has_box", [False, True])
def test_prompts_are_answered_in_turn_as_in_an_evaluation(context, scene, has_box):
    image, _ = scene
    predictor = SamHfPredictor(*model_of(context))
    predictor.set_image(image)
    points = torch.tensor([[40.0, 30.0], [20.0, 50.0], [60.0, 20.0]])
    labels, boxes = torch.tensor([1, 0, 1]), torch.tensor([[10.0, 12.0, 70.0, 55.0]]) if has_box else None
    state, predictions = None, []
    for count in range(0 if has_box else 1, 4):
        predictions.append(predictor.predict(Prompts(points[None, :count], labels[None, :count], boxes, state)))
        state = predictions[-1].state
    box = boxes[0].tolist() if has_box else None
    found, score = answer_in_turn(open_image(*model_of(context), image), points.tolist(), labels.tolist(), box)
    assert np.array_equal(found, predictions[-1].answers[0].numpy()) and found.any()
    assert score == predictions[-1].scores.max().item()
    without = predictor.predict(Prompts(points[None], labels[None], boxes)).answers[0].numpy()
    assert not np.array_equal(found, without), "the mask that was answered before counts"


def model_of(context) -> tuple[Any, Any]:
    """What `init_context` loaded."""
    image = context.user_data.encoded(body(np.zeros((8, 8, 3), np.uint8))["image"])
    return image.model, image.processor


def test_the_function_is_an_interactor_that_nuclio_finds(main):
    function = yaml.safe_load((FOLDER / "function.yaml").read_text())
    annotations = function["metadata"]["annotations"]
    assert annotations["type"] == "interactor" and annotations["min_pos_points"] == 0
    module, name = function["spec"]["handler"].split(":")
    assert (FOLDER / f"{module}.py").exists() and callable(getattr(main, name))
