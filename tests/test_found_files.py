"""Files as people have them: hidden ones, names in two Unicode forms, images elsewhere, odd annotations."""

import json
import tarfile
import unicodedata

import numpy as np
import pytest
from data_files import (
    BOXES,
    MASKS,
    coco_content,
    picture,
    polygon,
    write_coco,
    write_labelme,
    write_masks,
    write_parquet,
    write_sa1b,
    write_tars,
)

from sam_hf.data import ObjectFilter, SoundRecords, decode_masks, open_dataset
from sam_hf.data.check import check_dataset
from sam_hf.data.faults import check_usable

pytestmark = pytest.mark.usefixtures("no_common_cache")

WRITERS = [write_coco, write_labelme, write_masks, write_parquet, write_sa1b, write_tars]


def add_junk(root) -> None:
    """Copies of every file in hidden folders beside it, and under hidden names."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (path.parent / hidden).mkdir(exist_ok=True)
            (path.parent / hidden / f"{path.stem}-checkpoint{path.suffix}").write_bytes(path.read_bytes())
            (path.parent / hidden / path.name).write_bytes(path.read_bytes())
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")
        (path.parent / "Thumbs.db").write_bytes(b"\0")
    if not list(root.glob("*.tar")):
        return
    for tar in root.glob("[!.]*.tar"):
        with tarfile.open(tar, "a") as archive:
            for name in (".thumbnails/sa_0.png", "__MACOSX/sa_0.json"):
                archive.add(root / "Thumbs.db", name)


@pytest.mark.parametrize("write", WRITERS)
def test_hidden_files_and_folders_are_no_data(tmp_path, write):
    root = write(tmp_path / ".cache" / "data", 3)
    before = open_dataset(root, None)
    records = [before[index] for index in range(3)]
    add_junk(root)
    after = open_dataset(root, None)
    assert type(after) is type(before) and after.ids == before.ids and after.problems == {}
    assert [after[index]["objects"] for index in range(3)] == [record["objects"] for record in records]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_two_unicode_forms_are_one(tmp_path, forms):
    image, other = (unicodedata.normalize(form, "Zürich") for form in forms)
    root = write_masks(tmp_path / "masks", 2)
    (root / "images" / "000.jpg").rename(root / "images" / f"{image}.jpg")
    (root / "masks" / "000.png").rename(root / "masks" / f"{other}.png")
    (root / "splits.csv").write_text(f"id,split\n{other},train\n001,val\n", encoding="utf-8")
    assert open_dataset(root, "train").ids == [image]
    root = write_sa1b(tmp_path / "sa1b", 1)
    (root / "sa_0.png").rename(root / f"{image}.png")
    (root / "sa_0.json").rename(root / f"{other}.json")
    assert open_dataset(root, None).ids == [image]
    root = tmp_path / "coco"
    root.mkdir()
    picture(0).save(root / f"{image}.png")
    (root / "a.json").write_text(json.dumps(coco_content([f"{other}.png"])))
    assert np.array_equal(open_dataset(root, None)[0]["image"], picture(0))
    root = write_labelme(tmp_path / "labelme", 1, imagePath=f"{other}.png")
    (root / "0.png").rename(root / f"{image}.png")
    assert len(open_dataset(root, None)) == 1


def coco_at(file, folders: dict[str, int], names: list[str], stored: list[str] | None = None):
    """A COCO file, and pictures of the given numbers in folders beside it or above."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_content(names)))
    for folder, number in folders.items():
        (file.parent / folder).mkdir(parents=True, exist_ok=True)
        for name in stored or names:
            picture(number).save(file.parent / folder / name)
    return file


@pytest.mark.parametrize(
    ("file", "folders", "right"),
    [
        ("labels.json", {"images": 1, ".thumbnails": 2, "depth": 2}, 1),
        ("labels.json", {".": 1, "backup": 2}, 1),
        ("labels.json", {"mine": 1, "../other": 2}, 1),
        ("annotations/instances_val.json", {"../train": 2, "../val": 1}, 1),
        ("annotations/instances_train.json", {"../images/train": 1, "../images/val": 2}, 1),
        ("annotations/labels.json", {"../images": 1, "../depth": 2}, 1),
        ("labels.json", {"rgb": 1, "depth": 2}, None),
        ("annotations/labels.json", {"../rgb": 1, "../depth": 2}, None),
    ],
)
def test_images_are_those_of_the_file_or_an_error(tmp_path, file, folders, right):
    file = coco_at(tmp_path / "d" / file, folders, ["a.png"])
    if right is None:
        with pytest.raises(ValueError, match="could be those in .*depth or .*rgb"):
            open_dataset(file, None)
    else:
        assert np.array_equal(open_dataset(file, None)[0]["image"], picture(right))


def test_a_missing_image_is_not_taken_from_another_project(tmp_path):
    file = coco_at(tmp_path / "mine" / "labels.json", {".": 1}, ["a.png", "b.png"], ["a.png"])
    coco_at(tmp_path / "other" / "labels.json", {".": 2}, ["a.png", "b.png"])
    dataset = open_dataset(file, None, strict=False)
    assert np.array_equal(dataset[0]["image"], picture(1)) and list(dataset.problems.values()) == [["b.png"]]


@pytest.mark.parametrize("prefix", ["..\\..\\label-studio\\media\\4\\", "C:\\data\\", "/home/someone/else/"])
def test_names_of_another_computer_count_by_their_last_part_if_that_is_unique(tmp_path, prefix):
    names = [f"{prefix}{letter}.png" for letter in "ab"]
    file = coco_at(tmp_path / "result.json", {"images": 1}, names, ["a.png", "b.png"])
    assert len(open_dataset(file, None)) == len(open_dataset(file, None, images=tmp_path / "images")) == 2
    file = coco_at(tmp_path / "result.json", {}, [f"{prefix}1\\a.png", f"{prefix}2\\a.png"])
    with pytest.raises(ValueError, match="no image found"):
        open_dataset(file, None)


def test_images_that_share_an_id_are_left_out_and_suffixes_tell_images_apart(tmp_path):
    content = coco_content(["a.png", "b.png", "c.png", "c.bmp"])
    content["images"][1]["id"] = content["images"][0]["id"]
    for name in ("a.png", "b.png", "c.png", "c.bmp"):
        picture(0).save(tmp_path / name)
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] != 8]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path, None, strict=False)
    assert dataset.ids == ["c.bmp", "c.png"]
    assert [*dataset.problems.values()] == [["a.png (id 7)", "b.png (id 7)"]]


@pytest.mark.parametrize(("value", "crowd"), [(1, 1), ("1", 1), (True, 1), ("0", 0), (0, 0), ("false", 0), (None, 0)])
def test_crowds_by_any_value(tmp_path, value, crowd):
    root = write_coco(tmp_path / "data", 1)
    content = coco_content(["0.png"])
    for item in content["annotations"]:
        item["iscrowd"] = value
    (root / "labels.json").write_text(json.dumps(content))
    if crowd:
        with pytest.warns(UserWarning, match="all 3 annotations are marked .*crowd_as_objects"):
            assert [item["iscrowd"] for item in open_dataset(root, None)[0]["objects"]] == [1] * 3
    taken = open_dataset(root, None, crowd_as_objects=True)[0]["objects"]
    assert [item["iscrowd"] for item in taken] == [0] * 3
    assert crowd or open_dataset(root, None)[0]["objects"] == taken


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("missing", [{"segmentation": None}, {"bbox": [1, 1, 5, 5]}])
def test_an_annotation_without_mask_is_passed_over_and_counted(tmp_path, place, missing):
    root = write_coco(tmp_path / "data", 1)
    content = coco_content(["0.png"])
    content["annotations"].insert(place, {"id": 5, "image_id": 7} | missing)
    for side, value in (("height", None), ("width", 0)):
        content["images"][0][side] = value
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"1 annotation.s. of 4 have no segmentation .*: 5"):
        dataset = open_dataset(root, None)
    assert np.array_equal(decode_masks(dataset[0]["objects"]), MASKS)
    assert check_dataset(dataset, [0]).warnings == {"annotation(s) have no segmentation": ["5"]}


def test_points_as_pairs_are_a_polygon(tmp_path):
    root = write_coco(tmp_path / "data", 1)
    content = coco_content(["0.png"])
    content["annotations"][0]["segmentation"] = np.reshape(polygon(BOXES[0]), (4, 2)).tolist()
    (root / "labels.json").write_text(json.dumps(content))
    assert np.array_equal(decode_masks(open_dataset(root, None)[0]["objects"])[0], MASKS[0])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_area": 600}, "min_area 600 took 2 of 3, 1 of 3 are regions to ignore"),
        ({"max_share": 0.05}, "max_share 0.05 took 2 of 3"),
        ({"max_area": 190, "min_share": 0.1}, "max_area 190 took 1 of 3, min_share 0.1 took 1 of 3"),
    ],
)
def test_the_message_says_what_took_the_objects(tmp_path, limits, reason):
    dataset = open_dataset(write_coco(tmp_path / "data", 1), None, **limits)
    with pytest.raises(ValueError, match=f"no object to segment: {reason}"):
        SoundRecords(dataset)[0]
    with pytest.raises(ValueError, match="no object to segment: all 1 are regions to ignore"):
        check_usable(dataset[0])
    assert ObjectFilter().reason([]) == "it is annotated with none"
