"""What version 0.1.0 wrote is read: a folder without code, one with the code of that day, and a run cut short.

`written_by_0_1_0.zip` holds random weights of width 8 and their outputs, and a run of four steps that was interrupted
after the third, with the losses of one that was not.
"""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_hub import WITHOUT_PACKAGE, run
from tiny_models import random_pixels, random_prompts
from transformers import AutoModel, AutoProcessor

from sam_hf import SamHfModel, SamHfProcessor


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("written_by_0_1_0.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": random_pixels(1), **random_prompts("points boxes", 1)}


def test_a_folder_without_code_gives_the_same(written):
    folder = written / "without_code"
    shutil.copy(written / "with_code" / "model.safetensors", folder)  # the archive holds the weights once
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is SamHfModel and not any(loading.values())
    with torch.no_grad():
        output = model(**inputs(), multimask_output=True)
    for name, expected in load_file(written / "outputs.safetensors").items():
        torch.testing.assert_close(output[name], expected, atol=1e-5, rtol=0)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is SamHfProcessor and processor.image_processor.mask_size["longest_edge"] == 32


def test_a_folder_with_code_gives_the_same_without_the_package(written):
    torch.save(inputs(), written / "inputs.pt")
    code = """
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("with_code", trust_remote_code=True)
with torch.no_grad():
    output = model(**torch.load("inputs.pt"), multimask_output=True)
for name, expected in load_file("outputs.safetensors").items():
    torch.testing.assert_close(output[name], expected, atol=1e-5, rtol=0)
processor = AutoProcessor.from_pretrained("with_code", trust_remote_code=True)
for part in (model, processor):
    assert type(part).__module__.startswith("transformers_modules.with_code."), type(part)
"""
    run(WITHOUT_PACKAGE + code, written)


def test_an_interrupted_run_is_resumed(train, on_cpu, written, monkeypatch):
    """From its last checkpoint, of step 2; the log tells the third step, which was trained again, once."""
    monkeypatch.chdir(written)  # the options name `start` and `run`
    train.main(["run/options.yaml", "--resume"])
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    found = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    losses = json.loads(Path("losses.json").read_text())
    assert [*found] == [1, 2, 3, 4]
    assert [found[3], found[4]] == pytest.approx(losses[2:], rel=1e-3)
    assert {path.name for path in Path("run").iterdir()} >= {"best", "last"}
