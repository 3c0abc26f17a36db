"""Train and validation: disjoint for every format and name of files, of small sets too, and checked."""

import json
import warnings

import datasets
import numpy as np
import pytest
from data_files import (
    coco_content,
    mask_table,
    picture,
    write_coco,
    write_labelme,
    write_masks,
    write_parquet,
    write_sa1b,
    write_saved,
    write_tars,
)
from PIL import Image

from sam_hf.data import open_dataset
from sam_hf.data.__main__ import main
from sam_hf.data.named_splits import select_named_split
from sam_hf.data.overlap import shared_images
from sam_hf.data.splits import is_in_split, select_split
from sam_hf.training import Options

pytestmark = pytest.mark.usefixtures("no_common_cache")

WORDS = ["instances", "train", "training", "val", "valid", "validation", "trainval", "constrained", "medieval", "all"]
FORMATS = [write_coco, write_labelme, write_masks, write_parquet, write_sa1b, write_saved, write_tars]


def both(source) -> tuple:
    return tuple(open_dataset(source, split, strict=False) for split in ("train", "validation"))


def file_names(count: int, seed: int = 0) -> list[str]:
    """Names of COCO files of one to three words with any separator."""
    rng = np.random.default_rng(seed)
    drawn = ([str(rng.choice(WORDS)) for _ in range(rng.integers(1, 4))] for _ in range(count))
    return [str(rng.choice(["_", "-", ".", " ", ""])).join(words) + str(rng.choice(["", "2017"])) for words in drawn]


@pytest.mark.parametrize("name", [*WORDS, "my_training_data", "Instances_Train2017", *file_names(20)])
def test_one_coco_file_of_any_name_is_never_both(tmp_path, name):
    root = write_coco(tmp_path / "data", 30)
    (root / "labels.json").rename(root / f"{name}.json")
    validation = open_dataset(root, "validation")
    try:
        train = open_dataset(root, "train")
    except ValueError as error:  # one for validation alone is none for training
        assert "0 of them for split 'train'" in str(error) and len(validation) == 30 and "val" in name
    else:
        assert sorted(train.ids + validation.ids) == open_dataset(root, None).ids
        assert all(is_in_split(name, "validation") for name in validation.ids)


@pytest.mark.parametrize(
    "names", [("trainval", "test"), ("minitrain2017", "minival2017"), ("lvis_v1_train", "lvis_v1_val")]
)
def test_several_coco_files_are_told_by_words(tmp_path, names):
    for number, name in enumerate(names):
        ids = [f"{number}_{k}.png" for k in range(20)]
        for k, file in enumerate(ids):
            picture(k).save(tmp_path / file)
        (tmp_path / f"{name}.json").write_text(json.dumps(coco_content(ids)))
    train, validation = both(tmp_path)
    assert not {*train.ids} & {*validation.ids} and len(train) >= len(validation) > 0
    assert names != ("trainval", "test") or len(open_dataset(tmp_path, "test")) == 20


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("count", [1, 2, 5, 12, 30])
def test_sets_of_any_size_can_be_trained_on(tmp_path, write, count):
    root = write(tmp_path / "data", count)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train, validation, _ = Options(dataset=str(root)).open_data(1)
    assert any("a single image" in str(item.message) for item in caught) == (count == 1)
    assert len(train) >= 1 and len(validation) >= 1
    assert len({*train.ids} | {*validation.ids}) == count
    assert count == 1 or not {*train.ids} & {*validation.ids}


@pytest.mark.parametrize("seed", range(8))
def test_splits_of_any_names_are_disjoint_and_not_empty(seed):
    rng = np.random.default_rng(seed)
    for count in (2, 5, 12, 30):
        # Of a prefix, numbers, capitals, accents and spaces, as people call files.
        ids = {f"{rng.choice(['', 'IMG_', 'é ', 'train/', 'val.'])}{rng.integers(10**6)}" for _ in range(count)}
        usable = {name for name in ids if rng.random() < 0.8} | set(sorted(ids)[:2])
        alike = {name: min(ids) if rng.random() < 0.2 else name for name in sorted(ids)}
        for options in ({}, {"usable": usable}, {"alike": alike} if len({*alike.values()}) > 1 else {}):
            train, validation = (select_split(None, sorted(ids), split, {}, **options) for split in ("train", "val"))
            assert sorted(train + validation) == sorted(ids)
            kept = options.get("usable", ids)
            assert kept & {*train} and kept & {*validation}
            if "alike" in options:
                assert not {alike[name] for name in train} & {alike[name] for name in validation}


def test_only_where_a_split_would_be_empty_does_an_image_move():
    for count in range(2, 60):
        ids = sorted(f"x{k}" for k in range(count))
        validation = select_split(None, ids, "validation", {})
        train = select_split(None, ids, "train", {})
        assert sorted(train + validation) == ids
        by_hash = [name for name in ids if is_in_split(name, "validation")]
        assert validation == (by_hash or ids[-1:])
    in_validation = [f"i{k}" for k in (13, 16, 2)]
    assert select_split(None, in_validation, "train", {}) == ["i13"]
    # What is left out when files are opened is no split.
    assert select_split(None, ["x0", "x1", "x2"], "validation", {}, usable={"x0", "x1"}) == ["x1"]


@pytest.mark.parametrize("name", ["train", "training", "Train", "all", "test"])
def test_a_single_table_is_drawn_from(name):
    train, validation = both(datasets.DatasetDict({name: mask_table(30)}))
    assert sorted(train.ids + validation.ids) == [f"{row:08d}" for row in range(30)] and validation.ids


def test_a_table_for_validation_alone_is_never_trained_on():
    tables = datasets.DatasetDict(valid=mask_table(3))
    assert len(open_dataset(tables, "validation")) == 3
    with pytest.raises(ValueError, match="'train' is none of .*valid"):
        open_dataset(tables, "train")
    train, validation = both(datasets.DatasetDict(Training=mask_table(3), VAL=mask_table(2)))
    assert (len(train), len(validation)) == (3, 2)


@pytest.mark.parametrize("column", ["id", "name", "image_id", "file_name"])
def test_a_column_that_repeats_itself_names_no_rows(column):
    table = mask_table(6).add_column(column, ["benign", "malignant"] * 3)
    assert open_dataset(table, None).ids == [f"{row:08d}" for row in range(6)]
    named = mask_table(6).add_column(column, list("abcdef"))
    assert open_dataset(named, None).ids == list("abcdef")
    better = table.add_column("filename", list("uvwxyz"))
    assert open_dataset(better, None).ids == list("uvwxyz")


def test_rows_of_one_picture_are_in_one_split():
    table = datasets.concatenate_datasets([mask_table(20), mask_table(20)])
    train, validation = both(table)
    pixels = [{np.asarray(record["image"]).tobytes() for record in part} for part in (train, validation)]
    assert len(train) + len(validation) == 40 and not pixels[0] & pixels[1]


def test_overlap_is_refused_by_training_and_named_by_check(tmp_path, capsys):
    for split, names in (("train", ["0.png", "1.png"]), ("val", ["1.png", "2.png"])):
        for name in names:
            picture(int(name[0])).save(tmp_path / name)
        (tmp_path / f"{split}.json").write_text(json.dumps(coco_content(names)))
    with pytest.raises(ValueError, match=r"1 validation image.s. of 2 are training images too: 1\."):
        Options(dataset=str(tmp_path)).open_data(1)
    assert main(["check", str(tmp_path), "--picture", str(tmp_path / "check.jpg")]) == 1
    assert "ERROR: 1 image(s) are training images too" in capsys.readouterr().out


def test_overlap_of_tables_and_equal_names_of_other_files(tmp_path):
    table = mask_table(4)
    assert len(shared_images(*both(datasets.DatasetDict(train=table, validation=table.select([2, 3]))))) == 2
    other = datasets.DatasetDict(train=table.select([0, 1]), validation=table.select([2, 3]))
    assert shared_images(*both(other)) == []
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        picture(len(split)).save(tmp_path / split / "a.png")
        (tmp_path / split / "labels.json").write_text(json.dumps(coco_content(["a.png"])))
    assert shared_images(*both(tmp_path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "id,split\n000.jpg,train\n001.jpg,val\n",
        "id,split\n000,Train\n001,Val\n",
        "ID, Split\n000 ,TRAINING\n./001.JPG,Validation\n",
    ],
)
def test_splits_csv_in_any_case_and_with_suffixes(tmp_path, text):
    root = write_masks(tmp_path / "data")
    (root / "Splits.csv").write_text(text)
    assert [open_dataset(root, split).ids for split in ("train", "validation")] == [["000"], ["001"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,split\n000,train\n000,validation\n001,train\n", "000 is in the splits 'train' and 'validation'"),
        ("id,split\n000,train\n000.jpg,val\n001,train\n", "000 is in the splits 'train' and 'validation'"),
        ("id,split\n000,train\n001\n", "line 3: an id and a split are needed"),
    ],
)
def test_splits_csv_that_contradicts_itself(tmp_path, text, message):
    root = write_masks(tmp_path / "data")
    (root / "splits.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(root, "train", strict=False)


def test_a_row_without_a_picture_names_the_column():
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    black = Image.new("L", (60, 40), 1)
    for photo, mask, name in ((None, black, "photo"), (black, None, "mask")):
        table = datasets.Dataset.from_dict({"photo": [photo], "mask": [mask]}, features=features)
        with pytest.raises(ValueError, match=f"no picture in the column '{name}'"):
            open_dataset(table, None)[0]


def test_splits_csv_in_any_case_goes_before_splits_that_folders_name(tmp_path):
    (tmp_path / "Splits.CSV").write_text("id,split\na,val\nb,train\n")
    named = {"a": "train", "b": "val"}
    assert select_named_split(tmp_path, named, "validation", {}, named) == (["a"], "by splits.csv")
