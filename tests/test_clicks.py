"""Clicks against the formula they replace, against RITM's rules, and against themselves in other batches."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.stats import chi2_contingency, chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from sam_hf.clicks import (
    INITIAL_DRAWS,
    boxes_from_masks,
    jitter_boxes,
    sample_center_clicks,
    sample_error_clicks,
    sample_initial_prompts,
)
from sam_hf.clicks.centers import _deepest_pixels_at_once, _deepest_pixels_in_turn
from sam_hf.clicks.distances import squared_distances
from sam_hf.prompt_encoder import BACKGROUND, FOREGROUND, PADDING

LARGEST_DRAW = 1 - 2**-53


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_masks(*shape: int, seed: int = 0, density: float = 0.5) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed)) < density


def random_blobs(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Bool [1, count, height, width] of irregular regions, some of which touch the border."""
    rng = np.random.default_rng(seed)
    seeds = rng.random((count, height, width)) < 0.01
    grown = [binary_dilation(mask, iterations=int(rng.integers(1, 5))) for mask in seeds]
    return torch.from_numpy(np.stack(grown))[None]


def noise_argmax_clicks(target, prediction, num_points, generator):
    """Arg-max of masked noise, spelled out: masks bool [K, 1, H, W] -> points [K, P, 2], labels [K, P]."""
    _, _, height, width = target.shape
    false_positive = ~target & prediction
    false_negative = target & ~prediction
    all_correct = torch.all((target == prediction).flatten(2), dim=2)[..., None, None]
    noise = torch.rand(len(target), num_points, height, width, 2, generator=generator)
    noise[..., 0] *= false_positive | (all_correct & ~target)
    noise[..., 1] *= false_negative
    index = noise.flatten(2).argmax(dim=2)
    labels, index = index % 2, index // 2
    return torch.stack((index % width, index // width), dim=2), labels


def region_draws(region: torch.Tensor) -> torch.Tensor:
    """Draws that should visit every pixel of one [1, 1, H, W] region once, in row-major order."""
    area = int(region.sum())
    return ((torch.arange(area, dtype=torch.float64) + 0.5) / area)[None, None]


# Uniform clicks


@pytest.mark.parametrize("case", ["errors", "missed only", "false only", "all correct"])
def test_error_clicks_have_the_distribution_of_the_noise_argmax(case):
    target, prediction = random_masks(2, 1, 1, 5, 7, seed=3)
    prediction = {
        "errors": prediction,
        "missed only": torch.zeros_like(target),
        "false only": torch.ones_like(target),
        "all correct": target,
    }[case]
    count, cells = 20_000, 5 * 7 * 2
    points, labels = sample_error_clicks(target, prediction, num_points=count, generator=generator(1))
    theirs, their_labels = noise_argmax_clicks(target, prediction, count, generator(2))

    def histogram(points, labels):
        cell = ((points[..., 1].long() * 7 + points[..., 0].long()) * 2 + labels).flatten()
        return np.bincount(cell.numpy(), minlength=cells)

    ours, theirs = histogram(points, labels), histogram(theirs, their_labels)
    assert ((ours > 0) == (theirs > 0)).all()
    used = theirs > 0
    assert chisquare(ours[used]).pvalue > 1e-3
    assert chi2_contingency(np.stack((ours, theirs))[:, used]).pvalue > 1e-3


def test_error_clicks_of_one_call_are_independent():
    target = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    target = target.expand(1, 5000, 2, 2)
    points, _ = sample_error_clicks(target, num_points=2, generator=generator())
    first, second = (points[0, :, :, 1] * 2 + points[0, :, :, 0]).long().T
    pairs = np.bincount((first * 4 + second).numpy(), minlength=16)
    assert chisquare(pairs).pvalue > 1e-3


def test_draws_enumerate_the_error_region_in_row_major_order():
    target, prediction = random_masks(2, 1, 1, 37, 53, seed=5)
    error = target ^ prediction
    draws = region_draws(error)
    points, labels = sample_error_clicks(target, prediction, num_points=draws.shape[-1], draws=draws)
    y, x = np.nonzero(error[0, 0].numpy())
    assert points[0, 0].tolist() == np.stack((x, y), axis=1).tolist()
    assert labels[0, 0].tolist() == target[0, 0].long()[y, x].tolist()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (8, 0), (0, 4), (8, 4), (3, 2)])
def test_single_pixel_is_hit_by_every_draw(x, y):
    target = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    target[0, 0, y, x] = True
    draws = torch.tensor([[[0.0, 0.5, LARGEST_DRAW]]], dtype=torch.float64)
    points, labels = sample_error_clicks(target, num_points=3, draws=draws)
    assert points[0, 0].tolist() == [[x, y]] * 3
    assert labels[0, 0].tolist() == [FOREGROUND] * 3


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (7, 11), (1023, 1021), (1024, 1024)])
def test_extreme_draws_reach_the_first_and_the_last_pixel(size):
    target = torch.ones(1, 1, *size, dtype=torch.bool)
    points, _ = sample_error_clicks(
        target, num_points=2, draws=torch.tensor([[[0.0, LARGEST_DRAW]]], dtype=torch.float64)
    )
    assert points[0, 0].tolist() == [[0, 0], [size[1] - 1, size[0] - 1]]


def test_nothing_wrong_gives_background_clicks_and_padding_without_background():
    target = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    target[0, 1, :, :3] = True
    target[0, 2] = True
    points, labels = sample_error_clicks(target, target, num_points=50, generator=generator())
    assert labels[0].unique(dim=-1).tolist() == [[BACKGROUND], [BACKGROUND], [PADDING]]
    assert points[0, 0].unique(dim=0).shape[0] > 10  # an empty mask: anywhere
    assert (points[0, 1, :, 0] == 3).all()
    assert (points[0, 2] == 0).all()


def test_ignored_pixels_are_never_clicked():
    target, prediction = random_masks(2, 2, 3, 8, 6, seed=8)
    valid = random_masks(2, 1, 8, 6, seed=9)
    points, labels = sample_error_clicks(target, prediction, valid=valid, num_points=500, generator=generator())
    x, y = points.long().unbind(-1)
    image = torch.arange(2)[:, None, None].expand_as(x)
    object_ = torch.arange(3)[None, :, None].expand_as(x)
    assert valid[image, 0, y, x].all()
    assert (target ^ prediction)[image, object_, y, x].all()
    assert (labels == target[image, object_, y, x].long()).all()
    per_object = sample_error_clicks(
        target, prediction, valid=valid.expand(2, 3, 8, 6), num_points=500, generator=generator()
    )
    assert torch.equal(per_object[0], points)


def test_errors_on_ignored_pixels_count_as_correct():
    target = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    target[0, 0, 0, 0] = True
    target[0, 1, 1:] = True
    valid = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    valid[0, 0, 0, :] = False
    valid[0, 1, 0, :] = False
    prediction = torch.zeros_like(target)
    prediction[0, 1] = True
    points, labels = sample_error_clicks(target, prediction, valid=valid, num_points=50, generator=generator())
    assert (labels[0, 0] == BACKGROUND).all() and (points[0, 0, :, 1] > 0).all()
    assert (labels[0, 1] == PADDING).all()


def test_clicks_depend_on_their_own_draws_only():
    target, prediction = random_masks(2, 3, 4, 16, 12, seed=1)
    draws = torch.rand(3, 4, 5, dtype=torch.float64, generator=generator(2))
    points, labels = sample_error_clicks(target, prediction, num_points=5, draws=draws)
    for image, object_, point in ((0, 0, 0), (2, 3, 4), (1, 2, 3)):
        one = (slice(image, image + 1), slice(object_, object_ + 1))
        alone = sample_error_clicks(target[one], prediction[one], draws=draws[one][..., point : point + 1])
        assert torch.equal(alone[0], points[one][:, :, point : point + 1])
        assert torch.equal(alone[1], labels[one][:, :, point : point + 1])


@pytest.mark.parametrize("num_valid", [1, 4])
def test_error_clicks_of_a_few_objects_at_a_time_are_the_same(num_valid, monkeypatch):
    target, prediction = random_masks(3, 4, 8, 8), random_masks(3, 4, 8, 8, seed=1)
    valid = random_masks(3, num_valid, 8, 8, seed=2)
    draws = torch.rand(3, 4, 2, dtype=torch.float64, generator=generator())
    arguments = {"valid": valid, "draws": draws, "num_points": 2}
    together = sample_error_clicks(target, prediction, **arguments)
    monkeypatch.setattr("sam_hf.clicks.sampling.PIXELS_AT_ONCE", 3 * 64)  # not a divisor of the 4 objects of an image
    for whole, parts in zip(together, sample_error_clicks(target, prediction, **arguments), strict=True):
        assert torch.equal(whole, parts)
    x, y = together[0].long().unbind(-1)
    error = (target ^ prediction) & valid
    assert error.flatten(2).gather(2, y * 8 + x).all()


def test_clicks_come_from_the_generator_and_leave_the_global_state_alone():
    target = random_masks(2, 3, 16, 16)
    before = torch.get_rng_state()
    first = sample_error_clicks(target, num_points=4, generator=generator(1))
    again = sample_error_clicks(target, num_points=4, generator=generator(1))
    other = sample_error_clicks(target, num_points=4, generator=generator(2))
    sample_initial_prompts(target, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])


def test_error_clicks_types_shapes_and_memory_layouts():
    target, prediction = random_masks(2, 2, 3, 8, 6)
    points, labels = sample_error_clicks(target, prediction, num_points=4, generator=generator())
    assert (points.dtype, points.shape) == (torch.float32, (2, 3, 4, 2))
    assert (labels.dtype, labels.shape) == (torch.int64, (2, 3, 4))
    strided = sample_error_clicks(
        target.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
        prediction,
        num_points=4,
        generator=generator(),
    )
    assert torch.equal(strided[0], points)
    none = torch.zeros(2, 0, 8, 6, dtype=torch.bool)
    assert sample_error_clicks(none, generator=generator())[0].shape == (2, 0, 1, 2)
    assert sample_center_clicks(none)[0].shape == (2, 0, 1, 2)
    assert sample_initial_prompts(none, generator=generator())[2].shape == (2, 0, 4)


class _Recorder(TorchDispatchMode):
    """Remembers the largest tensor made and every read of a tensor by the host."""

    def __init__(self):
        super().__init__()
        self.largest, self.host_reads = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.host_reads += "local_scalar_dense" in func.name() or "nonzero" in func.name()
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_uniform_clicks_need_no_tensor_beyond_mask_size_and_no_host_read():
    target, prediction = random_masks(2, 2, 3, 64, 64)
    with _Recorder() as recorder:
        sample_error_clicks(target, prediction, num_points=16, generator=generator())
        sample_initial_prompts(target, generator=generator())
    assert recorder.largest == target.numel()
    assert recorder.host_reads == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_clicks_are_the_same_on_cuda():
    target, prediction = random_masks(2, 2, 3, 64, 48)
    for sample in (
        lambda *masks: sample_error_clicks(*masks, num_points=16, generator=generator()),
        lambda *masks: sample_initial_prompts(masks[0], generator=generator()),
        lambda *masks: sample_center_clicks(*masks),
    ):
        for ours, theirs in zip(sample(target, prediction), sample(target.cuda(), prediction.cuda()), strict=True):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=0, atol=0, equal_nan=True)


# Centre clicks


def full_image_center_click(target, prediction, valid, clicked):
    """RITM's rule on whole bool [H, W] arrays, without any bounding box: (x, y), label."""

    def depth(region):
        padded = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        for x, y in clicked:
            padded[int(y), int(x)] = 0
        return padded

    missed, false = depth(target & ~prediction & valid), depth(~target & prediction & valid)
    positive = missed.max() > false.max()
    chosen = missed if positive else false
    y, x = (axis[0] for axis in np.where(chosen == chosen.max()))
    return [float(x), float(y)], FOREGROUND if positive else BACKGROUND


def test_center_clicks_equal_the_full_image_rule():
    target = random_blobs(24, 61, 47, seed=1)
    prediction = random_blobs(24, 61, 47, seed=2)
    valid = random_masks(1, 1, 61, 47, density=0.98)
    clicked = torch.empty(1, 24, 0, 2)
    for _ in range(3):
        points, labels = sample_center_clicks(target, prediction, valid=valid, clicked=clicked)
        for index in range(24):
            expected = full_image_center_click(
                target[0, index].numpy(),
                prediction[0, index].numpy(),
                valid[0, 0].numpy(),
                clicked[0, index].tolist(),
            )
            assert (points[0, index, 0].tolist(), int(labels[0, index, 0])) == expected
        clicked = torch.cat((clicked, points), dim=2)
    assert clicked[0].unique(dim=1).shape[1] == 3  # the same pixel is not clicked twice


@pytest.mark.parametrize("density", [0.0, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (23, 61), (61, 23)])
def test_squared_distances_equal_scipy(density, size):
    masks = random_masks(2, 3, *size, density=density)
    expected = [distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in masks.flatten(0, 1).numpy()]
    distances = squared_distances(masks)
    assert distances.dtype == torch.int32
    assert np.array_equal(distances.flatten(0, 1).numpy(), np.rint(np.square(expected)))


def test_squared_distances_of_large_regions_equal_scipy():
    masks = random_blobs(6, 300, 200, seed=3)
    masks = torch.cat((masks, ~masks), dim=1)
    expected = [distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in masks[0].numpy()]
    assert np.max(expected) >= 17  # rows are searched in steps of 8
    assert np.array_equal(squared_distances(masks)[0].numpy(), np.rint(np.square(expected)))


@pytest.mark.parametrize("density", [0.01, 0.9])
def test_deepest_pixels_of_accelerators_equal_those_of_the_cpu(density):
    """The two ways to find them, with clicks on the deepest pixels of before, outside the image, and NaN."""
    regions = torch.cat((random_blobs(12, 61, 47, seed=4), random_masks(1, 12, 61, 47, density=density)), dim=1)
    regions[0, 3] = False
    clicked = torch.tensor([[-3.0, 5.0], [47.0, 2.0], [math.nan, 1.0], [5.5, 61.0]]).expand(1, 24, 4, 2)
    for _ in range(4):
        depth, points = _deepest_pixels_in_turn(regions, clicked)
        for ours, reference in zip(_deepest_pixels_at_once(regions, clicked), (depth, points), strict=True):
            assert ours.dtype == reference.dtype and torch.equal(ours, reference)
        clicked = torch.cat((clicked, points[:, :, None].float()), dim=2)
    assert depth.max() > 0 and clicked[0, :, 4:].unique(dim=1).shape[1] == 4


def test_center_click_of_known_shapes():
    target = torch.zeros(1, 4, 9, 11, dtype=torch.bool)
    target[0, 0, 2:7, 3:8] = True  # odd square: its centre
    target[0, 1, 2:6, 3:7] = True  # even square: the first of four deepest pixels
    target[0, 2, 0:5, 0:5] = True  # the image border bounds the object
    target[0, 3, 8, 10] = True
    points, labels = sample_center_clicks(target)
    assert points[0, :, 0].tolist() == [[5, 4], [4, 3], [2, 2], [10, 8]]
    assert (labels == FOREGROUND).all()
    assert (points.dtype, points.shape, labels.dtype) == (torch.float32, (1, 4, 1, 2), torch.int64)


def test_center_click_takes_the_deeper_error_and_ties_give_background():
    target = torch.zeros(1, 3, 9, 20, dtype=torch.bool)
    prediction = target.clone()
    for index, (missed, false) in enumerate(((5, 3), (3, 5), (3, 3))):
        target[0, index, 1 : 1 + missed, 1 : 1 + missed] = True
        prediction[0, index, 1 : 1 + false, 11 : 11 + false] = True
    points, labels = sample_center_clicks(target, prediction)
    assert labels[0, :, 0].tolist() == [FOREGROUND, BACKGROUND, BACKGROUND]
    assert points[0, :, 0].tolist() == [[3, 3], [13, 3], [12, 2]]


def test_center_click_without_errors():
    target = torch.zeros(1, 3, 5, 9, dtype=torch.bool)
    target[0, 0, :, :4] = True
    target[0, 2] = True
    points, labels = sample_center_clicks(target, target)
    assert points[0, :, 0].tolist() == [[6, 2], [2, 2], [0, 0]]
    assert labels[0, :, 0].tolist() == [BACKGROUND, BACKGROUND, PADDING]


def test_center_click_when_every_error_was_clicked_is_a_background_click():
    target = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    target[0, 0, 0, 0] = True
    points, labels = sample_center_clicks(target, clicked=torch.zeros(1, 1, 1, 2))
    assert (points[0, 0, 0].tolist(), int(labels)) == ([2, 2], BACKGROUND)


def test_center_clicks_without_errors_do_not_repeat():
    target = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    target[..., 1:] = True
    clicked = torch.empty(1, 1, 0, 2)
    labels = []
    for _ in range(4):
        points, label = sample_center_clicks(target, target, clicked=clicked)
        clicked = torch.cat((clicked, points), dim=2)
        labels.append(int(label))
    assert clicked[0, 0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 0]]
    assert labels == [BACKGROUND] * 3 + [PADDING]


def test_clicked_rows_outside_the_image_are_skipped():
    target = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    clicked = torch.tensor([[[[-1.0, -1.0], [math.nan, math.nan], [5.0, 2.0], [2.0, -10.0]]]])
    assert sample_center_clicks(target, clicked=clicked)[0][0, 0, 0].tolist() == [2, 2]


# Boxes and first prompts


def test_boxes_hold_the_first_and_last_pixel():
    target = torch.zeros(1, 4, 6, 9, dtype=torch.bool)
    target[0, 0, 1:4, 2:8] = True
    target[0, 1, 5, 8] = True
    target[0, 2] = True
    boxes = boxes_from_masks(target)
    assert boxes.dtype == torch.float32
    assert boxes[0, :3].tolist() == [[2, 1, 7, 3], [8, 5, 8, 5], [0, 0, 8, 5]]
    assert boxes[0, 3].isnan().all()


def test_uniform_jitter_stays_within_its_bounds_and_reaches_them():
    boxes = torch.tensor([[[100.0, 300.0, 200.0, 700.0]]]).repeat(1, 4000, 1)
    moved = jitter_boxes(boxes, height=1000, width=1000, generator=generator()) - boxes
    limits = torch.tensor([10.0, 20.0, 10.0, 20.0])  # 10 % of 100 px, and 10 % of 400 px cut at 20 px
    assert (moved.abs() <= limits + 1e-4).all()
    assert (moved.amax((0, 1)) > 0.99 * limits).all() and (moved.amin((0, 1)) < -0.99 * limits).all()
    for side in range(4):
        assert chisquare(np.histogram(moved[0, :, side], bins=10)[0]).pvalue > 1e-3
    correlation = np.corrcoef(moved[0].T.numpy()) - np.eye(4)
    assert np.abs(correlation).max() < 0.08


def test_gaussian_jitter_has_ten_percent_deviation_and_a_cut():
    boxes = torch.tensor([[[100.0, 300.0, 200.0, 700.0]]]).repeat(1, 4000, 1)
    moved = jitter_boxes(boxes, height=1000, width=1000, generator=generator(), noise="gaussian") - boxes
    assert moved[..., 0].std() == pytest.approx(9.6, rel=0.05)  # 10 px, less what the cut at 2 sigma takes
    assert moved.abs().amax() == pytest.approx(20, abs=1e-4)
    assert (moved[..., 1].abs() > 19.99).float().mean() == pytest.approx(0.617, abs=0.03)  # |z| > 0.5
    extreme = torch.zeros(1, 1, 4, dtype=torch.float64)
    flat = torch.tensor([[[5.0, 5.0, 5.0, 9.0]]])
    assert jitter_boxes(flat, height=10, width=10, draws=extreme, noise="gaussian").isfinite().all()


def test_jitter_clamps_to_the_image_and_keeps_absent_boxes():
    boxes = torch.tensor([[[0.0, 0.0, 99.0, 49.0], [math.nan] * 4]])
    draws = torch.tensor([0.0, 0.0, LARGEST_DRAW, LARGEST_DRAW], dtype=torch.float64).expand(1, 2, 4)
    moved = jitter_boxes(boxes, height=50, width=100, draws=draws)
    assert moved[0, 0].tolist() == [0, 0, 99, 49]
    assert moved[0, 1].isnan().all()
    assert moved.dtype == torch.float32


def draws_without_noise(batch: int, num_objects: int) -> torch.Tensor:
    draws = torch.rand(batch, num_objects, INITIAL_DRAWS, dtype=torch.float64, generator=generator())
    draws[..., 2:] = 0.5
    return draws


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_every_object_starts_with_one_point_or_one_box(probability):
    target = random_masks(2, 400, 12, 10, density=0.2)
    points, labels, boxes = sample_initial_prompts(
        target, draws=draws_without_noise(2, 400), box_probability=probability
    )
    has_box = ~boxes.isnan().any(-1)
    assert torch.equal(has_box, (labels == PADDING)[..., 0])
    assert has_box.float().mean() == pytest.approx(probability, abs=0.06)
    assert torch.equal(boxes[has_box], boxes_from_masks(target)[has_box])
    assert (points[has_box] == 0).all()
    x, y = points[~has_box].long()[:, 0].T
    assert target[~has_box][torch.arange(len(x)), y, x].all()
    assert (labels[~has_box] == FOREGROUND).all()
    assert (points.shape, labels.shape, boxes.shape) == ((2, 400, 1, 2), (2, 400, 1), (2, 400, 4))


def test_first_prompts_depend_on_their_own_draws_only():
    target = random_masks(3, 4, 20, 20)
    draws = torch.rand(3, 4, INITIAL_DRAWS, dtype=torch.float64, generator=generator())
    together = sample_initial_prompts(target, draws=draws)
    alone = sample_initial_prompts(target[1:2, 2:3], draws=draws[1:2, 2:3])
    for ours, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(ours, theirs[1:2, 2:3], rtol=0, atol=0, equal_nan=True)


def test_first_boxes_move_each_side_independently_of_the_rest():
    target = torch.zeros(1, 4000, 60, 80, dtype=torch.bool)
    target[..., 20:41, 20:61] = True
    draws = torch.rand(1, 4000, INITIAL_DRAWS, dtype=torch.float64, generator=generator())
    _, _, boxes = sample_initial_prompts(target, draws=draws, box_probability=1.0)
    columns = torch.cat((draws[0, :, :2], boxes[0].double()), dim=-1)
    correlation = np.corrcoef(columns.T.numpy()) - np.eye(6)
    assert np.abs(correlation).max() < 0.08


def test_first_prompt_of_an_absent_object_is_a_background_click():
    target = torch.zeros(1, 30, 6, 6, dtype=torch.bool)
    valid = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    valid[..., :3] = False
    points, labels, boxes = sample_initial_prompts(target, valid=valid, generator=generator(), box_probability=1.0)
    assert (labels == BACKGROUND).all() and boxes.isnan().all()
    assert (points[..., 0] >= 3).all()


def test_first_prompts_ignore_invalid_pixels_of_the_object():
    target = torch.ones(1, 50, 6, 6, dtype=torch.bool)
    valid = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    valid[..., :3] = False
    options = {"valid": valid, "draws": draws_without_noise(1, 50)}
    points, _, _ = sample_initial_prompts(target, box_probability=0.0, **options)
    _, _, boxes = sample_initial_prompts(target, box_probability=1.0, **options)
    assert (points[..., 0] >= 3).all()
    assert boxes[0, 0].tolist() == [3, 0, 5, 5]


# Errors


MASK = torch.zeros(2, 3, 8, 6, dtype=torch.bool)
DRAWS = torch.zeros(2, 3, 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: sample_error_clicks(MASK[0], draws=DRAWS),
            r"target must be bool \[B, N, H, W\].*\[3, 8, 6\]",
        ),
        (lambda: sample_error_clicks(MASK.float(), draws=DRAWS), "target must be bool.*float32"),
        (
            lambda: sample_error_clicks(MASK, MASK[:, :1], draws=DRAWS),
            r"prediction must be bool \[2, 3, 8, 6\]",
        ),
        (lambda: sample_error_clicks(MASK, MASK.float(), draws=DRAWS), "prediction must be bool.*float32"),
        (lambda: sample_error_clicks(MASK, valid=MASK[:, :2], draws=DRAWS), "valid must be bool"),
        (lambda: sample_error_clicks(MASK, valid=MASK[:1, :1], draws=DRAWS), "valid must be bool"),
        (lambda: sample_error_clicks(MASK), "exactly one of draws and generator"),
        (lambda: sample_error_clicks(MASK, draws=DRAWS, generator=generator()), "exactly one of draws"),
        (lambda: sample_error_clicks(MASK, draws=DRAWS.float()), "draws must be float64 or int32 or int64.*float32"),
        (lambda: sample_error_clicks(MASK, num_points=2, draws=DRAWS), r"draws must be .* \[2, 3, 2\]"),
        (lambda: sample_center_clicks(MASK.byte()), "target must be bool"),
        (lambda: sample_center_clicks(MASK, MASK[..., 1:]), "prediction must be bool"),
        (lambda: sample_center_clicks(MASK, clicked=torch.zeros(2, 3, 2)), r"clicked must be \[B, N, P, 2\]"),
        (lambda: boxes_from_masks(MASK[0]), "target must be bool"),
        (lambda: jitter_boxes(torch.zeros(3, 4), height=9, width=9, generator=generator()), "boxes must be"),
        (
            lambda: jitter_boxes(torch.zeros(1, 1, 4), height=9, width=9, noise="normal", generator=generator()),
            "noise must be 'uniform' or 'gaussian', got 'normal'",
        ),
        (lambda: sample_initial_prompts(MASK, draws=DRAWS), r"draws must be float64 \[2, 3, 6\]"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
