"""The page without a server: what JavaScript computes against Python, the engine against torch, and the written site.

The tests of JavaScript need Node. Those of the engine need onnxruntime-web, too: the folder `SAM_HF_ONNXRUNTIME_WEB`, or
in the root of the clone `npm install --no-save --ignore-scripts onnxruntime-web`.
"""

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from tiny_models import IMAGE, MASK, tiny_model, unpack_trained_model

from sam_hf import SamHfConfig, SamHfModel, SamHfProcessor
from sam_hf.annotate import static_site
from sam_hf.annotate.folder import AnnotationFolder
from sam_hf.annotate.mask_crops import decode_mask, encode_crop
from sam_hf.annotate.session import Session
from sam_hf.annotate.static_site import RUNTIME_FILES, RUNTIME_VERSION, write_site
from sam_hf.data.coco import CocoInstances
from sam_hf.data.rle import encode_segmentation
from sam_hf.data.scenes import SyntheticScenes
from sam_hf.data.schema import decode_masks, rgb_array
from sam_hf.image_processing_sam_hf import map_thresholds, mask_to_logits
from sam_hf.instances import find_centers
from sam_hf.onnx.exporting import write_descriptions
from sam_hf.onnx.graphs import ENCODER

PAGE_TESTS = Path(__file__).with_name("page")
WEB = Path(os.environ.get("SAM_HF_ONNXRUNTIME_WEB", Path(__file__).parents[1] / "node_modules" / "onnxruntime-web"))
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, of version 20 or later")
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_web = pytest.mark.skipif(
    not (WEB / "dist" / RUNTIME_FILES[0]).exists() or bool(MISSING),
    reason=f"needs onnxruntime-web, see the top of this file, and {MISSING or 'no more'}",
)
CASES = [  # size of the image (width, height), keep_aspect_ratio, do_stretch_contrast
    ("wide", (150, 90), True, False),
    ("high and odd", (77, 301), True, False),
    ("smaller than the input", (40, 31), True, False),
    ("a strip", (400, 2), True, False),
    ("a square of another shape", (150, 90), False, False),
    ("stretched contrast", (123, 90), True, True),
    ("one colour", (30, 20), True, True),
]


def run_node(folder: Path, name: str, **environment: str) -> None:
    run = subprocess.run(
        ["node", "--test", str(PAGE_TESTS / name)],
        env=os.environ | {"SAM_HF_REFERENCES": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    assert "# skipped 0" in run.stdout, run.stdout


def text_of(values: Any) -> str:
    """Of float32, uint8 or bool, for JavaScript."""
    values = np.ascontiguousarray(values)
    return base64.b64encode(values.astype(np.uint8) if values.dtype == bool else values).decode()


def sides(height: int, width: int) -> dict[str, int]:
    return {"width": width, "height": height}


def as_picture(pixels: np.ndarray) -> dict[str, Any]:
    return {"rgb": text_of(pixels), **sides(*pixels.shape[:2])}


def image_of(name: str, size: tuple[int, int]) -> np.ndarray:
    """Smooth with some noise; not of the full range, and with a few pixels that are."""
    rng = np.random.default_rng(len(name))
    if name == "one colour":
        return np.full((size[1], size[0], 3), 77, np.uint8)
    small = Image.fromarray(rng.integers(40, 180, (5, 7, 3)).astype(np.uint8))
    pixels = np.array(small.resize(size, Image.Resampling.BICUBIC)).astype(int)
    pixels += rng.integers(-20, 20, pixels.shape)
    pixels[0, : max(1, size[0] // 40)] = 255
    return pixels.clip(0, 255).astype(np.uint8)


def processor_of(keep_aspect_ratio: bool, stretch: bool) -> tuple[SamHfProcessor, dict[str, Any]]:
    """For `tiny_model`, and its settings as the export writes them."""
    model = tiny_model()
    options = {"keep_aspect_ratio": keep_aspect_ratio, "do_stretch_contrast": stretch}
    processor = SamHfProcessor.from_config(model.config, **options)
    with tempfile.TemporaryDirectory() as folder:
        write_descriptions(model, processor, Path(folder), "tiny", [])
        return processor, json.loads((Path(folder) / "preprocessor_config.json").read_text())


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Path:
    """A folder with `references.json`."""
    folder = tmp_path_factory.mktemp("references")
    content: dict[str, list[Any]] = {"inputs": [], "upscaled": [], "prompts": [], "centers": [], "annotated": []}
    for name, size, keeps_shape, stretch in CASES:
        processor, settings = processor_of(keeps_shape, stretch)
        pixels = image_of(name, size)
        inputs = processor(images=pixels, return_tensors="pt")
        resized = tuple(inputs["reshaped_input_sizes"][0].tolist())
        image = {"name": name, "settings": settings, "resized": sides(*resized), **as_picture(pixels)}
        content["inputs"].append(image | {"values": text_of(inputs["pixel_values"].numpy())})
        frame = {
            "grid": sides(MASK, MASK),
            "resized": sides(*resized),
            "padded": sides(IMAGE, IMAGE),
            "original": sides(*pixels.shape[:2]),
            "isSquare": not keeps_shape,
        }
        generator = torch.Generator().manual_seed(len(name))
        coarse = torch.randn(1, 1, 5, 5, generator=generator)
        blob = torch.full((1, 1, MASK, MASK), -3.0)
        blob[..., 3:5, 1:4] = 2.0
        fields = {"everywhere": torch.nn.functional.interpolate(coarse, (MASK, MASK), mode="bicubic") * 5, "blob": blob}
        fields |= {"nowhere": torch.full_like(blob, -1.0), "all": torch.full_like(blob, 1.0)}
        for kind, logits in fields.items():
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            mask = processor.post_process_masks(logits[None], *sizes)[0][0, 0].numpy().reshape(pixels.shape[:2])
            upscaled = {"name": f"{name}, {kind}", "logits": text_of(logits.numpy()), "mask": text_of(mask)}
            content["upscaled"].append(upscaled | {"frame": frame})
            prompt = mask_to_logits(torch.from_numpy(mask).float(), resized, (IMAGE, IMAGE), (MASK, MASK))
            known = {"name": f"{name}, {kind}", "mask": encode_crop(mask), "logits": text_of(prompt.numpy())}
            content["prompts"].append(known | {"frame": frame})
    content["centers"] = [centers_of(*thresholds) for thresholds in ((0.5, 0.5), (0.3, 0.41), (0.0, 0.0))]
    content["annotated"] = annotated_images()
    (folder / "references.json").write_text(json.dumps(content))
    return folder


def centers_of(foreground_thresh: float, seed_thresh: float) -> dict[str, Any]:
    """Rough maps, in steps so that many values are equal, with what is found in them."""
    coarse = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(3))
    maps = torch.nn.functional.interpolate(coarse, (50, 60), mode="bicubic")[0].clamp(0, 1)
    maps = ((20 * maps).round() / 20).numpy()
    points, scores = find_centers(maps, foreground_thresh, seed_thresh)
    assert len(points) > 0
    return {
        "maps": text_of(maps),
        "size": sides(50, 60),
        "thresholds": {"foreground_thresh": foreground_thresh, "seed_thresh": seed_thresh},
        "points": points.tolist(),
        "scores": scores.tolist(),
    }


def annotated_images() -> list[dict[str, Any]]:
    """Objects that overlap, more than 255 of them, and none."""
    rng = np.random.default_rng(0)
    images = []
    for name, (height, width), count in (("few.png", (30, 41), 5), ("many.png", (40, 33), 300), ("none.png", (9, 8), 0)):
        objects = []
        for number in range(count):
            mask = np.zeros((height, width), bool)
            y, x = rng.integers(0, height - 3), rng.integers(0, width - 3)
            mask[y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = True
            mask &= rng.random(mask.shape) < 0.8
            mask[y, x] = True
            objects.append({"name": f"kind {number % 3}" if number % 4 else "", "score": 0.5, "mask": encode_crop(mask)})
        images.append({"name": name, **sides(height, width), "objects": objects})
    return images


@needs_node
def test_pixels_are_those_of_python(references):
    run_node(references, "pixels.test.mjs")


@needs_node
def test_masks_of_the_page(references):
    run_node(references, "masks.test.mjs")


@needs_node
def test_label_maps_and_coco_can_be_read(references, tmp_path):
    run_node(references, "files.test.mjs")
    with zipfile.ZipFile(references / "annotations.zip") as file:
        assert file.testzip() is None
        assert sorted(file.namelist()) == ["annotations.json", "masks/few.png", "masks/many.png", "masks/none.png"]
        file.extractall(tmp_path)
    images = annotated_images()
    for image in images:
        size = image["height"], image["width"]
        expected = np.zeros(size, int)
        for number, item in enumerate(image["objects"], 1):
            expected[decode_mask(item["mask"], size)] = number
        written = Image.open(tmp_path / "masks" / image["name"])
        assert written.mode == ("L" if len(image["objects"]) < 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(written), expected)
        Image.new("RGB", size[::-1]).save(tmp_path / image["name"])
    assert len(CocoInstances(tmp_path / "annotations.json", images=tmp_path)) == 3
    content = json.loads((tmp_path / "annotations.json").read_text())
    for number, image in enumerate(images, 1):
        size = image["height"], image["width"]
        found = [item["segmentation"] for item in content["annotations"] if item["image_id"] == number]
        assert len(found) == len(image["objects"])
        for segmentation, item in zip(found, image["objects"], strict=True):
            mask = coco.decode(encode_segmentation(segmentation, size))
            np.testing.assert_array_equal(mask, decode_mask(item["mask"], size))
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert sorted(names.values()) == ["kind 0", "kind 1", "kind 2", "object"]
    first = content["annotations"][1]
    assert names[first["category_id"]] == "kind 1" and first["score"] == 0.5
    rows, columns = decode_mask(images[0]["objects"][1]["mask"], (30, 41)).nonzero()
    assert first["area"] == len(rows)
    assert first["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def with_maps() -> SamHfModel:
    """The trained model with a part for maps that is random, and proposes masks, too."""
    with tempfile.TemporaryDirectory() as folder:
        trained = SamHfModel.from_pretrained(unpack_trained_model(Path(folder)))
    maps = {"hidden_size": 8, "guides_masks": True, "proposes_masks": True}
    config = SamHfConfig(**trained.config.to_dict() | {"instance_decoder_config": maps})
    model = SamHfModel(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.instance_decoder.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * (0.3 if "guides" in name else 1.0))
        model.instance_decoder.proposals.projection.weight *= 0.1
        model.instance_decoder.proposals.projection.bias[-2] = -6.0
    model.load_state_dict(trained.state_dict(), strict=False)
    return model.eval()


@pytest.fixture(scope="module", params=["trained", "with maps"])
def site(request, tmp_path_factory) -> tuple[Path, SamHfModel, SamHfProcessor]:
    """A written site, which takes half a minute."""
    folder = tmp_path_factory.mktemp("site")
    model = with_maps()
    processor = SamHfProcessor.from_config(model.config)
    if request.param == "trained":
        model = SamHfModel.from_pretrained(unpack_trained_model(folder / "model")).eval()
        processor = SamHfProcessor.from_pretrained(folder / "model")
    else:
        image = processor.image_processor
        image.foreground_thresh, image.seed_thresh = 0.3, 0.1
    write_site(model, processor, folder / "site", WEB, [].append)
    return folder / "site", model, processor


def steps_of(size: tuple[int, int], mask: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Lists of steps in an image of (width, height) `size`; `mask` is one that was saved."""
    clicks = [{"point": [round(size[0] * x, 1), round(size[1] * y, 1)], "label": label}
              for x, y, label in ((0.4, 0.5, 1), (0.6, 0.4, 0), (0.3, 0.6, 1))]  # fmt: skip
    box = {"box": [size[0] * 0.25, size[1] * 0.2, size[0] * 0.7, size[1] * 0.8]}
    saved = {"mask": encode_crop(mask)}
    return {
        "a click": clicks[:1],
        "another candidate of it": [clicks[0] | {"candidate": 1}],
        "two clicks": clicks[:2],
        "three clicks": clicks,
        "a click on another candidate": [clicks[0] | {"candidate": 2}, clicks[1]],
        "a box": [box],
        "a box and clicks": [box, *clicks[1:]],
        "a click and a box": [clicks[0], box],
        "two boxes": [{"box": [0, 0, size[0] - 1, size[1] - 1]}, box],
        "a candidate that is none": [clicks[0], clicks[1] | {"candidate": 3}],
        "a mask and its click": [saved | {"prompts": clicks[:1]}],
        "a mask and a click": [saved | {"prompts": []}, clicks[0]],
        "a mask with prompts and clicks": [saved | {"prompts": [box, clicks[0]]}, *clicks[1:]],
        "an edge": [{"point": [-0.5, size[1] - 0.5], "label": 1}],
    }


def answers_of(session: Session, index: int, pixels: np.ndarray) -> dict[str, Any]:
    """What Python answers to steps in an image."""
    height, width = pixels.shape[:2]
    saved = np.zeros((height, width), bool)
    saved[height // 4 : height // 2, width // 3 : width // 2] = True
    cases = []
    for name, steps in steps_of((width, height), saved).items():
        answer = session.decode(index, steps)
        mask = decode_mask(answer["mask"], (height, width))
        cases.append({"name": name, "steps": steps, **answer, "mask": text_of(mask)})
    return {"image": as_picture(pixels), "cases": cases}


@needs_node
@needs_web
def test_the_engine_answers_as_the_session(site, tmp_path):
    folder, model, processor = site
    images = [scene_of(size) for size in ((300, 200), (70, 90), (1500, 1000))]
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    session = Session(model, processor, [tmp_path / f"{number}.png" for number in range(len(images))])
    content = {
        "answers": [answers_of(session, index, pixels) for index, pixels in enumerate(images)],
        "proposals": [] if model.instance_decoder is None else [proposals_of(session, 0)],
    }
    (tmp_path / "references.json").write_text(json.dumps(content))
    run_node(tmp_path, "engine.test.mjs", SAM_HF_SITE=str(folder))


def scene_of(size: tuple[int, int]) -> np.ndarray:
    """Of shapes, as the model was trained on; (width, height)."""
    scenes = SyntheticScenes(1, "validation", size=(256, 256))
    return np.asarray(Image.fromarray(rgb_array(scenes[0]["image"])).resize(size, Image.Resampling.BICUBIC))


@torch.no_grad()
def proposals_of(session: Session, index: int) -> dict[str, Any]:
    """The centres of the maps on their grid, clicked one by one; of two masks that overlap by 0.7 the better stays."""
    session.encode(index)
    opened = session._open(index).result()
    image, processor = opened.predictor.image, session.processor.image_processor
    encoded = image.encode(0)
    maps = session.model.get_instance_maps(encoded.embeddings)[0]
    cell, (height, width) = 64 / maps.shape[-1], image.size
    resized = encoded.sizes[1][0].tolist()
    maps = maps[:, : int(np.ceil(resized[0] / cell)), : int(np.ceil(resized[1] / cell))]
    cells, certainty = find_centers(maps, *map_thresholds(processor))
    points = (((cells + 0.5) * cell - 0.5) / encoded.scale.numpy()).clip(max=[width - 1, height - 1])
    found = []
    for point, sure in zip(points, certainty, strict=True):
        answer = session.decode(index, [{"point": point.tolist(), "label": 1}])
        mask = decode_mask(answer["mask"], image.size)
        x, y = (points + 0.5).astype(int).T
        found.append((max(answer["scores"]) * sure / max(1, mask[y, x].sum()), mask))
    kept: list[tuple[float, np.ndarray]] = []
    for score, mask in sorted(found, key=lambda item: -item[0]):
        shares = [(mask & other).sum() / min(mask.sum(), other.sum()) for _, other in kept]
        if mask.any() and all(share <= 0.7 for share in shares):
            kept.append((float(score), mask))
    print(f"{len(found)} centres, {len(kept)} kept")
    assert 2 <= len(kept) < len(found)
    proposals = [{"score": score, "mask": text_of(mask)} for score, mask in kept]
    return {"image": as_picture(image.image), "proposals": proposals}
