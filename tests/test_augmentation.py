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
    augment = RandomCropScaleFlip(128, vflip=True, rot90=True, jitter=PhotometricJitter(stretch=0.5, invert=0.5))
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


def test_jitter_changes_light_only_and_can_be_neutral():
    image = np.asarray(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB"))
    neutral = PhotometricJitter(brightness=0, contrast=0, gamma=1, colour=0)
    assert np.array_equal(neutral(image, np.random.default_rng(0)), image)
    inverted = PhotometricJitter(brightness=0, contrast=0, gamma=1, colour=0, invert=1)
    assert np.array_equal(inverted(image, np.random.default_rng(0)), 255 - image)
    stretched = PhotometricJitter(brightness=0, contrast=0, gamma=1, colour=0, stretch=1)(
        image // 8 + 10, np.random.default_rng(0)
    )
    assert stretched.min() == 0
    assert stretched.max() == 255
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
