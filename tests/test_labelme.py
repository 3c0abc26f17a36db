"""Shapes of labelme and of tools that write its form: holes, all kinds, and what is wrong or has no area."""

import json

import numpy as np
import pytest
from data_files import BOXES, MASKS, mask_of, shape, write_labelme

from sam_hf.data import check_record, decode_masks, open_dataset
from sam_hf.data.check import check_dataset

SQUARE, HOLE = (10, 5, 40, 35), (20, 10, 30, 20)


def corners(box: tuple[int, int, int, int]) -> list[list[int]]:
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def read(root, *shapes: dict):
    dataset = open_dataset(write_labelme(root / "data", 1, list(shapes)), None, min_area=0)
    record = dataset[0]
    check_record(record)
    return dataset, decode_masks(record["objects"])


def test_background_cuts_holes_into_what_lies_before(tmp_path):
    before, hole = shape("polygon", corners(SQUARE)), shape("polygon", corners(HOLE), "_background_")
    after = shape("rectangle", [[22, 12], [26, 16]], "inside")
    ignored = shape("polygon", corners(SQUARE), "__ignore__")
    dataset, masks = read(tmp_path, before, ignored, hole, after)
    ring = mask_of(SQUARE) & ~mask_of(HOLE)
    assert np.array_equal(masks, [ring, ring, mask_of((22, 12, 26, 16))])
    assert [item["iscrowd"] for item in dataset[0]["objects"]] == [0, 1, 0]


def test_a_group_may_be_drawn_on_over_a_hole(tmp_path):
    parts = [shape("polygon", corners(box), group_id=1) for box in (SQUARE, (24, 12, 26, 14))]
    _, masks = read(tmp_path, parts[0], shape("rectangle", [[20, 10], [30, 20]], "_background_"), parts[1])
    assert np.array_equal(masks, [mask_of(SQUARE) & ~mask_of(HOLE) | mask_of((24, 12, 26, 14))])


@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle", "polygon"])
def test_kinds_of_other_tools_are_polygons(tmp_path, kind):
    _, masks = read(tmp_path, shape(kind, corners(SQUARE)), shape("rectangle", corners(HOLE)))
    assert np.array_equal(masks, [mask_of(SQUARE), mask_of(HOLE)])


def test_ellipses_by_two_corners_and_by_axes_are_the_same(tmp_path):
    points = [[10, 10], [50, 30]], [[30, 20], [50, 20], [30, 30]], [[30, 20], [30, 30], [50, 20]]
    _, masks = read(tmp_path, *(shape("ellipse", item) for item in points))
    assert np.array_equal(masks[0], masks[1]) and (masks[0] != masks[2]).sum() < 8
    assert masks[0].sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)
    assert np.flatnonzero(masks[0].any(axis=0)).tolist() == [*range(10, 50)]


def test_a_bad_shape_costs_itself_and_is_named(tmp_path):
    wrong = [
        shape("circle", [[5, 5]]),
        shape("rectangle", []),
        shape("rectangle", [[5, 5], [5, 9]]),
        shape("polygon", [[1, 1], [2, 2]]),
        shape("polygon", [[1, 1], [2, 2], [3, None]]),
        shape("polygon", [[1, 1], [2, 2], [3, 1e12]]),
        shape("mask", [[0, 0], [59, 2]], mask="no picture"),
        {"shape_type": "polygon"},
        None,
    ]
    without_area = [shape(kind, [[5, 5], [9, 9]]) for kind in ("line", "linestrip", "point", "spline")]
    with pytest.warns(UserWarning, match=r"passed over beside 1 object.s.: 9 shape.s. are malformed"):
        dataset, masks = read(tmp_path, *wrong, *without_area, shape("polygon", corners(BOXES[0])))
    assert np.array_equal(masks, MASKS[:1])
    assert {what: len(names) for what, names in dataset.passed_over.items()} == {
        "shape(s) are malformed": 9,
        "shape(s) are a line, which has no area": 1,
        "shape(s) are a linestrip, which has no area": 1,
        "shape(s) are a point, which has no area": 1,
        "shape(s) are of an unknown kind, spline": 1,
    }
    assert dataset.passed_over["shape(s) are malformed"][1].startswith("0.json, shape 1: ")
    assert check_dataset(dataset, [0]).warnings == dataset.passed_over


@pytest.mark.parametrize(("height", "width"), [(None, None), (0, 0), ("x", 5), (1e400, 5), ([], {})])
def test_sizes_that_are_none_come_from_the_image(tmp_path, height, width):
    root = write_labelme(tmp_path / "data", 1, [shape("polygon", corners(BOXES[0]))], imageHeight=height)
    content = json.loads((root / "0.json").read_text()) | {"imageWidth": width}
    (root / "0.json").write_text(json.dumps(content))
    assert np.array_equal(decode_masks(open_dataset(root, None)[0]["objects"]), MASKS[:1])


def test_files_that_are_none_of_labelme_are_named(tmp_path):
    root = write_labelme(tmp_path / "data", 1, [shape("polygon", corners(BOXES[0]))])
    content = json.loads((root / "0.json").read_text())
    (root / "deep.json").write_text("[" * 100_000)
    (root / "long.json").write_text(json.dumps(content | {"imagePath": "x" * 5000}))
    (root / "folder.json").mkdir()
    dataset = open_dataset(root, None, strict=False)
    assert dataset.ids == ["0"] and [*dataset.problems.values()] == [["deep.json", "long.json"]]
