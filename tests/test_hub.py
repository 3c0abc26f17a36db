"""Folders and Hub repositories with and without the code of the model, loaded with and without the package."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hub_server import TOKEN, Hub, serve_hub
from huggingface_hub import HfApi, ModelCard
from test_mask_generation_pipeline import needs_crops
from test_train import small_config
from tiny_models import IMAGE, MASK, tiny_model
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskGeneration,
    AutoProcessor,
    pipeline,
)

from sam_hf import SamHfConfig, SamHfImageProcessor, SamHfModel, SamHfProcessor

DOCS = Path(__file__).parents[1] / "docs" / "hub.md"
TRAIN = Path(__file__).parents[1] / "examples" / "train.py"
AMG = {"points_per_crop": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "mask_threshold": 0.2}
WITHOUT_PACKAGE = """
import sys
sys.modules["sam_hf"] = None
"""
# Reads `expected.pt`: an image, a click, and what the saved model answers.
CHECK = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForMaskGeneration, AutoProcessor, pipeline

expected = torch.load("expected.pt", weights_only=False)

def check(name, **options):
    processor = AutoProcessor.from_pretrained(name, **options)
    models = [auto.from_pretrained(name, **options) for auto in (AutoModel, AutoModelForMaskGeneration)]
    inputs = processor(**expected["prompts"])
    for model in models:
        with torch.no_grad():
            output = model(**inputs)
        for key, value in expected["output"].items():
            assert torch.equal(output[key], value), key
    image_processor = AutoImageProcessor.from_pretrained(name, **options)
    pixels = image_processor(expected["prompts"]["images"], return_tensors="pt").pixel_values
    assert torch.equal(pixels, inputs["pixel_values"])
    assert type(AutoConfig.from_pretrained(name, **options)).__name__ == "SamHfConfig"
    found = pipeline("mask-generation", model=name, device="cpu", **options)(expected["image"], **expected["amg"])
    assert torch.equal(found["scores"], expected["scores"])
    assert all(torch.equal(a, b) for a, b in zip(found["masks"], expected["masks"], strict=True))
    return models[0], processor
"""


def run(code: str, cwd: Path, **environment: str) -> str:
    """Run code in a new process in `cwd`, with caches of its own, and the package only through `PYTHONPATH`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    settings = {
        "HF_HOME": str(cwd / "cache"),
        "HF_HUB_OFFLINE": "0" if "HF_ENDPOINT" in environment else "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=inherited | settings | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def has_code(folder: Path) -> bool:
    """Whether there are source files, and an `auto_map`; a folder has both or neither."""
    maps = ["auto_map" in (folder / name).read_text() for name in ("config.json", "processor_config.json")]
    sources = bool(list(folder.glob("*.py")))
    assert maps == [sources] * 2
    return sources


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folders `coded` and `plain`, and `expected.pt`."""
    folder = tmp_path_factory.mktemp("hub")
    model = tiny_model(vision={"high_res_layers": [0, 1]}, decoder={"use_object_score": True})
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}, mask_size={"longest_edge": MASK}))
    for name, include_code in (("coded", True), ("plain", None)):
        for part in (model, processor):
            part.save_pretrained(folder / name, include_code=include_code)
    # Loaded as the others will be: weights that a file is mapped to are aligned otherwise, which changes rounding.
    model = SamHfModel.from_pretrained(folder / "plain")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    prompts = {"images": pixels, "input_points": [[[20, 30]], [[60, 10]]], "input_labels": [[1], [1]]}
    with torch.no_grad():
        output = model(**processor(**prompts))
    image = PIL.Image.fromarray(pixels)
    generator = pipeline("mask-generation", model=model, image_processor=processor.image_processor, device="cpu")
    found = generator(image, **AMG)
    assert len(found["masks"]) > 3
    answers = {name: output[name] for name in ("pred_masks", "iou_scores", "object_score_logits")}
    expected = {"prompts": prompts, "output": answers, "image": image, "amg": AMG}
    torch.save(expected | {"masks": found["masks"], "scores": found["scores"]}, folder / "expected.pt")
    return folder


def test_folder_with_code_needs_no_package_and_is_saved_again(saved, tmp_path):
    """Also what was loaded from it: with the code unless told otherwise, and every Auto class loads that, too."""
    assert has_code(saved / "coded")
    code = f"""
model, processor = check("coded", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.coded."), type(model).__module__
for part in (model, processor):
    part.save_pretrained({str(tmp_path / "again")!r})
    part.save_pretrained({str(tmp_path / "bare")!r}, include_code=False)
model, processor = check({str(tmp_path / "again")!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.again."), type(model).__module__
"""
    run(WITHOUT_PACKAGE + CHECK + code, saved)
    assert files(tmp_path / "again") == files(saved / "coded") and has_code(tmp_path / "again")
    assert files(tmp_path / "bare") == files(saved / "plain") and not has_code(tmp_path / "bare")


def test_folder_without_code_needs_the_package(saved):
    """With the package at hand but not imported, the code of a folder is loaded; afterwards the package goes first."""
    assert not has_code(saved / "plain")
    assert files(saved / "plain") == {"config.json", "model.safetensors", "processor_config.json"}
    code = """
try:
    AutoModel.from_pretrained("plain", trust_remote_code=True)
except ValueError as error:
    assert "sam_hf" in str(error), error
else:
    raise AssertionError("loaded without the package")
model, _ = check("coded", trust_remote_code=True)
assert "sam_hf" not in sys.modules and type(model).__module__.startswith("transformers_modules.coded.")
import sam_hf
for options in ({}, {"trust_remote_code": True}):
    for name in ("plain", "coded"):
        model, processor = check(name, **options)
        assert type(model) is sam_hf.SamHfModel and type(processor) is sam_hf.SamHfProcessor, options
"""
    run("import sys\n" + CHECK + code, saved, PYTHONPATH=str(TRAIN.parents[1] / "src"))


def test_installed_classes_go_before_those_of_the_folder(saved):
    for options in ({}, {"trust_remote_code": True}):
        for name in ("plain", "coded"):
            folder = saved / name
            assert type(AutoConfig.from_pretrained(folder, **options)) is SamHfConfig
            assert type(AutoModel.from_pretrained(folder, **options)) is SamHfModel
            assert type(AutoModelForMaskGeneration.from_pretrained(folder, **options)) is SamHfModel
            assert type(AutoImageProcessor.from_pretrained(folder, **options)) is SamHfImageProcessor
            assert type(AutoProcessor.from_pretrained(folder, **options)) is SamHfProcessor


def test_saving_with_code_changes_nothing_but_the_folder(saved, tmp_path):
    """Also what comes from a folder with code: an `auto_map` without the files would be a broken promise."""
    model, processor = AutoModel.from_pretrained(saved / "coded"), AutoProcessor.from_pretrained(saved / "coded")
    for name, include_code in (("first", None), ("second", True), ("third", None)):
        for part in (model, processor):
            part.save_pretrained(tmp_path / name, include_code=include_code)
        assert has_code(tmp_path / name) == bool(include_code)
    assert files(tmp_path / "second") == files(saved / "coded")
    assert model.config.auto_map == AutoConfig.from_pretrained(saved / "coded").auto_map
    for name in ("config.json", "processor_config.json"):
        contents = [json.loads((folder / name).read_text()) for folder in (tmp_path / "first", saved / "plain")]
        assert contents[0].keys() == contents[1].keys()
    for cls in (SamHfConfig, SamHfModel, SamHfImageProcessor, SamHfProcessor):
        assert cls._auto_class is None


def test_parts_alone_carry_their_code(tmp_path):
    SamHfConfig().save_pretrained(tmp_path / "config", include_code=True)
    modules = {"configuration_sam_hf.py", "hub_code.py", "sam2_config.py", "vision_configuration.py"}
    assert files(tmp_path / "config") == modules | {"config.json"}
    SamHfImageProcessor().save_pretrained(tmp_path / "images", include_code=True)
    modules = {
        "configuration_sam_hf.py",
        "crops.py",
        "hub_code.py",
        "image_files.py",
        "instances.py",
        "pixels.py",
        "image_processing_sam_hf.py",
        "masks.py",
        "regions.py",
        "sam2_config.py",
        "tiles.py",
        "vision_configuration.py",
    }
    assert files(tmp_path / "images") == modules | {"preprocessor_config.json"}
    reference = "image_processing_sam_hf.SamHfImageProcessor"
    written = json.loads((tmp_path / "images" / "preprocessor_config.json").read_text())
    assert written["auto_map"] == {"AutoImageProcessor": reference}


@pytest.fixture(scope="module")
def hub() -> Hub:
    with serve_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def login(hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}


def test_hub_refuses_what_the_real_one_would(login, tmp_path):
    code = """
import sys
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import *

api = HfApi()
api.create_repo("user/refusing")
open("model.safetensors", "wb").write(b"weights")
api.upload_file(repo_id="user/refusing", path_or_fileobj="model.safetensors", path_in_repo="model.safetensors")
assert open(hf_hub_download("user/refusing", "model.safetensors"), "rb").read() == b"weights"

def refused(error, call, status):
    try:
        call()
    except error as caught:
        assert caught.response.status_code == status, caught
    else:
        raise AssertionError(f"{error} expected")

refused(RepositoryNotFoundError, lambda: api.model_info("user/absent"), 404)
refused(RepositoryNotFoundError, lambda: hf_hub_download("user/absent", "config.json"), 404)
refused(RevisionNotFoundError, lambda: hf_hub_download("user/refusing", "model.safetensors", revision="dev"), 404)
refused(EntryNotFoundError, lambda: hf_hub_download("user/refusing", "config.json"), 404)
refused(HfHubHTTPError, lambda: api.create_repo("user/refusing"), 409)
refused(HfHubHTTPError, lambda: api.create_repo("stranger/model"), 403)
refused(HfHubHTTPError, lambda: HfApi(token="hf_other").create_repo("user/mine"), 401)
upload = {"repo_id": "user/absent", "path_or_fileobj": b"x", "path_in_repo": "x"}
refused(RepositoryNotFoundError, lambda: api.upload_file(**upload), 404)
broken = b"---\\nmodel-index: [{name: x, results: [{task: {}}]}]\\n---\\n"
try:
    api.upload_file(repo_id="user/refusing", path_or_fileobj=broken, path_in_repo="README.md")
except ValueError as error:
    assert "Invalid metadata" in str(error)
else:
    raise AssertionError("broken metadata accepted")
"""
    run(code, tmp_path, **login)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub 2.4
def test_trained_model_goes_to_the_hub_and_comes_back(train, on_cpu, hub, login, tmp_path, monkeypatch, capsys):
    """Pushed by the training script; loaded without the package, pushed from there, and loaded again."""
    small_config().save_pretrained(tmp_path / "untrained")
    options = {
        "model": tmp_path / "untrained",
        "output_dir": tmp_path / "clicks",
        "max_steps": 1,
        "batch_size": 1,
        "max_objects": 2,
        "num_corrections": 1,
        "eval_images": 1,
        "final_eval_images": 1,
        "num_workers": 0,
    }
    # In this process: another would import everything again, and settings from outside have been read here.
    monkeypatch.setattr("sam_hf.training.run.HfApi", partial(HfApi, endpoint=hub.url, token=TOKEN))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    train.main(["--push_to_hub", *(f"--{name}={value}" for name, value in options.items())])
    assert f"pushed to {hub.url}/user/clicks" in capsys.readouterr().out
    best = tmp_path / "clicks" / "best"
    pushed = hub.files("user/clicks")
    for name in ("model.safetensors", "metrics.json", "predictions.png", "README.md"):
        assert pushed[name] == (best / name).read_bytes(), name
    assert_card_holds_metrics(pushed["README.md"].decode(), json.loads(pushed["metrics.json"]))

    model, processor = AutoModel.from_pretrained(best), AutoProcessor.from_pretrained(best)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    prompts = {"images": pixels, "input_points": [[20, 30]], "input_labels": [1]}
    with torch.no_grad():
        expected = model(**processor(**prompts)).pred_masks
    torch.save({"prompts": prompts, "expected": expected}, tmp_path / "answer.pt")
    code = """
import torch
from transformers import AutoModel, AutoProcessor

answer = torch.load("answer.pt", weights_only=False)
for name, next_name in (("user/clicks", "user/again"), ("user/again", None)):
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules." + name.replace("/", ".")), type(model).__module__
    with torch.no_grad():
        assert torch.equal(model(**processor(**answer["prompts"])).pred_masks, answer["expected"])
    if next_name:
        model.push_to_hub(next_name, tags=["sam_hf"])
        processor.push_to_hub(next_name)
        model.push_to_hub("user/bare", include_code=False)
"""
    run(WITHOUT_PACKAGE + code, tmp_path, **login)
    assert {name for name in hub.files("user/again") if name.endswith(".py")} == {
        name for name in pushed if name.endswith(".py")
    }
    assert hub.files("user/bare").keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}


@needs_crops
@pytest.mark.slow
def test_documentation_runs_as_written(saved, hub, login, tmp_path):
    """The commands of docs/hub.md in order; for the pipeline, weights that are random and so never sure of a mask."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    blocks[1] = re.sub(r"_thresh=0\.\d", "_thresh=0", blocks[1])
    for name in ("config.json", "model.safetensors", "processor_config.json"):
        (tmp_path / "runs/scenes/best").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/scenes/best" / name).write_bytes((saved / "plain" / name).read_bytes())
    PIL.Image.effect_noise((80, 60), 60).save(tmp_path / "photo.jpg")
    run(blocks[0], tmp_path, PYTHONPATH=str(TRAIN.parents[1] / "src"), **login)
    assert "pixels" in run(WITHOUT_PACKAGE + blocks[1], tmp_path, **login)


def assert_card_holds_metrics(content: str, metrics: dict) -> None:
    """As `model-index`, which the Hub shows: task, dataset, and the mean IoU after every click."""
    card = ModelCard(content)
    results = card.data.eval_results
    assert [result.metric_type for result in results] == [f"mean_iou_{count}" for count in range(1, 6)]
    assert [result.metric_name for result in results][:2] == ["mean IoU after 1 click", "mean IoU after 2 clicks"]
    assert [result.metric_value for result in results] == [round(value, 4) for value in metrics["iou_per_click"]]
    for result in results:
        assert result.task_type == "mask-generation"
        assert (result.dataset_name, result.dataset_split) == (metrics["dataset"], metrics["split"])
    assert card.data.model_name == "clicks" and card.data.license == "apache-2.0"
    assert 'from_pretrained("user/clicks")' in content and "trust_remote_code=True" in content
