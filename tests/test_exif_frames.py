"""Masks of images that EXIF turns are made for the frame that is said, or that other images of the set prove."""

import io
import json
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

from sam_hf.data import decode_masks, open_dataset
from sam_hf.data.__main__ import main
from sam_hf.data.data_options import share_frame

pytestmark = pytest.mark.usefixtures("no_common_cache")

ORIENTATION = 0x0112
OBLONG, SQUARE = (40, 80), (60, 60)


def turned_picture(size: tuple[int, int], orientation: int, frame: str) -> tuple[bytes, np.ndarray]:
    """An image that is bright in a corner of one of its frames, and the mask of what is bright in that frame."""
    pixels = np.zeros(size, np.uint8)
    pixels[2:12, 2:22] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    mask = (
        pixels if frame == "stored" else np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))))
    )
    return file.getvalue(), mask.copy()


def write_folder(root: Path, pictures: dict[str, tuple[bytes, np.ndarray]]) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name, (content, mask) in pictures.items():
        (root / "images" / f"{name}.png").write_bytes(content)
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def write_coco(root: Path, pictures: dict[str, tuple[bytes, np.ndarray]]) -> Path:
    root.mkdir()
    content: dict = {"images": [], "annotations": [], "categories": []}
    for number, (name, (file, mask)) in enumerate(pictures.items()):
        (root / f"{name}.png").write_bytes(file)
        rows, columns = np.nonzero(mask)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        points = [left, top, right, top, right, bottom, left, bottom]
        size = dict(zip(("height", "width"), mask.shape, strict=True))
        content["images"].append({"id": number, "file_name": f"{name}.png", **size})
        content["annotations"].append(
            {"id": number, "image_id": number, "segmentation": [[int(value) for value in points]]}
        )
    (root / "labels.json").write_text(json.dumps(content))
    return root


def as_table(_: Path, pictures: dict[str, tuple[bytes, np.ndarray]]) -> datasets.Dataset:
    rows = []
    for name, (content, mask) in pictures.items():
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "PNG")
        cells = {"image": content, "mask": file.getvalue()}
        rows.append({column: {"bytes": cell, "path": None} for column, cell in cells.items()} | {"id": name})
    features = {"image": datasets.Image(), "mask": datasets.Image(), "id": datasets.Value("string")}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


WRITERS = [write_folder, write_coco, as_table]


def brightness(record: dict) -> float:
    """Below the mask; 255 if it is where it should be."""
    return float(np.asarray(record["image"])[decode_masks(record["objects"])[0]].mean())


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("frame", ["shown", "stored"])
@pytest.mark.parametrize("size", [OBLONG, SQUARE])
def test_every_orientation_is_aligned(tmp_path, write, size, frame):
    pictures = {f"p{number}": turned_picture(size, number, frame) for number in range(1, 9)}
    pictures["proof"] = turned_picture(OBLONG, 6, frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(write(tmp_path / "told", pictures), None)
        stated = open_dataset(write(tmp_path / "stated", {"p3": pictures["p3"]}), None, exif=frame)
    assert [brightness(record) for record in dataset] == [255] * 9
    assert brightness(stated[0]) == 255 and "exif" not in stated.guesses
    assert dataset.guesses["exif"].startswith(frame)
    if size == SQUARE:
        assert "proof" in dataset.guesses["exif"]


@pytest.mark.parametrize("write", WRITERS)
def test_where_nothing_proves_the_frame_opening_and_check_name_the_images(tmp_path, write, capsys):
    pictures = {"plain": turned_picture(OBLONG, 1, "shown"), "upside": turned_picture(OBLONG, 3, "stored")}
    source = write(tmp_path / "data", pictures)
    with pytest.warns(UserWarning, match=r"1 image\(s\) .*\(upside\): nothing tells .*--exif"):
        dataset = open_dataset(source, None)
    assert brightness(dataset[1]) == 0 and dataset.guesses["exif"].startswith("shown")
    if isinstance(source, Path):
        with pytest.warns(UserWarning):
            assert main(["check", str(source), "--picture", str(tmp_path / "a.png")]) == 0
        text = capsys.readouterr().out
        assert "exif: shown" in text and "turned by EXIF" in text and "upside (80 x 40)" in text
        assert main(["check", str(source), "--picture", str(tmp_path / "a.png"), "--exif", "stored"]) == 0
        assert "turned by EXIF" not in capsys.readouterr().out


@pytest.mark.parametrize("write", WRITERS)
def test_images_that_contradict_each_other_are_named(tmp_path, write):
    pictures = {"a": turned_picture(OBLONG, 6, "shown"), "b": turned_picture(OBLONG, 8, "stored")}
    told = open_dataset(write(tmp_path / "told", pictures), None)  # each by its size
    assert [brightness(record) for record in told] == [255, 255]
    pictures["c"] = turned_picture(OBLONG, 2, "stored")
    with pytest.raises(
        ValueError, match=r"\(c\) could be .*contradict each other: a is annotated .* b as it is stored"
    ):
        open_dataset(write(tmp_path / "mixed", pictures), None)


def test_splits_share_the_frame_that_one_of_them_proves(tmp_path):
    """Two COCO files: only training images are turned by 90 degrees."""
    proof, square = turned_picture(OBLONG, 6, "stored"), turned_picture(SQUARE, 3, "stored")
    readers = [
        open_dataset(write_coco(tmp_path / "train", {"a": proof, "b": square}), None),
        open_dataset(write_coco(tmp_path / "other", {"c": square}), None),
    ]
    assert [reader.exif for reader in readers] == ["stored", None]
    share_frame(*readers)
    assert readers[1].exif == "stored" and readers[1].guesses["exif"] == "stored, as another split tells"
    readers[1].exif = "shown"
    with pytest.raises(ValueError, match="splits contradict each other.* stored in .*, shown in .* --exif"):
        share_frame(*readers)
