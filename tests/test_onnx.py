"""ONNX files against the model: answers, the code of their README in Python and in JavaScript, and what is refused.

Exports take half a minute each, so one model has nearly everything, and the others, which are slow, the rest. The
tests of JavaScript need Node and, in the root of the clone, `npm install --no-save --ignore-scripts
@huggingface/transformers`.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from sam2_models import sam2_model
from test_backbone_starts import stored as stored_backbone
from tiny_models import IMAGE, MASK, random_pixels, randomise, tiny_model
from torch import Tensor, nn
from transformers import Sam2Model

from sam_hf import PADDING, SamHfModel, SamHfOutput, SamHfProcessor
from sam_hf.data import SyntheticScenes
from sam_hf.evaluation import simulate_clicks
from sam_hf.masks import best_masks
from sam_hf.onnx import export_onnx, exporting, main
from sam_hf.onnx.graphs import DECODER, ENCODER, MAPS, MASK_PROMPT, graphs_of
from sam_hf.onnx.parity import OnnxModel, compare_answers
from sam_hf.training import prepare_model, save_model
from sam_hf.training.models import build_processor

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f'needs {MISSING}: pip install "sam_hf[onnx]"')
NODE_MODULES = Path(__file__).parents[1] / "node_modules"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_MODULES / "@huggingface" / "transformers").exists(),
    reason="needs node and, in the root of the clone, transformers.js: see the top of this file",
)
NAMES = [f"image_embeddings.{level}" for level in range(4)]


class Exported(NamedTuple):
    folder: Path
    model: SamHfModel
    processor: SamHfProcessor
    lines: list[str]
    differences: dict[str, float]
    onnx: OnnxModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    model = tiny_model(
        vision={"high_res_layers": [0, 0], "use_rel_pos": False, "num_hidden_layers": 1, "window_size": 0},
        decoder={
            "use_object_score": True,
            "num_hidden_layers": 1,
            "ambiguous_candidates": "all",
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_min_grid": 0,
        },
        instance_decoder_config={"hidden_size": 8, "guides_masks": True, "proposes_masks": True},
    )
    with torch.no_grad():  # so that proposals reach far, and do not decide alone
        projection = model.instance_decoder.proposals.projection
        projection.weight *= 0.1
        projection.bias[-2] = -6.0
    processor = SamHfProcessor.from_config(model.config)
    folder, lines = tmp_path_factory.mktemp("onnx") / "tiny", []
    differences = export_onnx(model, processor, folder, lines.append)
    return Exported(folder, model, processor, lines, differences, OnnxModel(folder / "onnx"))


def decode(exported: Exported, features: list[Tensor], **prompts: Tensor) -> dict[str, Tensor]:
    """With no points and no boxes where none are given, as transformers.js gives them."""
    batch = len(features[-1])
    given = {
        "input_points": torch.zeros(batch, 1, 0, 2),
        "input_labels": torch.zeros(batch, 1, 0, dtype=torch.long),
        "input_boxes": torch.zeros(batch, 0, 4),
    }
    features = list(features)
    mask = prompts.pop("input_masks", None)
    if mask is not None:
        features[0] = torch.zeros_like(features[0])
        (features[-1],) = exported.onnx.run(MASK_PROMPT, **{NAMES[-1]: features[-1]}, input_masks=mask).values()
    return exported.onnx.run(DECODER, **dict(zip(NAMES, features, strict=True)), **given | prompts)


@needs_extra
def test_what_is_written(exported):
    found = sorted(path.relative_to(exported.folder).as_posix() for path in exported.folder.rglob("*.*"))
    graphs = [f"onnx/{name}.onnx" for name in sorted((ENCODER, DECODER, MASK_PROMPT))]
    assert found == ["README.md", "config.json", *graphs, "preprocessor_config.json"]
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["vision_config"] == {"num_feature_levels": 4, "image_size": IMAGE}
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {}}
    settings = json.loads((exported.folder / "preprocessor_config.json").read_text())
    assert settings["do_stretch_contrast"] is False and settings["size"] == {"longest_edge": IMAGE}
    assert settings["pad_size"] == {"height": IMAGE, "width": IMAGE}
    assert settings["image_mean"] == list(exported.processor.image_processor.image_mean)
    assert [line.split(":")[0] for line in exported.lines] == [
        f"{ENCODER}.onnx", f"{DECODER}.onnx", f"{MASK_PROMPT}.onnx", "compared with the model"
    ]  # fmt: skip
    assert list(exported.folder.parent.iterdir()) == [exported.folder]


@needs_extra
def test_the_returned_differences_are_those_of_every_output(exported):
    answers = ("pred_masks", "iou_scores", "object_score_logits")
    with_masks = {f"{name} with a mask prompt" for name in answers}
    assert exported.differences.keys() == {*NAMES, MAPS, *answers} | with_masks
    assert 0 < max(exported.differences.values()) < 1e-4


@needs_extra
def test_the_encoder_answers_as_the_model(exported):
    pixels = random_pixels(3, seed=5)
    answer = exported.onnx.run(ENCODER, pixel_values=pixels)
    assert list(answer) == [*NAMES, MAPS]
    with torch.no_grad():
        features = exported.model.get_image_embeddings(pixels)
        maps = exported.model.get_instance_maps(features)
    torch.testing.assert_close([answer[name] for name in NAMES], features, atol=1e-4, rtol=0)
    torch.testing.assert_close(answer[MAPS], maps, atol=1e-5, rtol=0)


@needs_extra
def test_each_object_gets_candidates_or_one_mask(exported):
    """A click, a click and padding, two clicks, a box, a click in a box, and an object with a box that is none."""
    points, none = torch.tensor([[20.0, 30.0], [40.0, 10.0]]), torch.full((4,), torch.nan)
    box = torch.tensor([8.0, 8.0, 50.0, 40.0])
    labels = torch.tensor([[1, PADDING], [PADDING, 0], [1, 0], [PADDING, PADDING], [1, PADDING], [1, PADDING]])
    boxes = torch.stack([none, none, none, box, box, torch.tensor([1.0, 2.0, 3.0, torch.nan])])[None]
    with torch.no_grad():
        features = exported.model.get_image_embeddings(random_pixels(1))
        answer = decode(
            exported, features, input_points=points.expand(1, 6, 2, 2), input_labels=labels[None], input_boxes=boxes
        )
        for index, is_ambiguous in enumerate((True, True, False, False, False, True)):
            expected = exported.model(
                image_embeddings=features,
                input_points=points[None, None],
                input_labels=labels[None, index, None],
                input_boxes=boxes[:, index, None],
                multimask_output=is_ambiguous,
            )
            for name in ("pred_masks", "iou_scores", "object_score_logits"):
                own = answer[name][:, index, None]
                torch.testing.assert_close(own, expected[name].expand_as(own), atol=1e-4, rtol=0)
    assert answer["pred_masks"].shape == (1, 6, 4, MASK, MASK)


@needs_extra
def test_boxes_alone_and_fewer_boxes_than_points(exported):
    boxes = torch.tensor([[[8.0, 8.0, 50.0, 40.0], [4.0, 20.0, 30.0, 60.0], [1.0, 1.0, 9.0, 9.0]]]).repeat(2, 1, 1)
    points, labels = torch.tensor([[[[20.0, 30.0]], [[40.0, 10.0]]]]), torch.ones(1, 2, 1, dtype=torch.long)
    with torch.no_grad():
        features = exported.model.get_image_embeddings(random_pixels(2))
        answer = decode(exported, features, input_boxes=boxes)
        expected = exported.model(image_embeddings=features, input_boxes=boxes)
        torch.testing.assert_close(answer["pred_masks"][:, :, :1], expected.pred_masks, atol=1e-4, rtol=0)
        assert answer["iou_scores"].shape == (2, 3, 4)
        one = [feature[:1] for feature in features]
        answer = decode(exported, one, input_points=points, input_labels=labels, input_boxes=boxes[:1, :1])
        for index, given in enumerate(({"input_boxes": boxes[:1, :1]}, {})):
            expected = exported.model(
                image_embeddings=one,
                input_points=points[:, index, None],
                input_labels=labels[:, index, None],
                **given,
            )
            own = answer["pred_masks"][:, index, None]
            torch.testing.assert_close(own, expected.pred_masks.expand_as(own), atol=1e-4, rtol=0)


class InOnnx(nn.Module):
    """ONNX Runtime in the place of the model in an evaluation."""

    def __init__(self, exported: Exported):
        super().__init__()
        self.exported, self.device, self.config = exported, torch.device("cpu"), exported.model.config

    def get_image_embeddings(self, pixel_values: Tensor) -> list[Tensor]:
        return [self.exported.onnx.run(ENCODER, pixel_values=pixel_values)[name] for name in NAMES]

    def forward(self, image_embeddings, input_points, input_labels, input_masks=None, **others) -> SamHfOutput:
        assert others.pop("input_boxes", None) is None
        answers = []
        for index in range(input_points.shape[1]):  # with a mask of its own
            prompts = {"input_points": input_points, "input_labels": input_labels, "input_masks": input_masks}
            of_one = {name: value[:, index, None] for name, value in prompts.items() if value is not None}
            answers.append(decode(self.exported, list(image_embeddings), **of_one))
        return SamHfOutput(**{name: torch.cat([answer[name] for answer in answers], 1) for name in answers[0]})


@needs_extra
def test_simulated_clicks_end_in_the_same_masks(exported):
    scenes = SyntheticScenes(2, "validation", size=(IMAGE, IMAGE))
    traces = [
        list(simulate_clicks(model, exported.processor, [scenes[0], scenes[1]], num_clicks=4))
        for model in (InOnnx(exported), exported.model)
    ]
    assert len(traces[0]) == 2
    for own, expected in zip(*traces, strict=True):
        assert np.array_equal(own.points, expected.points)
        assert own.iou.shape[1] == 4
        np.testing.assert_allclose(own.iou, expected.iou, atol=5e-4)


def blocks(exported: Exported, language: str) -> str:
    """The code of the README of the folder."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", (exported.folder / "README.md").read_text(), re.DOTALL)
    return block


def save_photo(folder: Path, contrast: float = 1.0) -> PIL.Image.Image:
    """A smooth picture: how noise is resized says nothing."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    small = (small * contrast).astype(np.uint8)
    PIL.Image.fromarray(small).resize((400, 300), PIL.Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
    return PIL.Image.open(folder / "photo.jpg")


def expected_mask(exported: Exported, image: PIL.Image.Image, stretch: bool = False) -> np.ndarray:
    """Of the click of the README, bool [300, 400]."""
    inputs = exported.processor(image, input_points=[[320, 200]], input_labels=[1], do_stretch_contrast=stretch)
    with torch.no_grad():
        output = exported.model(**inputs)
    best = best_masks(output.pred_masks, output.iou_scores)[:, :, None]
    masks = exported.processor.post_process_masks(best, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    return masks[0][0, 0].numpy()


@needs_extra
@pytest.mark.parametrize(("stretch", "square"), [(False, False), (True, False), (False, True)])
def test_python_of_the_readme(exported, tmp_path, monkeypatch, stretch, square):
    shutil.copytree(exported.folder, tmp_path, dirs_exist_ok=True)
    settings = {"do_stretch_contrast": stretch, "keep_aspect_ratio": not square}
    exported = exported._replace(
        folder=tmp_path, processor=SamHfProcessor.from_config(exported.model.config, **settings)
    )
    exporting.write_descriptions(exported.model, exported.processor, tmp_path, "tiny", [])
    if square:
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert settings["size"] == {"height": IMAGE, "width": IMAGE} and settings["do_pad"] is False
    image = save_photo(tmp_path, contrast=0.4)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks(exported, "python"), names)
    expected = expected_mask(exported, image, stretch)
    assert names["mask"].shape == expected.shape and 0.02 < expected.mean() < 0.98
    assert (names["mask"] != expected).mean() < 0.003
    assert (names["mask"] != expected_mask(exported, image, not stretch)).mean() > 0.005


def run_node(folder: Path, code: str) -> str:
    (folder / "node_modules").symlink_to(NODE_MODULES)
    (folder / "code.mjs").write_text(code)
    run = subprocess.run(["node", "code.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_extra
@needs_node
def test_javascript_of_the_readme(exported, tmp_path):
    shutil.copytree(exported.folder, tmp_path / exported.folder.name)
    expected = expected_mask(exported, save_photo(tmp_path))
    write = '\nimport { writeFileSync } from "fs"; writeFileSync("mask.bin", Uint8Array.from(mask));'
    check = '\nif (model.constructor.name !== "Sam2Model") throw new Error(model.constructor.name);'
    check += '\nif (embeddings.instance_maps.dims.join() !== "1,3,32,32") throw new Error("no maps");'
    output = run_node(tmp_path, blocks(exported, "js") + check + write)
    assert "pixels, predicted IoU" in output
    mask = np.fromfile(tmp_path / "mask.bin", np.uint8).reshape(expected.shape).astype(bool)
    assert (mask != expected).mean() < 0.02  # its resize is another


BOXES = """
const boxes = await processor(image, { input_boxes: [[[55, 28, 169, 200], [179, 45, 251, 138]]] });
const answer = await model({ ...boxes, ...embeddings });
console.log(answer.pred_masks.dims.join());
const points = await processor(image, {
    input_points: [[[[109, 21], [62, 91]], [[176, 181], [36, 133]]]], input_labels: [[[1, 0], [1, 1]]],
});
console.log((await model({ ...points, ...embeddings })).iou_scores.dims.join());
"""
# As the browser runs it; Python runs empty tensors, too.
IN_WASM = """
import * as ort from "onnxruntime-web";
import { readFileSync } from "fs";
ort.env.wasm.numThreads = 1;
const open = (name) => ort.InferenceSession.create(new Uint8Array(readFileSync(`tiny/onnx/${name}.onnx`)));
const encoder = await open("vision_encoder"), decoder = await open("prompt_encoder_mask_decoder");
const pixels = new ort.Tensor("float32", new Float32Array(3 * 64 * 64), [1, 3, 64, 64]);
const { instance_maps, ...embeddings } = await encoder.run({ pixel_values: pixels });
const answer = await decoder.run({
    ...embeddings,
    input_points: new ort.Tensor("float32", new Float32Array(0), [1, 1, 0, 2]),
    input_labels: new ort.Tensor("int64", new BigInt64Array(0), [1, 1, 0]),
    input_boxes: new ort.Tensor("float32", Float32Array.from([8, 8, 50, 40, 4, 20, 30, 60]), [1, 2, 4]),
});
console.log(JSON.stringify([answer.iou_scores.dims, [...answer.iou_scores.data]]));
"""


@needs_extra
@needs_node
def test_boxes_and_points_in_transformers_js(exported, tmp_path):
    shutil.copytree(exported.folder, tmp_path / exported.folder.name)
    save_photo(tmp_path)
    output = run_node(tmp_path, blocks(exported, "js") + BOXES)
    assert output.splitlines()[-2:] == ["1,2,4,32,32", "1,2,4"]


@needs_extra
@needs_node
def test_boxes_alone_in_webassembly(exported, tmp_path):
    shutil.copytree(exported.folder, tmp_path / exported.folder.name)
    dims, scores = json.loads(run_node(tmp_path, IN_WASM))
    boxes = torch.tensor([[[8.0, 8.0, 50.0, 40.0], [4.0, 20.0, 30.0, 60.0]]])
    with torch.no_grad():
        expected = exported.model(pixel_values=torch.zeros(1, 3, IMAGE, IMAGE), input_boxes=boxes).iou_scores
    assert dims == [1, 2, 4]
    torch.testing.assert_close(torch.tensor(scores).view(1, 2, 4)[..., :1], expected, atol=1e-4, rtol=0)


@pytest.fixture
def written_before(exported, monkeypatch) -> Iterator[None]:
    """An export that takes the graphs that are there."""

    def copy(graph, path, file_limit):
        shutil.copy(exported.folder / "onnx" / path.name, path)
        return False

    monkeypatch.setattr(exporting, "write_graph", copy)
    yield


@needs_extra
@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("instance_decoder.guides.0.bias", "image_embeddings.3"),
        ("mask_decoder.upscale_conv2.bias", "pred_masks"),
        ("instance_decoder.head.bias", MAPS),
        ("mask_decoder.iou_prediction_head.proj_out.bias", "iou_scores"),
        ("mask_decoder.pred_obj_score_head.proj_out.bias", "object_score_logits"),
        ("prompt_encoder.mask_embed.conv3.bias", "iou_scores"),
        ("instance_decoder.proposals.projection.bias", "iou_scores"),
        ("prompt_encoder.point_embed.3.weight", "iou_scores"),
    ],
)
def test_a_graph_that_differs_leaves_nothing(exported, written_before, tmp_path, weight, named):
    parameters = dict(exported.model.named_parameters())
    with torch.no_grad():
        before = parameters[weight].clone()
        parameters[weight] += 0.1
    try:
        with pytest.raises(ValueError, match=re.escape(named) + " of ONNX Runtime differ"):
            export_onnx(exported.model, exported.processor, tmp_path / "a" / "tiny", [].append)
    finally:
        with torch.no_grad():
            parameters[weight].copy_(before)
    assert list((tmp_path / "a").iterdir()) == []


@needs_extra
def test_answers_that_are_not_numbers_differ(exported, monkeypatch):
    run = OnnxModel.run
    monkeypatch.setattr(
        OnnxModel, "run", lambda *args, **inputs: {k: v * torch.nan for k, v in run(*args, **inputs).items()}
    )
    with pytest.raises(ValueError, match="differ"):
        compare_answers(exported.model, exported.folder / "onnx")


@needs_extra
def test_large_weights_are_in_a_file_of_their_own(exported, tmp_path):
    graph = graphs_of(exported.model)[MASK_PROMPT]
    for name, limit in (("apart", 100), ("whole", 10**6)):
        (tmp_path / name).mkdir()
        assert exporting.write_graph(graph, tmp_path / name / f"{MASK_PROMPT}.onnx", limit) == (name == "apart")
    assert [path.name for path in (tmp_path / "whole").iterdir()] == [f"{MASK_PROMPT}.onnx"]
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == [
        f"{MASK_PROMPT}.onnx", f"{MASK_PROMPT}.onnx_data"
    ]  # fmt: skip
    inputs = {NAMES[-1]: torch.randn(1, *graph.arguments[0].shape[1:]), "input_masks": torch.randn(1, 1, MASK, MASK)}
    for name in ("vision_encoder", DECODER):
        shutil.copy(exported.folder / "onnx" / f"{name}.onnx", tmp_path / "apart")
    (own,) = OnnxModel(tmp_path / "apart").run(MASK_PROMPT, **inputs).values()
    (expected,) = exported.onnx.run(MASK_PROMPT, **inputs).values()
    assert torch.equal(own, expected)


@needs_extra
def test_configurations_say_which_files_are_split_and_whether_contrast_is_stretched(exported, tmp_path):
    processor = SamHfProcessor.from_config(exported.model.config, do_stretch_contrast=True)
    exporting.write_descriptions(exported.model, processor, tmp_path, "tiny", [f"{ENCODER}.onnx"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {f"{ENCODER}.onnx": True}
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_stretch_contrast"] is True
    assert "does not stretch" in (tmp_path / "README.md").read_text()
    assert "does not stretch" not in (exported.folder / "README.md").read_text()


@needs_extra
@pytest.mark.slow
def test_the_command_exports_the_kind_of_stock_at_another_size(tmp_path, capsys):
    """Relative positions, resampled; windows that need padding; one feature level; no object score, and no maps."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    main([str(tmp_path / "model"), str(tmp_path / "new" / "stock"), "--image_size", "40"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[-6:]] == [
        "largest difference from the model, in " + str(tmp_path / "new" / "stock"),
        *("image_embeddings.0", "iou_scores", "pred_masks"),
        *("iou_scores with a mask prompt", "pred_masks with a mask prompt"),
    ]
    answer = OnnxModel(tmp_path / "new" / "stock" / "onnx").run(ENCODER, pixel_values=random_pixels(1, 40, 40))
    assert [value.shape for value in answer.values()] == [(1, 32, 5, 5)]


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sam2", "backbone"])
def test_other_image_encoders_answer_as_in_torch(kind, tmp_path):
    """Hiera, which sees squares, as `Sam2Model` answers; and a new model around a ViT with patches of 14 pixels."""
    folder = tmp_path / "model"
    if kind == "sam2":
        sam2_model().save_pretrained(folder)
        reference = Sam2Model.from_pretrained(folder).eval()
        side, padding = 128, {"do_pad": False, "size": {"height": 128, "width": 128}}
    else:
        stored_backbone("dinov2", tmp_path / "backbone")
        reference = randomise(prepare_model(tmp_path / "backbone", image_size=56)).eval()
        save_model(reference, folder)
        build_processor(reference).save_pretrained(folder)
        side, padding = 56, {"do_pad": True, "size": {"longest_edge": 56}}
    main([str(folder), str(tmp_path / "onnx")])
    settings = json.loads((tmp_path / "onnx" / "preprocessor_config.json").read_text())
    assert {name: settings[name] for name in padding} == padding
    pixels = random_pixels(1, side, side)
    clicks = {
        "input_points": torch.tensor([[[[30.0, 20.0]], [[50.0, 44.0]]]]),
        "input_labels": torch.ones(1, 2, 1).long(),
    }
    onnx = OnnxModel(tmp_path / "onnx" / "onnx")
    features = onnx.run(ENCODER, pixel_values=pixels)
    features.pop(MAPS, None)
    answer = onnx.run(DECODER, **features, **clicks, input_boxes=torch.zeros(1, 0, 4))
    with torch.no_grad():
        expected = reference(pixel_values=pixels, **clicks, multimask_output=True)
    for name in ("pred_masks", "iou_scores", "object_score_logits"):
        torch.testing.assert_close(answer[name], expected[name], atol=1e-4, rtol=1e-4)


def refused(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return str(stopped.value)


@needs_extra
def test_what_the_command_refuses(tmp_path):
    (tmp_path / "none").mkdir()
    assert "expected one of sam_hf, sam" in refused([str(tmp_path / "none"), str(tmp_path / "new")])
    assert "there is nothing at" in refused([str(tmp_path / "a" / "b" / "c"), str(tmp_path / "new")])
    assert "remove it or name another" in refused([str(tmp_path / "none"), str(tmp_path)])
    (tmp_path / "none" / "config.json").write_text('{"model_type": "bert"}')
    assert "expected one of sam_hf, sam" in refused([str(tmp_path / "none"), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@needs_extra
def test_other_types_are_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"call model.float\(\).cpu\(\)"):
        export_onnx(model.half(), SamHfProcessor.from_config(model.config), tmp_path / "new")
    with pytest.raises(ValueError, match="expected float32 on the CPU"):
        export_onnx(model.to("meta"), SamHfProcessor.from_config(model.config), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__="there"))
    message = refused([str(tmp_path), str(tmp_path / "new")])
    assert message == 'error: the export needs onnxscript: pip install "sam_hf[onnx]"'
    model = tiny_model()
    with pytest.raises(ImportError, match=r"pip install .sam_hf\[onnx\]"):
        export_onnx(model, SamHfProcessor.from_config(model.config), tmp_path / "new")


def test_the_size_is_that_of_the_processor(tmp_path, monkeypatch):
    """As after training with `--image_size`, which stays in the processor alone."""
    sides = []
    monkeypatch.setattr(exporting, "graphs_of", lambda model: sides.append(model.config.image_size) or {})
    monkeypatch.setattr(exporting, "compare_answers", lambda model, folder: {})
    model = tiny_model()
    for side in (model.config.image_size, 2 * model.config.image_size):
        processor = SamHfProcessor.from_config(model.config)
        processor.image_processor.pad_size = {"height": side, "width": side}
        export_onnx(model, processor, tmp_path / str(side))
    assert sides == [model.config.image_size, 2 * model.config.image_size]
