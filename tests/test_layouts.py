"""Folders in the layouts that people have: every image with its own masks, in its own split, or an error."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_files import BOXES, MASKS, coco_content, mask_of, picture, write_coco, write_masks
from PIL import Image

from sam_hf.data import LabelMapFolder, MaskFolder, check_record, decode_masks, layouts, open_dataset
from sam_hf.data.layouts import LAYOUTS, find_layout

LABELS = MASKS[0] + 2 * (MASKS[1] & ~MASKS[0]).astype(np.uint8)
PARTS = [LABELS == 1, LABELS == 2]


def save(root: Path, files: dict[str, int | np.ndarray]) -> Path:
    """Pictures by number, and masks."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            (picture(content) if isinstance(content, int) else Image.fromarray(content)).save(path)
    return root


def binary(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * 255


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.jpg", "masks/{}_1.png"),
        ("images/{}.png", "masks/{}.npy"),
        ("Images/{}.png", "Masks/{}.tif"),
        ("imgs/{}.png", "labels/{}.png"),
        ("image/{}.jpg", "mask/{}.png"),
        ("image/{}.png", "labels/{}.png"),
        ("images/{}.png", "label/{}.png"),
        ("img/{}.jpg", "ground_truth/{}.png"),
        ("images/patient/{}.png", "masks/patient/{}.png"),
        ("images/{}.jpg", "masks/{}_mask.gif"),
        ("images/{}.jpg", "masks/{}_segmentation.png"),
        ("images/one/{}.png", "masks/one/mask_{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.png", "{}_masks.tif"),
        ("{}.jpg", "{}_seg.png"),
        ("{}.jpg", "{}_gt.png"),
        ("{}.tif", "mask_{}.png"),
        ("{}_img.png", "{}_masks.png"),
        ("{}.png", "{}_cp_masks.png"),
        ("deep/er/{}.jpg", "deep/er/{}_mask.png"),
    ],
)
def test_every_image_has_its_own_mask(tmp_path, images, masks):
    names = ["a", "a_b", "c 1"]
    kinds = [LABELS, LABELS[:, ::-1], LABELS[::-1]]
    files = {images.format(name): number for number, name in enumerate(names)}
    files |= {masks.format(name): np.ascontiguousarray(kind) for name, kind in zip(names, kinds, strict=True)}
    dataset = open_dataset(save(tmp_path / "data", files), None)
    assert type(dataset) is LabelMapFolder and dataset.problems == {} and len(dataset) == 3
    assert [Path(name).name for name in dataset.ids] == names
    for number, (record, kind) in enumerate(zip(dataset, kinds, strict=True)):
        check_record(record)
        assert record["image"].size == (60, 40) and dataset.places()[number].name == Path(images).name.format(
            names[number]
        )
        assert np.array_equal(decode_masks(record["objects"]), [kind == 1, kind == 2])
    assert dataset.guesses["reader"].startswith("LabelMapFolder") and dataset.guesses["layout"]
    assert "values 0 to 2" in dataset.guesses["masks"]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.png", "masks/{}/{}.png"),
        ("images/sub/{}.png", "masks/sub/{}/x{}.png"),
        ("images/{}.png", "masks/{}_{}.png"),
        ("{}.png", "{}_mask_{}.png"),
        ("{}.png", "{}_mask{}.png"),
        ("{0}/images/{0}.png", "{}/masks/{}.png"),
        ("stage1_train/{0}/images/{0}.png", "stage1_train/{}/masks/{}.png"),
    ],
)
def test_a_file_for_every_object(tmp_path, images, masks):
    files = {images.format(name): number for number, name in enumerate("ab")}
    files |= {masks.format(name, k): binary(part) for name in "ab" for k, part in enumerate(PARTS)}
    dataset = open_dataset(save(tmp_path / "data", files), None)
    assert type(dataset) is MaskFolder and dataset.problems == {} and len(dataset) == 2
    for record in dataset:
        assert np.array_equal(decode_masks(record["objects"]), PARTS)


def test_pascal_voc(tmp_path):
    values = LABELS.copy()
    values[:3] = 255
    mask = Image.fromarray(values)
    mask.putpalette([value for index in range(256) for value in (index, 255 - index, 9)])
    save(tmp_path, {f"JPEGImages/{name}.jpg": 0 for name in ("a", "b", "c", "boxes_alone")})
    (tmp_path / "SegmentationObject").mkdir()
    for name in "abc":
        mask.save(tmp_path / "SegmentationObject" / f"{name}.png")
    lists = {"train": "a\n", "val": "b\nc\n", "trainval": "a\nb\nc\n"}
    save(tmp_path, {f"ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()})
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert train.ids == ["a"] and validation.ids == ["b", "c"] and open_dataset(tmp_path, None).ids == ["a", "b", "c"]
    objects = train[0]["objects"]
    assert [item["iscrowd"] for item in objects] == [0, 0, 1]
    assert np.array_equal(decode_masks(objects), [values == 1, values == 2, values == 255])
    assert train.guesses["split"] == "ImageSets/Segmentation/train.txt, ImageSets/Segmentation/val.txt"
    assert train.guesses["masks"].endswith("as in Pascal VOC (JPEGImages/ and SegmentationObject/)")
    save(tmp_path, {"ImageSets/Segmentation/val.txt": "a\nb\n"})
    with pytest.raises(ValueError, match="val.txt lists a, which is in the split 'train' too"):
        open_dataset(tmp_path, "train")


def test_cityscapes(tmp_path):
    values = np.full((40, 60), 7, dtype=np.uint16)
    values[MASKS[0]] = 26001
    values[MASKS[1]] = 24000
    values[:3] = 26
    for place in ("train/aachen/aachen_0", "train/aachen/aachen_1", "val/bonn/bonn_0"):
        save(tmp_path, {f"leftImg8bit/{place}_leftImg8bit.png": 0, f"gtFine/{place}_gtFine_instanceIds.png": values})
        save(tmp_path, {f"gtFine/{place}_gtFine_labelIds.png": LABELS, f"gtFine/{place}_gtFine_color.png": LABELS})
    save(tmp_path, {"leftImg8bit/train_extra/x/x_0_leftImg8bit.png": 0})
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert train.ids == ["train/aachen/aachen_0", "train/aachen/aachen_1"] and validation.ids == ["val/bonn/bonn_0"]
    objects = train[0]["objects"]
    assert [item["iscrowd"] for item in objects] == [1, 0, 0] and train.problems == {}
    assert np.array_equal(decode_masks(objects), [values == 26, values == 24000, values == 26001])


def test_davis(tmp_path):
    for sequence in ("bear", "camel"):
        for number in range(3):
            save(tmp_path, {f"JPEGImages/480p/{sequence}/{number:05d}.jpg": number})
            save(tmp_path, {f"Annotations/480p/{sequence}/{number:05d}.png": LABELS})
    save(tmp_path, {"ImageSets/2017/train.txt": "bear\n", "ImageSets/2017/val.txt": "camel\n"})
    assert open_dataset(tmp_path, "train").ids == [f"bear/{number:05d}" for number in range(3)]
    assert open_dataset(tmp_path, "validation").ids == [f"camel/{number:05d}" for number in range(3)]
    assert len(open_dataset(tmp_path, "train")[0]["objects"]) == 2


@pytest.mark.parametrize("pattern", ["images/{}.png masks/{}.png", "{}.png {}_mask.png", "{}_img.png {}_masks.png"])
@pytest.mark.parametrize("others", [("val",), ("test",), ("validation", "test"), ()])
def test_folders_of_splits_inside(tmp_path, pattern, others):
    names = [f"{split}/{number}" for split in ("train", *others) for number in range(20)]
    image, mask = pattern.split()
    save(tmp_path, {image.format(name): 0 for name in names} | {mask.format(name): LABELS for name in names})
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert not {*train.ids} & {*validation.ids} and validation.ids
    assert all(name.startswith("train/") for name in train.ids)
    own = others and others[0].startswith("val")
    assert all(name.startswith(others[0] if own else "train/") for name in validation.ids)
    assert len(train) + len(validation) == (40 if own else 20)
    assert ("by a hash" in train.guesses["split"]) == (not own)
    if "test" in others:
        assert len(open_dataset(tmp_path, "test")) == 20
    else:
        with pytest.raises(ValueError, match="split 'test' has no image: .* has train"):
            open_dataset(tmp_path, "test")
    save(tmp_path, {"splits.csv": "id,split\n" + "".join(f"{name},validation\n" for name in names)})
    assert len(open_dataset(tmp_path, "validation")) == len(names)


@pytest.mark.parametrize("write", [write_masks, write_coco])
@pytest.mark.parametrize("others", [("val",), ("test",), ()])
def test_folders_of_splits_above(tmp_path, write, others):
    for split in ("train", *others):
        write(tmp_path / split, 20)
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert not {*train.places()} & {*validation.places()} and len(validation)
    assert {path.relative_to(tmp_path.resolve()).parts[0] for path in train.places()} == {"train"}
    assert len(train) + len(validation) == (40 if others == ("val",) else 20)
    assert train.guesses["split"].startswith("the folder train/")
    assert others != ("test",) or len(open_dataset(tmp_path, "test")) == 20


def test_nested_folders_that_name_no_split_are_drawn_from(tmp_path):
    names = [f"{patient}/{number}" for patient in "abc" for number in range(10)]
    save(tmp_path, {f"images/{name}.png": 0 for name in names} | {f"masks/{name}.png": LABELS for name in names})
    train, validation = (open_dataset(tmp_path, split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 30 and train.guesses["split"].startswith("drawn by a hash of the ids")


def test_the_folder_of_images_can_be_named(tmp_path):
    files = {f"rgb/{name}.png": number for number, name in enumerate("ab")}
    files |= {f"depth/{name}.png": 9 for name in "ab"} | {f"masks/{name}.png": LABELS for name in "ab"}
    root = save(tmp_path / "data", files)
    with pytest.raises(ValueError, match="in no known format.*(?s:.*)images= .--images. names another folder"):
        open_dataset(root, None)
    save(tmp_path / "elsewhere", {f"{name}.png": number for number, name in enumerate("ab")})
    for images in ("rgb", Path("rgb"), root / "rgb", tmp_path / "elsewhere"):
        dataset = open_dataset(root, None, images=images)
        assert np.array_equal(dataset[1]["image"], picture(1)) and len(dataset[1]["objects"]) == 2
    assert dataset.guesses["layout"] == f"{tmp_path / 'elsewhere'} and masks/"
    save(root, {f"{name}.png": number for number, name in enumerate("ab")})
    assert open_dataset(root, None, images=".", strict=False).ids == ["a", "b"]
    with pytest.raises(ValueError, match="folder of images 'absent' is neither in"):
        open_dataset(root, None, images="absent")


def test_two_layouts_that_fit_are_an_error_unless_one_fits_more(tmp_path):
    root = write_masks(tmp_path / "data", 3)
    save(root, {f"labels/{number:03d}.png": MASKS[0].astype(np.uint8) for number in range(3)})
    with pytest.raises(ValueError, match="images/ and masks/, or images/ and labels/.*layout='images/ and masks/'"):
        open_dataset(root, None)
    assert len(open_dataset(root, None, layout="images/ and masks/")[0]["objects"]) == 2
    assert len(open_dataset(root, None, layout="images/ and labels/")[0]["objects"]) == 1
    with pytest.raises(ValueError, match="layout is 'mine', expected one of: images/ and masks/;"):
        open_dataset(root, None, layout="mine")
    (root / "labels" / "002.png").unlink()
    assert open_dataset(root, None).guesses["layout"] == "images/ and masks/"
    root = save(tmp_path / "one", {"a.png": 0, "a_mask.png": LABELS, "a_gt.png": LABELS})
    with pytest.raises(ValueError, match="a and a_mask in one folder, or a and a_gt in one folder"):
        open_dataset(root, None)


def test_files_without_partner_are_named_in_every_layout(tmp_path):
    root = save(tmp_path / "one", {"a.png": 0, "a_mask.png": LABELS, "b.png": 1, "c_mask.png": LABELS})
    with pytest.raises(ValueError, match="2 image.s. have no file in the folder: b, c_mask"):
        open_dataset(root, None)
    assert open_dataset(root, None, strict=False).ids == ["a"]
    root = save(tmp_path / "cellpose", {"a_img.png": 0, "a_masks.png": LABELS, "b_masks.png": LABELS})
    with pytest.raises(ValueError, match="1 mask.s. belong to no file in the folder: b_masks.png"):
        open_dataset(root, None)


def test_a_mask_in_two_formats_is_not_two_objects(tmp_path):
    mask = binary(MASKS[0])
    root = save(tmp_path, {"images/a.png": 0, "masks/a.png": mask, "masks/a.jpg": mask})
    with pytest.raises(ValueError, match="1 mask.s. are there in several formats, .*: masks/a"):
        open_dataset(root, None, strict=False)


def test_annotations_in_files_of_their_own_go_before_pictures_of_them(tmp_path):
    root = save(tmp_path / "data", {"JPEGImages/a.png": 0, "SegmentationObject/a.png": LABELS})
    (root / "annotations.json").write_text(json.dumps(coco_content(["JPEGImages/a.png"])))
    assert open_dataset(root, None).guesses["reader"] == "CocoInstances, for COCO"


def test_hidden_folders_are_no_layout(tmp_path):
    root = write_masks(tmp_path / "data", 2)
    for folder in (".labels", "masks/.ipynb_checkpoints", "images/__MACOSX", "images/.thumbnails/deep"):
        save(root, {f"{folder}/000.png": LABELS, f"{folder}/other.png": LABELS})
    dataset = open_dataset(root, None)
    assert dataset.problems == {} and dataset.ids == ["000", "001"] and type(dataset) is LabelMapFolder


def test_options_of_other_readers_say_whose_they_are(tmp_path):
    with pytest.raises(ValueError, match="CocoInstances has no option 'masks': it is one of .*LabelMapFolder"):
        open_dataset(write_coco(tmp_path / "coco", 1), None, masks="binary")
    with pytest.raises(ValueError, match="LabelMapFolder has no option 'image_column': it is one of .*TableRecords"):
        open_dataset(write_masks(tmp_path / "masks", 1), None, image_column="left")
    with pytest.raises(ValueError, match="scenes do not have this option.*masks"):
        open_dataset("scenes", "train", masks="binary")


@pytest.mark.parametrize("turned", [3, 6])
def test_masks_of_the_stored_frame_where_sizes_tell(tmp_path, turned):
    """A quarter turn proves the frame; it settles that of half a turn, in the whole set."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, orientation in (("quarter", 6), ("other", turned)):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(binary(mask_of(BOXES[0]))).save(tmp_path / "images" / f"{name}.png", exif=exif)
        Image.fromarray(binary(mask_of(BOXES[0]))).save(tmp_path / "masks" / f"{name}.png")
    dataset = open_dataset(tmp_path, None)
    assert (dataset.exif == "stored") == (turned == 3)
    for record in dataset:
        assert np.array_equal(np.asarray(record["image"]) > 0, decode_masks(record["objects"])[0])


def test_names_of_layouts_are_unique():
    assert len({row.name for row in LAYOUTS}) == len(LAYOUTS)


def test_an_image_id_is_looked_for_once_in_its_own_folder(tmp_path):
    files = {"images/x/a.png": 0, "images/y/a.png": 1, "masks/y/a.png": LABELS, "masks/x/a.png": LABELS}
    paired = find_layout(save(tmp_path, files))
    assert {name: [path.parent.name for path in paths] for name, paths in paired.masks.items()} == {
        "x/a": ["x"],
        "y/a": ["y"],
    }


def test_a_folder_is_walked_through_once(tmp_path, monkeypatch):
    for number in range(3):
        save(tmp_path, {f"images/{number}.png": number, f"masks/{number}.png": LABELS})
    walk, places = layouts._walk, []
    monkeypatch.setattr(layouts, "_walk", lambda folder: places.append(folder) or walk(folder))
    assert len(open_dataset(tmp_path, None)) == 3
    assert sorted(place.name for place in places) == ["images", "masks"]
