"""Readers of annotation tools: masks in closed form, splits, what is passed over, damaged files."""

import json
import pickle
import random

import numpy as np
import pytest
from annotation_writers import (
    SEGMENTS,
    cvat_runs,
    pack_brush,
    save_pictures,
    studio_region,
    supervisely_polygon,
    via_polygon,
    write_cvat,
    write_label_studio,
    write_metadata,
    write_panoptic,
    write_supervisely,
    write_via,
    write_yolo,
    yolo_row,
)
from data_files import (
    BOXES,
    HEIGHT,
    MASKS,
    WIDTH,
    compressed,
    mask_of,
    picture,
    uncompressed,
    write_coco,
    write_labelme,
    write_sa1b,
)
from PIL import Image

from sam_hf.data import check_record, decode_masks, open_dataset
from sam_hf.data.annotation_files import AnnotationFile
from sam_hf.data.label_studio import decode_brush
from sam_hf.data.outlines import ellipse, paste_mask
from sam_hf.data.rle import encode_segmentation
from sam_hf.data.schema import objects_from_rles

pytestmark = pytest.mark.filterwarnings("ignore:.*passed over")

WRITERS = {
    write_yolo: "YoloFolder",
    write_cvat: "CvatFile",
    write_label_studio: "LabelStudioFile",
    write_via: "ViaFile",
    write_supervisely: "SuperviselyProject",
    write_metadata: "ImageMetadata",
    write_panoptic: "CocoPanoptic",
}
SHAPES = [write for write in WRITERS if write not in (write_metadata, write_panoptic)]


def masks_of(record) -> np.ndarray:
    check_record(record)
    return decode_masks(record["objects"])


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_masks_that_were_drawn(tmp_path, write):
    root, file = write(tmp_path / "data")
    dataset = open_dataset(root, None)
    assert type(dataset).__name__ == WRITERS[write] and len(dataset) == 2 and not dataset.problems
    if isinstance(dataset, AnnotationFile):
        assert open_dataset(file, None).places() == open_dataset(file, None, images=dataset.images).places()
    again = pickle.loads(pickle.dumps(dataset))
    for number, record in enumerate(dataset):
        if write is write_panoptic:
            expected, crowds = [label == SEGMENTS for label in (0, 5, 300, 70_000)], [1, 0, 0, 1]
        else:
            expected, crowds = MASKS, [0, 0, 0]
        assert np.array_equal(masks_of(record), expected)
        assert [item["iscrowd"] for item in record["objects"]] == crowds
        assert np.array_equal(record["image"], picture(number))
        assert again[number]["objects"] == record["objects"]


@pytest.mark.parametrize("write", WRITERS)
def test_train_and_validation_are_disjoint_and_hidden_files_no_data(tmp_path, write):
    root, file = write(tmp_path / "data", 30)
    before = open_dataset(root, None).ids
    for folder in [path for path in root.rglob("*") if path.is_dir()] + [root]:
        (folder / f"._{file.name}").write_bytes(b"\0\5\26\7")
        (folder / "._0.png").write_bytes(b"\0\5\26\7")
        (folder / f"folder{file.suffix}").mkdir()
    train, validation = (open_dataset(root, split) for split in ("train", "validation"))
    assert sorted(train.ids + validation.ids) == sorted(before) and len(before) == 30 and validation.ids
    assert not {*train.places()} & {*validation.places()}
    assert train.guesses["split"]
    table = "id,split\n" + "\n".join(
        f"{name},{'val' if number < 7 else 'train'}" for number, name in enumerate(before)
    )
    (root / "splits.csv").write_text(table)
    assert open_dataset(root, "validation").ids == before[:7]


@pytest.mark.parametrize("write", [*WRITERS, write_coco, write_labelme])
def test_an_image_of_another_size_is_an_error_with_both(tmp_path, write):
    root = write(tmp_path / "data", 1)
    root = root[0] if isinstance(root, tuple) else root
    (image,) = (path for path in root.rglob("0.png") if not {"masks", "panoptic"} & {*path.parts})
    picture(0, 50, 70).save(image)
    if write in (write_yolo, write_via):  # they do not tell the size of the image
        assert len(open_dataset(root, None)[0]["objects"]) == 3
        return
    with pytest.raises(ValueError, match=rf"0.*\[50, 70\].*\[{HEIGHT}, {WIDTH}\]"):
        open_dataset(root, None)[0]


@pytest.mark.parametrize("write", WRITERS)
def test_images_that_are_absent_are_named(tmp_path, write):
    root, _ = write(tmp_path / "data", 3)
    (image,) = (path for path in root.rglob("1.png") if not {"masks", "panoptic"} & {*path.parts})
    image.unlink()
    with pytest.raises(ValueError, match="1 .*(have no file|no image|lack a file).*1"):
        open_dataset(root, None)
    dataset = open_dataset(root, None, strict=False)
    assert len(dataset) == 2 and sum(map(len, dataset.problems.values())) == 1


def write_boxes(write, root):
    """The boxes of a format beside the shapes of another image, and how they are named."""
    if write is write_yolo:
        write(root)
        (root / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2 0.9\n" + yolo_row(BOXES[0]))
        return ["1, shape 0", "1, shape 1"]
    if write is write_cvat:
        write(root, 1, '<box xtl="1" ytl="1" xbr="9" ybr="9"/><polygon points="1,1;9,1;9,9"/>')
    if write is write_label_studio:
        box = studio_region({"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0})
        write(root, 1, [box, studio_region({"points": [[1, 1], [90, 1], [90, 90]]})])
        return ["/data/upload/1/00000000-0.png, shape 0"]
    if write is write_via:
        write(root, 1, [{"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5}, via_polygon(BOXES[0])])
    if write is write_supervisely:
        figure = {"geometryType": "rectangle", "points": {"exterior": [[1, 1], [9, 9]], "interior": []}}
        write(root, 1, [figure, supervisely_polygon(BOXES[0])])
        return ["ds/0.png, shape 0"]
    return ["0.png, shape 0"]


@pytest.mark.parametrize("write", SHAPES)
def test_boxes_are_no_masks_and_are_counted(tmp_path, write):
    names = write_boxes(write, tmp_path / "data")
    with pytest.warns(UserWarning, match="boxes, which are no masks"):
        dataset = open_dataset(tmp_path / "data", None)
    assert dataset.passed_over == {"shape(s) are boxes, which are no masks": names}
    assert sum(len(record["objects"]) for record in dataset) == (4 if write is write_yolo else 1)


def test_nothing_but_boxes_is_an_error(tmp_path):
    root, _ = write_cvat(tmp_path / "data", 2, '<box xtl="1" ytl="1" xbr="9" ybr="9"/>')
    with pytest.raises(ValueError, match=r"annotations.xml: no shape has a mask: 2 shape.s. are boxes"):
        open_dataset(root, None)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("damage", ["cut", "binary", "deep", "empty"])
def test_damaged_files_are_named(tmp_path, write, damage):
    root, file = write(tmp_path / "data", 3)
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "binary": b"\xff\xfe\0" + content,
            "deep": content[:40] + b"[" * 100_000,
            "empty": b"",
        }[damage]
    )
    try:
        dataset = open_dataset(root, None)
        records = [dataset[index] for index in range(len(dataset))]
    except (OSError, ValueError) as error:
        assert file.name in str(error) or "no known format" in str(error)
    else:  # a label of YOLO may end anywhere
        assert write is write_yolo and len(records) == 3


WRONG = [None, -1, 1e18, float("nan"), "x", [], {}, True, [[[]]], 10**30]


def spoil(content, rng: random.Random):
    """Put something wrong in one place of parsed JSON."""
    parent, key = None, None
    while isinstance(content, dict | list) and content and (parent is None or rng.random() < 0.9):
        parent, key = content, rng.choice([*content] if isinstance(content, dict) else range(len(content)))
        content = parent[key]
    parent[key] = rng.choice(WRONG)


@pytest.mark.parametrize(
    "write", [write_label_studio, write_via, write_supervisely, write_panoptic, write_coco, write_labelme, write_sa1b]
)
def test_wrong_values_anywhere_are_clear_errors_or_cost_themselves(tmp_path, write, recwarn):
    root = write(tmp_path / "data", 3)
    root, file = root if isinstance(root, tuple) else (root, next(root.glob("*.json")))
    content = file.read_text()
    rng = random.Random(0)
    for _ in range(60):
        spoiled = json.loads(content)
        spoil(spoiled, rng)
        file.write_text(json.dumps(spoiled))
        try:
            for record in open_dataset(root, None, strict=False):
                check_record(record)
        except (OSError, ValueError):
            pass


def test_yolo_splits_by_folders_of_both_layouts_and_by_data_yaml(tmp_path):
    for first, second in (("images", "{}"), ("{}", "images")):
        root = tmp_path / first.strip("{}") / "data"
        for number, split in enumerate(("train", "val" if first == "images" else "valid", "test")):
            images = root / first.format(split) / second.format(split)
            save_pictures(images, [f"{number}.png", f"{number}b.png"])
            labels = root.joinpath(*(part.replace("images", "labels") for part in images.relative_to(root).parts))
            labels.mkdir(parents=True)
            (labels / f"{number}.txt").write_text(yolo_row(BOXES[0]))
        for number, split in enumerate(("train", "validation", "test")):
            dataset = open_dataset(root, split)
            assert [name.split("/")[1] for name in dataset.ids] == [str(number), f"{number}b"]
            assert [len(record["objects"]) for record in dataset] == [1, 0]  # no label, no object
        assert "folders" in dataset.guesses["split"]
    (root / "data.yaml").write_text("train: ../valid/images\nval: [test/images]\nnames: [a]\n")
    assert open_dataset(root, "train").ids == ["valid/1", "valid/1b"]
    assert open_dataset(root, "validation").ids == ["test/2", "test/2b"]
    assert "data.yaml" in open_dataset(root, "validation").guesses["split"]
    (root / "train.txt").write_text("./test/images/2.png\n./valid/images/1.png\n")
    (root / "data.yaml").write_text("path: /gone\ntrain: train.txt\nval: train/images\n")
    assert open_dataset(root, "train").ids == ["test/2", "valid/1"]
    assert open_dataset(root, "validation").ids == ["train/0", "train/0b"]
    (root / "data.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\ntrain: [*b, 1, {}]\nval: [")
    assert open_dataset(root, "train").ids == ["train/0", "train/0b"]


def test_yolo_folders_with_a_year_are_splits(tmp_path):
    for split in ("train2017", "val2017"):
        save_pictures(tmp_path / "images" / split, [f"{split}.png"])
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / f"{split}.txt").write_text(yolo_row(BOXES[0]))
    assert open_dataset(tmp_path, "validation").ids == ["val2017/val2017"]
    assert open_dataset(tmp_path, "train").ids == ["train2017/train2017"]


def test_yolo_rows_that_are_wrong_cost_themselves(tmp_path):
    root, file = write_yolo(tmp_path / "data", 1)
    file.write_text(f"0 120 80 130 80 130 90\n{yolo_row(BOXES[0])}\n0 0.1 0.1 0.2 0.1 0.2 0.2 0.9\n0 a b c d e f\n\n")
    with pytest.warns(UserWarning, match="3 shape.s. are malformed"):
        dataset = open_dataset(root, None)
    assert np.array_equal(masks_of(dataset[0]), MASKS[:1])
    assert "shares of width and height" in dataset.passed_over["shape(s) are malformed"][0]


def test_cvat_names_subsets_and_refuses_declarations_and_masks_that_leave_the_image(tmp_path):
    root, file = write_cvat(tmp_path / "data", 3)
    text = file.read_text().replace('id="0"', 'id="0" subset="Train"')
    file.write_text(text.replace('id="1"', 'id="1" subset="Validation"').replace('id="2"', 'id="2" subset="Train"'))
    assert open_dataset(root, "train").ids == ["0", "2"] and open_dataset(root, "validation").ids == ["1"]
    file.write_text(text.replace("<annotations>", '<!DOCTYPE a [<!ENTITY b "bb">]><annotations>'))
    with pytest.raises(ValueError, match=r"annotations.xml: a DOCTYPE or ENTITY"):
        open_dataset(root, None)
    wrong = [
        f'<mask rle="{cvat_runs(MASKS[0])}" left="1" top="0" width="{WIDTH}" height="{HEIGHT}"/>',
        '<mask rle="0, 1000000000" left="0" top="0" width="50000" height="20000"/>',
        '<mask rle="3, 3" left="0" top="0" width="2" height="2"/>',
        '<ellipse cx="20" cy="20" rx="0" ry="4"/>',
        '<ellipse cx="20" cy="20" rx="9" ry="4" rotation="90"/>',
        '<polyline points="1,1;9,9;1,9"/>',
    ]
    (tmp_path / "wrong").mkdir()
    root, _ = write_cvat(tmp_path / "wrong" / "data", 1, "".join(wrong))
    dataset = open_dataset(root, None)
    assert {what: len(names) for what, names in dataset.passed_over.items()} == {
        "shape(s) are malformed": 4,
        "shape(s) are a polyline, which has no area": 1,
    }
    (turned,) = masks_of(dataset[0])
    assert turned.any(axis=1).sum() == 18 and turned.any(axis=0).sum() == 8  # higher than wide
    assert turned.sum() == pytest.approx(np.pi * 9 * 4, rel=0.05)


def test_brushes_of_label_studio_are_unpacked(tmp_path):
    rng = np.random.default_rng(0)
    for mask in (MASKS[1], np.zeros_like(MASKS[0]), ~MASKS[0], rng.random((9, 7)) < 0.5, rng.random((1, 1)) < 2):
        assert np.array_equal(decode_brush(pack_brush(mask), mask.shape), mask)
        assert np.array_equal(decode_brush(pack_brush(mask, (1, 2, 3, 5)), mask.shape), mask)
    packed = pack_brush(MASKS[1])
    for wrong, size in ((packed[:-4], MASKS[1].shape), (packed, (9, 9)), ([], (9, 9)), (packed, (10**5, 10**5))):
        with pytest.raises(ValueError):
            decode_brush(wrong, size)


@pytest.mark.parametrize(
    ("image", "stored"),
    [
        ("/data/upload/1/0123abcd-a b.png", "0123abcd-a b.png"),
        ("/data/upload/1/0123abcd-a.png", "a.png"),
        ("/data/local-files/?d=photos/a%20b.png", "a b.png"),
        ("..\\..\\media\\upload\\4\\a.png", "a.png"),
        ("https://host/media/a.png?token=9", "a.png"),
        ("s3://bucket/some/a.png", "some/a.png"),
    ],
)
def test_images_of_label_studio_are_found_by_any_of_its_names(tmp_path, image, stored):
    root, file = write_label_studio(tmp_path / "data", 1)
    content = json.loads(file.read_text())
    content[0]["data"]["image"] = image
    file.write_text(json.dumps(content))
    (root / "images" / stored).parent.mkdir(exist_ok=True)
    (root / "images" / "0.png").rename(root / "images" / stored)
    assert np.array_equal(masks_of(open_dataset(root, None)[0]), MASKS)


def test_ellipses_of_label_studio_and_via_are_in_their_units(tmp_path):
    values = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 40, "rotation": 90}
    turned = [studio_region(values), studio_region(values, id="x", image_rotation=90)]
    root, _ = write_label_studio(tmp_path / "studio", 1, turned)
    dataset = open_dataset(root, None)
    shapes = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 6, "ry": 16, "theta": np.pi / 2}
    circle = {"name": "circle", "cx": 30, "cy": 20, "r": 8}
    via, _ = write_via(tmp_path / "via", 1, [shapes, circle, {"name": "point", "cx": 1, "cy": 1}])
    one, other = masks_of(dataset[0])[0], masks_of(open_dataset(via, None)[0])
    assert np.array_equal(one, other[0]) and one.any(axis=0).sum() == 32 and one.any(axis=1).sum() == 12
    assert other[1].sum() == pytest.approx(np.pi * 64, rel=0.05)
    assert len(dataset.passed_over["shape(s) are malformed"]) == 1


def test_holes_of_supervisely_are_cut_and_data_sets_are_splits(tmp_path):
    root, _ = write_supervisely(tmp_path / "data", 2, [supervisely_polygon((5, 5, 25, 25), (10, 10, 20, 20))])
    assert np.array_equal(
        masks_of(open_dataset(root, None)[0])[0], mask_of((5, 5, 25, 25)) & ~mask_of((10, 10, 20, 20))
    )
    (root / "ds").rename(root / "train")
    assert len(open_dataset(root, "train")) == len(open_dataset(root, "validation")) == 1
    write_supervisely(tmp_path / "other")
    (tmp_path / "other" / "ds").rename(root / "val")
    assert open_dataset(root, "train").ids == ["train/0.png", "train/1.png"]
    assert open_dataset(root, "validation").ids == ["val/0.png", "val/1.png"]


def test_stuff_is_background_where_categories_tell_and_unknown_segments_an_error(tmp_path):
    root, file = write_panoptic(tmp_path / "data", 1, isthing=1)
    for options, labels in (({}, (0, 5, 70_000)), ({"take_stuff": True}, (0, 5, 300, 70_000))):
        record = open_dataset(root, None, **options)[0]
        assert np.array_equal(masks_of(record), [label == SEGMENTS for label in labels])
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"record '0': .*panoptic.0.png has 1 segment.s. .* such as \[70000\]"):
        open_dataset(root, None)[0]
    (root / "panoptic").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"panoptic.json: no PNG file of segments found, such as 0.png: .* panoptic/"):
        open_dataset(root, None)


def test_real_panoptic_segments_are_those_of_the_coco_file(shared_data):
    root = shared_data / "format_samples" / "coco_rle_panoptic"
    panoptic = open_dataset(root / "panoptic_examples.json", None, take_stuff=True, min_area=0)
    for record, other in zip(panoptic, open_dataset(root, None, min_area=0), strict=True):
        segments = {item["segmentation"]["counts"] for item in record["objects"]}
        assert {item["segmentation"]["counts"] for item in other["objects"]} <= segments
        assert len(segments) - len(other["objects"]) in (0, 1)  # void
        check_record(record)


def test_metadata_as_csv_of_label_maps_in_folders_of_splits(tmp_path):
    for split, count in (("train", 2), ("validation", 1)):
        write_metadata(tmp_path / "data" / split, count, "csv")
    train, validation = (open_dataset(tmp_path / "data", split) for split in ("train", "validation"))
    assert len(train) == 2 and len(validation) == 1
    labels = SEGMENTS % 256
    assert np.array_equal(masks_of(train[0]), [labels == label for label in np.unique(labels)[1:]])
    assert "label maps" in train.guesses["masks"] and "mask_file_name" in train.guesses["masks"]


def test_rows_of_metadata_that_are_wrong_are_named_and_columns_can_be_told(tmp_path):
    root, file = write_metadata(tmp_path / "data", 3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["mask_file_names"] = ["masks/" + "gone" * 1000]
    file.write_text("\n".join([*map(json.dumps, rows), "[1]", "{"]))
    dataset = open_dataset(root, None, strict=False)
    assert dataset.ids == ["0", "2"] and {what: len(names) for what, names in dataset.problems.items()} == {
        "row(s) are damaged": 2,
        "row(s) lack a file": 1,
    }
    for row in rows:
        row["other_mask_file_name"] = f"masks/{row['file_name']}"
    file.write_text("\n".join(json.dumps(row) for row in (rows[0], rows[2])))
    with pytest.raises(ValueError, match=r"columns \['mask_file_names', 'other_mask_file_name'\].*mask_column"):
        open_dataset(root, None)
    assert len(open_dataset(root, None, mask_column="other_mask_file_name", masks="labels")[0]["objects"]) == 3


@pytest.mark.parametrize("form", [compressed, uncompressed])
def test_lists_of_a_mask_generator_beside_images(tmp_path, form):
    save_pictures(tmp_path, ["0.png", "1.png"])
    records = [{"segmentation": form(mask), "predicted_iou": 0.9, "bbox": [0, 0, 1, 1]} for mask in MASKS]
    (tmp_path / "0.json").write_text(json.dumps(records))
    (tmp_path / "1.json").write_text("[]")
    dataset = open_dataset(tmp_path, None)
    assert np.array_equal(masks_of(dataset[0]), MASKS) and dataset[1]["objects"] == []


def test_a_part_pasted_into_an_image_is_where_it_was(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(50):
        part = rng.random((rng.integers(1, 6), rng.integers(1, 6))) < rng.choice([0.1, 0.5, 1.0])
        left, top = int(rng.integers(0, 8 - part.shape[1])), int(rng.integers(0, 9 - part.shape[0]))
        mask = np.zeros((9, 8), dtype=bool)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        objects = objects_from_rles([paste_mask(part, left, top, (9, 8))])
        assert np.array_equal(decode_masks(objects)[0], mask)
    whole = np.ones((9, 8), dtype=bool)
    assert objects_from_rles([paste_mask(whole, 0, 0, (9, 8))])[0]["area"] == 72


def test_sizes_that_nobody_can_have_are_refused_before_memory_is_taken():
    for size in ((50_000, 20_000), (0, 5), (10**9, 10**9)):
        with pytest.raises(ValueError, match=r"expected to have 1 to"):
            encode_segmentation([[0, 0, 5, 0, 5, 5]], size)
        with pytest.raises(ValueError, match=r"expected to have 1 to"):
            paste_mask(np.ones((1, 1), dtype=bool), 0, 0, size)
    with pytest.raises(ValueError, match="radii"):
        ellipse(1, 1, float("nan"), 2)


def test_a_claim_of_many_pixels_is_named(tmp_path):
    root, file = write_label_studio(tmp_path / "data", 2)
    content = json.loads(file.read_text())
    for region in content[0]["annotations"][0]["result"]:
        region["original_width"] = region["original_height"] = 10**6
    file.write_text(json.dumps(content))
    dataset = open_dataset(root, None, strict=False)
    (names,) = dataset.problems.values()
    assert len(dataset) == 1 and "[1000000, 1000000]" in names[0] and Image.MAX_IMAGE_PIXELS
