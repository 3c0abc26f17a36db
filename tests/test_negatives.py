"""Images that are annotated with nothing: no faults, but negatives, which train the object score."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from data_files import HEIGHT, MASKS, WIDTH, picture, write_masks
from PIL import Image
from tiny_models import IMAGE, tiny_config, tiny_model
from torch.utils.data import DataLoader

from sam_hf import BACKGROUND, FOREGROUND, PADDING, SamHfImageProcessor, SamHfProcessor
from sam_hf.data import FaultLog, RecordStream, SoundRecords, objects_from_masks, open_dataset
from sam_hf.data.augmentation import RandomCropScaleFlip
from sam_hf.data.faults import MAX_EMPTY
from sam_hf.data.object_filter import ObjectFilter
from sam_hf.evaluation import SamHfPredictor, evaluate, score_negative
from sam_hf.loss_points import IGNORED
from sam_hf.training import numbered_draws
from sam_hf.training.collator import NO_CLICK, ClickSamplingCollator
from sam_hf.training.interactive import InteractiveTrainer

WITH_SCORE = {"decoder": {"use_object_score": True}}


def record(name: str, is_empty: bool) -> dict:
    return {"image": picture(3), "objects": [] if is_empty else objects_from_masks(MASKS[:2]), "image_id": name}


def records(count: int = 40) -> list[dict]:
    """Four of five are empty."""
    return [record(str(index), is_empty=index % 5 > 0) for index in range(count)]


def drawn(dataset, negatives: float, num_workers: int = 0, start: int = 0, stop: int = 400) -> list[dict]:
    draws, sampler = numbered_draws(dataset, start=start, stop=stop, seed=3, negatives=negatives)
    return list(DataLoader(draws, None, sampler=sampler, num_workers=num_workers))


def collator(**options) -> ClickSamplingCollator:
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": IMAGE}))
    return ClickSamplingCollator(processor, **{"num_corrections": 2, "negatives": True, **options})


@pytest.mark.parametrize("negatives", [0.0, 0.3, 1.0])
def test_a_share_of_the_draws_may_be_negatives_and_none_is_a_fault(negatives):
    found = drawn(records(), negatives)
    assert not any("faults" in item for item in found)
    share = np.mean([not item["objects"] for item in found])
    assert share == pytest.approx(0.8 * negatives, abs=0.06) and (share > 0) == (negatives > 0)
    assert len({item["image_id"] for item in found if item["objects"]}) == 8  # all that show something


def test_data_without_empty_images_is_drawn_as_before():
    dataset = [record(str(index), is_empty=False) for index in range(7)]
    names = [[item["image_id"] for item in drawn(dataset, negatives, stop=30)] for negatives in (0.0, 0.5)]
    assert names[0] == names[1]


def test_neither_workers_nor_a_new_start_change_a_draw():
    expected = [(item["draw"], item["image_id"]) for item in drawn(records(), 0.3, stop=60)]
    for options in ({"num_workers": 2}, {"start": 25}):
        found = [(item["draw"], item["image_id"]) for item in drawn(records(), 0.3, stop=60, **options)]
        assert found == expected[options.get("start", 0) :]


def test_objects_that_a_limit_took_make_a_fault_and_no_negative(tmp_path):
    root = write_masks(tmp_path / "data", 4)
    for name, pixels in (("000", 0), ("001", 3)):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[0, :pixels] = 1
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    sound = SoundRecords(open_dataset(root, None))
    assert sound.read(0, takes_empty=True)["image_id"] == "000"
    assert sound[0]["image_id"] in ("002", "003") and "faults" not in sound[0]
    replaced = sound.read(1, takes_empty=True)
    assert replaced["image_id"] != "001" and "min_area 10 took 1 of 1" in replaced["faults"][0]
    with pytest.raises(ValueError, match="no object to segment: min_area 10 took 1 of 1"):
        ObjectFilter().or_fault(objects_from_masks(mask[None] > 0))
    assert ObjectFilter().or_fault([]) == []


def test_data_of_which_nothing_shows_an_object_says_so():
    with pytest.raises(ValueError, match=f"0 records .* cannot be used, and {MAX_EMPTY} are annotated with no object"):
        SoundRecords([record("a", is_empty=True)])[0]


def test_streams_have_the_same_share_from_any_batch_on():
    shard = [(item["image_id"], lambda item=item: item) for item in records(100)]
    stream = RecordStream([shard], buffer_size=20)

    def names(start: int, stop: int) -> list[tuple[str, bool]]:
        share = iter(stream.share(seed=1, start=start, negatives=0.3))
        return [(item["image_id"], bool(item["objects"])) for item, _ in zip(share, range(stop - start), strict=False)]

    found = names(0, 300)
    assert 1 - np.mean([has_object for _, has_object in found]) == pytest.approx(0.24, abs=0.07)
    assert names(100, 150) == found[100:150]
    assert all(item["objects"] for item, _ in zip(stream.share(seed=1), range(100), strict=False))


@pytest.mark.parametrize("augmentation", [None, RandomCropScaleFlip(IMAGE)])
@pytest.mark.parametrize("box_probability", [0.0, 1.0])
def test_a_negative_has_one_prompt_anywhere_and_no_object(augmentation, box_probability):
    make = collator(box_probability=box_probability, augmentation=augmentation)
    prompts = []
    for draw in range(20):
        batch = make([record("a", is_empty=True) | {"draw": draw}, record("b", is_empty=False) | {"draw": draw}])
        labels, boxes = batch["labels"][0], batch["input_boxes"][0]
        assert set(labels[0].unique().tolist()) <= {0, IGNORED} and (labels[0] == 0).any()
        assert (labels[1:] == IGNORED).all() and (batch["labels"][1] == 1).any()
        prompt = boxes[0] if box_probability else batch["input_points"][0, 0, 0]
        assert batch["input_labels"][0, 0, 0] == (PADDING if box_probability else FOREGROUND)
        assert boxes[0].isfinite().all() == bool(box_probability)
        x, y = prompt[:2].long().tolist()
        assert labels[0, y, x] == 0  # not in the padding
        assert (batch["click_draws"][0] == NO_CLICK).all() and (batch["click_draws"][1] >= 0).all()
        prompts.append(tuple(prompt.tolist()))
    assert len(set(prompts)) > 15
    assert np.ptp(np.array(prompts)[:, 0]) > IMAGE / 2  # from left to right


def test_a_negative_trains_the_object_score_alone():
    torch.manual_seed(0)
    model = tiny_model(**WITH_SCORE).train()
    trainer = InteractiveTrainer(model, center_share=0.5)
    batch = collator(box_probability=0.0)([record("a", is_empty=True)])
    seen = []
    decode = model.decode
    model.decode = lambda image, points, labels, *rest, **given: (
        seen.append(labels) or decode(image, points, labels, *rest, **given)
    )
    output = trainer(**batch)
    assert seen[-1].tolist() == [[[FOREGROUND, PADDING, PADDING]]]
    assert output.loss_dict["object_score"] > 0
    assert not any(output.loss_dict[name] for name in ("focal", "dice", "iou"))
    output.loss.backward()
    assert model.mask_decoder.pred_obj_score_head.proj_out.weight.grad.abs().sum() > 0
    assert not model.mask_decoder.iou_prediction_head.proj_out.weight.grad.any()


def test_the_object_score_learns_to_tell_empty_images():
    torch.manual_seed(0)
    model = tiny_model(**WITH_SCORE).train()
    empty = record("a", is_empty=True) | {"image": np.zeros((HEIGHT, WIDTH, 3), np.uint8)}
    make, optimizer = collator(num_corrections=0), torch.optim.AdamW(model.parameters(), 2e-3)
    for draw in range(60):
        batch = make([empty | {"draw": draw}, record("b", is_empty=False) | {"draw": draw}])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    scores = model(**make([empty | {"draw": 99}, record("b", is_empty=False) | {"draw": 99}])).object_score_logits
    assert scores[0, 0] < 0 < scores[1, 0]


def test_without_the_option_an_empty_image_is_padding():
    batch = collator(negatives=False)([record("a", is_empty=True)])
    assert (batch["labels"] == IGNORED).all() and (batch["input_labels"] == PADDING).all()
    assert BACKGROUND not in batch["input_labels"]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("has_score", [True, False])
def test_a_run_goes_on_where_most_slices_are_empty(tmp_path, train, capsys, has_score):
    root = write_masks(tmp_path / "data", 30)
    for path in sorted((root / "masks").iterdir())[6:]:
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(path)
    rows = [f"{k:03d},{'train' if k % 2 else 'validation'}" for k in range(30)]
    (root / "splits.csv").write_text("\n".join(["id,split", *rows]) + "\n")
    tiny_config(decoder={"use_object_score": has_score}).save_pretrained(tmp_path / "model")
    options = {"dataset": root, "model": tmp_path / "model", "output_dir": tmp_path / "run", "max_steps": 4}
    options |= {"batch_size": 4, "num_workers": 0, "log_every": 1, "negatives": 0.5, "num_corrections": 1}
    train.main([f"--{name}={value}" for name, value in options.items()])
    said = "images without objects are left out: the model has no object score" in capsys.readouterr().out
    assert said == (not has_score)
    lines = [json.loads(line) for line in Path(tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "train/loss" in line]) == 4


def test_an_evaluation_tells_how_many_images_without_objects_are_rejected(monkeypatch):

    model = tiny_model(**WITH_SCORE)
    processor = SamHfProcessor.from_config(model.config)
    monkeypatch.setattr(
        "sam_hf.evaluation.processes.score_negative",
        lambda predictor, record, stretch: float(record["image_id"]) - 4.0,
    )
    summary = evaluate(SamHfPredictor(model, processor), records(10), FaultLog(), accelerator=Accelerator(cpu=True))
    metrics = summary.metrics()
    # 1 to 4 and 6 to 9 are empty; 1 to 4 have a score of at most 0.
    assert (metrics["num_images"], metrics["num_negatives"], metrics["negatives_rejected"]) == (2, 8, 0.5)


def test_the_score_of_a_negative_is_that_of_a_click_and_none_without_its_head():
    model = tiny_model(**WITH_SCORE)
    processor = SamHfProcessor.from_config(model.config)
    predictor = SamHfPredictor(model, processor)
    score = score_negative(predictor, record("a", is_empty=True))
    assert score == score_negative(predictor, record("a", is_empty=True)) != 0
    assert score != score_negative(predictor, record("b", is_empty=True))
    assert score_negative(SamHfPredictor(tiny_model(), processor), record("a", is_empty=True)) is None


def test_a_negative_is_answered_well_where_the_model_says_that_nothing_is_there():
    batch = collator(num_corrections=0)([record("a", is_empty=True) | {"draw": 0}])
    batch.pop("num_objects", None)
    model = tiny_model(**WITH_SCORE).train()
    for bias, iou in ((-100.0, 1.0), (100.0, 0.0)):
        torch.nn.init.constant_(list(model.mask_decoder.pred_obj_score_head.parameters())[-1], bias)
        assert InteractiveTrainer(model)(**batch).iou_per_click.tolist() == [iou]
