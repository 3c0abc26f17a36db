"""Readers of other people's formats: equal masks from each, laziness, splits, and what they refuse."""

import base64
import json
import pickle

import datasets
import numpy as np
import pytest
from data_files import (
    BOXES,
    HEIGHT,
    MASKS,
    WIDTH,
    coco_content,
    compressed,
    mask_of,
    picture,
    png,
    polygon,
    shape,
    write_coco,
    write_labelme,
    write_parquet,
    write_sa1b,
    write_saved,
    write_tars,
)
from PIL import Image
from pycocotools import mask as coco

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.data import (
    CocoInstances,
    LabelmeFolder,
    ObjectFilter,
    Sa1bFolder,
    Sa1bTar,
    TableRecords,
    check_record,
    decode_masks,
    objects_from_masks,
    open_dataset,
)
from sam_hf.data.coco import find_instances
from sam_hf.data.packed_json import PackedJson
from sam_hf.data.parquet import write_parquet as write_records
from sam_hf.data.rle import encode_segmentation
from sam_hf.training.collator import ClickSamplingCollator

WRITERS = {
    write_coco: (CocoInstances, [0, 1, 0]),
    write_sa1b: (Sa1bFolder, [0, 0, 0]),
    write_labelme: (LabelmeFolder, [0, 1, 0]),
    write_saved: (TableRecords, [0, 0, 0]),
    write_parquet: (TableRecords, [0, 0, 0]),
    write_tars: (Sa1bTar, [0, 0, 0]),
}


pytestmark = pytest.mark.usefixtures("no_common_cache")


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_masks_that_were_written(tmp_path, write):
    reader, crowds = WRITERS[write]
    dataset = open_dataset(write(tmp_path / "data"), None)
    assert type(dataset) is reader and len(dataset) == 2 and dataset.problems == {}
    again = pickle.loads(pickle.dumps(dataset))
    for number, (record, other) in enumerate(zip(dataset, again, strict=True)):
        check_record(record)
        assert np.array_equal(decode_masks(record["objects"]), MASKS)
        assert [item["iscrowd"] for item in record["objects"]] == crowds
        assert np.array_equal(record["image"], picture(number))
        assert other["objects"] == record["objects"] and other["image_id"] == record["image_id"]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_takes_filters_and_splits(tmp_path, write):
    root = write(tmp_path / "data", 30)
    parts = [open_dataset(root, split, min_area=200) for split in ("train", "validation")]
    assert {*parts[0].ids} | {*parts[1].ids} == {*open_dataset(root, None).ids}
    assert len(parts[0]) + len(parts[1]) == 30 and len(parts[1]) >= 1
    assert len(parts[0][0]["objects"]) == 2
    with pytest.raises(ValueError, match="smallest"):
        open_dataset(root, None, smallest=3)


@pytest.mark.parametrize("write", [write_coco, write_sa1b, write_tars])
def test_only_the_sampled_objects_are_decoded(tmp_path, monkeypatch, write):
    root, decoded, decode = write(tmp_path / "data"), [], coco.decode
    monkeypatch.setattr(coco, "decode", lambda rles: decoded.extend(rles) or decode(rles))
    record = open_dataset(root, None)[0]
    assert not decoded
    record["objects"] = [item | {"iscrowd": 0} for item in record["objects"]]
    ClickSamplingCollator(SamHfProcessor(SamHfImageProcessor(size={"longest_edge": 64})), max_objects=1)([record])
    assert len(decoded) == 1


def test_a_polygon_in_parts_is_one_object_and_too_few_points_are_none():
    union = decode_masks(objects_from_masks((MASKS[0] | MASKS[1])[None]))[0]
    for segmentation, expected in (
        ([polygon(BOXES[0]), polygon(BOXES[1])], union),
        ([polygon(BOXES[0]), [1, 1, 5, 5]], MASKS[0]),
        (polygon(BOXES[0]), MASKS[0]),
        ([], np.zeros_like(union)),
        ([[1, 1, 30, 30]], np.zeros_like(union)),  # pycocotools would take it for a box
    ):
        rle = encode_segmentation(segmentation, (HEIGHT, WIDTH))
        assert np.array_equal(coco.decode(rle).astype(bool), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("1 1 5 1 5 5", "must be polygons"),
        ({"size": [WIDTH, HEIGHT], "counts": "0"}, r"size \[60, 40\].*\[40, 60\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "add up to 2400"),
        ({"size": [HEIGHT, WIDTH], "counts": [2500, -100]}, "add up to 2400"),
        ([[1, 1, 5, 1, 5]], "5 numbers"),
        ([[1, 1, 5, 1, 5, 1e9]], "in pixels"),
        ([[1, 1, 5, 1, 5, float("nan")]], "in pixels"),
        ([["1", 1, 5, 1, 5, 1]], "in pixels"),
    ],
)
def test_malformed_annotations_name_record_and_annotation(tmp_path, segmentation, message):
    content = coco_content(["a.png"])
    content["annotations"][1]["segmentation"] = segmentation
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"record 'a': annotation 701: .*{message}"):
        open_dataset(tmp_path, None)[0]


@pytest.mark.parametrize(
    "counts", ["11", "", "0", "~~~", "PPPPPPPPPPPPPPPPPPPP1", compressed(MASKS[1])["counts"] + "1"]
)
def test_runs_that_do_not_fill_the_image_are_never_decoded(counts):
    item = objects_from_masks(MASKS[:1])[0]
    item["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    with pytest.raises(ValueError, match="malformed RLE"):
        decode_masks([item])


def test_runs_are_unpacked_as_pycocotools_does(monkeypatch):
    rng = np.random.default_rng(0)
    for density in (0.001, 0.1, 0.5, 0.99):
        objects = objects_from_masks(rng.random((3, 150, 170)) < density)
        assert decode_masks(objects).sum() == sum(item["area"] for item in objects)


@pytest.mark.parametrize("stored", [False, True])
def test_annotations_of_turned_images_decide_whether_to_turn(tmp_path, stored):
    exif = Image.Exif()
    exif[274] = 6
    upright = picture(0)
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    size = (WIDTH, HEIGHT) if stored else (HEIGHT, WIDTH)
    box = mask_of((2, 3, 20, 30), *size)
    content = coco_content(["a.png"])
    content["images"][0] |= {"height": size[0], "width": size[1]}
    content["annotations"] = [{"id": 1, "image_id": 7, "segmentation": compressed(box)}]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path, None)
    write_records({"train": (dataset, [0])}, tmp_path / "converted")
    for record in (dataset[0], open_dataset(tmp_path / "converted", None)[0]):
        check_record(record)
        assert np.array_equal(record["image"], upright.rotate(90, expand=True) if stored else upright)


def test_images_of_another_size_or_cut_short_are_refused_by_name(tmp_path):
    root = write_sa1b(tmp_path / "data", 3)
    picture(0, 41, 60).save(root / "sa_0.png")
    (root / "sa_1.png").write_bytes((root / "sa_1.png").read_bytes()[:900])
    (root / "sa_2.png").write_bytes(b"")
    dataset = open_dataset(root, None)
    for index, (kind, message) in enumerate(
        [(ValueError, r"'sa_0': image size \[41, 60\]"), (OSError, "sa_1.png cannot be read"), (OSError, "sa_2.png")]
    ):
        with pytest.raises(kind, match=message):
            dataset[index]


def test_coco_layouts(tmp_path):
    official = tmp_path / "official"
    (official / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (official / f"{split}2017").mkdir()
        picture(0).save(official / f"{split}2017" / f"{split}.png")
        text = json.dumps(coco_content([f"{split}.png"]))
        (official / "annotations" / f"instances_{split}2017.json").write_text(text)
    (official / "annotations" / "captions_val2017.json").write_text('{"images": [], "annotations": [{"caption": ""}]}')
    assert open_dataset(official, "train").ids == ["train"]
    assert open_dataset(official, "validation").ids == ["val"]
    assert open_dataset(official / "annotations" / "instances_val2017.json", None).ids == ["val"]
    with pytest.raises(ValueError, match="2 COCO annotation files, 0 of them for split None"):
        open_dataset(official, None)

    exported = tmp_path / "exported"
    for split in ("train", "valid"):
        (exported / split).mkdir(parents=True)
        picture(0).save(exported / split / f"{split}.png")
        (exported / split / "_annotations.coco.json").write_text(json.dumps(coco_content([f"{split}.png"])))
    assert open_dataset(exported, "train").ids == ["train"]
    assert open_dataset(exported, "validation").ids == ["valid"]


def test_lvis_names_images_by_url_and_elsewhere_is_an_option(tmp_path):
    content = coco_content(["a.png"])
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/a.png"
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "lvis.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="looked for train2017/a.png .*images="):
        open_dataset(tmp_path / "labels", None)
    (tmp_path / "far" / "away" / "train2017").mkdir(parents=True)
    picture(0).save(tmp_path / "far" / "away" / "train2017" / "a.png")
    dataset = open_dataset(tmp_path / "labels", None, images=tmp_path / "far" / "away")
    assert dataset[0]["image_id"] == "train2017/a"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content["images"].append(content["images"][0]), "1 image.s. are listed more than once: a"),
        (
            lambda content: content["images"].append(content["images"][0] | {"file_name": "b.png", "id": 8}),
            "have no file.*b.png",
        ),
        (lambda content: content["annotations"][0].update(image_id=99), "annotation.s. belong to no image: 700"),
        (
            lambda content: content["images"].append(content["images"][0] | {"file_name": "b.png"}),
            r"2 image.s. share an id with another.*: a.png \(id 7\), b.png \(id 7\)",
        ),
        (lambda content: content["images"][0].pop("id"), "lack id, or file_name"),
        (lambda content: content["images"][0].pop("file_name"), "lack id, or file_name"),
        (lambda content: [item.pop("segmentation") for item in content["annotations"]], "no known format"),
    ],
)
def test_coco_files_that_do_not_fit(tmp_path, spoil, message):
    content = coco_content(["a.png"])
    spoil(content)
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path, None)


def test_without_strictness_files_that_do_not_fit_are_left_out_and_listed(tmp_path):
    root = write_sa1b(tmp_path / "data", 3)
    (root / "sa_1.json").unlink()
    picture(0).save(root / "lonely.png")
    with pytest.raises(ValueError, match="2 image.s. have no JSON file: lonely, sa_1"):
        open_dataset(root, None)
    dataset = open_dataset(root, None, strict=False)
    assert dataset.ids == ["sa_0", "sa_2"]
    assert dataset.problems == {"image(s) have no JSON file": ["lonely", "sa_1"]}


def test_labelme_groups_circles_and_embedded_images(tmp_path):
    shapes = [
        shape("rectangle", [[5, 5], [10, 10]], group_id=1),
        shape("circle", [[30, 20], [40, 20]]),
        shape("rectangle", [[20, 5], [25, 10]], group_id=1),
        shape("line", [[20, 5], [25, 10]]),
    ]
    embedded = base64.b64encode(png(np.asarray(picture(0)))).decode()
    root = write_labelme(tmp_path / "data", 1, shapes, imageData=embedded, imagePath="..\\gone.png", imageHeight=None)
    (root / "0.png").unlink()
    record = open_dataset(root, None)[0]
    check_record(record)
    pieces, circle = decode_masks(record["objects"])
    assert np.array_equal(pieces, mask_of((5, 5, 10, 10)) | mask_of((20, 5, 25, 10)))
    assert circle.sum() == pytest.approx(np.pi * 100, rel=0.03) and circle[20, 30]
    split = open_dataset(root, None, split_regions=True)[0]["objects"]
    assert [item["area"] for item in split] == [25, 25, circle.sum()]


def test_splitting_regions_leaves_crowds_whole_and_filters_the_pieces():
    mask = mask_of((0, 0, 10, 10)) | mask_of((10, 10, 12, 12)) | mask_of((30, 30, 33, 33))
    item, crowd = objects_from_masks(np.stack([mask, mask]))
    crowd["iscrowd"] = 1
    # Touching by a corner is touching.
    assert [piece["area"] for piece in ObjectFilter(split_regions=True, min_area=1)([item])] == [104, 9]
    assert ObjectFilter(split_regions=True)([item, crowd])[1:] == [crowd]
    limits = [{"max_area": 50}, {"min_share": 0.03}, {"min_area": 10}]
    areas = [
        [piece["area"] for piece in ObjectFilter(**{"min_area": 1, "split_regions": True} | limit)([item])]
        for limit in limits
    ]
    assert areas == [[9], [104], [104]]
    for wrong in ({"max_area": 5}, {"min_share": 0.95}, {"max_share": 90}):
        with pytest.raises(ValueError, match="max_"):
            ObjectFilter(**wrong)


def test_tables_of_label_maps_and_their_columns(tmp_path):
    label_map = MASKS[0] + 2 * MASKS[2].astype(np.uint8)
    columns = {"image": [picture(0)], "annotation": [Image.fromarray(label_map)], "image_id": ["frog"]}
    features = {"image": datasets.Image(), "annotation": datasets.Image(), "image_id": datasets.Value("string")}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    record = open_dataset(table, None)[0]
    assert record["image_id"] == "frog" and np.array_equal(decode_masks(record["objects"]), MASKS[[0, 2]])
    assert len(open_dataset(table, None, background=None, max_share=1.0)[0]["objects"]) == 3
    renamed = table.rename_columns({"image": "left", "annotation": "right"})
    with pytest.raises(ValueError, match="'left', 'right'.*image_column="):
        open_dataset(renamed, None)
    chosen = open_dataset(renamed, None, image_column="left", mask_column="right")
    assert chosen[0]["objects"] == record["objects"]
    parts = datasets.DatasetDict(train=table, test=table)
    assert len(open_dataset(parts, "test")) == 1 and len(open_dataset(parts, "train")) == 1
    with pytest.raises(ValueError, match=r"'validation' .*\['test', 'train'\]"):
        open_dataset(parts, "validation")


def test_a_path_without_any_format_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"(?s)found: \['notes.txt'\].*images/ and masks/.*SA-1B.*labelme.*COCO"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="no such folder or file"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": [{"caption": ""}]}')
    with pytest.raises(ValueError, match="no COCO instances file: .*'annotations', 'images'"):
        open_dataset(tmp_path / "captions.json")
    with pytest.raises(ValueError, match="0 COCO annotation files"):
        find_instances(tmp_path / "absent", "train")


def test_packed_json_gives_back_its_values():
    values = [{"a": [1, 2.5]}, [], "é"]
    packed = pickle.loads(pickle.dumps(PackedJson(values)))
    assert [packed[index] for index in range(3)] == values and packed[-1] == "é"
    assert len(PackedJson([])) == 0
    with pytest.raises(IndexError):
        packed[3]


def test_real_coco_rle_is_the_panoptic_picture(shared_data):
    root = shared_data / "format_samples" / "coco_rle_panoptic"
    segments = json.loads((root / "panoptic_examples.json").read_text())["annotations"]
    for record, panoptic in zip(open_dataset(root, None, min_area=0), segments, strict=True):
        check_record(record)
        with Image.open(root / "panoptic_examples" / panoptic["file_name"]) as image:
            ids = np.asarray(image).astype(np.int64) @ [1, 256, 65536]
        masks = decode_masks(record["objects"])
        assert len(masks) == len(panoptic["segments_info"])
        for mask, item, segment in zip(masks, record["objects"], panoptic["segments_info"], strict=True):
            assert np.array_equal(mask, ids == segment["id"]) and item["iscrowd"] == segment["iscrowd"]


def test_real_polygons_are_those_of_labelme_and_near_the_pictures(shared_data):
    root = shared_data / "format_samples"
    for one, other in zip(
        open_dataset(root / "coco_polygons_voc3", None), open_dataset(root / "labelme_json", None), strict=True
    ):
        check_record(one)
        check_record(other)
        targets = [item for item in other["objects"] if not item["iscrowd"]]
        assert sorted(item["area"] for item in one["objects"]) == sorted(item["area"] for item in targets)
        with Image.open(root / "coco_polygons_voc3" / "SegmentationObject" / f"{other['image_id']}.png") as image:
            labels = np.asarray(image)
        for mask in decode_masks(targets):
            ious = [(mask & (labels == n)).sum() / (mask | (labels == n)).sum() for n in np.unique(labels)]
            assert max(ious) > 0.8


def test_real_sa1b_records(shared_data, tmp_path):
    for file in sorted((shared_data / "format_samples" / "sa1b_records").glob("*.json")):
        content = json.loads(file.read_text())
        (tmp_path / file.name).write_text(file.read_text())
        size = content["image"]["width"], content["image"]["height"]
        Image.new("RGB", size).save(tmp_path / content["image"]["file_name"])
        (record,) = (item for item in open_dataset(tmp_path, None) if item["image_id"] == file.stem)
        check_record(record)
        (item,), (annotation,) = record["objects"], content["annotations"]
        assert item["area"] == annotation["area"]
        assert item["bbox"] == [*annotation["bbox"][:2], *(side + 1 for side in annotation["bbox"][2:])]
