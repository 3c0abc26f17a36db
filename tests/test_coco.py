"""COCO files of other people that are wrong in their own ways."""

import json

import pytest
from data_files import coco_content, picture

from sam_hf.data import open_dataset


def read(root, spoil):
    content = coco_content(["a.png", "b.png"])
    spoil(content)
    for name in "ab":
        picture(0).save(root / f"{name}.png")
    (root / "labels.json").write_text(json.dumps(content))
    return open_dataset(root, None, strict=False)


@pytest.mark.parametrize("entry", [None, 5, [], {"id": [1], "file_name": "a.png"}, {"id": {}, "file_name": "a.png"}])
def test_entries_of_images_that_are_none_are_said(tmp_path, entry):
    with pytest.raises(ValueError, match=r"labels.json: 1 image.s. lack id, or file_name"):
        read(tmp_path, lambda content: content["images"].append(entry))


@pytest.mark.parametrize("number", [[7], {}, None])
def test_an_annotation_of_no_image_costs_itself(tmp_path, number):
    dataset = read(tmp_path, lambda content: content["annotations"][0].update(image_id=number))
    assert [len(record["objects"]) for record in dataset] == [2, 3]
    assert dataset.problems == {"annotation(s) belong to no image": ["700"]}


@pytest.mark.parametrize("side", ["high", [], float("inf"), -5])
def test_sizes_that_are_no_numbers_come_from_the_image(tmp_path, side):
    assert len(read(tmp_path, lambda content: content["images"][0].update(height=side))[0]["objects"]) == 3


def test_a_claim_of_many_pixels_is_refused_before_memory_is_taken(tmp_path):
    def spoil(content):
        content["images"][0].update(height=10**5, width=10**5)
        content["annotations"][0]["segmentation"] = {"size": [10**5, 10**5], "counts": [10**10]}

    dataset = read(tmp_path, spoil)
    with pytest.raises(ValueError, match=r"record 'a': .*\[100000, 100000\] is expected to have 1 to"):
        dataset[0]
    assert len(dataset[1]["objects"]) == 3


def test_a_file_nested_without_end_is_named(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text('{"images": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"labels.json is no JSON: maximum recursion depth"):
        open_dataset(tmp_path / "labels.json", None)
