"""What a run from trained weights was able to do before its first step, and the thresholds that it ends with."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from test_evaluate_script import write_scenes
from tiny_models import unpack_trained_model
from tiny_runs import arguments
from transformers import AutoModel, AutoProcessor

from sam_hf import SamHfModel, SamHfProcessor
from sam_hf.data import open_dataset
from sam_hf.evaluation import fit_thresholds, simulate_clicks, summarise_clicks
from sam_hf.training import TrainingProgress
from sam_hf.training import run as run_file

pytestmark = pytest.mark.usefixtures("on_cpu")

NUM_IMAGES = 3
OPTIONS = {
    "max_steps": 2,
    "warmup_steps": 0,
    "eval_every": 1,
    "eval_images": 1,
    "final_eval_images": 2,
    "learning_rate": 1e-4,
    "gradient_accumulation_steps": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return unpack_trained_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", NUM_IMAGES, 2)


def watched_run(train: Any, argv: list[str]) -> SimpleNamespace:
    """What a run has when it makes its first step, and the models that it fits thresholds of, by a coarse grid."""
    seen = SimpleNamespace(start=None, fitted=[])
    update = TrainingProgress.update

    def noted(progress: TrainingProgress, step: int, *values: Any) -> None:
        if step == 1:
            (output,) = (given.split("=")[1] for given in argv if given.startswith("--output_dir"))
            start = Path(output) / run_file.START
            seen.start = start.read_text() if start.exists() else None
        update(progress, step, *values)

    def fit(model: SamHfModel, *given: Any, **options: Any) -> Any:
        seen.fitted.append({name: value.clone() for name, value in model.state_dict().items()})
        return partial(fit_thresholds, points_per_side=6)(model, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(TrainingProgress, "update", noted)
        patch.setattr(run_file, "fit_thresholds", fit)
        train.main(argv)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return seen


@pytest.fixture(scope="module")
def fine_tuned(train, trained, data, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A run from trained weights: its `folder`, and what `watched_run` saw."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    seen = watched_run(train, arguments(trained, folder, dataset=data, threshold_images=1, **OPTIONS))
    seen.folder = folder
    yield seen


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def cells(card: str, name: str) -> list[float]:
    (row,) = re.findall(rf"^\| {name} \| (.*) \|$", card, re.MULTILINE)
    return [float(cell) for cell in row.split(" | ")]


def test_trained_weights_are_evaluated_before_the_first_step(fine_tuned, trained, data):
    written = (fine_tuned.folder / run_file.START).read_text()
    assert fine_tuned.start == written
    start = json.loads(written)
    records = open_dataset(data, "validation")
    # Of three images the last evaluation takes the first and the third.
    clicks = simulate_clicks(
        SamHfModel.from_pretrained(trained).eval(),
        AutoProcessor.from_pretrained(fine_tuned.folder / "last"),
        [records[0], records[2]],
    )
    expected = summarise_clicks(clicks)
    assert start.keys() == expected.metrics().keys()
    assert start["iou_per_click"] == pytest.approx(expected.iou_per_click, abs=1e-4)
    assert (start["num_images"], start["num_objects"]) == (2, len(expected.iou))


def test_card_and_metrics_say_what_was_gained(fine_tuned):
    best = fine_tuned.folder / "best"
    before, metrics = json.loads(fine_tuned.start)["iou_per_click"], metrics_of(best)
    assert metrics["iou_per_click_before"] == before and metrics["num_images"] == 2
    card = (best / "README.md").read_text()
    assert cells(card, "mean IoU") == [round(value, 3) for value in metrics["iou_per_click"]]
    assert cells(card, "before training") == [round(value, 3) for value in before]
    gain = [after - value for after, value in zip(metrics["iou_per_click"], before, strict=True)]
    assert cells(card, "gain") == [pytest.approx(value, abs=5.01e-4) for value in gain] and any(gain)
    assert re.search(r"^\| gain \| [+-]", card, re.MULTILINE)


def test_numbers_of_other_images_are_no_gain(fine_tuned):
    """The evaluations on the way are of one image."""
    last = fine_tuned.folder / "last"
    assert "iou_per_click_before" not in metrics_of(last) and metrics_of(last)["num_images"] == 1
    assert "before training" not in (last / "README.md").read_text()
    assert "automatic_masks" not in metrics_of(last) and "Automatic masks" not in (last / "README.md").read_text()


def test_fitted_thresholds_are_saved_and_told(fine_tuned):
    best = fine_tuned.folder / "best"
    told = metrics_of(best)["automatic_masks"]
    assert told["num_images"] == 1 and len(fine_tuned.fitted) == 1
    image_processor = SamHfProcessor.from_pretrained(best).image_processor
    for name in ("pred_iou_thresh", "stability_score_thresh"):
        assert getattr(image_processor, name) == told[name], name
    card = " ".join((best / "README.md").read_text().split())
    assert "Automatic masks (`MaskGenerator`) of 1 validation images" in card
    assert f"predicted IoU {told['pred_iou_thresh']}, stability {told['stability_score_thresh']}" in card
    assert f"mean accuracy (mSA) of {told['accuracy']:.3f}, {told['num_masks']:.0f} masks an image" in card


def test_a_temperature_changes_scores_alone(fine_tuned):
    model = AutoModel.from_pretrained(fine_tuned.folder / "best").eval()
    temperature = metrics_of(fine_tuned.folder / "best")["automatic_masks"]["iou_temperature"]
    assert temperature != 1, "nothing was fitted: this test shows nothing"
    before, after = fine_tuned.fitted[0], model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed
    assert all(name.startswith("mask_decoder.iou_prediction_head.proj_out") for name in changed)
    former = AutoModel.from_pretrained(fine_tuned.folder / "best").eval()
    former.load_state_dict(before)
    side = model.config.image_size
    inputs: dict[str, Any] = {
        "pixel_values": torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)),
        "input_points": torch.tensor([[[[side / 2, side / 2]], [[9.0, 12.0]]]]),
        "input_labels": torch.ones(1, 2, 1, dtype=torch.long),
    }
    with torch.no_grad():
        one, two = former(**inputs), model(**inputs)
    assert torch.equal(one.pred_masks, two.pred_masks) and not torch.equal(one.iou_scores, two.iou_scores)
    assert torch.equal(one.iou_scores.argsort(dim=-1), two.iou_scores.argsort(dim=-1))


def test_a_run_that_is_finished_again_keeps_all_of_it(train, fine_tuned):
    folder = fine_tuned.folder
    files = {
        name: (folder / name).read_bytes()
        for name in (run_file.START, "best/model.safetensors", "best/processor_config.json", "best/metrics.json")
        if (folder / name).exists()
    }
    assert len(files) == 4
    seen = watched_run(train, [str(folder / "options.yaml"), "--resume", f"--output_dir={folder}"])
    assert not seen.fitted
    for name, content in files.items():
        assert (folder / name).read_bytes() == content, name
    card = (folder / "best" / "README.md").read_text()
    assert "| before training |" in card and "Automatic masks (`MaskGenerator`)" in card


def test_random_weights_have_no_numbers_before_and_remove_those_of_another_run(train, untrained, data, tmp_path):
    (tmp_path / run_file.START).write_text("{}")
    seen = watched_run(train, arguments(untrained, tmp_path, dataset=data, **OPTIONS | {"max_steps": 1}))
    assert seen.start is None and not (tmp_path / run_file.START).exists() and not seen.fitted
    metrics, card = metrics_of(tmp_path / "best"), (tmp_path / "best" / "README.md").read_text()
    assert "iou_per_click_before" not in metrics and "automatic_masks" not in metrics
    assert "before training" not in card and "Automatic masks (" not in card


def test_a_damaged_validation_image_is_passed_over(train, trained, tmp_path, caplog):
    data = write_scenes(tmp_path / "data", NUM_IMAGES, 2)
    damaged = data / "images" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    options = {**OPTIONS, "max_steps": 1, "final_eval_images": NUM_IMAGES, "eval_images": 1}
    watched_run(train, arguments(trained, tmp_path / "run", dataset=data, threshold_images=2, **options))
    metrics = metrics_of(tmp_path / "run" / "best")
    assert metrics["num_images"] == 2 and metrics["automatic_masks"]["num_images"] == 2
    assert json.loads((tmp_path / "run" / run_file.START).read_text())["num_images"] == 2
    assert len(metrics["iou_per_click_before"]) == 5
    assert [record for record in caplog.records if "left out" in record.getMessage() and "001" in record.getMessage()]
