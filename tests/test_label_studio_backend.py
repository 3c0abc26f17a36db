"""The backend for Label Studio without its package: prompts that it sends, and masks that our own reader gets back."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_writers import pack_brush
from PIL import Image
from tiny_models import unpack_trained_model

from sam_hf.data import decode_masks, open_dataset
from sam_hf.data.label_studio import decode_brush, encode_brush
from sam_hf.data.scenes import SyntheticScenes
from sam_hf.data.schema import rgb_array

SCRIPT = Path(__file__).parents[1] / "examples" / "label_studio.py"
SIZE = 64, 96
BRUSH = {
    "type": "BrushLabels",
    "to_name": ["image"],
    "inputs": [{"type": "Image", "value": "picture"}],
    "labels": ["cell", "dirt"],
}
CONTROLS = {"click": BRUSH | {"type": "KeyPointLabels"}, "mask": BRUSH}


@pytest.fixture(scope="module")
def backend() -> Any:
    spec = importlib.util.spec_from_file_location("label_studio_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keypoint(x: float, y: float, is_positive: bool = True, label: str = "dirt") -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": [label]}
    return {"type": "keypointlabels", "is_positive": is_positive, "image_rotation": 0, "value": value}


def rectangle(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["cell"]}
    return {"type": "rectanglelabels", "image_rotation": 0, "value": value}


def test_percent_become_indices_of_pixels(backend):
    drawn = [rectangle(1, 1, 2, 2), keypoint(50, 25), keypoint(0, 100, False), rectangle(10, 20, 30, 40)]
    prompts = backend.to_prompts(drawn, (200, 400))
    assert prompts["points"] == [[199.5, 49.5], [-0.5, 199.5]] and prompts["labels"] == [1, 0]
    assert prompts["box"] == [39.5, 39.5, 159.5, 119.5]
    assert backend.to_prompts([keypoint(50, 25)], (200, 400))["box"] is None


def test_what_is_drawn_on_a_turned_image_is_refused(backend):
    with pytest.raises(ValueError, match="turned by 90 degrees, expected 0"):
        backend.to_prompts([keypoint(1, 1) | {"image_rotation": 90}], SIZE)


def test_a_project_needs_a_brush(backend):
    assert backend.find_brush(CONTROLS) == ("mask", BRUSH)
    with pytest.raises(ValueError, match=r"have \['click'\], expected <BrushLabels>"):
        backend.find_brush({"click": CONTROLS["click"]})


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 7), (300, 400)])
def test_brushes_are_packed(size):
    rng = np.random.default_rng(0)
    half = np.zeros(size, bool)
    half[size[0] // 2 :] = True  # of (300, 400) both runs are of more than 2^16 values
    for mask in (half, ~half, np.zeros(size, bool), np.ones(size, bool), rng.random(size) < 0.5):
        assert np.array_equal(decode_brush(encode_brush(mask), size), mask)
    # As short as any other packing without rows of values, but for 13 bits of a short run.
    assert len(encode_brush(half)) <= len(pack_brush(half)) + 2 * 13


def test_a_run_of_just_the_longest_is_one():
    for pixels in (2**14 - 1, 2**14, 2**14 + 1, 2**15):
        packed = encode_brush(np.ones((1, pixels), bool))
        assert np.array_equal(decode_brush(packed, (1, pixels)), np.ones((1, pixels), bool))
        assert len(packed) == -(-(53 + 27 * -(-pixels // 2**14)) // 8)


def test_a_click_is_answered_by_a_brush_that_our_reader_takes_for_the_mask(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("SAM_HF_MODEL", str(unpack_trained_model(tmp_path / "trained")))
    monkeypatch.setattr(backend.SamHfBackend, "parsed_label_config", CONTROLS, raising=False)
    record = SyntheticScenes(3, size=SIZE)[1]
    (tmp_path / "data").mkdir()
    Image.fromarray(rgb_array(record["image"])).save(tmp_path / "data" / "a.png")
    monkeypatch.setattr(
        backend.SamHfBackend, "get_local_path", lambda self, url: str(tmp_path / url.lstrip("/")), raising=False
    )
    task = {"id": 7, "data": {"picture": "/data/a.png"}}
    server = backend.SamHfBackend()
    assert server.predict([task]) == server.predict([task], context={}) == []
    masks, regions = decode_masks(record["objects"]), []
    for mask in masks:
        y, x = 100 * (np.argwhere(mask).mean(axis=0) + 0.5) / SIZE
        (prediction,) = server.predict([task], context={"result": [keypoint(x, y)]}, login=None)
        regions += prediction["result"]
        assert 0 < prediction["score"] == regions[-1]["score"] < 1.1
    assert backend.encoded.cache_info().misses == 1 and len({region["id"] for region in regions}) == len(masks)
    assert all(region["from_name"] == "mask" and region["to_name"] == "image" for region in regions)
    assert all(region["value"]["brushlabels"] == ["dirt"] for region in regions)

    exported = tmp_path / "data" / "export.json"
    exported.write_text(json.dumps([task | {"annotations": [{"result": regions}]}]))
    read = decode_masks(open_dataset(tmp_path / "data")[0]["objects"])
    answered = [decode_brush(region["value"]["rle"], SIZE) for region in regions]
    kept = [mask for mask in answered if mask.any()]
    assert np.array_equal(read, np.stack(kept))
    ious = [(own & mask).sum() / (own | mask).sum() for own, mask in zip(answered, masks, strict=True)]
    assert np.median(ious) > 0.7, ious


def test_labels_are_those_of_the_prompt_or_the_first_of_the_brush(backend):
    mask = np.ones((2, 3), bool)
    assert backend.to_region(mask, 0.5, "mask", BRUSH, [rectangle(1, 1, 1, 1)])["value"]["brushlabels"] == ["cell"]
    for value in ({"x": 1, "y": 1}, {"x": 1, "y": 1, "keypointlabels": []}):
        region = backend.to_region(mask, 0.5, "mask", BRUSH, [{"type": "keypointlabels", "value": value}])
        assert region["value"]["brushlabels"] == ["cell"]
        assert (region["original_height"], region["original_width"]) == (2, 3)
