"""Tables with a column of masks: what their values mean is proved or said, and what cannot be right is named."""

import io

import datasets
import numpy as np
import pytest
from data_files import HEIGHT, MASKS, WIDTH, mask_table, picture
from PIL import Image, ImageFilter

from sam_hf.data import decode_masks, open_dataset, stream_dataset
from sam_hf.data.parquet import write_parquet

pytestmark = pytest.mark.usefixtures("no_common_cache")

LABELS = MASKS[0] + 2 * MASKS[2].astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> dict:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def table_of(masks: list, count: int | None = None, **columns) -> datasets.Dataset:
    """Rows with a picture and a mask each; a list of masks makes a column of lists."""
    is_list = isinstance(masks[0], list)
    cell = datasets.List(datasets.Image()) if is_list else datasets.Image()
    features = datasets.Features({"image": datasets.Image(), "mask": cell})
    rows = [{"image": encoded(picture(number)), "mask": mask} for number, mask in enumerate(masks)]
    table = datasets.Dataset.from_list(rows, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    return table


def soft(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.5))


def opened(table: datasets.Dataset, kind: str, **options) -> list:
    """All records, by index or as a stream."""
    if kind == "index":
        return list(open_dataset(table, None, **options))
    stream = stream_dataset(table.to_iterable_dataset(), None, **options)
    return list(stream.first(len(table)))


@pytest.mark.parametrize("kind", ["index", "stream"])
@pytest.mark.parametrize("save", ["PNG", "JPEG"])
def test_a_soft_mask_is_one_object(kind, save):
    table = table_of([encoded(soft(MASKS[k % 2]), save) for k in range(4)])
    for number, record in enumerate(opened(table, kind)):
        (mask,) = decode_masks(record["objects"])
        assert (mask ^ MASKS[number % 2]).mean() < 0.02
    assert open_dataset(table, None).guesses["masks"].startswith("binary masks")


@pytest.mark.parametrize("kind", ["index", "stream"])
def test_empty_masks_prove_nothing_and_labels_stay_labels(kind):
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    table = table_of([encoded(empty)] * 12 + [encoded(LABELS), encoded(MASKS[1].astype(np.uint8))])
    counts = [len(record["objects"]) for record in opened(table, kind)]
    assert counts == [0] * 12 + [2, 1]


@pytest.mark.parametrize("kind", ["index", "stream"])
def test_a_label_to_ignore_is_a_region_to_ignore(kind):
    void = LABELS.copy()
    void[35:, :20] = 255
    table = table_of([encoded(void)])
    (record,) = opened(table, kind, ignore_label=255)
    assert [item["iscrowd"] for item in record["objects"]] == [0, 0, 1]
    assert np.array_equal(decode_masks(record["objects"])[2], void == 255)
    with pytest.raises(ValueError, match="ignore_label 255 is a label, and binary masks have none"):
        open_dataset(table, None, ignore_label=255, masks="binary")


@pytest.mark.parametrize("kind", ["index", "stream"])
def test_the_meaning_can_be_said(kind):
    bright = np.where(MASKS[0], np.uint8(200), np.uint8(0)) + np.where(MASKS[2], np.uint8(40), np.uint8(0))
    table = table_of([encoded(bright), encoded(bright)])
    assert [len(record["objects"]) for record in opened(table, kind, masks="labels")] == [2, 2]
    assert [len(record["objects"]) for record in opened(table, kind, masks="binary")] == [1, 1]


def test_lists_of_label_maps_and_of_binary_masks():
    maps = table_of([[encoded(LABELS), encoded(LABELS.T.reshape(LABELS.shape))], [encoded(LABELS)]])
    assert [len(record["objects"]) for record in open_dataset(maps, None, masks="labels")][1] == 2
    record = open_dataset(mask_table(1), None)[0]
    assert np.array_equal(decode_masks(record["objects"]), MASKS)


def test_a_later_row_that_contradicts_is_named_with_the_first():
    binary = encoded(MASKS[0].astype(np.uint8) * 255)
    table = table_of([binary] * 40 + [encoded(LABELS)])
    try:
        dataset = open_dataset(table, None)
    except ValueError as error:  # it was among those that were looked at
        assert "contradict each other: row 00000040, column 'mask'" in str(error)
    else:
        with pytest.raises(ValueError, match=r"record '00000040': column 'mask' holds labels .*proved by row 000000"):
            dataset[40]


def test_pages_are_refused_by_row_and_column():
    pages = [Image.fromarray(LABELS), Image.fromarray(LABELS)]
    stack = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    dataset = open_dataset(table_of([encoded(LABELS), stack]), None)
    assert len(dataset[0]["objects"]) == 2
    with pytest.raises(ValueError, match="record '00000001': column 'mask': .*2 pages"):
        dataset[1]


def test_records_that_were_converted_have_no_masks_to_be_meant(tmp_path):
    dataset = open_dataset(mask_table(3), None)
    write_parquet({"train": (dataset, range(3))}, tmp_path / "out")
    with pytest.raises(ValueError, match="'objects' holds objects, .* leave out masks and ignore_label"):
        open_dataset(tmp_path / "out", None, masks="labels")
    assert "masks" not in open_dataset(tmp_path / "out", None).guesses


def test_what_was_taken_for_what_is_said():
    guesses = open_dataset(mask_table(3), None).guesses
    assert (guesses["image_column"], guesses["mask_column"]) == ("image", "masks")
    assert guesses["ids"] == "numbers of rows" and "proved by row 0000000" in guesses["masks"]
