"""Objects from maps: known label maps are found again in the maps that are made of them, and in noisy ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from label_scenes import best_ious, discs, rings, thin, touching_grid
from scipy import ndimage
from torch.nn import functional as F

from sam_hf.instances import FOREGROUND_THRESH, SEED_THRESH, find_centers, watershed_instances
from sam_hf.training.instance_targets import instance_targets

SCENES = {
    "discs": discs(40, (256, 200), (5, 20), gap=2),
    "touching": discs(80, (256, 256), (5, 16)),
    "overlapping": discs(60, (256, 256), (8, 16), gap=-6),
    "200": discs(200, (300, 300), (4, 10)),
    "squares": touching_grid(15, 8),
    "tiny squares": touching_grid(3, 20),
    "rings": rings(),
    "thin": thin(),
    "cut": discs(30, (100, 100), (10, 14))[:, 5:],
    "one": np.ones((40, 60), dtype=int),
}


def relabel(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape)


def maps_of(labels: np.ndarray) -> np.ndarray:
    return instance_targets(labels, labels.shape)


@pytest.mark.parametrize("name", SCENES)
def test_objects_of_exact_maps_are_found_again(name):
    labels = relabel(SCENES[name])
    count = labels.max()
    points, scores = find_centers(maps_of(labels))
    assert sorted(labels[points[:, 1], points[:, 0]]) == list(range(1, count + 1))
    assert scores.tolist() == [1.0] * count
    found, of_found, of_scores = watershed_instances(maps_of(labels), min_area=0)
    assert found.dtype == np.int32 and found.max() == count and of_scores.tolist() == [1.0] * count
    assert np.array_equal(of_found, points)
    assert np.array_equal(found > 0, labels > 0)
    ious = best_ious(labels, found)
    # Where objects touch, the line of pixels between them may go to either.
    assert ious.mean() > 0.985 and ious.min() > 0.85
    if name in ("discs", "rings", "thin", "one"):
        assert ious.min() == 1


@pytest.mark.parametrize(("noise", "blur", "scale"), [(0.05, 0, 1), (0.05, 1, 1), (0, 1, 1), (0, 0, 4), (0.05, 1, 4)])
@pytest.mark.parametrize("name", ["discs", "touching", "200"])
def test_noise_and_blur_change_little(name, noise, blur, scale):
    labels = relabel(SCENES[name])
    count = labels.max()
    maps = ndimage.gaussian_filter(maps_of(labels), (0, blur, blur))
    maps = (maps + noise * np.random.default_rng(0).standard_normal(maps.shape)).clip(0, 1)
    # As a mask grid that is coarser than the image.
    maps = F.interpolate(torch.from_numpy(maps)[None], scale_factor=scale, mode="bilinear")[0].float()
    labels = labels.repeat(scale, 0).repeat(scale, 1)
    points, _ = find_centers(maps)
    found, _, _ = watershed_instances(maps, min_area=4)
    assert abs(len(points) - count) <= 0.03 * count and abs(found.max() - count) <= 0.03 * count
    assert len(set(labels[points[:, 1], points[:, 0]]) - {0}) >= 0.97 * count
    assert np.median(best_ious(labels, found)) > 0.85


def random_maps(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Smooth, with values from 0 to 1."""
    maps = ndimage.gaussian_filter(np.random.default_rng(seed).random((3, *size)), (0, 2, 2))
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / (high - low)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("foreground_thresh", "seed_thresh"), [(0.5, 0.5), (0.3, 0.55), (0.55, 0.2), (0, 0)])
def test_centers_equal_a_naive_way(seed, foreground_thresh, seed_thresh):
    maps = random_maps(seed)
    foreground, distance, center = maps
    low = np.minimum(distance, center)
    regions, count = ndimage.label((foreground > foreground_thresh) & (low > seed_thresh), np.ones((3, 3)))
    expected = []
    for label in range(1, count + 1):
        inside = regions == label
        if low[inside].max() > seed_thresh + 0.2 * (1 - seed_thresh):
            rows, columns = np.nonzero(inside)
            best = distance[inside].argmax()
            expected.append((columns[best], rows[best], foreground[inside].mean(dtype=np.float64)))
    points, scores = find_centers(maps, foreground_thresh, seed_thresh)
    assert len(points) == len(expected) and (len(points) < count or seed_thresh == 0)
    assert points.tolist() == [[x, y] for x, y, _ in expected]
    assert scores == pytest.approx([score for *_, score in expected], abs=1e-6)


def test_of_equal_distances_the_nearest_to_the_center_is_the_point():
    maps = np.ones((3, 5, 9), dtype=np.float32)
    maps[2] = 0.6
    maps[2, 3, 4] = maps[2, 4, 1] = 0.8
    assert find_centers(maps)[0].tolist() == [[4, 3]]
    maps[1, 2, 7] = 0.99
    maps[1, 1, 6] = 1.0
    assert find_centers(maps)[0].tolist() == [[4, 3]]
    maps[1] = 0.9
    maps[1, 1, 6] = 1.0
    assert find_centers(maps)[0].tolist() == [[6, 1]]


def test_watershed_divides_at_the_valley_and_scores_by_the_foreground():
    distance = np.array([0.2, 0.6, 0.9, 0.7, 0.4, 0.1, 0.3, 0.8, 0.9, 0.2, 0.0, 0.3, 0.3], dtype=np.float32)
    foreground = np.array([0.6, 0.7, 0.8, 0.9, 1.0, 0.9, 0.6, 0.6, 0.8, 0.4, 0.0, 0.9, 0.9], dtype=np.float32)
    maps = np.stack([foreground, distance, distance])[:, None].repeat(4, axis=1)
    labels, points, scores = watershed_instances(maps, min_area=0)
    row = labels[0].tolist()
    # One side or the other of pixel 5, the valley; 9 is background by its foreground, 11 and 12 have no seed.
    assert row in ([1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0], [1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0])
    assert (labels == labels[0]).all() and points.tolist() == [[2, 0], [8, 0]]
    assert scores == pytest.approx([foreground[labels[0] == label].mean() for label in (1, 2)])
    areas = [int((labels == label).sum()) for label in (1, 2)]
    smaller, points, scores = watershed_instances(maps, min_area=min(areas) + 1)
    larger = 1 + int(np.argmax(areas))
    assert np.array_equal(smaller, (labels == larger).astype(int))
    assert points.tolist() == [[[2, 0], [8, 0]][larger - 1]] and len(scores) == 1
    assert watershed_instances(maps)[0].max() == 0  # fewer than 25 pixels each
    wide, _, _ = watershed_instances(maps, foreground_thresh=0.39, min_area=0)
    assert wide[0, 9] == 2


def test_a_point_of_watershed_lies_in_its_object():
    for seed in range(4):
        labels, points, scores = watershed_instances(random_maps(seed), 0.4, 0.45, min_area=10)
        assert len(points) == len(scores) == labels.max() > 3
        assert labels[points[:, 1], points[:, 0]].tolist() == list(range(1, len(points) + 1))
        assert np.bincount(labels.ravel())[1:].min() >= 10


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_maps_without_object_give_nothing(value):
    maps = np.full((3, 20, 30), value, dtype=np.float32)
    maps[0 if value == 1 else 1] = 0.0
    points, scores = find_centers(maps)
    assert points.shape == (0, 2) and scores.shape == (0,)
    labels, points, scores = watershed_instances(maps)
    assert labels.shape == (20, 30) and not labels.any() and points.shape == (0, 2) and scores.shape == (0,)


def test_tensors_are_as_good_as_arrays():
    maps = random_maps(1)
    for kind in (torch.from_numpy(maps), torch.from_numpy(maps).double().requires_grad_(), maps.astype(np.float64)):
        for ours, theirs in zip(watershed_instances(kind), watershed_instances(maps), strict=True):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(find_centers(kind)[0], find_centers(maps)[0])
    assert (FOREGROUND_THRESH, SEED_THRESH) == (0.5, 0.5)


@pytest.mark.parametrize("find", [find_centers, watershed_instances])
def test_wrong_arguments_are_named(find):
    maps = random_maps(0)
    with pytest.raises(
        ValueError, match=r"maps are \[1, 3, 60, 80\], expected \['foreground', 'distance', 'center'\]"
    ):
        find(maps[None])
    with pytest.raises(ValueError, match=r"maps are \[2, 60, 80\]"):
        find(maps[:2])
    with pytest.raises(ValueError, match=r"foreground_thresh is 1.0, expected a number in \[0, 1\)"):
        find(maps, foreground_thresh=1.0)
    with pytest.raises(ValueError, match=r"seed_thresh is -0.1, expected a number in \[0, 1\)"):
        find(maps, seed_thresh=-0.1)


def test_without_scikit_image_centers_are_found_and_watershed_says_what_to_install():
    code = """
import sys
sys.modules.update(dict.fromkeys(["skimage", "skimage.segmentation", "scipy"]))
import numpy as np
from sam_hf.instances import find_centers, watershed_instances
maps = np.zeros((3, 9, 9), dtype=np.float32)
maps[:, 4, 4] = 1
assert find_centers(maps)[0].tolist() == [[4, 4]]
try:
    watershed_instances(maps)
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install scikit-image" in result.stdout, result.stderr
