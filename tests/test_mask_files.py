"""Mask files of every format to values, and labels to objects."""

import io
import zipfile

import numpy as np
import pytest
from data_files import MASKS, png
from PIL import Image

from sam_hf.data.mask_files import MASK_SUFFIXES, binary_mask, label_map_objects, mask_size, read_mask_values
from sam_hf.data.schema import decode_masks, objects_from_masks

LABELS = MASKS[0] + 2 * (MASKS[1] & ~MASKS[0]).astype(np.uint8)


def encoded(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    elif kind == "npz":
        np.savez_compressed(file, mask=array)
    else:
        Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "gif", "npy", "npz"])
def test_every_format_gives_the_values(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(LABELS, kind))
    assert path.suffix in MASK_SUFFIXES and mask_size(path) == LABELS.shape
    for source in (path, path.read_bytes()):
        values = read_mask_values(source)
        assert values.dtype.kind in "iu" and np.array_equal(values, LABELS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(LABELS.astype(np.float32) * 300, "tiff"), LABELS * 300.0),
        (encoded(LABELS.astype(np.uint16) * 300, "png"), LABELS * 300.0),
        (encoded(LABELS.astype(np.int64)[None] - 1, "npy"), LABELS - 1.0),
        (encoded(LABELS.astype(np.float64)[..., None], "npz"), LABELS),
        (encoded(MASKS[0], "npy"), MASKS[0]),
        (encoded(np.repeat(LABELS[..., None], 3, axis=2), "png"), LABELS),
        (encoded(np.dstack([LABELS] * 3 + [np.full_like(LABELS, 255)]), "png"), LABELS),
    ],
)
def test_depths_and_channels(content, expected):
    assert np.array_equal(read_mask_values(content), expected)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_palette_gives_indices_unless_it_is_black_and_white(swapped):
    image = Image.fromarray(MASKS[0].astype(np.uint8) ^ swapped)
    for colours, expected in (
        ([255] * 3 + [0] * 3 if swapped else [0] * 3 + [255] * 3, MASKS[0] * 255),
        ([9, 9, 9, 200, 0, 0], MASKS[0] ^ swapped),
    ):
        image.putpalette(colours)
        file = io.BytesIO()
        image.save(file, "PNG")
        assert np.array_equal(read_mask_values(file.getvalue()), expected)


@pytest.mark.parametrize("quality", [30, 60, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_holds_a_binary_mask_only(quality, mode):
    file = io.BytesIO()
    Image.fromarray(MASKS[0]).convert(mode).save(file, "JPEG", quality=quality)
    for meaning in (None, "binary"):
        values = read_mask_values(file.getvalue(), meaning)
        assert {*np.unique(values)} == {0, 255} and np.array_equal(values > 0, MASKS[0])
    assert not read_mask_values(encoded(LABELS * 0, "jpeg")).any()
    with pytest.raises(ValueError, match="JPEG changes values.*no labels"):
        read_mask_values(file.getvalue(), "labels")
    for factor in (1, 60, 120):
        with pytest.raises(ValueError, match="JPEG changes values.*no labels"):
            read_mask_values(encoded(LABELS * np.uint8(factor), "jpeg", quality=quality))


def test_what_is_no_mask_names_the_file_and_the_remedy(tmp_path):
    pages = [Image.fromarray(LABELS), Image.fromarray(LABELS * 9)]
    colours = np.dstack([LABELS, LABELS * 0, LABELS * 0])
    two, empty, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(two, a=LABELS, b=LABELS)
    np.savez(empty)
    np.save(objects, np.array({"masks": LABELS}), allow_pickle=True)
    alpha = np.dstack([np.zeros((*LABELS.shape, 3), np.uint8), LABELS])
    for name, content, message in (
        ("a.tif", encoded(LABELS, "tiff", save_all=True, append_images=pages[1:]), "has 2 pages, expected one"),
        ("a.gif", encoded(LABELS, "gif", save_all=True, append_images=pages[1:]), "has 2 frames, expected one"),
        ("a.png", encoded(colours, "png"), r"has colours .mode 'RGB'"),
        ("b.png", encoded(alpha, "png"), "in the alpha channel"),
        ("a.npy", encoded(LABELS / 3, "npy"), "fractions or NaN among its float64 values"),
        ("b.npy", encoded(np.stack([LABELS] * 3), "npy"), r"at most .*, this one is \[3, 40, 60\]"),
        ("c.npy", objects.getvalue(), "Python objects.*_seg.npy of Cellpose"),
        ("d.npy", encoded(LABELS.astype(complex), "npy"), "dtype complex128"),
        ("a.npz", two.getvalue(), "has 2: a, b"),
        ("b.npz", empty.getvalue(), "has 0: none"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_mask_values(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    for name in ("damaged.png", "damaged.npy", "damaged.npz"):
        (tmp_path / name).write_bytes(encoded(LABELS, name[-3:])[:60])
        with pytest.raises((OSError, ValueError), match=name):
            read_mask_values(tmp_path / name)


def test_a_head_that_promises_too_much_takes_no_memory(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("mask.npy", file.getvalue())
    for name in ("a.npy", "a.npz"):
        for read in (read_mask_values, mask_size):
            with pytest.raises(ValueError, match=r"this one is \[1048576, 1048576\]"):
                read(tmp_path / name)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiff_masks_are_upright(tmp_path, compression, orientation):
    (tmp_path / "a.tif").write_bytes(encoded(LABELS, "tiff", tiffinfo={274: orientation}, compression=compression))
    upright = np.rot90(LABELS, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert np.array_equal(read_mask_values(tmp_path / "a.tif"), upright)
    assert mask_size(tmp_path / "a.tif") == upright.shape


@pytest.mark.parametrize(
    ("values", "foreground"),
    [
        ([0, 1, 1], [False, True, True]),
        ([0, 0, 0], [False] * 3),
        ([0, 127, 255], [False, False, True]),
        ([0, 128, 200], [False, True, True]),
        ([0, 32767, 65535], [False, False, True]),
        ([0, 2, 5], "values 0 to 5"),
        ([0, 255, 4095], "values 0 to 4095"),
        ([-1, 0, 255], "values -1 to 255"),
    ],
)
def test_binary_masks_are_cut_in_the_middle(values, foreground):
    values = np.array([values])
    if isinstance(foreground, str):
        with pytest.raises(ValueError, match=f'0 and 255.*{foreground}.*masks="labels"'):
            binary_mask(values)
    else:
        assert binary_mask(values).tolist() == [foreground]


def test_ignored_labels_are_regions_to_ignore():
    values = LABELS.astype(np.int32)
    values[30:, :9] = 255
    plain = label_map_objects(values)
    void = label_map_objects(values, ignored=frozenset({255}))
    assert [item["iscrowd"] for item in void] == [0, 0, 1]
    assert [item | {"iscrowd": 0} for item in void] == plain
    assert np.array_equal(decode_masks(void)[2], values == 255)
    assert [item["iscrowd"] for item in label_map_objects(values, None, frozenset({0}))] == [1, 0, 0, 0]
    assert label_map_objects(values, ignored=frozenset({7})) == plain
    above = label_map_objects(values, ignored=frozenset({1}), smallest=200)
    assert [item["iscrowd"] for item in above] == [1, 0]
    assert above[1] == objects_from_masks((values == 255)[None])[0]
    assert label_map_objects(values, smallest=300) == []


def test_png_of_one_bit_is_a_mask():
    assert np.array_equal(read_mask_values(png(MASKS[0])), MASKS[0])
