"""What a file of traces tells again, and what it refuses."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sam_hf.data.schema import objects_from_masks
from sam_hf.evaluation import (
    PROTOCOLS,
    TRACES,
    ClickSummary,
    ClickTrace,
    Prediction,
    Prompts,
    evaluation_numbers,
    load_traces,
    save_traces,
    summarise_clicks,
    trace_image,
)

SIZES = (24, 36), (30, 20)


class RandomPredictor:
    """Answers, scores and object scores of a generator; NaN, and no object scores, if it `rates` nothing."""

    stretch_contrast = False

    def __init__(self, rates: bool = True):
        self.rates, self.rng = rates, np.random.default_rng(0)

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]

    def predict(self, prompts: Prompts) -> Prediction:
        count = len(prompts.labels)
        shape = (count, 3 if self.rates else 1)
        masks = torch.from_numpy(self.rng.random((*shape, *self.size)) < 0.4)
        if not self.rates:
            return Prediction(masks, torch.full(shape, torch.nan))
        scores, found = (torch.from_numpy(self.rng.random(size)).float() for size in (shape, count))
        return Prediction(masks, scores, object_scores=10 * found - 5)


def make_record(image_id: str, num_objects: int, size: tuple[int, int], with_crowd: bool) -> dict[str, Any]:
    masks = np.zeros((num_objects + with_crowd, *size), dtype=bool)
    for place, mask in enumerate(masks):
        mask[3 + 2 * place : 14 + place, 2 + 3 * place : 12 + 2 * place] = True
    objects = objects_from_masks(masks)
    if with_crowd:
        objects[-1]["iscrowd"] = 1
    return {"image": np.zeros((*size, 3), dtype=np.uint8), "objects": objects, "image_id": image_id}


def evaluated(protocol: str, rates: bool = True, prompts: int = 3) -> ClickSummary:
    """Two images of one name beside one another, and a third, one of them with a region to ignore."""
    records = [
        make_record("same", 2, SIZES[0], with_crowd=False),
        make_record("same", 1, SIZES[0], with_crowd=True),
        make_record("ä/b.png", 3, SIZES[1], with_crowd=False),
    ]
    predictor, user = RandomPredictor(rates), PROTOCOLS[protocol].shortened(prompts)
    traces = [trace for record in records for trace in trace_image(predictor, record, user)]
    for place, trace in enumerate(traces):
        trace.index = 7 * place if protocol != "sam" else None
    return summarise_clicks(traces, [-1.5, 0.1] if rates else [])


def assert_same(found: ClickSummary, expected: ClickSummary) -> None:
    assert len(found.traces) == len(expected.traces)
    for one, other in zip(found.traces, expected.traces, strict=True):
        for field in fields(ClickTrace):
            value, wanted = getattr(one, field.name), getattr(other, field.name)
            if field.name == "image":
                assert value is None
            elif isinstance(wanted, np.ndarray):
                assert value.dtype == wanted.dtype, field.name
                np.testing.assert_array_equal(value, wanted, err_msg=field.name)
            else:
                assert value == wanted, field.name
    np.testing.assert_array_equal(found.negatives, expected.negatives)
    assert (found.num_images, found.score) == (expected.num_images, expected.score)


@pytest.mark.parametrize("rates", [True, False], ids=["rated", "unrated"])
@pytest.mark.parametrize("protocol", ["sam", "noisy_box", "people"])
def test_traces_come_back_as_they_were_and_so_do_all_numbers(tmp_path, protocol, rates):
    summary = evaluated(protocol, rates)
    about = {"model": "mine", "max_images": None, "nested": {"numbers": [1, 2.5]}}
    save_traces(tmp_path / TRACES, summary, about)
    found, kept = load_traces(tmp_path / TRACES)
    assert kept == about
    assert_same(found, summary)
    user = PROTOCOLS[protocol].shortened(3)
    numbers = evaluation_numbers(found, user)
    assert json.dumps(numbers) == json.dumps(evaluation_numbers(summary, user))  # NaN is NaN there
    assert (numbers["calibration"] is None) == (numbers["object_score"] is None) == (not rates)
    assert found.metrics() == summary.metrics() and found.table() == summary.table()


def test_a_box_without_clicks_comes_back(tmp_path):
    summary = evaluated("box", prompts=1)
    assert summary.traces[0].points.shape == (2, 0, 2)
    save_traces(tmp_path / TRACES, summary, {})
    assert_same(load_traces(tmp_path / TRACES)[0], summary)


def test_what_was_loaded_is_saved_again_to_the_same_rows(tmp_path):
    save_traces(tmp_path / "one", evaluated("noisy_box"), {"model": "mine"})
    save_traces(tmp_path / "two", *load_traces(tmp_path / "one"))
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "two"), check_metadata=True)


def test_a_row_is_an_object_of_a_user(tmp_path):
    summary = evaluated("people")
    save_traces(tmp_path / TRACES, summary, {})
    rows = pq.read_table(tmp_path / TRACES).to_pylist()
    assert len(rows) == len(summary.iou) == 5 * (2 + 1 + 3)
    assert [row["draw"] for row in rows[:10]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {tuple(row["size"]) for row in rows} == set(SIZES)


def changed(path: Path, column: str, change: Any) -> None:
    """With the values of a column changed in the last row, and those of regions to ignore in all."""
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    first = 0 if column == "ignored" else len(values) - 1
    values[first:] = [change(value) for value in values[first:]]
    place = table.column_names.index(column)
    array = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(place, table.schema.field(column), array), path)


OTHER_MASK = objects_from_masks(np.eye(*SIZES[1], dtype=bool)[None])[0]["segmentation"]["counts"]


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("iou", lambda values: [*values[:-1], values[-1] + 0.01]),
        ("iou", lambda values: [float("nan"), *values[1:]]),
        ("object", lambda counts: OTHER_MASK),
        ("answers", lambda answers: [OTHER_MASK, *answers[1:]]),
        ("answers", lambda answers: [answers[1], answers[0], *answers[2:]]),
    ],
)
def test_an_iou_that_is_not_that_of_the_masks_is_refused(tmp_path, column, change):
    path = tmp_path / TRACES
    save_traces(path, evaluated("sam"), {})
    changed(path, "image_id", lambda name: name)
    load_traces(path)
    changed(path, column, change)
    with pytest.raises(ValueError, match="the IoU of 'ä/b.png' is not that of its masks"):
        load_traces(path)


@pytest.mark.parametrize("counts", ["", "~~~~", "PPPPPPPPPPPP", "1"])
@pytest.mark.parametrize("column", ["object", "answers", "ignored"])
def test_a_mask_that_is_none_is_refused(tmp_path, column, counts):
    path = tmp_path / TRACES
    save_traces(path, evaluated("sam"), {})
    changed(path, column, lambda value: [counts, *value[1:]] if column == "answers" else counts)
    with pytest.raises(ValueError, match="has a mask that is none"):
        load_traces(path)


def test_what_is_no_file_of_traces_is_refused(tmp_path):
    path = tmp_path / TRACES
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_traces(path)
    path.write_text("no Parquet at all")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_traces(path)
    pq.write_table(pa.table({"image": ["a"]}), path)
    with pytest.raises(ValueError, match=r"holds no traces: its columns are \['image'\]"):
        load_traces(path)
    save_traces(path, evaluated("sam"), {})
    pq.write_table(pq.read_table(path).drop_columns(["labels"]), path)
    with pytest.raises(ValueError, match="holds no traces"):
        load_traces(path)
    save_traces(path, evaluated("sam"), {})
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match="holds no traces"):
        load_traces(path)
