"""Options of data: the same for a run and for `python -m sam_hf.data`; which reader has them; what is said of data."""

import json
from dataclasses import fields

import numpy as np
import pytest
from data_files import coco_content, mask_table, picture, write_coco, write_masks, write_tars
from PIL import Image

from sam_hf.data import open_dataset, stream_dataset
from sam_hf.data.__main__ import main
from sam_hf.data.data_options import ReaderOptions
from sam_hf.data.description import as_text, describe, differences
from sam_hf.training import Options

pytestmark = pytest.mark.usefixtures("no_common_cache")


@pytest.mark.parametrize("command", ["check", "convert", "speed"])
def test_commands_have_the_options_of_a_run(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    names = {item.name for item in fields(ReaderOptions)}
    assert names <= {item.name for item in fields(Options)}
    assert all(f"--{name}" in text for name in names)


@pytest.mark.parametrize(
    ("write", "option", "having"),
    [
        (
            write_coco,
            {"background": 3},
            "CocoInstances has no option 'background': it is one of LabelMapFolder, Table",
        ),
        (write_coco, {"mask_column": "a"}, "CocoInstances has no option 'mask_column': it is one of .*TableRecords"),
        (write_masks, {"crowd_as_objects": True}, "LabelMapFolder has no option 'crowd_as_objects': .*CocoInstances"),
        (write_tars, {"ignore_label": 1}, "Sa1bTar has no option 'ignore_label': it is one of .*TableRecords"),
    ],
)
def test_an_option_that_a_reader_has_not_names_those_that_have(tmp_path, capsys, write, option, having):
    root = write(tmp_path / "data")
    with pytest.raises(ValueError, match=having):
        Options(dataset=str(root), **option).open_data(1)
    ((name, value),) = option.items()
    assert main(["check", str(root), f"--{name}", str(value)]) == 2
    assert f"has no option '{name}'" in capsys.readouterr().err


def test_what_tables_have_is_not_of_streams_of_tar_files(tmp_path):
    with pytest.raises(ValueError, match="a stream of tar files has no option masks, exif"):
        stream_dataset(write_tars(tmp_path / "data"), masks="labels", exif="shown")


def write_tables(root, **tables: int):
    """Parquet files of splits by name, whose pictures all differ."""
    root.mkdir()
    start = 0
    for name, count in tables.items():
        table = mask_table(start + count)
        table.select(range(start, start + count)).to_parquet(root / f"{name}.parquet")
        start += count
    return root


def test_a_split_for_evaluation_can_be_named(tmp_path, capsys):
    root = write_tables(tmp_path / "data", train=4, test=2)
    with pytest.raises(ValueError, match=r"'validation' is none .*\['test', 'train'\].* such as --eval_split test"):
        Options(dataset=str(root)).open_data(1)
    train, validation, _ = Options(dataset=str(root), eval_split="test").open_data(1)
    assert (len(train), len(validation)) == (4, 2)
    streamed = Options(dataset=str(root), eval_split="test", streaming=True).open_data(5)
    assert len(streamed[1]) == 2
    assert main(["check", str(root), "--eval_split", "test", "--picture", str(tmp_path / "a.png")]) == 0
    assert "test: 2 records" in capsys.readouterr().out


def test_the_overlap_is_of_the_splits_that_are_named(tmp_path, capsys):
    table = mask_table(4)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train.parquet")
    table.select([2, 3]).to_parquet(tmp_path / "data" / "test.parquet")
    root = str(tmp_path / "data")
    with pytest.raises(ValueError, match=r"2 validation image.s. of 2 are training images too"):
        Options(dataset=root, eval_split="test").open_data(1)
    assert main(["check", root, "--eval_split", "test", "--picture", str(tmp_path / "a.png")]) == 1
    assert "2 image(s) are training images too" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("train", "train"), ("val", "validation"), ("Test", "testing")])
def test_one_split_for_both_is_refused(tmp_path, names, capsys):
    root = str(write_masks(tmp_path / "data", 4))
    with pytest.raises(ValueError, match="are one split"):
        Options(dataset=root, train_split=names[0], eval_split=names[1]).open_data(1)
    assert main(["check", root, "--train_split", names[0], "--eval_split", names[1]]) == 2
    assert "are one split" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [{"min_area": 200}, {"max_share": 0.5}, {"split_regions": True}, {"exif": "shown"}, {"max_area": 900}]
)
def test_scenes_say_what_does_not_apply(option, capsys):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"scenes take no --{name} {value}"):
        Options(**option).open_data(1)
    assert main(["check", "scenes", "--split", "validation", f"--{name}", str(value)]) == 2
    assert f"scenes take no --{name}" in capsys.readouterr().err
    assert len(Options().open_data(1)[0]) == 10_000
    with pytest.raises(ValueError, match="scenes are painted, not read"):
        Options(streaming=True).open_data(1)


def test_values_out_of_range_are_refused_by_commands(tmp_path, capsys):
    assert main(["check", str(write_masks(tmp_path / "data")), "--max_share", "2"]) == 2
    assert "--max_share 2.0 should be at most 1" in capsys.readouterr().err


def test_every_label_is_an_object_with_a_background_that_is_none(tmp_path):
    root = write_masks(tmp_path / "data", 1)
    Image.fromarray(np.tile(np.arange(3, dtype=np.uint8).repeat(20), (40, 1))).save(root / "masks" / "000.png")
    counts = [len(ReaderOptions(background=label).open(str(root), None)[0]["objects"]) for label in (None, -1)]
    assert counts == [2, 3]


def test_a_label_to_ignore_says_that_masks_are_labels(tmp_path):
    root = write_masks(tmp_path / "data", 2)
    values = np.tile(np.array([0, 1, 255], np.uint8).repeat(20), (40, 1))
    for name in ("000", "001"):
        Image.fromarray(values).save(root / "masks" / f"{name}.png")
    record = Options(dataset=str(root), ignore_label=255).open_data(1)[0][0]
    assert [(item["iscrowd"], item["area"]) for item in record["objects"]] == [(0, 800), (1, 800)]


def test_a_description_tells_records_and_guesses(tmp_path):
    root = write_masks(tmp_path / "data", 12)
    train, validation, _ = Options(dataset=str(root)).open_data(1)
    found = describe(train=train, validation=validation)
    assert found["train"]["records"] + found["validation"]["records"] == 12
    assert found["train"]["reader"] == "LabelMapFolder" and "label maps" in found["train"]["guesses"]["masks"]
    assert json.loads(json.dumps(found)) == found and differences(found, found) == []
    text = as_text(found)
    assert text.count("masks: label maps") == 1 and f"train: {len(train)} records, LabelMapFolder {root}" in text
    picture(99).save(root / "images" / "100.jpg")
    Image.open(root / "masks" / "000.png").save(root / "masks" / "100.png")
    other = describe(train=open_dataset(root, "train"), validation=validation)
    changed = differences(found, other)
    assert [what.split(":")[0] for what in changed] == ["records of train", "fingerprint of train"]
    stream = stream_dataset(write_tars(tmp_path / "tars"), None)
    assert "a stream, RecordStream" in as_text(describe(train=stream))


def test_crowds_can_be_objects_on_every_command(tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("0.png", "1.png"):
        picture(int(name[0])).save(root / name)
    (root / "all.json").write_text(json.dumps(coco_content(["0.png", "1.png"])))
    command = ["check", str(root), "--picture", str(tmp_path / "a.png"), "--split", "train"]
    for more, count in (([], 2), (["--crowd_as_objects"], 3), (["--crowd_as_objects", "true"], 3)):
        assert main([*command, *more]) == 0
        assert f"objects  {count}, {count} to {count}" in capsys.readouterr().out
