"""Damaged data: what is replaced, that all of it is named, that workers do not matter, and when it is too much."""

import json
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_files import HEIGHT, MASKS, WIDTH, coco_content, picture, write_coco, write_masks
from PIL import Image
from tiny_models import tiny_config
from torch.utils.data import DataLoader

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.data import (
    FaultLog,
    RandomCropScaleFlip,
    SoundRecords,
    objects_from_masks,
    open_dataset,
)
from sam_hf.data.faults import MAX_ATTEMPTS, left_out
from sam_hf.training import Options, numbered_draws
from sam_hf.training.collator import ClickSamplingCollator


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claim_size(path: Path, width: int, height: int) -> None:
    """A PNG file whose head says that it is huge."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(99))


def spoil(root: Path) -> dict[str, str]:
    """Damage the first files of `write_masks` in every way; gives what the log has to say of each."""
    images, masks = root / "images", root / "masks"
    truncate(images / "000.jpg")
    (images / "001.jpg").write_bytes(b"")
    (images / "002.jpg").write_text("<html>404</html>")
    speck = np.zeros((HEIGHT, WIDTH), np.uint8)
    speck[0, 0] = 1
    Image.fromarray(speck).save(masks / "003.png")
    (images / "004.jpg").unlink()
    picture(0, HEIGHT, WIDTH + 1).save(images / "005.jpg")
    truncate(masks / "006.png")
    (images / "007.jpg").unlink()
    claim_size(images / "007.png", 20_000, 20_000)
    # What looks odd, but can be used.
    picture(8).convert("CMYK").save(images / "008.jpg")
    Image.new("RGB", (20_000, 50)).save(images / "009.jpg")
    Image.fromarray(np.tile(np.arange(2, dtype=np.uint8).repeat(25)[:, None], 20_000)).save(masks / "009.png")
    return {
        "000": "000.jpg cannot be read: image file is truncated",
        "001": "001.jpg cannot be read: it is no image",
        "002": "002.jpg cannot be read: it is no image",
        "003": "record '003' has no object to segment",
        "004": "mask(s) belong to no file in images/: masks/004.png",
        "005": "mask(s) differ from their image in (width, height): 005.png",
        "006": "006.png cannot be read",
        "007": "exceeds limit",
    }


def test_every_kind_of_damage_is_named_and_replaced(tmp_path):
    root = write_masks(tmp_path / "data", 20)
    expected = spoil(root)
    dataset = open_dataset(root, None, strict=False)
    records, log = SoundRecords(dataset), FaultLog(max_share=1.0)
    log.note(left_out(dataset), len(dataset))
    for index, name in enumerate(dataset.ids):
        record = records[index]
        is_damaged = name in expected
        assert record["image_id"] not in expected and (record["image_id"] == name) != is_damaged
        assert bool(record.get("faults")) == is_damaged
        log.note(record.get("faults", ()), 1)
    assert len(log.messages) == len(expected)
    for text in expected.values():
        assert sum(text in message for message in log.messages) == 1, (text, list(log.messages))


def test_annotations_that_do_not_fit_are_replaced_too(tmp_path):
    root = write_coco(tmp_path / "data", 6)
    content = coco_content([f"{k}.png" for k in range(6)])
    content["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "11"}  # too short, compressed
    content["annotations"][4]["segmentation"] = [[1, 2, "x"]]
    content["annotations"][7]["segmentation"] = 5
    for item in content["annotations"][9:12]:
        item["iscrowd"] = 1
    (root / "labels.json").write_text(json.dumps(content))
    picture(4, HEIGHT + 1).save(root / "images" / "4.png")
    records = SoundRecords(open_dataset(root, None))
    faults = [records[index].get("faults", [""])[0] for index in range(6)]
    messages = ["malformed RLE", "annotation 801", "annotation 901", "has no object", "differs from the size", ""]
    assert all(message in fault for message, fault in zip(messages, faults, strict=True)), faults


@pytest.mark.parametrize("error", [KeyError("shapes"), TypeError("no list"), MemoryError(), RecursionError()])
def test_whatever_a_reader_stumbles_over_is_a_fault_of_the_record(tmp_path, monkeypatch, error):
    dataset = open_dataset(write_masks(tmp_path / "data", 3), None)
    monkeypatch.setattr(dataset, "read_objects", lambda index: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=f"record '001': {type(error).__name__}"):
        dataset[1]


def test_what_is_wrong_with_a_folder_counts_once_for_both_splits(tmp_path):
    root = write_masks(tmp_path / "data", 60)
    for number in range(12):
        (root / "images" / f"{number:03d}.jpg").unlink()
    Options(dataset=str(root), max_fault_share=0.2).open_data(1)
    log = FaultLog()
    log.note(left_out(*(open_dataset(root, split, strict=False) for split in ("train", "validation"))), 48)
    assert (log.num_failed, log.num_tried) == (12, 60)
    other = write_masks(tmp_path / "other", 20)
    (other / "images" / "000.jpg").unlink()
    assert len(left_out(open_dataset(root, None, strict=False), open_dataset(other, None, strict=False))) == 13


def batches(root: Path, num_workers: int) -> list[dict]:
    dataset = open_dataset(root, None, strict=False)
    processor = SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64}, mask_size={"longest_edge": 32}))
    collator = ClickSamplingCollator(processor, max_objects=2, augmentation=RandomCropScaleFlip(64), num_corrections=1)
    draws, sampler = numbered_draws(dataset, start=0, stop=40, seed=1)
    return list(DataLoader(draws, 4, sampler=sampler, num_workers=num_workers, collate_fn=collator))


def test_workers_do_not_matter_to_replacements(tmp_path):
    root = write_masks(tmp_path / "data", 20)
    spoil(root)
    alone, together = batches(root, 0), batches(root, 2)
    assert sum(len(batch.get("faults", ())) for batch in alone) >= 10
    for one, other in zip(alone, together, strict=True):
        assert one.get("faults") == other.get("faults")
        assert (one["pixel_values"] == other["pixel_values"]).all()
        assert np.array_equal(one["labels"], other["labels"], equal_nan=True)


def test_too_many_faults_stop_with_a_list_and_each_is_logged_once(caplog):
    log = FaultLog(max_share=0.2)
    with caplog.at_level(logging.WARNING):
        for number in range(9):
            log.note([f"a{number % 3}"], 3)  # a share of 1/4, but few
        assert [record.getMessage() for record in caplog.records] == [f"left out: a{k}" for k in range(3)]
        with pytest.raises(ValueError, match=r"(?s)10 of 40 records .* share of 0.2:\n- a0\n- a1\n- a2\n- b$"):
            log.note(["b"], 3)
    log = FaultLog(max_share=0.2)
    for _ in range(50):
        log.note(["a"], 4)


def test_a_data_set_of_which_nothing_can_be_read_stops_at_once(tmp_path):
    root = write_masks(tmp_path / "data", 3)
    for path in (root / "images").iterdir():
        truncate(path)
    with pytest.raises(ValueError, match=f"(?s){MAX_ATTEMPTS} records in a row cannot be used:.*000.jpg"):
        SoundRecords(open_dataset(root, None))[0]


def test_evaluation_leaves_out_and_does_not_replace(tmp_path):
    root = write_masks(tmp_path / "data", 5)
    truncate(root / "images" / "003.jpg")
    log = FaultLog()
    names = [record["image_id"] for record in log.sound(open_dataset(root, None), range(5))]
    assert names == ["000", "001", "002", "004"] and len(log.messages) == 1


def test_any_data_set_by_index_can_be_made_sound():
    objects = objects_from_masks(MASKS[:1])
    records = [{"image": picture(k), "objects": [] if k % 2 else objects, "image_id": str(k)} for k in range(6)]
    names = [SoundRecords(records)[index]["image_id"] for index in range(6)]
    assert names[::2] == ["0", "2", "4"] and {*names} <= {*names[::2]}


def run(train, tmp_path: Path, name: str, **options) -> dict:
    tiny_config().save_pretrained(tmp_path / "model")
    given = {
        "dataset": tmp_path / name,
        "model": tmp_path / "model",
        "output_dir": tmp_path / f"run_{name}",
        "batch_size": 4,
        "num_corrections": 1,
        "num_workers": 0,
        "eval_every": 1000,
        **options,
    }
    train.main([f"--{key}={value}" for key, value in given.items()])
    return json.loads((Path(given["output_dir"]) / "best" / "metrics.json").read_text())


@pytest.mark.usefixtures("on_cpu")
def test_training_goes_on_with_a_tenth_of_the_files_damaged_and_names_them(tmp_path, train, caplog):
    root = write_masks(tmp_path / "data", 80)
    damaged = [f"{k:03d}.jpg" for k in range(3, 80, 10)]
    for name in damaged:
        truncate(root / "images" / name)
    with caplog.at_level(logging.WARNING):
        metrics = run(train, tmp_path, "data", max_steps=20)
    assert metrics["step"] == 20
    messages = [record.getMessage() for record in caplog.records]
    assert all(sum(name in message for message in messages) == 1 for name in damaged)
    for name in (path.name for path in sorted((root / "images").iterdir())[::2]):
        truncate(root / "images" / name)
    with pytest.raises(ValueError, match="records could not be used, more than a share of 0.2:\n- record '0"):
        run(train, tmp_path, "data", max_steps=40, output_dir=tmp_path / "again")
