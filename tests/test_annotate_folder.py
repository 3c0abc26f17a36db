"""What is annotated is on the disk, whole, and training reads it; nothing that others made is lost."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_hf.annotate.folder import AnnotationFolder, Conflict
from sam_hf.annotate.mask_crops import coco_annotation, decode_crop, decode_mask, encode_crop
from sam_hf.data import decode_masks, open_dataset
from sam_hf.data.mask_files import read_mask_values

SIZE = (24, 32)


def blob(y: int, x: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


ONE, TWO = blob(2, 3, 9, 11), blob(6, 8, 10, 12)  # which overlap


def item(mask: np.ndarray, /, **fields) -> dict:
    steps = [{"point": [5, 5], "label": 1}]
    return {"name": "cell", "steps": steps, "score": 0.9, "mask": encode_crop(mask)} | fields


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data" / "images" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "sub/c.png", "d.png"):
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / "data" / "images" / name)
    return tmp_path / "data"


def test_crops_hold_masks():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = rng.random(SIZE) < share
        crop = encode_crop(mask)
        assert sum(crop["runs"]) == crop["box"][2] * crop["box"][3] and json.dumps(crop)
        np.testing.assert_array_equal(decode_mask(crop, SIZE), mask)
    assert encode_crop(ONE) == {"box": [3, 2, 11, 9], "runs": [0, 99]}
    assert coco_annotation(encode_crop(ONE), SIZE)["bbox"] == [3, 2, 11, 9]
    # Down the columns, as COCO's.
    place, values = decode_crop({"box": [1, 2, 2, 3], "runs": [1, 3, 2]}, SIZE)
    assert place == (slice(2, 5), slice(1, 3)) and values.tolist() == [[False, True], [True, False], [True, False]]


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        (None, "expected {"),
        ({"box": [0, 0, 2, 2], "runs": [1, -1, 4]}, "whole numbers"),
        ({"box": [0, 0, 2, 2], "runs": [1, 2]}, "runs of 3 pixels"),
        ({"box": [31, 0, 2, 2], "runs": [0, 4]}, "32 x 24"),
        ({"box": [0, 0, 2.0, 2], "runs": [0, 4]}, "whole numbers"),
    ],
)
def test_what_is_no_crop_is_refused(crop, message):
    with pytest.raises(ValueError, match=message):
        decode_crop(crop, SIZE)


def test_training_reads_what_was_saved(root):
    folder = AnnotationFolder(root / "images")
    assert folder.names == ["a.png", "b.jpg", "d.png", "sub/c.png"]
    assert folder.save(0, item(ONE)) == {"id": 1, "revision": 1}
    assert folder.save(0, item(TWO, name="other")) == {"id": 2, "revision": 1}
    folder.save(3, item(TWO))
    assert [folder.is_annotated(index) for index in range(4)] == [True, False, False, True]
    records = open_dataset(root, None, strict=False)
    assert records.ids == ["a", "sub/c"] and not records.problems
    assert records.guesses["images without masks"] == "2 of 4, taken as not annotated yet"
    masks = decode_masks(records[0]["objects"])
    # Later ones lie on top.
    np.testing.assert_array_equal(masks, [ONE & ~TWO, TWO])
    assert folder.data_arguments == ["--dataset", str(root)]
    assert folder.classes() == ["cell", "other"]
    assert {path.name for path in (root / "masks").rglob("*") if path.is_file()} == {
        "a.png",
        "a.json",
        "c.png",
        "c.json",
    }


def test_masks_without_images_are_faults_and_so_are_then_images_without_masks(root):
    AnnotationFolder(root / "images").save(0, item(ONE))
    (root / "masks" / "a.png").rename(root / "masks" / "z.png")
    Image.fromarray(ONE.astype(np.uint8)).save(root / "masks" / "b.png")
    records = open_dataset(root, None, strict=False)
    assert [len(names) for names in records.problems.values()] == [1, 3]
    with pytest.raises(ValueError, match="1 mask.s. belong to no image: masks/z.png"):
        AnnotationFolder(root / "images")


def test_objects_are_whole_when_opened_again(root):
    folder = AnnotationFolder(root / "images")
    folder.save(0, item(ONE))
    folder.save(0, item(TWO))
    again = AnnotationFolder(root)  # the folder above does as well
    found = again.objects(0)
    assert [(entry["id"], entry["revision"], entry["score"]) for entry in found] == [(1, 1, 0.9), (2, 1, 0.9)]
    np.testing.assert_array_equal(decode_mask(found[0]["mask"], SIZE), ONE)
    coco = again.coco()
    assert [entry["area"] for entry in coco["annotations"]] == [ONE.sum(), TWO.sum()]
    (root / "coco.json").write_text(json.dumps(coco))
    (root / "masks").rename(root / "old")
    records = open_dataset(root / "coco.json", None, images=root / "images")
    np.testing.assert_array_equal(decode_masks(records[0]["objects"]), [ONE, TWO])
    assert coco["images"][0] == {"id": 1, "file_name": "a.png", "height": 24, "width": 32}


def test_two_windows_lose_nothing(root):
    one, two = AnnotationFolder(root), AnnotationFolder(root)
    saved = one.save(0, item(ONE))
    two.save(0, item(TWO))
    assert len(one.objects(0)) == 2
    two.save(0, item(ONE, **saved, name="changed"))
    with pytest.raises(Conflict, match="changed in another"):
        one.save(0, item(TWO, **saved))
    with pytest.raises(Conflict, match="changed in another"):
        one.remove(0, **{"identity": 1, "revision": 1})
    two.remove(0, 1, 2)
    with pytest.raises(Conflict, match="removed in another"):
        one.save(0, item(TWO, id=1, revision=2))
    # A number is not given twice, so that nobody takes one object for another.
    assert one.save(0, item(ONE))["id"] == 3
    with ThreadPoolExecutor(8) as pool:
        ids = [result["id"] for result in pool.map(lambda _: two.save(1, item(ONE)), range(40))]
    assert sorted(ids) == list(range(1, 41)) and len(one.objects(1)) == 40


def test_label_maps_of_more_than_255_objects_have_16_bits(root):
    folder = AnnotationFolder(root)
    content = folder._read(0)
    content["objects"] = [item(blob(k // 30, k % 30, 1, 1), id=k, revision=1) for k in range(300)]
    folder._write(0, content)
    values = read_mask_values(root / "masks" / "a.png")
    assert values.max() == 300 and values.dtype.itemsize == 2
    assert len(folder.objects(0)) == 300


def test_images_without_objects(root):
    folder = AnnotationFolder(root)
    folder.set_empty(0, True)
    assert folder.is_annotated(0) and folder.objects(0) == [] and not read_mask_values(root / "masks" / "a.png").any()
    saved = folder.save(0, item(ONE))
    with pytest.raises(Conflict, match="there are objects"):
        folder.set_empty(0, True)
    folder.remove(0, saved["id"], saved["revision"])
    assert not folder.is_annotated(0)
    folder.set_empty(1, True)
    folder.set_empty(1, False)
    assert not folder.is_annotated(1)


def test_what_others_made_is_the_start(root):
    """Masks of another format, with another place for new ones; those of our form in their place."""
    (root / "masks" / "a").mkdir(parents=True)
    for k, mask in enumerate((ONE, TWO)):
        Image.fromarray(255 * mask.astype(np.uint8)).save(root / "masks" / "a" / f"{k}.png")
    with pytest.raises(ValueError, match=r"masks already, such as masks/a/0.png.*--output"):
        AnnotationFolder(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    folder = AnnotationFolder(root, root.parent / "new")
    assert [entry["id"] for entry in folder.objects(0)] == [1, 2] and not folder.is_annotated(0)
    np.testing.assert_array_equal(decode_mask(folder.objects(0)[0]["mask"], SIZE), ONE)
    folder.save(0, item(ONE))
    assert len(folder.objects(0)) == 3
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    arguments = folder.data_arguments
    assert arguments == ["--dataset", str(root.parent / "new"), "--images", str(root / "images")]
    assert open_dataset(root.parent / "new", None, images=root / "images", strict=False).ids == ["a"]


def test_a_binary_mask_in_the_place_of_a_label_map_is_refused(root):
    (root / "masks").mkdir()
    Image.fromarray(255 * ONE.astype(np.uint8)).save(root / "masks" / "b.png")
    with pytest.raises(ValueError, match=r"masks/b.png, which are no label maps"):
        AnnotationFolder(root)


def test_other_formats_are_not_hidden(root):
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}],
        "categories": [],
        "annotations": [],
    }
    (root / "instances_all.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"annotated already, in the format COCO\. .*--output"):
        AnnotationFolder(root)


def test_label_maps_by_others_are_read_and_a_younger_one_counts(root):
    (root / "masks").mkdir()
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[ONE], labels[TWO] = 7, 9
    Image.fromarray(labels).save(root / "masks" / "a.png")
    folder = AnnotationFolder(root)
    found = folder.objects(0)
    assert [(entry["id"], entry["revision"], entry["name"]) for entry in found] == [(1, 0, "object"), (2, 0, "object")]
    folder.save(0, item(ONE, id=1, revision=0))
    assert sorted(np.unique(read_mask_values(root / "masks" / "a.png"))) == [0, 1, 2]
    # Killed between the two files: the label map is the older one.
    told = root / "masks" / "a.json"
    content = json.loads(told.read_text())
    content["objects"][0]["name"] = "kept"
    content["objects"].pop()
    told.write_text(json.dumps(content))
    os.utime(root / "masks" / "a.png", ns=(0, told.stat().st_mtime_ns - 1))
    assert [entry["name"] for entry in folder.objects(0)] == ["kept"]
    # Somebody else has drawn something.
    Image.fromarray(labels * (labels == 9)).save(root / "masks" / "a.png")
    os.utime(root / "masks" / "a.png", ns=(0, told.stat().st_mtime_ns + 1))
    (entry,) = folder.objects(0)
    np.testing.assert_array_equal(decode_mask(entry["mask"], SIZE), TWO)
    assert entry["id"] == 3


def test_folders_of_other_names(root, tmp_path):
    (root / "images").rename(tmp_path / "photos")
    folder = AnnotationFolder(tmp_path / "photos")
    folder.save(0, item(ONE))
    photos = tmp_path / "photos"
    assert folder.data_arguments == ["--dataset", str(photos), "--images", str(photos)]
    assert open_dataset(photos, None, images=photos, strict=False).ids == ["a"]
    assert len(AnnotationFolder(photos).names) == 4  # masks are no images
    with pytest.raises(ValueError, match="holds no image"):
        AnnotationFolder(tmp_path / "nothing")
    (photos / "a.jpg").write_bytes((photos / "b.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"1 id.s. name more than one image: a"):
        AnnotationFolder(photos)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "1 to 100 characters"),
        ({"name": 3}, "1 to 100 characters"),
        ({"steps": None}, "list `steps`"),
        ({"score": "high"}, "`score`"),
        ({"mask": encode_crop(np.zeros(SIZE, dtype=bool))}, "is empty"),
        ({"mask": {"box": [0, 0, 99, 99], "runs": [9801]}}, "in the image"),
    ],
)
def test_malformed_objects_are_refused_and_leave_nothing(root, change, message):
    folder = AnnotationFolder(root)
    with pytest.raises(ValueError, match=message):
        folder.save(0, item(ONE, **change))
    assert not (root / "masks").exists()


def test_damage_is_named(root):
    folder = AnnotationFolder(root)
    folder.save(0, item(ONE))
    told = root / "masks" / "a.json"
    told.write_text(told.read_text()[:-20])
    with pytest.raises(ValueError, match=r"a\.json is damaged: remove it"):
        folder.objects(0)
    told.unlink()
    assert len(folder.objects(0)) == 1
    Image.new("L", (9, 9)).save(root / "masks" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has \[9, 9\], its image \[24, 32\]"):
        folder.objects(0)


def test_a_file_is_never_half(root, monkeypatch):
    folder = AnnotationFolder(root)
    folder.save(0, item(ONE))
    before = {path.name: path.read_bytes() for path in (root / "masks").iterdir()}

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(KeyboardInterrupt):
        folder.save(0, item(TWO))
    after = {path.name: path.read_bytes() for path in (root / "masks").iterdir() if path.name[0] != "."}
    assert after == before and len(folder.objects(0)) == 1
