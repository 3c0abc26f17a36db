"""Record schema, folder readers and their detection."""

import json
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from torch.utils.data import DataLoader

from sam_hf.data import (
    FEATURES,
    LabelMapFolder,
    MaskFolder,
    ObjectFilter,
    check_record,
    decode_masks,
    objects_from_label_map,
    objects_from_masks,
    open_dataset,
    rgb_array,
)

BLOCKS = np.kron(np.array([[0, 1, 1], [2, 0, 300]], dtype=np.uint16), np.ones((10, 12), dtype=np.uint16))


def noisy_label_map(seed: int, height: int, width: int, labels: int) -> np.ndarray:
    """Coarse blocks with single wrong pixels: labels in many pieces, touching every border."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, labels, (height // 5 + 1, width // 5 + 1))
    label_map = np.kron(coarse, np.ones((5, 5), dtype=int))[:height, :width]
    noise = rng.random((height, width)) < 0.05
    return np.where(noise, rng.integers(0, labels, (height, width)), label_map).astype(np.uint16)


def write_folder(root, images: dict[str, np.ndarray], masks: dict[str, np.ndarray], splits: str | None = None):
    for name, pixels in images.items():
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "images" / name)
    for name, pixels in masks.items():
        (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "masks" / name)
    if splits is not None:
        (root / "splits.csv").write_text(splits)
    return root


def grey(height: int = 20, width: int = 36) -> np.ndarray:
    return np.full((height, width), 90, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "labels"), [(1, 1, 2), (1, 40, 3), (40, 1, 3), (53, 71, 400)])
@pytest.mark.parametrize("background", [0, 1, None])
def test_label_map_encoding_equals_pycocotools_mask_by_mask(height, width, labels, background):
    label_map = noisy_label_map(height + labels, height, width, labels)
    objects = objects_from_label_map(label_map, background)
    expected = [label for label in np.unique(label_map) if label != background]
    assert len(objects) == len(expected)
    for item, label in zip(objects, expected, strict=True):
        rle = coco.encode(np.asfortranarray((label_map == label).astype(np.uint8)))
        assert item["segmentation"]["counts"] == rle["counts"].decode()
        assert item["segmentation"]["size"] == [height, width]
        assert item["area"] == coco.area(rle)
        assert item["bbox"] == coco.toBbox(rle).tolist()
        assert item["iscrowd"] == 0
    json.dumps(objects)


def test_decoding_gives_back_the_masks_of_the_objects_passed_in():
    label_map = noisy_label_map(3, 40, 50, 6)
    masks = np.stack([label_map == label for label in range(1, 6)])
    objects = objects_from_label_map(label_map)
    assert np.array_equal(decode_masks(objects), masks)
    assert np.array_equal(decode_masks(objects[3:1:-1]), masks[[3, 2]])
    assert decode_masks(objects).dtype == bool
    assert objects_from_masks(masks) == objects
    assert decode_masks([]).shape == (0, 0, 0)


def test_empty_masks_keep_their_place_and_are_filtered():
    masks = np.zeros((3, 20, 20), dtype=bool)
    masks[1, :4, :4] = True
    masks[2, :, :19] = True
    objects = objects_from_masks(masks)
    assert [item["area"] for item in objects] == [0, 16, 380]
    assert ObjectFilter()(objects) == [objects[1]]
    assert ObjectFilter(min_area=17, max_share=0.95)(objects) == [objects[2]]
    crowd = {**objects[2], "iscrowd": 1}
    assert ObjectFilter()([crowd]) == [crowd]
    assert objects_from_label_map(np.zeros((5, 5), dtype=int)) == []
    assert objects_from_masks(np.zeros((0, 5, 5), dtype=bool)) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: objects_from_label_map(np.zeros((4, 4, 3), dtype=np.uint8)),
            r"\[4, 4, 3\]; a colour picture",
        ),
        (lambda: objects_from_label_map(np.zeros((4, 4))), "float64"),
        (lambda: objects_from_masks(np.zeros((2, 4, 4), dtype=np.uint8)), "bool .*uint8"),
        (lambda: rgb_array(np.zeros((4, 4, 2))), r"float64 \[4, 4, 2\]"),
        (
            lambda: decode_masks(
                [objects_from_label_map(np.ones((4, n), dtype=int))[0] for n in (4, 5)],
            ),
            r"\(4, 4\), \(4, 5\)",
        ),
    ],
)
def test_conversions_refuse_what_they_cannot_mean(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (7, 5), 9),
        Image.new("RGBA", (7, 5), (9, 9, 9, 0)),
        Image.new("1", (7, 5)),
        Image.new("P", (7, 5)),
        Image.fromarray(np.full((5, 7), 40_000, dtype=np.uint16)),
        np.zeros((5, 7), dtype=np.uint8),
        np.zeros((5, 7, 1), dtype=np.uint8),
        np.zeros((5, 7, 4), dtype=np.uint8),
    ],
)
def test_rgb_array_takes_every_common_kind_of_image(image):
    pixels = rgb_array(image)
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8


def test_rgb_array_scales_sixteen_bits_instead_of_clipping():
    values = np.array([[0, 20_000, 40_000]], dtype=np.uint16)
    assert rgb_array(Image.fromarray(values))[0, :, 0].tolist() == [0, 128, 255]


def record(**changes):
    item = objects_from_label_map(BLOCKS)[0]
    return {"image": grey(), "objects": [{**item, **changes}], "image_id": "frog"}


def test_check_record_accepts_what_the_package_makes():
    check_record({"image": grey(), "objects": objects_from_label_map(BLOCKS), "image_id": "frog"})
    check_record({"image": Image.fromarray(grey()), "objects": [], "image_id": "frog"})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (record(area=5), "area is 5, the mask has 240"),
        (record(bbox=[12.0, 0.0, 23.0, 9.0]), "toBbox"),
        (record(iscrowd=2), "iscrowd"),
        (record(segmentation=[[0, 0, 5, 5, 5, 0]]), "COCO RLE"),
        (
            record(segmentation={"size": [36, 20], "counts": "0"}),
            r"\[36, 20\] differs from image size \[20, 36\]",
        ),
        (record(segmentation={"size": [20, 36], "counts": "11"}), "cover 2 of 720"),
        (record(segmentation={"size": [20, 36], "counts": [720]}), "frPyObjects"),
        ({**record(), "image": "frog.png"}, "frog"),
        ({**record(), "objects": [{"area": 3}]}, "lacks"),
    ],
)
def test_check_record_names_the_image_and_the_fault(broken, message):
    with pytest.raises(ValueError, match=message) as error:
        check_record(broken)
    assert "'frog'" in str(error.value)


def test_records_pass_through_a_datasets_table(tmp_path):
    source = MaskFolder(write_folder(tmp_path, {"a.png": grey()}, {"a/0.png": (BLOCKS == 1) * np.uint8(255)}))
    table = datasets.Dataset.from_list([source[0]], features=FEATURES)
    check_record(table[0])
    assert table[0]["objects"][0]["segmentation"] == source[0]["objects"][0]["segmentation"]


def test_label_maps_of_eight_and_sixteen_bit_and_palette(tmp_path):
    palette = Image.fromarray(BLOCKS.clip(0, 9).astype(np.uint8))
    palette.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    write_folder(
        tmp_path,
        {f"{name}.png": grey() for name in "abc"},
        {"a.png": BLOCKS, "b.png": BLOCKS.astype(np.uint8)},
    )
    palette.save(tmp_path / "masks" / "c.png")
    with Image.open(tmp_path / "masks" / "c.png") as written:
        assert written.mode == "P"
    dataset = open_dataset(tmp_path, split=None)
    assert isinstance(dataset, LabelMapFolder)
    assert dataset.ids == ["a", "b", "c"]
    for item in dataset:
        check_record(item)
        assert sorted(thing["area"] for thing in item["objects"]) == [120, 120, 240]


def test_background_may_be_absent_or_another_value(tmp_path):
    write_folder(tmp_path, {"a.png": grey()}, {"a.png": BLOCKS})
    assert len(LabelMapFolder(tmp_path)[0]["objects"]) == 3
    assert len(LabelMapFolder(tmp_path, background=None)[0]["objects"]) == 4
    assert [thing["area"] for thing in LabelMapFolder(tmp_path, background=1)[0]["objects"]] == [
        240,
        120,
        120,
    ]


def test_several_maps_of_an_image_are_merged_or_chosen_by_number(tmp_path):
    maps = {f"a_{k}.png": np.full((20, 36), 1, dtype=np.uint8) for k in (2, 10)}
    for k, pixels in enumerate(maps.values()):
        pixels[:5] = 2
        pixels[:, :3] = 3 + k
    maps["a_10.png"][:, 30:] = 9
    write_folder(tmp_path, {"a.png": grey()}, maps)
    assert len(LabelMapFolder(tmp_path)[0]["objects"]) == 7
    counts = [len(LabelMapFolder(tmp_path, variant=k)[0]["objects"]) for k in (0, 1, 2)]
    assert counts == [3, 4, 3]


def test_mask_folders_of_both_forms_threshold_in_the_middle(tmp_path):
    soft = np.zeros((20, 36), dtype=np.uint8)
    soft[4:10, 4:10] = 255
    soft[4:10, 9] = 128
    soft[4:10, 10] = 127
    other = (BLOCKS == 2).astype(np.uint8) * 255
    nested = write_folder(tmp_path / "nested", {"a.jpg": grey()}, {"a/x.png": soft, "a/y.png": other})
    numbered = write_folder(tmp_path / "numbered", {"a.jpg": grey()}, {"a_0.png": soft, "a_1.png": other})
    for dataset in (open_dataset(nested, None), MaskFolder(numbered)):
        assert isinstance(dataset, MaskFolder)
        check_record(dataset[0])
        assert [thing["area"] for thing in dataset[0]["objects"]] == [36, 120]
    ones = MaskFolder(write_folder(tmp_path / "ones", {"a.png": grey()}, {"a/0.png": other // 255}))
    assert [thing["area"] for thing in ones[0]["objects"]] == [120]


def test_detection_is_by_values_and_refuses_to_guess(tmp_path):
    binary = (BLOCKS == 1).astype(np.uint8) * 255
    assert isinstance(
        open_dataset(write_folder(tmp_path / "b", {"a.png": grey()}, {"a.png": binary}), None), MaskFolder
    )
    soft = np.where(BLOCKS == 2, 100, binary).astype(np.uint8)
    with pytest.raises(ValueError, match="could be a soft binary mask or a label map.*--masks"):
        open_dataset(write_folder(tmp_path / "s", {"a.png": grey()}, {"a.png": soft}), None)
    colours = np.zeros((20, 36, 3), dtype=np.uint8)
    colours[..., 0] = BLOCKS
    with pytest.raises(ValueError, match="mode 'RGB'"):
        open_dataset(write_folder(tmp_path / "c", {"a.png": grey()}, {"a.png": colours}), None)[0]


def test_an_exact_name_wins_over_a_numbered_one(tmp_path):
    label = np.ones((20, 36), dtype=np.uint8)
    label[:10] = 0
    write_folder(tmp_path, {"a.png": grey(), "a_1.png": grey()}, {"a_0.png": label, "a_1.png": 1 - label})
    dataset = LabelMapFolder(tmp_path)
    assert [item["objects"][0]["bbox"][1] for item in dataset] == [10, 0]


def test_images_are_shown_upright(tmp_path):
    write_folder(tmp_path, {}, {"a.png": BLOCKS})
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(grey(36, 20)).save(tmp_path / "images" / "a.jpg", exif=exif)
    check_record(LabelMapFolder(tmp_path)[0])


def names(count: int, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {f"i{k}.png": pixels for k in range(count)}


@pytest.mark.parametrize(
    ("images", "masks", "splits", "split", "message"),
    [
        (
            names(7, grey()),
            names(1, BLOCKS),
            None,
            None,
            "6 image.s. have no file in masks/: i1, i2, i3, i4, i5 ...",
        ),
        (
            names(1, grey()),
            names(3, BLOCKS),
            None,
            None,
            "2 mask.s. belong to no file in images/: masks/i1.png",
        ),
        (
            names(2, grey(20, 35)),
            names(2, BLOCKS),
            None,
            None,
            r"2 mask.s. differ .*i0.png \(36, 20\) .* \(35, 20\)",
        ),
        (
            names(2, grey()),
            names(2, BLOCKS),
            "id,split\ni0,a\ni1,b\n",
            "train",
            r"'train' .*\{'a': 1, 'b': 1\}",
        ),
        (names(2, grey()), names(2, BLOCKS), "id,split\ni0,a\n", "a", "1 image.s. are not in splits.csv: i1"),
        (
            names(1, grey()),
            names(1, BLOCKS),
            "id,split\ni0,a\nx,a\n",
            "a",
            "1 id.s. in splits.csv have no image: x",
        ),
        (names(1, grey()), names(1, BLOCKS), "name,part\ni0,a\n", "a", "columns id and split"),
        (names(1, grey()), names(1, BLOCKS), None, "test", "'test' .*no splits.csv"),
        (names(1, grey()), {}, None, None, "images/ and masks/"),
        (
            {**names(1, grey()), "i0.jpg": grey()},
            names(1, BLOCKS),
            None,
            None,
            "1 id.s. name more than one image: i0",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused_with_counts_and_names(tmp_path, images, masks, splits, split, message):
    write_folder(tmp_path, images, masks, splits)
    with pytest.raises(ValueError, match=message):
        LabelMapFolder(tmp_path, split)
    with pytest.raises(ValueError):
        open_dataset(tmp_path, split)


def test_a_missing_folder_says_what_was_expected(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match=r"(?s)found: \['pictures'\]. Looked for:.*images/ and masks/"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        open_dataset(tmp_path / "absent")


def test_without_a_table_the_split_is_a_stable_hash(tmp_path):
    write_folder(tmp_path, names(60, grey()), names(60, BLOCKS))
    train, validation = (LabelMapFolder(tmp_path, split) for split in ("train", "validation"))
    assert sorted(train.ids + validation.ids) == LabelMapFolder(tmp_path).ids
    # Fixed for good: a changed hash would move validation images into training.
    assert validation.ids == ["i13", "i16", "i2", "i34", "i37", "i39"]
    assert open_dataset(tmp_path).ids == train.ids


def test_readers_work_in_worker_processes(tmp_path):
    write_folder(tmp_path, names(6, grey()), names(6, BLOCKS))
    dataset = LabelMapFolder(tmp_path)
    alone = [item["objects"] for item in dataset]
    loader = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=2, num_workers=2, collate_fn=list)
    assert [item["objects"] for batch in loader for item in batch] == alone


def test_changing_a_record_does_not_change_the_next_reading(tmp_path):
    dataset = LabelMapFolder(write_folder(tmp_path, names(1, grey()), names(1, BLOCKS)))
    dataset[0]["objects"].clear()
    assert len(dataset[0]["objects"]) == 3


def test_dsb2018(shared_data):
    train, validation = (open_dataset(shared_data / "dsb2018", split) for split in ("train", "validation"))
    assert (type(train), len(train), len(validation)) == (LabelMapFolder, 484, 80)
    assert not set(train.ids) & set(validation.ids)
    for index in range(0, len(train), 60):
        check_record(train[index])
        assert train[index]["objects"]


def test_bsds500(shared_data):
    train, validation = (
        open_dataset(shared_data / "bsds500", split, max_share=0.6) for split in ("train", "validation")
    )
    assert (type(train), len(train), len(validation)) == (LabelMapFolder, 200, 100)
    assert LabelMapFolder(shared_data / "bsds500", "val").ids == validation.ids
    item = train[0]
    check_record(item)
    everything = LabelMapFolder(shared_data / "bsds500", "train", min_area=0, max_share=1.0)[0]["objects"]
    # Every annotator labels every pixel.
    assert decode_masks(everything).sum(0).min() == 6
    one = LabelMapFolder(shared_data / "bsds500", "train", variant=0, min_area=0, max_share=1.0)[0]["objects"]
    assert (decode_masks(one).sum(0) == 1).all()
