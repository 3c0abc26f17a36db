"""What masks mean is proved by their values, said by somebody, or an error: never guessed in silence."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sam_hf.data import LabelMapFolder, MaskFolder, decode_masks, open_dataset
from sam_hf.data.mask_meaning import Evidence, evidence_of, guess_meaning

HEIGHT, WIDTH = 60, 80
EMPTY = np.zeros((HEIGHT, WIDTH), np.uint8)
ONE = EMPTY.copy()
ONE[5:25, 5:25] = 1
CELLS = EMPTY.copy()
for _number in range(180):
    _y, _x = divmod(_number, 15)
    CELLS[5 * _y : 5 * _y + 4, 5 * _x : 5 * _x + 4] = _number + 1
VOID = np.where(CELLS == 3, 255, CELLS).astype(np.uint8)
TRIMAP = np.where(ONE == 1, 255, EMPTY).astype(np.uint8)
TRIMAP[5:8, 5:25] = 128


def vessels(size: int = 100) -> Image.Image:
    canvas = Image.new("L", (400, 400))
    draw = ImageDraw.Draw(canvas)
    for k in range(12):
        draw.line([20 + 30 * k, 10, 60 + 25 * k, 390], fill=255, width=6)
    return canvas.resize((size, size), Image.Resampling.BILINEAR)


def disc(size: int = 100) -> Image.Image:
    canvas = Image.new("L", (400, 400))
    ImageDraw.Draw(canvas).ellipse([80, 80, 320, 320], fill=255)
    return canvas.resize((size, size), Image.Resampling.BILINEAR)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def folder(root, masks: dict[str, np.ndarray | Image.Image]):
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name, mask in masks.items():
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        Image.new("RGB", mask.size).save(root / "images" / f"{name.partition('.')[0]}.png")
        mask.save(root / "masks" / (name if "." in name else f"{name}.png"))
    return root


@pytest.mark.parametrize(
    ("values", "evidence"),
    [
        (EMPTY, Evidence.EMPTY),
        (ONE, Evidence.ONES),
        (ONE * 255, Evidence.BINARY),
        (ONE.astype(np.uint16) * 65535, Evidence.BINARY),
        (CELLS, Evidence.LABELS),
        (CELLS.astype(np.int32) * 1000, Evidence.LABELS),
        (CELLS.astype(np.int32) - 1, Evidence.LABELS),
        (VOID, Evidence.LABELS),
        (np.where(CELLS > 0, 255 - CELLS % 200, 0), Evidence.LABELS),
        (TRIMAP, Evidence.MIXED),
        (np.asarray(disc()), Evidence.BINARY),
        (np.asarray(disc()).astype(np.uint16) * 257, Evidence.BINARY),
        (np.asarray(vessels()), Evidence.BINARY),
        (np.asarray(vessels(50)), Evidence.UNCLEAR),
        *(
            (np.asarray(through_jpeg(shape(400), quality)), Evidence.BINARY)
            for shape in (disc, vessels)
            for quality in (10, 20, 30, 40, 50, 60, 75, 90)
        ),
    ],
)
def test_what_values_prove(values, evidence):
    assert evidence_of(values) is evidence


@pytest.mark.parametrize("values", [ONE, ONE * 255, CELLS], ids=["0 and 1", "0 and 255", "cells"])
def test_empty_masks_prove_nothing(tmp_path, values):
    """Of 40 slices every fifth has objects."""
    root = folder(tmp_path, {f"x{i}": values if i % 5 == 3 else EMPTY for i in range(40)})
    dataset = open_dataset(root, None)
    assert type(dataset) is (LabelMapFolder if values is CELLS else MaskFolder)
    objects = dataset[dataset.ids.index("x3")]["objects"]
    assert np.array_equal(decode_masks(objects).any(axis=0), values > 0)
    assert len(objects) == (180 if values is CELLS else 1)
    assert dataset[0]["objects"] == []


def test_the_background_that_is_said_proves_nothing(tmp_path):
    masks = {f"x{i}": np.where(CELLS == 0, 255, CELLS - 1).astype(np.uint8) for i in range(20)}
    root = folder(tmp_path, masks | {f"y{i}": EMPTY + 255 for i in range(100)})
    assert len(open_dataset(root, None, background=255)[0]["objects"]) == 180


@pytest.mark.parametrize(
    ("mask", "areas"),
    [(vessels(), None), (through_jpeg(vessels(), 75), None), (disc(), None), (through_jpeg(disc(), 40), None)],
)
def test_soft_masks_are_one_object_each(tmp_path, mask, areas):
    for name in ("a.png", "a.bmp", "a.jpg"):
        dataset = open_dataset(folder(tmp_path / name, {name: mask}), None, min_area=0)
        expected = np.asarray(Image.open(tmp_path / name / "masks" / name)) >= 128
        assert type(dataset) is MaskFolder
        assert np.array_equal(decode_masks(dataset[0]["objects"]), expected[None])


@pytest.mark.parametrize(
    ("masks", "right"),
    [
        ({"a": TRIMAP}, r"masks/a.png \(values 0 to 255\) could be a soft binary mask or a label map"),
        ({"a": vessels(50)}, "proves no meaning"),
        ({"a": CELLS, "b": ONE * 255}, r"a.png \(values 0 to 180\) holds labels, masks/b.png .* a binary mask"),
        ({"a": ONE * 255, "b": TRIMAP}, "b.png .*could be a soft"),
    ],
)
def test_what_is_not_proved_is_an_error_that_names_the_option(tmp_path, masks, right):
    root = folder(tmp_path, masks)
    with pytest.raises(ValueError, match=f'{right}.*masks="labels" or "binary".*--masks labels or --masks binary'):
        open_dataset(root, None)
    for said, reader in (("labels", LabelMapFolder), ("binary", MaskFolder)):
        dataset = open_dataset(root, None, masks=said)
        assert type(dataset) is reader and dataset.guesses["masks"].endswith("as was said")
    with pytest.raises(ValueError, match="masks is 'soft': expected 'labels' or 'binary'"):
        open_dataset(root, None, masks="soft")


@pytest.mark.parametrize("kind", ["labels", "binary"])
def test_a_later_mask_that_contradicts_names_both(tmp_path, kind):
    proof, other = (CELLS, ONE * 255) if kind == "labels" else (ONE * 255, CELLS)
    root = folder(tmp_path, {f"x{i:03d}": proof for i in range(300)})
    dataset = open_dataset(root, None)
    Image.fromarray(other).save(root / "masks" / "x299.png")
    assert dataset[0]["objects"]
    with pytest.raises(ValueError, match=r"x299.png holds .*proved by masks/x\d+.png .*--masks labels or --masks"):
        dataset[299]
    said = open_dataset(root, None, masks="labels")
    assert len(said[299]["objects"]) == (1 if kind == "labels" else 180)


def test_one_object_of_value_one_fits_both_meanings(tmp_path):
    labels = folder(tmp_path / "labels", {f"x{i}": CELLS if i == 7 else ONE for i in range(60)})
    dataset = open_dataset(labels, None)
    assert [len(record["objects"]) for record in dataset].count(1) == 59
    binary = folder(tmp_path / "binary", {f"x{i}": ONE * (255 if i == 7 else 1) for i in range(60)})
    assert all(np.array_equal(decode_masks(record["objects"])[0], ONE > 0) for record in open_dataset(binary, None))


def test_a_folder_of_masks_for_an_image_is_checked_too(tmp_path):
    root = folder(tmp_path, {"a": CELLS})
    (root / "masks" / "a").mkdir()
    (root / "masks" / "a.png").rename(root / "masks" / "a" / "0.png")
    dataset = open_dataset(root, None)
    with pytest.raises(ValueError, match="0.png holds labels .*proved by masks/a/, a folder of masks for one image"):
        dataset[0]
    assert len(open_dataset(root, None, masks="labels")[0]["objects"]) == 180


def test_void_is_a_region_to_ignore(tmp_path):
    root = folder(tmp_path, {"a": VOID, "b": ONE * 255})
    dataset = open_dataset(root, None, ignore_label=255, min_area=0)
    assert [item["iscrowd"] for item in dataset[0]["objects"]] == [0] * 179 + [1]
    assert [item["iscrowd"] for item in dataset[1]["objects"]] == [1]
    # A label to ignore says that masks are label maps.
    stated = open_dataset(folder(tmp_path / "binary", {"a": ONE * 255, "b": ONE * 254}), None, ignore_label=254)
    assert [[item["iscrowd"] for item in record["objects"]] for record in stated] == [[0], [1]]
    with pytest.raises(ValueError, match='ignore_label is an option of label maps.*masks="labels"'):
        open_dataset(tmp_path / "binary", None, ignore_label=7, masks="binary")


def test_damaged_masks_prove_nothing_and_all_of_them_are_an_error(tmp_path):
    root = folder(tmp_path, {"a": CELLS, "b": CELLS})
    (root / "masks" / "b.png").write_bytes(b"")
    assert len(open_dataset(root, None)[0]["objects"]) == 180
    (root / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no mask can be read: .*png cannot be read"):
        open_dataset(root, None)


def test_all_empty_is_said(tmp_path):
    assert "no file, as all masks are empty" in open_dataset(folder(tmp_path, {"a": EMPTY}), None).guesses["masks"]


def test_no_more_masks_are_read_than_it_takes():
    read = []

    def values(number: int) -> np.ndarray:
        read.append(number)
        return EMPTY if number % 2 else CELLS

    guess_meaning([str(number) for number in range(1000)], values)
    assert len(read) < 60
