"""`python -m sam_hf.data`: what check reports, that converted data is the same data, and speed."""

import json
import re

import numpy as np
import pytest
from data_files import (
    BOXES,
    HEIGHT,
    WIDTH,
    coco_content,
    polygon,
    write_coco,
    write_labelme,
    write_masks,
    write_parquet,
    write_sa1b,
    write_tars,
)
from PIL import Image
from test_faults import spoil

from sam_hf.data import open_dataset, stream_dataset
from sam_hf.data.__main__ import main

pytestmark = pytest.mark.usefixtures("no_common_cache")


def test_check_counts_and_draws(tmp_path, capsys):
    root, picture_file = write_coco(tmp_path / "data", 30), tmp_path / "samples.png"
    assert main(["check", str(root), "--picture", str(picture_file), "--samples", "5"]) == 0
    text = capsys.readouterr().out
    train, validation = (len(open_dataset(root, split)) for split in ("train", "validation"))
    for count in (train, validation):
        assert f"images   {count} sound, {HEIGHT} to {HEIGHT} (median {HEIGHT}) high, {WIDTH} to {WIDTH}" in text
        assert f"objects  {2 * count}, 2 to 2 (median 2) per image, 180 to 520 (median 350) pixels each" in text
        assert f"0 would be dropped by the default filter, {count} regions to ignore" in text
    sheet = np.asarray(Image.open(picture_file))
    assert sheet.shape == (2 * 338, 4 * 324, 3)  # four cells in the first of two rows
    record = open_dataset(root, "train", min_area=0)[0]
    shown = np.asarray(record["image"].resize((320, 213), Image.Resampling.BILINEAR))
    inside_crowd = np.s_[125:185, 165:260]
    assert np.abs(sheet[inside_crowd] - (0.6 * shown[inside_crowd] + 0.4 * 128)).max() <= 2


def test_check_names_what_cannot_be_used_and_warns_of_the_rest(tmp_path, capsys):
    root = write_masks(tmp_path / "data", 20)
    expected = spoil(root)
    assert main(["check", str(root), "--picture", str(tmp_path / "a.png")]) == 1
    text = capsys.readouterr().out
    for what in ("belong to no file in images/", "differ from their image", "cannot be read"):
        assert what in text
    assert "1 would be dropped by the default filter" in text  # the spot that is all of 003
    errors, warnings = (
        re.findall(r"ERROR: .*?(?=\n\w|\Z)", text, re.S),
        re.findall(r"warning: .*?(?=\n\w|\Z)", text, re.S),
    )
    for name in expected.keys() - {"003"}:
        assert any(re.search(rf"\b{name}\b", item) for item in errors), name
    assert any("CMYK" in item and "008 (60 x 40)" in item for item in warnings)
    assert any("side above 10000" in item and "009 (20000 x 50)" in item for item in warnings)


def test_check_warns_of_identical_and_empty_masks(tmp_path, capsys):
    root = write_coco(tmp_path / "data", 1)
    content = coco_content(["0.png"])
    content["annotations"] = [
        {"id": k, "image_id": 7, "segmentation": form} for k, form in enumerate([[polygon(BOXES[0])]] * 3 + [[]])
    ]
    (root / "labels.json").write_text(json.dumps(content))
    assert main(["check", str(root), "--picture", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert "1 image(s) have identical masks\n    0 (60 x 40): 2" in text
    assert "1 image(s) have empty masks\n    0 (60 x 40): 1" in text


@pytest.mark.parametrize(
    ("image_size", "sides", "told"),
    [
        # Cells of 2000 / 64 = 31 pixels: four are 125. Nine of ten objects are at least 20 wide: 20 * 64 / 4.
        (256, [10] + [20] * 3 + [130] * 7, "4 of 11 objects would be less than 4 cells.*256 pixels.*--tile_size 320"),
        (1024, [10] + [20] * 3 + [130] * 7, "4 of 11 objects.*1024 pixels: train with --tile_size 1280"),
        (1024, [40] * 9, None),  # four cells are 31 pixels
        (256, [50] + [130] * 10, None),  # few
    ],
)
def test_check_names_a_tile_size_for_many_small_objects(tmp_path, capsys, image_size, sides, told):
    masks = np.zeros((len(sides), 1000, 2000), np.uint8)
    for index, side in enumerate(sides):
        masks[index, 5 : 5 + side, 150 * index + 5 : 150 * index + 5 + side] = 1
    labels = (masks * np.arange(1, len(sides) + 1, dtype=np.uint8)[:, None, None]).max(0)
    for folder, content in (("images", np.zeros((1000, 2000, 3), np.uint8)), ("masks", labels)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / "data" / folder / "a.png")
    given = ["--picture", str(tmp_path / "a.png"), "--split", "train", "--image_size", str(image_size)]
    assert main(["check", str(tmp_path / "data"), *given]) == 0
    text = capsys.readouterr().out
    assert bool(told) == ("--tile_size" in text)
    assert told is None or re.search(f"warning: {told}", text, re.S)


def test_what_cannot_be_opened_is_said_and_gives_status_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent")]) == 2
    assert main(["check", str(write_coco(tmp_path / "data")), "--mask_column", "labels"]) == 2
    errors = capsys.readouterr().err
    assert "no such folder or file" in errors and "mask_column" in errors


@pytest.mark.parametrize("write", [write_coco, write_sa1b, write_tars, write_labelme, write_parquet, write_masks])
def test_converted_data_is_the_same_data(tmp_path, capsys, write):
    root, out = write(tmp_path / "data", 30), tmp_path / "out"
    assert main(["convert", str(root), str(out), "--records_per_shard", "10"]) == 0
    files = sorted(path.name for path in out.iterdir())
    assert files == [*(f"train-0000{k}.parquet" for k in range(3)), "validation-00000.parquet"]
    for split in ("train", "validation"):
        for options in ({}, {"min_area": 200, "split_regions": True}):
            before, after = open_dataset(root, split, **options), open_dataset(out, split, **options)
            assert before.ids == after.ids
            for one, other in zip(before, after, strict=True):
                assert one["objects"] == other["objects"]
                assert np.array_equal(one["image"], other["image"])
        assert before.image_source(0).content == after.image_source(0).content
    assert len(stream_dataset(out, "train").shards) == 3
    assert stream_dataset(out, "train").first(1)[0]["objects"] == open_dataset(out, "train")[0]["objects"]
    assert main(["convert", str(root), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_convert_leaves_out_what_cannot_be_used_and_when_stopped_leaves_nothing(tmp_path, capsys, monkeypatch):
    root = write_masks(tmp_path / "data", 20)
    spoil(root)
    assert main(["convert", str(root), str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    names = set(open_dataset(tmp_path / "out", None, min_area=0).ids)
    assert names.isdisjoint({"000", "001", "002", "004", "005", "006", "007"}) and {"008", "009"} & names
    assert "9 of train, 4 of validation" in output.out and len(names) == 13
    for name in ("000", "006", "004", "005"):
        assert name in output.err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sam_hf.data.parquet.check_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["convert", str(root), str(tmp_path / "cut")])
    assert not (tmp_path / "cut").exists()


def test_scenes_can_be_converted(tmp_path):
    assert main(["convert", "scenes", str(tmp_path / "out"), "--split", "validation", "--limit", "2"]) == 0
    before, after = open_dataset("scenes", "validation")[0], open_dataset(tmp_path / "out", "validation")[0]
    assert np.array_equal(before["image"], after["image"]) and before["objects"] == after["objects"]


def test_speed_counts_images_and_objects(tmp_path, capsys, monkeypatch):
    root = write_masks(tmp_path / "data", 8)
    command = ["speed", str(root), "--image_size", "64", "--num_workers", "0", "--batches", "5", "--split", "train"]
    clock = iter((10.0, 12.0))
    monkeypatch.setattr("sam_hf.training.loading_speed.time.perf_counter", lambda: next(clock))
    assert main([*command, "--max_objects", "1"]) == 0
    workers, images, objects = map(float, capsys.readouterr().out.splitlines()[-1].split())
    # 5 batches of 4 images with one object each, in 2 seconds.
    assert (workers, images) == (0, 10) and objects == 10


@pytest.mark.parametrize("name", ["coco_rle_panoptic", "coco_polygons_voc3", "labelme_json"])
def test_real_samples_are_sound_and_convert(shared_data, tmp_path, name):
    root, out = str(shared_data / "format_samples" / name), str(tmp_path / "out")
    assert main(["check", root, "--picture", str(tmp_path / "a.png")]) == 0
    assert main(["convert", root, out]) == 0
    before, after = open_dataset(root, None), open_dataset(out, None)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one["objects"] == other["objects"] and np.array_equal(one["image"], other["image"])
