"""The page without a server: what JavaScript computes against Python, the engine against torch, and the written site.

The tests of JavaScript need Node. Those of the engine need onnxruntime-web, too: the folder `SAM_HF_ONNXRUNTIME_WEB`,
or in the root of the clone `npm install --no-save --ignore-scripts onnxruntime-web`. Those of the browser need
Playwright for Python and Chromium.
"""

import base64
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from annotating import Person
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
from sam_hf.data.schema import rgb_array
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
        everywhere = 5 * torch.nn.functional.interpolate(coarse, (MASK, MASK), mode="bicubic")
        fields = {"everywhere": everywhere, "blob": blob}
        fields |= {"nowhere": torch.full_like(blob, -1.0), "all": torch.full_like(blob, 1.0)}
        fields["far reach"] = torch.where(blob > 0, 2.0, -1e-3)  # where a cell counts for little, it counts alone
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
    for name, height, width, count in (("few.png", 30, 41, 5), ("many.png", 40, 33, 300), ("none.png", 9, 8, 0)):
        objects = []
        for number in range(count):
            mask = np.zeros((height, width), bool)
            y, x = rng.integers(0, height - 3), rng.integers(0, width - 3)
            mask[y : y + rng.integers(3, 20), x : x + rng.integers(3, 20)] = True
            mask &= rng.random(mask.shape) < 0.8
            mask[y, x] = True
            kind = f"kind {number % 3}" if number % 4 else ""
            objects.append({"name": kind, "score": 0.5, "mask": encode_crop(mask)})
        images.append({"name": name, **sides(height, width), "objects": objects})
    return images


@needs_node
def test_pixels_are_those_of_python(references):
    run_node(references, "pixels.test.mjs")


@needs_node
def test_masks_of_the_page(references):
    run_node(references, "masks.test.mjs")


@needs_node
def test_what_a_pointer_asks_before_it_clicks(tmp_path):
    run_node(tmp_path, "hover.test.mjs")


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
            value.copy_(torch.randn(value.shape, generator=generator) * (1e-3 if "guides" in name else 1.0))
        model.instance_decoder.head.weight *= 0.03  # so that not all is 0 or 1
        model.instance_decoder.head.bias.zero_()
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
    image, processor = opened.prompted, session.processor.image_processor
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
        if mask.any() and all((mask & other).sum() <= 0.7 * min(mask.sum(), other.sum()) for _, other in kept):
            kept.append((float(score), mask))
    assert 2 <= len(kept) < len(found)
    proposals = [{"score": score, "mask": text_of(mask)} for score, mask in kept]
    return {"image": as_picture(image.image), "proposals": proposals}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, on a port that is free; `address` is its URL."""

    def __init__(self, folder: Path, headers: dict[str, str]):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any):
                super().__init__(*args, directory=str(folder))

            def end_headers(self) -> None:
                for item in headers.items():
                    self.send_header(*item)
                super().end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


ISOLATED = {"Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin"}
SHARED = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}
# In JavaScript: opens the backend, as main.js does.
OPEN = """() => {
    window.opening = import('./static/browser_backend.js')
        .then(async ({ open }) => { window.backend = await open(); });
}"""
ANNOTATED = "() => backend.images.map(({ isAnnotated }) => isAnnotated)"
STALE = """async (way) => {
    const [object] = (await backend.open(0)).objects;
    return backend[way](0, { ...object, revision: 1 }).catch((error) => error.status);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def open_backend(page: Any, address: str, files: list[Path]) -> Any:
    """`window.backend` in a page of its own, once the files are chosen."""
    page.goto(f"{address}/empty.html")
    page.evaluate(OPEN)
    page.set_input_files("input[type=file]", files)
    page.evaluate("() => window.opening")
    return page


@needs_node
@needs_web
@pytest.mark.parametrize("is_isolated", [False, True])
def test_the_backend_in_a_browser(site, tmp_path, browser, is_isolated):
    """With threads, where the page is isolated, and then with the runtime on another server."""
    folder, model, processor = site
    shutil.copytree(folder, tmp_path / "site")
    (tmp_path / "site" / "empty.html").write_text("<!doctype html><html><body></body></html>")
    runtime = Server(folder / "runtime", SHARED)
    if is_isolated:
        settings = json.loads((folder / "site.json").read_text()) | {"runtime": f"{runtime.address}/"}
        (tmp_path / "site" / "site.json").write_text(json.dumps(settings))
    server = Server(tmp_path / "site", ISOLATED if is_isolated else {})
    (tmp_path / "data" / "images").mkdir(parents=True)
    pixels = scene_of((320, 240))
    alpha = np.full((240, 320, 1), 255, np.uint8)
    alpha[:, :40] = 0
    files = [tmp_path / "data" / "images" / name for name in ("a.png", "b.jpg", "c.png", "d.png")]
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(files[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(files[1], quality=95, exif=exif)
    Image.fromarray(pixels).save(files[2])
    files[3].write_bytes(b"no image")
    session = Session(model, processor, files)
    errors: list[str] = []
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        open_backend(page, server.address, files)
        assert page.evaluate("() => window.crossOriginIsolated") == is_isolated
        assert page.evaluate("() => backend.images.map(({ name, isAnnotated }) => [name, isAnnotated])") == [
            [file.name, False] for file in files
        ]
        assert page.evaluate("() => backend.open(3).catch((error) => error.message)").startswith("d.png is no image")
        saved = []
        for index, size in ((0, (320, 240)), (1, (240, 320))):
            steps = steps_of(size, np.zeros(size[::-1], bool))["two clicks"]
            opened = page.evaluate(
                """async ([index, steps]) => {
                    const { width, height, objects, isEmpty } = await backend.open(index);
                    await backend.encode(index);
                    const answer = await backend.decode(index, steps), score = answer.scores[answer.index];
                    const object = { name: 'shape', steps, score, mask: answer.mask, color: 'red' };
                    return { width, height, objects, isEmpty, ...await backend.save(index, object), score };
                }""",
                [index, steps],
            )
            assert (opened["width"], opened["height"]) == size
            assert (opened["objects"], opened["isEmpty"], opened["revision"]) == ([], False, 1)
            answer = session.decode(index, steps)
            assert abs(opened["score"] - answer["scores"][answer["index"]]) < 1e-2  # JPEG is decoded otherwise
            saved.append((opened["id"], steps, decode_mask(answer["mask"], size[::-1])))
        page.evaluate("async () => { await backend.open(2); await backend.setEmpty(2, true); }")
        # Another tab, which then has the newer revision; and what was saved is there after a reload.
        other = open_backend(context.new_page(), server.address, files)
        assert other.evaluate(ANNOTATED) == [True, True, True, False]
        assert other.evaluate("() => backend.classes") == ["shape"]
        change = """async () => {
            const { objects: [object], isEmpty } = await backend.open(0);
            window.object = object;
            const { id, revision } = await backend.save(0, { ...object, name: 'form' });
            return [Object.keys(object).sort(), object.mask.bits.length > 0, id, revision, isEmpty];
        }"""
        keys = ["id", "mask", "name", "revision", "score", "steps"]
        assert other.evaluate(change) == [keys, True, saved[0][0], 2, False]
        for way in ("save", "remove"):
            assert page.evaluate(STALE, way) == 409
        assert page.evaluate("async () => (await backend.open(2)).isEmpty") is True
        with page.expect_download() as download:
            page.evaluate("() => backend.download()")
        download.value.save_as(tmp_path / "annotations.zip")
        assert page.evaluate(REMOVED) == [False, 409, False, 1, True, True]
        assert errors == []
    finally:
        context.close()
        server.shutdown()
        runtime.shutdown()
    with zipfile.ZipFile(tmp_path / "annotations.zip") as file:
        file.extractall(tmp_path / "data")
    files[3].unlink()
    annotated = AnnotationFolder(tmp_path / "data" / "images")
    assert [annotated.is_annotated(index) for index in range(3)] == [True, True, True]
    assert annotated.objects(2) == []
    for index, (identity, steps, mask) in enumerate(saved):
        (item,) = annotated.objects(index)
        assert (item["id"], item["steps"], item["name"]) == (identity, steps, "shape" if index else "form")
        assert item["revision"] == (1 if index else 2)
        assert (decode_mask(item["mask"], mask.shape) != mask).mean() <= (1e-2 if index else 1e-4)
        label_map = np.asarray(Image.open(tmp_path / "data" / "masks" / f"{files[index].stem}.png"))
        np.testing.assert_array_equal(label_map, decode_mask(item["mask"], mask.shape))
    content = json.loads((tmp_path / "data" / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.jpg", "c.png"]
    assert len(content["annotations"]) == 2


@needs_node
@needs_web
@pytest.mark.parametrize("site", ["trained"], indirect=True)
@pytest.mark.parametrize("ratio", [1, 2])
def test_the_walk_without_a_server(site, tmp_path, browser, ratio):
    """As that of `test_annotate_browser.py`: what is downloaded is what the model says to what was done."""
    folder, model, processor = site
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / "a.png"
    Image.fromarray(scene_of((320, 240))).save(file)
    session = Session(model, processor, [file])
    server = Server(folder, {})
    page = browser.new_page(viewport={"width": 1000, "height": 700}, device_scale_factor=ratio, accept_downloads=True)
    try:
        page.on("filechooser", lambda chooser: chooser.set_files([file]))
        person = Person(page, f"{server.address}/", lambda: page.set_input_files("input[type=file]", [file]))
        person.drag((60, 40), (100, 90), (200, 180))
        person.press("Enter")
        person.click(130, 120)
        person.click(150, 100)
        person.click(20, 20, button="right")
        person.press("Enter")
        person.click(160, 120, modifiers=["Shift"])
        person.press("Tab", "z", "y", "Enter", "z", "Enter")
        with page.expect_download() as download:
            person.press("s")
        download.value.save_as(tmp_path / "annotations.zip")
        assert person.problems == []
    finally:
        page.close()
        server.shutdown()
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        archive.extractall(tmp_path)
    objects = AnnotationFolder(tmp_path).objects(0)
    assert [len(item["steps"]) for item in objects] == [1, 3, 1] and "candidate" in objects[2]["steps"][0]
    labels = np.zeros((240, 320), int)
    for number, item in enumerate(objects, 1):
        mask = decode_mask(session.decode(0, item["steps"])["mask"], labels.shape)
        assert (decode_mask(item["mask"], labels.shape) != mask).mean() <= 1e-4
        labels[decode_mask(item["mask"], labels.shape)] = number
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "a.png")), labels)


# The same object twice; an image that was said to be empty gets one.
REMOVED = """async () => {
    const [object] = (await backend.open(1)).objects;
    await backend.remove(1, object);
    const again = await backend.remove(1, object).catch((error) => error.status);
    const { isAnnotated } = backend.images[1], { id, revision, ...rest } = object;
    await backend.save(2, rest);
    const { isEmpty, objects } = await backend.open(2), left = backend.images[1];
    await backend.setEmpty(1, true);
    return [isAnnotated, again, isEmpty, objects.length, (await backend.open(1)).isEmpty, left.isAnnotated];
}"""


@pytest.fixture
def exported(monkeypatch) -> dict[str, Any]:
    """An export that takes no time: of so many bytes, which fails where it is told to."""
    told: dict[str, Any] = {"size": 10, "error": None}

    def export(model, processor, folder, report):
        (folder / "onnx").mkdir(parents=True)
        with (folder / "onnx" / f"{ENCODER}.onnx").open("wb") as file:
            file.truncate(told["size"])
        if told["error"]:
            raise told["error"]
        write_descriptions(model, processor, folder, folder.name, [])
        report("exported")
        return {}

    monkeypatch.setattr(static_site, "export_onnx", export)
    monkeypatch.setattr(static_site, "check_extra", lambda: None)
    return told


def tiny() -> tuple[SamHfModel, SamHfProcessor]:
    model = tiny_model()
    return model, SamHfProcessor.from_config(model.config)


def test_a_site_has_the_page_the_model_and_a_readme(exported, tmp_path):
    lines: list[str] = []
    model, processor = tiny()
    processor.image_processor.seed_thresh = 0.25
    write_site(model, processor, tmp_path / "my site", report=lines.append)
    assert lines == ["exported"]
    assert [path.name for path in tmp_path.iterdir()] == ["my site"]
    site = tmp_path / "my site"
    for path in static_site.PAGE.rglob("*"):
        if path.is_file() and path.name != "index.html":
            assert (site / path.relative_to(static_site.PAGE)).read_bytes() == path.read_bytes()
    index, before = ((folder / "index.html").read_text() for folder in (site, static_site.PAGE))
    assert index == before.replace("<html ", '<html data-backend="browser" ') != before
    assert json.loads((site / "site.json").read_text()) == {
        "title": "my site",
        "runtime": f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/",
        "proposes": False,
        "thresholds": {"foreground_thresh": 0.5, "seed_thresh": 0.25},
    }
    assert json.loads((site / "model" / "preprocessor_config.json").read_text())["size"] == {"longest_edge": IMAGE}
    front = yaml.safe_load((site / "README.md").read_text().split("---")[1])
    assert (front["title"], front["sdk"], front["app_file"]) == ("my site", "static", "index.html")
    assert "python -m http.server" in (site / "README.md").read_text()


def test_the_runtime_may_lie_beside_the_page(exported, tmp_path):
    (tmp_path / "npm" / "dist").mkdir(parents=True)
    for name in (*RUNTIME_FILES, "another.wasm"):
        (tmp_path / "npm" / "dist" / name).write_text(name)
    for number, runtime in enumerate((tmp_path / "npm", str(tmp_path / "npm" / "dist"))):
        site = tmp_path / f"site{number}"
        write_site(*tiny(), str(site), runtime, [].append)
        assert sorted(path.name for path in (site / "runtime").iterdir()) == sorted(RUNTIME_FILES)
        assert json.loads((site / "site.json").read_text())["runtime"] == "../runtime/"


def test_a_site_is_whole_or_not_there(exported, tmp_path):
    model, processor = tiny()
    exported["error"] = ValueError("the answers differ")
    with pytest.raises(ValueError, match="the answers differ"):
        write_site(model, processor, tmp_path / "site", report=[].append)
    with pytest.raises(ValueError, match="npm install onnxruntime-web@"):
        write_site(model, processor, tmp_path / "site", tmp_path, [].append)
    assert list(tmp_path.iterdir()) == []
    exported["error"] = None
    for setting, value in (("do_resize", False), ("resample", 3)):
        _, other = tiny()
        setattr(other.image_processor, setting, value)
        with pytest.raises(ValueError, match=setting):
            write_site(model, other, tmp_path / "site", report=[].append)
    (tmp_path / "site.partial").mkdir()  # of a run that was killed
    write_site(model, processor, tmp_path / "site", report=[].append)
    with pytest.raises(ValueError, match="there is something at"):
        write_site(model, processor, tmp_path / "site", report=[].append)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_may_not_run_is_said(exported, tmp_path):
    def warnings(name: str, **settings: Any) -> list[str]:
        model, processor = tiny()
        model.config.vision_config.image_size = settings.get("side", IMAGE)
        processor.image_processor.tile_size = settings.get("tile_size")
        exported["size"] = settings.get("size", 10)
        lines: list[str] = []
        write_site(model, processor, tmp_path / name, report=lines.append)
        return [line for line in lines if line.startswith("warning: ")]

    assert warnings("small", side=1008, size=399_000_000) == []
    (large,) = warnings("large", size=401_000_000)
    assert "401 MB" in large and "--images" in large
    (wide,) = warnings("wide", side=1024)
    assert "takes 1024 pixels" in wide
    (tiled,) = warnings("tiled", tile_size=128)
    assert "as a whole" in tiled
