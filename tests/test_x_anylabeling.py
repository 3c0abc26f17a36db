"""Files for X-AnyLabeling: what its graphs answer, in torch; and, in slow tests, in ONNX Runtime by the tool's way.

That way is its own class where the package is installed (`pip install --no-deps x-anylabeling-cvhub`), and emulated
here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_onnx import needs_extra
from tiny_models import IMAGE, random_pixels, tiny_model

from sam_hf import SamHfModel, SamHfProcessor
from sam_hf.masks import best_masks
from sam_hf.onnx import command, export_x_anylabeling, exporting, main
from sam_hf.onnx.x_anylabeling import DECODER, ENCODER, FEATURES, compare_squares, square_graphs

MARKS = {
    "click": [{"type": "point", "data": [50, 20], "label": 1}],
    "clicks": [{"type": "point", "data": [50, 20], "label": 1}, {"type": "point", "data": [20, 40], "label": 0}],
    "box": [{"type": "rectangle", "data": [20, 12, 66, 38], "label": 1}],
    "click in a box": [
        {"type": "rectangle", "data": [20, 12, 66, 38], "label": 1},
        {"type": "point", "data": [50, 20], "label": 1},
    ],
}


@pytest.fixture(scope="module", params=["plain", "proposes"])
def model(request) -> SamHfModel:
    config: dict[str, Any] = {
        "vision": {"high_res_layers": [0, 0], "use_rel_pos": False, "num_hidden_layers": 1, "window_size": 0},
        "decoder": {"num_hidden_layers": 1, "use_object_score": True},
    }
    if request.param == "proposes":
        config["instance_decoder_config"] = {"hidden_size": 8, "guides_masks": True, "proposes_masks": True}
    model = tiny_model(**config).eval()
    if request.param == "proposes":  # so that proposals reach far, and do not decide alone
        projection = model.instance_decoder.proposals.projection
        with torch.no_grad():
            projection.weight *= 0.1
            projection.bias[-2] = -6.0
    return model


@pytest.fixture(scope="module")
def processor(model) -> SamHfProcessor:
    """Not of ImageNet, and of squares, as X-AnyLabeling sees all images."""
    values = {"image_mean": [0.3, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    return SamHfProcessor.from_config(model.config, keep_aspect_ratio=False, **values)


def photo() -> np.ndarray:
    """Smooth, uint8 [60, 80, 3]: how noise is resized says nothing."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC))


def expected_mask(model: SamHfModel, processor: SamHfProcessor, marks: list[dict]) -> np.ndarray:
    """What the model answers to an image of (height, width) (60, 80), bool."""
    clicks = [mark for mark in marks if mark["type"] == "point"]
    prompts: dict[str, Any] = {"input_boxes": [mark["data"] for mark in marks if mark["type"] == "rectangle"] or None}
    if clicks:
        prompts["input_points"] = [mark["data"] for mark in clicks]
        prompts["input_labels"] = [mark["label"] for mark in clicks]
    inputs = processor(Image.fromarray(photo()), **{name: value for name, value in prompts.items() if value})
    with torch.no_grad():
        output = model(**inputs)
    best = best_masks(output.pred_masks, output.iou_scores)[:, :, None]
    masks = processor.post_process_masks(best, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    return masks[0][0, 0].numpy()


@pytest.fixture(scope="module")
def graphs(model, processor) -> dict:
    return square_graphs(model, processor)


@torch.no_grad()
def decode(graphs, model, points: list, labels: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks [N, M, h, w] and IoU [N, M] by the two modules, for random pixels."""
    finest, middle, embedding = graphs[ENCODER].module(random_pixels(1))
    given = torch.tensor(points, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)
    return graphs[DECODER].module(embedding, finest, middle, *given)


@torch.no_grad()
def expected(graphs, model, **prompts) -> tuple[torch.Tensor, torch.Tensor]:
    module = graphs[ENCODER].module
    features = model.get_image_embeddings(random_pixels(1) * module.scale + module.shift)
    given = {name: torch.tensor([value]) for name, value in prompts.items()}
    output = model(image_embeddings=features, **given)
    return output.pred_masks[0], output.iou_scores[0]


def same(own: tuple, reference: tuple) -> None:
    for found, wanted in zip(own, reference, strict=True):
        torch.testing.assert_close(found, wanted.expand_as(found), atol=1e-4, rtol=0)


def test_clicks_and_corners_are_the_prompts_of_the_model(graphs, model):
    clicks, box = [[20.0, 30.0], [40.0, 10.0]], [8.0, 8.0, 50.0, 40.0]
    corners = [box[:2], box[2:]]
    same(
        decode(graphs, model, [clicks[:1]], [[1]]),
        expected(graphs, model, input_points=[clicks[:1]], input_labels=[[1]]),
    )
    pair = expected(graphs, model, input_points=[clicks], input_labels=[[1, 0]])
    same(decode(graphs, model, [clicks], [[1, 0]]), pair)
    same(decode(graphs, model, [[clicks[0], [5.0, 5.0], clicks[1]]], [[1, -1, 0]]), pair)
    boxed = expected(graphs, model, input_boxes=[box])
    same(decode(graphs, model, [corners], [[2, 3]]), boxed)
    both = expected(graphs, model, input_boxes=[box], input_points=[clicks], input_labels=[[0, 1]])
    same(decode(graphs, model, [[clicks[0], *corners, clicks[1]]], [[0, 2, 3, 1]]), both)
    two = [[8.0, 20.0], [30.0, 40.0], [10.0, 8.0], [50.0, 30.0]]
    same(decode(graphs, model, [two], [[2, 3, 2, 3]]), boxed)


def test_objects_are_answered_each(graphs, model):
    points, labels = [[[20.0, 30.0]], [[40.0, 10.0]], [[5.0, 50.0]]], [[1], [1], [1]]
    together = decode(graphs, model, points, labels)
    assert together[0].shape[0] == 3
    for index in range(3):
        alone = decode(graphs, model, points[index : index + 1], labels[:1])
        same(tuple(part[index, None] for part in together), alone)


def test_the_encoder_takes_what_imagenet_normalised(graphs, model, processor):
    pixels = torch.rand(1, 3, IMAGE, IMAGE)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    own_mean, own_deviation = (
        torch.tensor(v)[:, None, None]
        for v in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    with torch.no_grad():
        finest, middle, embedding = graphs[ENCODER].module((pixels - mean) / deviation)
        features = model.get_image_embeddings((pixels - own_mean) / own_deviation)
    width = model.config.vision_config.feature_widths[0]
    torch.testing.assert_close([finest[:, :width], middle, embedding], features[-3:], atol=1e-4, rtol=0)
    assert (finest.shape[1] > width) == (len(features) > 3)


@needs_extra
def test_models_without_high_resolution_features_are_refused(tmp_path):
    plain = tiny_model()
    with pytest.raises(ValueError, match="no high-resolution features.*train one that has `high_res_layers`"):
        export_x_anylabeling(plain, SamHfProcessor.from_config(plain.config), tmp_path / "a" / "tiny")
    assert list(tmp_path.iterdir()) == []


@needs_extra
def test_half_precision_is_refused(tmp_path):
    half = tiny_model(vision={"high_res_layers": [0, 0]}).bfloat16()
    with pytest.raises(ValueError, match="expected float32 on the CPU"):
        export_x_anylabeling(half, SamHfProcessor.from_config(half.config), tmp_path / "tiny")


@needs_extra
@pytest.mark.parametrize("keeps_shape", [False, True])
@pytest.mark.parametrize("stretches", [False, True])
def test_what_is_written_and_said(model, tmp_path, monkeypatch, keeps_shape, stretches):
    settings = {"keep_aspect_ratio": keeps_shape, "do_stretch_contrast": stretches}
    processor, lines = SamHfProcessor.from_config(model.config, **settings), []
    monkeypatch.setattr(exporting, "write_graph", lambda graph, path, limit: path.write_text("graph") > limit)
    monkeypatch.setattr("sam_hf.onnx.x_anylabeling.compare_squares", lambda graphs, folder: {"masks": 0.0})
    export_x_anylabeling(model, processor, tmp_path / "my model", lines.append)
    names = sorted(path.name for path in (tmp_path / "my model").iterdir())
    assert names == ["decoder.onnx", "encoder.onnx", "my-model.yaml"]
    assert yaml.safe_load((tmp_path / "my model" / "my-model.yaml").read_text()) == {
        "type": "segment_anything_2",
        "name": "my-model",
        "display_name": "my model",
        "provider": "sam_hf",
        "encoder_model_path": "encoder.onnx",
        "decoder_model_path": "decoder.onnx",
    }
    assert any("makes squares" in line for line in lines) == keeps_shape
    assert any("stretch contrast" in line for line in lines) == stretches
    with pytest.raises(ValueError, match="there is something at"):
        export_x_anylabeling(model, processor, tmp_path / "my model", lines.append)


class EmulatedTool:
    """What X-AnyLabeling 4.2 does with an image and marks, in few lines: by order of inputs, in float64 of points."""

    def __init__(self, encoder: str, decoder: str, device: str):
        import onnxruntime

        self.encoder, self.decoder = onnxruntime.InferenceSession(encoder), onnxruntime.InferenceSession(decoder)

    def run(self, session: Any, *values: np.ndarray) -> list[np.ndarray]:
        return session.run(
            None, {given.name: value for given, value in zip(session.get_inputs(), values, strict=True)}
        )

    def encode(self, image: np.ndarray) -> list[np.ndarray]:
        self.size, self.side = image.shape[:2], self.encoder.get_inputs()[0].shape[2]
        channels = [
            Image.fromarray(channel).resize((self.side, self.side), Image.Resampling.BILINEAR)
            for channel in (image.astype(np.float32) / 255).transpose(2, 0, 1)
        ]
        mean, deviation = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return self.run(self.encoder, ((np.stack(channels) - mean) / deviation)[None].astype(np.float32))

    def predict_masks(self, features: list[np.ndarray], marks: list[dict]) -> np.ndarray:
        points, labels = [], []
        for mark in marks:
            points += np.reshape(mark["data"], (-1, 2)).tolist()
            labels += [mark["label"]] if mark["type"] == "point" else [2, 3]
        scaled = np.array([points]) * self.side / np.array(self.size[::-1])
        given = scaled.astype(np.float32), np.array([labels], dtype=np.float32)
        masks, scores = self.run(self.decoder, features[2], features[0], features[1], *given)
        best = Image.fromarray(masks[0, scores[0].argmax()])
        return np.asarray(best.resize(self.size[::-1], Image.Resampling.BILINEAR))[None, None]


@pytest.fixture(scope="module")
def exported(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    differences = export_x_anylabeling(model, processor, folder, [].append)
    assert differences.keys() == {*FEATURES, "masks", "iou_predictions"} and 0 < max(differences.values()) < 1e-4
    return folder


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["emulated", "installed"])
def test_marks_in_an_image_end_in_the_masks_of_the_model(exported, model, processor, tool):
    if tool == "installed":
        tools = pytest.importorskip("anylabeling.services.auto_labeling.__base__.sam2")
    loader = EmulatedTool if tool == "emulated" else tools.SegmentAnything2ONNX
    paths = yaml.safe_load((exported / "tiny.yaml").read_text())
    session = loader(*(str(exported / paths[f"{name}_model_path"]) for name in (ENCODER, DECODER)), "cpu")
    features = session.encode(photo())
    for name, marks in MARKS.items():
        wanted = expected_mask(model, processor, marks)
        found = session.predict_masks(features, marks)[0][0] > 0
        assert found.shape == wanted.shape == (60, 80)
        assert 0.02 < wanted.mean() < 0.98, name
        assert (found != wanted).mean() < 0.02, name
    if tool == "installed":
        masks, scores = session.predict_masks_batch(features, np.array([[50.0, 20.0], [20.0, 40.0]]))
        assert masks.shape[:2] == scores.shape and len(masks) == 2


@needs_extra
@pytest.mark.slow
def test_files_that_differ_are_refused(exported, graphs):
    compare_squares(graphs, exported)
    shift = graphs[ENCODER].module.shift
    shift += 0.1
    try:
        with pytest.raises(ValueError, match="of ONNX Runtime differ"):
            compare_squares(graphs, exported)
    finally:
        shift -= 0.1


def test_the_command_knows_the_tool(tmp_path, monkeypatch, capsys):
    model = tiny_model(vision={"high_res_layers": [0, 0]})
    model.save_pretrained(tmp_path / "model")
    calls = []
    monkeypatch.setattr(command, "check_extra", lambda: None)
    monkeypatch.setitem(command.EXPORTS, "x-anylabeling", lambda *given: calls.append(given[2]) or {"masks": 1e-6})
    main([str(tmp_path / "model"), str(tmp_path / "out"), "--for", "x-anylabeling"])
    assert calls == [str(tmp_path / "out")] and "masks: 1.0e-06" in capsys.readouterr().out
