"""The evaluation example, run as a user runs it on tiny models, by one process and by two."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from tiny_models import IMAGE, sam2_backbone, tiny_model
from tiny_runs import load_example
from transformers import Sam2Config, Sam2Model

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.data import SyntheticScenes, decode_masks
from sam_hf.evaluation import EVERYTHING, load_traces

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "evaluate.py"
NUM_IMAGES, NUM_PROMPTS = 3, 2
FILES = {"report.md", "numbers.json", "curves.png", "cases.png", "traces.parquet"}
SECONDS = ["encode_seconds", "decode_seconds"]

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_example(SCRIPT)


def write_scenes(root: Path, num_validation: int = NUM_IMAGES, num_train: int = 1) -> Path:
    """Label maps of scenes, those for validation first."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    splits = ["id,split"]
    for number, record in enumerate(SyntheticScenes(num_validation + num_train, size=(IMAGE, IMAGE))):
        splits.append(f"{number:03d},{'validation' if number < num_validation else 'train'}")
        masks = decode_masks(record["objects"])
        labels = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
        record["image"].save(root / "images" / f"{number:03d}.png")
        Image.fromarray(labels).save(root / "masks" / f"{number:03d}.png")
    (root / "splits.csv").write_text("\n".join(splits))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


def save_own(folder: Path, seed: int, **thresholds: float) -> Path:
    model = tiny_model(seed, decoder={"use_object_score": True, "iou_prediction_use_sigmoid": True})
    model.save_pretrained(folder)
    SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}, **thresholds)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return save_own(tmp_path_factory.mktemp("own"), 0)


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A SAM 2 of transformers, without a processor."""
    config = Sam2Config(
        vision_config={
            "backbone_config": sam2_backbone(),
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": IMAGE, "patch_size": 16},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stock")
    Sam2Model(config).save_pretrained(folder)
    return folder


def arguments(data: Path, output: Path, *given: Any, **options: Any) -> list[str]:
    options = {"dataset": data, "output_dir": output, "num_prompts": NUM_PROMPTS, "max_objects": 3, **options}
    return [*map(str, given), *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="module")
def finished(script, own, data, tmp_path_factory) -> Iterator[Path]:
    """The folder of an evaluation by the protocol "sam"."""
    folder = tmp_path_factory.mktemp("finished") / "own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        script.main(arguments(data, folder, model=own))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield folder


@pytest.fixture(scope="module")
def compared(script, own, stock, data, tmp_path_factory) -> Iterator[Path]:
    """The folder of a comparison of both models."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        script.main(arguments(data, folder, "--compare", own, stock))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield folder


def numbers_of(folder: Path) -> dict[str, Any]:
    """What a strict reader of JSON takes."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "numbers.json").read_text(), parse_constant=refuse)


def test_an_evaluation_leaves_its_files(finished, own, data):
    assert {path.name for path in finished.iterdir()} == FILES
    told = numbers_of(finished)
    ((name, numbers),) = told["results"].items()
    assert name == str(own) and numbers["num_images"] == NUM_IMAGES and numbers["num_objects"] <= 3 * NUM_IMAGES
    assert len(numbers["mean"]) == NUM_PROMPTS and numbers["object_score"]["num_negatives"] == 0
    settings = told["settings"]
    assert (settings["dataset"], settings["seed"]) == (str(data), 0)
    assert settings["protocol"]["num_prompts"] == NUM_PROMPTS
    summary, about = load_traces(finished / "traces.parquet")
    assert about == settings and summary.iou_per_click == numbers["mean"]
    for picture in ("curves.png", "cases.png"):
        assert min(Image.open(finished / picture).size) > 100
    page = (finished / "report.md").read_text()
    assert f"{numbers['mean'][0]:.3f} ({numbers['low'][0]:.3f} to" in page and "protocol `sam`, 2 prompts" in page
    assert all(f"({picture})" in page for picture in ("curves.png", "cases.png"))


def test_numbers_come_from_the_traces_alone(script, finished, tmp_path, capsys):
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)
    for name in FILES - {"traces.parquet"}:
        (folder / name).unlink()
    script.main(["--from_traces", str(folder), "--dataset", "nowhere"])
    printed = capsys.readouterr().out
    assert numbers_of(folder) == numbers_of(finished)
    assert (
        printed.startswith("| model | IoU after 1 clicks | 2 | best candidate, 1 |")
        and printed.strip() in (folder / "report.md").read_text()
    )
    assert {path.name for path in folder.iterdir()} == FILES - {"cases.png"}


def test_both_models_are_compared_on_the_same_objects(compared, finished, own, stock):
    assert {path.name for path in compared.iterdir()} == {
        "report.md",
        "numbers.json",
        "curves.png",
        "model_1",
        "model_2",
    }
    results = numbers_of(compared)["results"]
    assert [*results] == [str(own), str(stock)]
    one, two = ({**numbers, "seconds": 0} for numbers in results.values())
    (alone,) = numbers_of(finished)["results"].values()
    assert one == {**alone, "seconds": 0} and one["mean"] != two["mean"]
    page = (compared / "report.md").read_text()
    gain = two["mean"][0] - one["mean"][0]
    assert f"| {stock} against {own}, after | IoU |" in page
    (line,) = re.findall(r"^\| 1 \| ([+-][.\d]+) \| .* \| (\d) : (\d) \|", page, re.MULTILINE)
    assert float(line[0]) == pytest.approx(gain, abs=6e-4) and int(line[1]) + int(line[2]) <= NUM_IMAGES
    tables = [load_traces(compared / name / "traces.parquet")[0] for name in ("model_1", "model_2")]
    assert [t.objects for t in tables[0].traces] == [t.objects for t in tables[1].traces]


def test_two_finished_evaluations_are_compared(script, compared, data, tmp_path, capsys):
    folders = compared / "model_1", compared / "model_2"
    script.main(arguments(data, tmp_path / "again", "--compare", *folders))
    assert numbers_of(tmp_path / "again")["results"] == numbers_of(compared)["results"]
    assert capsys.readouterr().out.strip() in (compared / "report.md").read_text()


def test_two_evaluations_of_one_model_are_told_apart_by_their_folders(script, finished, compared, data, tmp_path):
    folders = finished, compared / "model_1"
    script.main(arguments(data, tmp_path, "--compare", *folders))
    assert [*numbers_of(tmp_path)["results"]] == [str(folder) for folder in folders]
    assert "| 1 | +0.000 | +0.000 to +0.000 | 0 : 0 | 1 |" in (tmp_path / "report.md").read_text()


@pytest.fixture(scope="module")
def people(script, own, data, tmp_path_factory) -> Iterator[Path]:
    """Of two users who click as people do."""
    folder = tmp_path_factory.mktemp("people") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        script.main(arguments(data, folder, model=own, protocol="people", num_draws=2))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield folder


def test_people_have_a_spread(people, finished):
    (numbers,) = numbers_of(people)["results"].values()
    (other,) = numbers_of(finished)["results"].values()
    assert len(numbers["spread"]) == NUM_PROMPTS and min(numbers["spread"]) > 0 and "spread" not in other
    assert (numbers["num_draws"], numbers["num_objects"]) == (2, other["num_objects"])
    assert numbers["mean"] != other["mean"]
    assert "2 user(s)" in (people / "report.md").read_text() and "± over users" in (people / "report.md").read_text()


def test_evaluations_by_different_protocols_are_not_compared(script, people, compared, data, tmp_path):
    with pytest.raises(ValueError, match="evaluated by different protocols: Protocol.name='sam'.*name='people'"):
        script.main(arguments(data, tmp_path, "--compare", compared / "model_2", people))


@pytest.mark.parametrize("protocol", ["box", "ritm"])
def test_one_prompt_of_one_image_is_enough(script, own, data, tmp_path, protocol):
    script.main(arguments(data, tmp_path, model=own, protocol=protocol, num_prompts=1, max_images=1, max_objects=1))
    (numbers,) = numbers_of(tmp_path)["results"].values()
    assert (numbers["num_images"], numbers["num_objects"], len(numbers["mean"])) == (1, 1, 1)
    assert numbers["low"] == numbers["mean"] == numbers["high"] and numbers["clicks"]["drop_rate"] is None
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_everything_is_found_and_counted_again(script, data, tmp_path, capsys):
    model = save_own(tmp_path / "model", 0, pred_iou_thresh=0.5, stability_score_thresh=0.0)
    folder = tmp_path / "run"
    script.main(arguments(data, folder, model=model, protocol=EVERYTHING, max_images=1))
    printed = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"masks.json", "cases.png", "report.md", "numbers.json"}
    told = numbers_of(folder)
    (numbers,) = told["results"].values()
    assert numbers["masks_per_image"] >= 1 and numbers["seconds"] > 0 and 0 <= numbers["image_accuracy"] <= 1
    assert printed == (folder / "report.md").read_text() and "| model | AP50 (mean over images) |" in printed
    assert min(Image.open(folder / "cases.png").size) > 100
    (folder / "numbers.json").unlink()
    script.main(["--from_traces", str(folder), "--protocol", EVERYTHING])
    assert numbers_of(folder) == told
    # Two finished ones, of the same model.
    shutil.copytree(folder, tmp_path / "other")
    script.main(arguments(data, tmp_path / "both", "--compare", folder, tmp_path / "other", protocol=EVERYTHING))
    assert numbers_of(tmp_path / "both")["results"] == {str(folder): numbers, str(tmp_path / "other"): numbers}


def test_everything_by_another_way(script, own, data, tmp_path, capsys):
    model = tiny_model(instance_decoder_config={"hidden_size": 8})
    model.save_pretrained(tmp_path / "model")
    SamHfProcessor.from_config(model.config, seed_thresh=0.0).save_pretrained(tmp_path / "model")
    for given, way in (({}, "instances"), ({"prompts": "watershed"}, "watershed"), ({"prompts": "grid"}, "grid")):
        folder = tmp_path / way
        given |= {"protocol": EVERYTHING, "max_images": 1}
        script.main(arguments(data, folder, model=tmp_path / "model", **given))
        told = numbers_of(folder)
        assert told["settings"]["prompts"] == way and list(told["results"]) == [f"{tmp_path / 'model'} ({way})"]
        script.main(["--from_traces", str(folder), "--protocol", EVERYTHING])
        assert numbers_of(folder) == told
    with pytest.raises(ValueError, match="prompts is 'watershed', but the model has no instance decoder"):
        script.main(arguments(data, tmp_path, model=own, protocol=EVERYTHING, prompts="watershed"))
    with pytest.raises(ValueError, match="--prompts grid is for models of this package, not for a RandomWalker"):
        script.main(arguments(data, tmp_path, model="random_walker", protocol=EVERYTHING, prompts="grid"))


def test_everything_of_a_model_that_finds_nothing(script, data, tmp_path):
    model = save_own(tmp_path / "model", 0, pred_iou_thresh=1.0)
    folder = tmp_path / "run"
    script.main(arguments(data, folder, model=model, protocol=EVERYTHING, max_images=1))
    told = numbers_of(folder)
    (numbers,) = told["results"].values()
    assert numbers["masks_per_image"] == numbers["image_accuracy"] == numbers["panoptic_quality"] == 0
    assert {path.name for path in folder.iterdir()} == {"masks.json", "cases.png", "report.md", "numbers.json"}
    script.main(["--from_traces", str(folder), "--protocol", EVERYTHING])
    assert numbers_of(folder) == told


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {"model": "no/such/model"}, r"'no/such/model' cannot be opened[\s\S]*random_walker: without a model"),
        ([], {}, "got no model, expected one of --model, --compare and --from_traces"),
        (["--compare", "a", "b"], {"model": "c"}, "expected one of --model, --compare and --from_traces"),
        (["--compare", "a"], {}, "--compare a should be two models or folders"),
        (["--compare", "a", "a"], {}, "--compare a a should be two models or folders, not the same"),
        (["--compare", "a", "b", "c"], {}, "should be two"),
        ([], {"model": "OWN", "eval_split": "test"}, "test"),
        ([], {"model": "OWN", "num_draws": 2}, "sam leaves nothing to chance: 2 users would do the same"),
        ([], {"model": "OWN", "num_prompts": 0}, "--num_prompts 0 should be at least 1"),
        ([], {"model": "OWN", "max_image": 3}, "--max_image=3"),
        ([], {"from_traces": "nowhere"}, "--from_traces nowhere holds no traces.parquet"),
        ([], {"from_traces": "nowhere", "protocol": EVERYTHING}, "--from_traces nowhere holds no masks.json"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_work(script, own, data, tmp_path, given, options, message):
    options = {name: own if value == "OWN" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        script.main(arguments(data, tmp_path / "out", *given, **options))
    assert not (tmp_path / "out").exists()


def test_a_predictor_of_ones_own_in_the_current_directory(script, data, tmp_path, monkeypatch, capsys):
    """The one that the documentation shows."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Disc" in block]
    (tmp_path / "discs.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "discs", raising=False)
    script.main(arguments(data, Path("out"), model="discs:Disc"))
    (numbers,) = numbers_of(tmp_path / "out")["results"].values()
    assert numbers["mean"][0] > 0.1 and numbers["calibration"] is None and numbers["object_score"] is None
    assert "| discs:Disc | - | - | - |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Disc has no `find_all`: it finds nothing without prompts"):
        script.main(arguments(data, Path("other"), model="discs:Disc", protocol=EVERYTHING))
    sys.modules.pop("discs")


def test_the_script_runs_although_a_library_has_its_name():
    command = [sys.executable, str(SCRIPT), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    assert all(f"--{name}" in result.stdout for name in ("model", "compare", "from_traces", "protocol", "num_draws"))


def as_one_of_two(rank: int, port: int, log: Path, argv: list[str]) -> None:
    """Run the script, told what launchers tell."""
    with log.open("w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    os.sched_getaffinity = lambda _: {0}
    torch.set_num_threads(1)
    load_example(SCRIPT).main(argv)


def test_two_processes_write_what_one_does(people, own, data, tmp_path):
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["sam_hf.training.batches", "matplotlib.figure"])  # as `tiny_runs` does
    folder = tmp_path / "run"
    argv = arguments(data, folder, model=own, protocol="people", num_draws=2)
    logs = [tmp_path / f"log{rank}.txt" for rank in range(2)]
    pair = [context.Process(target=as_one_of_two, args=(rank, port, log, argv)) for rank, log in enumerate(logs)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(timeout=300)
        process.kill()
    told = [log.read_text() for log in logs]
    assert [process.exitcode for process in pair] == [0, 0], "".join(told)
    assert "| model | IoU after 1 clicks" in told[0] and "| model |" not in told[1]
    one, two = (pq.read_table(path / "traces.parquet").drop_columns(SECONDS) for path in (people, folder))
    assert one.equals(two)
    assert {path.name for path in folder.iterdir()} == FILES
    expected, found = ([*numbers_of(path)["results"].values()][0] | {"seconds": 0} for path in (people, folder))
    assert found == expected
    assert (folder / "cases.png").read_bytes() == (people / "cases.png").read_bytes()
