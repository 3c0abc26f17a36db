"""Connected regions of masks equal scipy's, and small ones go as in SAM 2."""

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from sam_hf import SamHfImageProcessor, SamHfProcessor
from sam_hf.regions import clean_logits, label_regions

EIGHT_NEIGHBOURS = np.ones((3, 3))


def spiral(side: int) -> np.ndarray:
    """One region that winds inwards: the longest way through a graph of its rows."""
    mask = np.zeros((side, side), dtype=bool)
    for ring in range(0, side // 2, 2):
        inside = slice(ring, side - ring)
        mask[ring, inside] = mask[side - ring - 1, inside] = mask[inside, side - ring - 1] = True
        mask[ring + 2 : side - ring, ring] = True
        mask[ring + 2, ring : ring + 2] = True
    return mask


def assert_labels_equal_scipy(mask: np.ndarray) -> None:
    expected, count = label(mask, EIGHT_NEIGHBOURS)
    labels, areas = label_regions(mask)
    assert np.array_equal(labels, expected)
    assert np.array_equal(areas, np.bincount(expected.ravel(), minlength=count + 1))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_regions_equal_scipy(density):
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert_labels_equal_scipy(rng.random(rng.integers(1, 30, 2)) < density)


@pytest.mark.parametrize(
    "mask",
    [spiral(41), spiral(41)[::-1], ~spiral(41), np.indices((9, 9)).sum(0) % 2 == 0, np.indices((9, 8))[1] % 2 == 0],
    ids=["spiral", "upside down", "between", "corners", "columns"],
)
def test_regions_of_odd_shapes_equal_scipy(mask):
    assert_labels_equal_scipy(mask)


def cleaned_by_sam2(logits: torch.Tensor, threshold: float, max_hole: float, max_sprinkle: float) -> torch.Tensor:
    """`SAM2Transforms.postprocess_masks` before it resizes, with scipy in the place of its CUDA kernel."""
    masks = logits.clone()
    for sign, area, value in ((-1, max_hole, threshold + 10.0), (1, max_sprinkle, threshold - 10.0)):
        for plane, original in zip(masks.flatten(0, -3), logits.flatten(0, -3), strict=True):
            inside = original > threshold if sign > 0 else original <= threshold
            labels, _ = label(inside.numpy(), EIGHT_NEIGHBOURS)
            areas = np.bincount(labels.ravel())
            if area > 0:
                plane[torch.from_numpy((labels > 0) & (areas[labels] <= area))] = value
    return masks


@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize(("max_hole_area", "max_sprinkle_area"), [(0, 0), (3, 0), (0, 2), (1.5, 4), (1000, 1000)])
def test_small_regions_go_as_in_sam2(threshold, max_hole_area, max_sprinkle_area):
    logits = torch.randn(2, 3, 12, 17, generator=torch.Generator().manual_seed(0))
    areas = threshold, max_hole_area, max_sprinkle_area
    assert torch.equal(clean_logits(logits, *areas), cleaned_by_sam2(logits, *areas))


def test_masks_are_cleaned_before_they_are_resized():
    processor = SamHfProcessor(SamHfImageProcessor(size=64))
    logits = torch.full((1, 1, 1, 16, 16), -4.0)
    logits[..., 2:9, 2:9] = 4.0
    logits[..., 5, 5] = -4.0  # a hole of one cell, and an island of two
    whole = logits.clone()
    logits[..., 12, 12:14] = 4.0
    whole[..., 5, 5] = 10.0
    plain = processor.post_process_masks(logits, [[64, 64]])[0]
    (cleaned,) = processor.post_process_masks(logits, [[64, 64]], max_hole_area=1, max_sprinkle_area=2)
    assert not plain[0, 0, 21, 21] and plain[0, 0, 49, 50] and cleaned[0, 0, 21, 21] and not cleaned[0, 0, 49, 50]
    (expected,) = processor.post_process_masks(whole, [[64, 64]])
    assert torch.equal(cleaned, expected)
    (kept,) = processor.post_process_masks(logits, [[64, 64]], max_sprinkle_area=1)
    assert torch.equal(kept, plain)
    listed = processor.post_process_masks([logits[0], logits[0].half()], [[64, 64]] * 2, max_hole_area=1)
    assert all(mask[0, 0, 21, 21] and mask[0, 0, 49, 50] for mask in listed)
    logits = processor.post_process_masks(logits, [[64, 64]], max_hole_area=1, binarize=False)[0]
    assert logits[0, 0, 21, 21] > 4
