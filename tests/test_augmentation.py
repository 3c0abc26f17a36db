"""Crops, scales and flips keep image and masks aligned and never lose all objects."""

import numpy as np
import pytest
from PIL import Image

from sam_hf.data import (
    PhotometricJitter,
    RandomCropScaleFlip,
    SyntheticScenes,
    objects_from_label_map,
    objects_from_masks,
)
from sam_hf.data.augmentation import RandomTile
from sam_hf.tiles import tile_boxes


def disc(height: int = 120, width: int = 180, centre=(70, 60), radius: int = 25) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - centre[1]) ** 2 + (x - centre[0]) ** 2 < radius**2


def picture(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.0, 1.3, 2.5])
@pytest.mark.parametrize("turns", [{}, {"vflip": True}, {"rot90": True}])
def test_a_mask_that_equals_the_bright_pixels_stays_so(scale, turns):
    mask = disc()
    augment = RandomCropScaleFlip(200, (scale, scale), **turns)
    for seed in range(8):
        image, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(seed))
        assert max(image.shape) == 200
        assert image.dtype == np.uint8
        assert masks.dtype == bool
        assert masks.shape == (1, *image.shape[:2])
        # What lies outside of the image is filled with a grey below 128.
        assert np.array_equal(masks[0], image[..., 0] >= 128)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_crowds_stay_on_their_pixels_as_pixels_to_ignore(scale):
    mask, crowd = disc(), disc(centre=(100, 60))
    objects = objects_from_masks(np.stack([mask, crowd]))
    objects[1]["iscrowd"] = 1
    pixels = np.stack([mask, crowd, crowd], axis=2).astype(np.uint8) * 255
    augment = RandomCropScaleFlip(200, (scale, scale), rot90=True)
    for seed in range(8):
        image, targets = augment(pixels, objects, np.random.default_rng(seed))
        bright = image >= 128
        assert targets.shape == (1, *image.shape[:2])
        assert np.array_equal(targets[0] == 1, bright[..., 0])
        assert np.array_equal(np.isnan(targets[0]), bright[..., 1] & ~bright[..., 0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_scale_is_relative_to_the_whole_image_at_the_longest_side(scale):
    mask = disc()
    image, masks = RandomCropScaleFlip(360, (scale, scale))(
        picture(mask), objects_from_masks(mask[None]), np.random.default_rng(0)
    )
    factor = scale * 360 / 180
    assert masks.sum() == pytest.approx(mask.sum() * factor**2, rel=0.02)
    shorter = 120 * factor
    assert image.shape == (min(shorter, 360), 360, 3)


def test_shrunk_images_are_filled_up_with_the_mean_colour():
    mask = disc()
    augment = RandomCropScaleFlip(180, (0.5, 0.5), hflip=False)
    image, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(0))
    assert image.shape == (60, 180, 3)
    assert (image[:, 90:] == (124, 116, 104)).all()
    assert not masks[:, :, 90:].any()


def test_only_what_is_visible_enough_is_returned():
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[10:30, 10:30] = 1
    labels[70:90, 70:90] = 2
    labels[50, 50] = 3
    objects = objects_from_label_map(labels)
    counts = set()
    for seed in range(30):
        augment = RandomCropScaleFlip(100, (2.0, 2.0), hflip=False)
        image, masks = augment(picture(labels > 0), objects, np.random.default_rng(seed))
        areas = masks.sum((1, 2))
        # Whole, a quarter or more of it, or large in the output.
        assert ((areas >= 0.25 * 1600) | (areas >= 100)).all()
        counts.add(len(masks))
    assert counts <= {1, 2}
    assert 1 in counts


def test_windows_are_never_empty_while_a_tiny_object_is_there():
    labels = np.zeros((400, 600), dtype=np.uint8)
    labels[390:398, 5:13] = 1
    augment = RandomCropScaleFlip(300, (1.0, 6.0))
    for seed in range(40):
        _, masks = augment(picture(labels > 0), objects_from_label_map(labels), np.random.default_rng(seed))
        assert len(masks) == 1


def test_crowds_are_no_targets_and_images_without_objects_pass():
    crowd = [{**item, "iscrowd": 1} for item in objects_from_masks(disc()[None])]
    for objects in (crowd, []):
        image, masks = RandomCropScaleFlip(64)(picture(disc()), objects, np.random.default_rng(0))
        assert masks.shape == (0, *image.shape[:2])


def test_an_object_that_fills_the_window_is_no_target():
    masks = np.ones((1, 80, 80), dtype=bool)
    masks[0, 0] = False
    _, found = RandomCropScaleFlip(64)(picture(masks[0]), objects_from_masks(masks), np.random.default_rng(0))
    assert len(found) == 0


def test_at_most_so_many_objects_are_returned():
    record = next(item for item in SyntheticScenes(20) if len(item["objects"]) > 5)
    augment = RandomCropScaleFlip(128, (1.0, 1.0), hflip=False)
    _, everything = augment(record["image"], record["objects"], np.random.default_rng(0))
    assert len(everything) == len(record["objects"])
    chosen = set()
    for seed in range(12):
        _, masks = augment(record["image"], record["objects"], np.random.default_rng(seed), max_objects=2)
        assert len(masks) == 2
        chosen |= {mask.tobytes() for mask in masks}
    assert len(chosen) > 3


def test_equal_generators_give_equal_results_and_others_do_not():
    record = SyntheticScenes(1)[0]
    augment = RandomCropScaleFlip(128, vflip=True, rot90=True, jitter=PhotometricJitter())
    results = [augment(record["image"], record["objects"], np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not np.array_equal(results[0][0], results[2][0])
    assert not np.array_equal(augment(np.asarray(record["image"]), [], np.random.default_rng(0))[0], results[0][0])


def test_the_given_image_and_objects_are_left_alone():
    record = SyntheticScenes(1)[0]
    pixels = np.array(record["image"])
    before, objects = pixels.copy(), [dict(item) for item in record["objects"]]
    image, _ = RandomCropScaleFlip(256, (1.0, 1.0))(pixels, record["objects"], np.random.default_rng(0))
    image[:] = 0
    assert np.array_equal(pixels, before)
    assert record["objects"] == objects


def test_flips_and_turns_happen_as_often_as_they_should():
    mask = np.zeros((60, 60), dtype=bool)
    mask[5:20, 5:15] = True
    seen = set()
    augment = RandomCropScaleFlip(60, (1.0, 1.0), vflip=True, rot90=True)
    for seed in range(80):
        _, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(seed))
        seen.add(masks.tobytes())
    assert len(seen) == 8
    still = RandomCropScaleFlip(60, (1.0, 1.0), hflip=False)
    _, masks = still(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(0))
    assert np.array_equal(masks[0], mask)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 2.0])
def test_in_images_larger_than_a_tile_scale_is_relative_to_a_tile(scale):
    mask = disc(400, 600, centre=(300, 150), radius=20)
    augment = RandomCropScaleFlip(160, (scale, scale), rot90=True, tile_size=200)
    places = set()
    for seed in range(8):
        image, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(seed))
        assert max(image.shape) == 160 and masks.shape == (1, *image.shape[:2])
        assert masks.sum() == pytest.approx(mask.sum() * (scale * 160 / 200) ** 2, rel=0.04)
        # 200 / scale pixels of the image, of which no more are missing than there are.
        assert np.array_equal(masks[0], image[..., 0] >= 128) and not (image == (124, 116, 104)).all(-1).any()
        places.add(tuple(np.argwhere(masks[0])[0]))
    assert len(places) > 3


def test_an_image_smaller_than_the_view_of_tiles_is_filled_up():
    """At scale 0.4 a tile of 200 pixels stands for 500, and the image has 300."""
    mask = disc(240, 300, centre=(150, 120), radius=40)
    augment = RandomCropScaleFlip(100, (0.4, 0.4), hflip=False, tile_size=200)
    image, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(0))
    assert masks.sum() == pytest.approx(mask.sum() * (0.4 * 100 / 200) ** 2, rel=0.04)
    assert image.shape == (48, 100, 3) and (image[:, 60:] == (124, 116, 104)).all() and not image[:, :10].any()


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (0.6, 3.0)])
def test_tiles_change_no_draw_of_an_image_that_fits_one(scale):
    record = SyntheticScenes(1, size=(100, 140))[0]
    given = {"vflip": True, "rot90": True, "jitter": PhotometricJitter()}
    for seed in range(4):
        results = [
            RandomCropScaleFlip(64, scale, **given, tile_size=tile_size)(
                record["image"], record["objects"], np.random.default_rng(seed), 3
            )
            for tile_size in (None, 140, 1000)
        ]
        assert all(
            np.array_equal(one, other) for result in results for one, other in zip(result, results[0], strict=True)
        )


def test_an_object_much_larger_than_a_tile_is_shown_in_the_whole_image():
    mask = np.zeros((400, 400), dtype=bool)
    mask[50:350, 50:350] = True
    augment = RandomCropScaleFlip(64, (1.5, 2.0), tile_size=50)
    image, masks = augment(picture(mask), objects_from_masks(mask[None]), np.random.default_rng(0))
    assert image.shape == (64, 64, 3) and masks.sum() == pytest.approx((300 * 64 / 400) ** 2, rel=0.05)


def test_a_random_tile_is_one_of_those_of_predictions():
    labels = np.zeros((100, 150), dtype=np.uint8)
    for number, (x, y) in enumerate([(10, 10), (80, 40), (130, 80), (52, 70)], start=1):
        labels[y : y + 12, x : x + 12] = number
    pixels = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    boxes, seen = tile_boxes((100, 150), 64), set()
    for seed in range(40):
        image, masks = RandomTile(64)(pixels, objects_from_label_map(labels), np.random.default_rng(seed))
        (box,) = [box for box in boxes if np.array_equal(image, pixels[box[1] : box[3], box[0] : box[2]])]
        part = labels[box[1] : box[3], box[0] : box[2]]
        visible = {number for number in range(1, 5) if (part == number).sum() >= 36}  # a quarter
        assert {tuple(np.unique(part[mask])) for mask in masks} == {(number,) for number in visible} and visible
        assert all(mask.sum() == (part == part[mask][0]).sum() for mask in masks)
        seen.add(box)
    # Each object in the middle of its tile, as far as there is one.
    assert seen == {(0, 0, 64, 64), (43, 0, 107, 64), (86, 36, 150, 100), (43, 36, 107, 100), (0, 36, 64, 100)} & seen
    assert len(seen) >= 3
    shown = {RandomTile(64)(pixels, [], np.random.default_rng(seed))[0].tobytes() for seed in range(60)}
    assert len(shown) == len(boxes)  # any, where there is no object


def test_jitter_changes_light_only_and_can_be_neutral():
    image = np.asarray(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB"))
    neutral = PhotometricJitter(brightness=0, contrast=0, gamma=1, colour=0)
    assert np.array_equal(neutral(image, np.random.default_rng(0)), image)
    for seed in range(10):
        changed = PhotometricJitter()(image, np.random.default_rng(seed))
        # Brighter stays brighter: edges and masks are where they were.
        assert (np.diff(changed.reshape(-1, 3).astype(int), axis=0) >= 0).all()
        assert np.abs(changed.astype(int) - image).mean() < 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomCropScaleFlip(0), "size"),
        (lambda: RandomCropScaleFlip(64, (2.0, 0.5)), r"\(2.0, 0.5\)"),
        (lambda: RandomCropScaleFlip(64, tile_size=0), "tile_size"),
        (
            lambda: RandomCropScaleFlip(64)(
                picture(disc()), objects_from_masks(disc(100, 100)[None]), np.random.default_rng(0)
            ),
            r"\(120, 180\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_processor_takes_the_result_without_resizing():
    processing = pytest.importorskip("sam_hf.processing_sam_hf")
    images = pytest.importorskip("sam_hf.image_processing_sam_hf")
    mask = disc()
    image, masks = RandomCropScaleFlip(64, (0.6, 0.6))(
        picture(mask), objects_from_masks(mask[None]), np.random.default_rng(1)
    )
    processor = processing.SamHfProcessor(
        images.SamHfImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    )
    batch = processor(images=image, segmentation_maps=masks)
    height, width = masks.shape[1:]
    assert batch["reshaped_input_sizes"].tolist() == [[height, width]]
    assert np.array_equal(batch["labels"][0, 0, :height, :width].numpy() > 0.5, masks[0])
