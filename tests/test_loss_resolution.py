"""Losses at the resolution of the model input and at sampled points, against closed forms and against all pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_labels, random_pixels, random_prompts, tiny_model
from torch import Tensor

from sam_hf.loss_points import NUM_POINTS, choose_points, labels_at, logits_at, spread_points
from sam_hf.losses import at_points, object_losses

NAN = math.nan


def pixel_centres(height: int, width: int) -> Tensor:
    """float64 [1, 1, H * W, 2], (x, y) in [0, 1), row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height, dtype=torch.float64) + 0.5) / height,
        (torch.arange(width, dtype=torch.float64) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).reshape(1, 1, -1, 2)


def random_masks(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_shifts(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand((*shape, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_points_cover_the_image_evenly_wherever_they_start():
    points = spread_points(random_shifts(3), 6400)
    assert points.shape == (3, 6400, 2) and points.min() >= 0 and points.max() < 1
    cells = (points * 8).long()
    for row in cells[..., 1] * 8 + cells[..., 0]:
        counts = torch.bincount(row, minlength=64)
        assert counts.sum() == 6400 and (counts - 100).abs().max() <= 5  # of independent points: about 25
    shift = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.equal(spread_points(shift, 3)[0], shift)


def test_values_at_pixel_centres_are_the_pixels():
    masks, labels = random_masks(2, 3, 4, 6, 5), random_labels(2, 3, 24, 15)
    labels[:, :, 2] = NAN
    points = pixel_centres(24, 15).expand(2, 3, -1, -1)
    assert torch.equal(labels_at(labels, points).nan_to_num(9.0), labels.flatten(2).nan_to_num(9.0))
    expected = F.interpolate(masks.flatten(0, 1), (24, 15), mode="bilinear").unflatten(0, (2, 3)).flatten(3)
    torch.testing.assert_close(logits_at(masks, points), expected, rtol=1e-5, atol=1e-5)
    corners = torch.tensor([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53]], dtype=torch.float64).expand(2, 3, 2, 2)
    assert torch.equal(labels_at(labels, corners), labels[..., [0, -1], [0, -1]])


def test_three_quarters_of_the_points_are_the_nearest_to_the_boundary():
    # Logits grow along x and are zero in the middle: of 3 K points the 0.75 K most uncertain fill a quarter.
    ramp = torch.linspace(-31, 31, 32).expand(1, 1, 1, 32, 32)
    everyone = torch.ones(1, 1, 1, dtype=torch.bool)
    points = choose_points(ramp, torch.zeros(1, 1, 64, 64), everyone, random_shifts(1, 1), 4000)
    uncertain, others = points[0, 0, :3000], points[0, 0, 3000:]
    assert (uncertain[:, 0] - 0.5).abs().max().item() == pytest.approx(0.125, abs=0.002)
    assert others.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert ((others[:, 0] - 0.5).abs() < 0.125).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert len(points[0, 0].unique(dim=0)) == 4000

    # Nothing is learned from ignored pixels, so no doubt is spent on them.
    labels = torch.zeros(1, 1, 64, 64)
    labels[..., 32:] = NAN
    uncertain = choose_points(ramp, labels, everyone, random_shifts(1, 1), 4000)[0, 0, :3000]
    assert uncertain[:, 0].max() < 0.5 and uncertain[:, 0].min().item() == pytest.approx(0.25, abs=0.002)


def test_uncertain_is_where_any_candidate_that_takes_part_is():
    ramp = torch.linspace(-31, 31, 32).expand(1, 1, 32, 32)
    masks = torch.stack([ramp - 24, ramp + 24, torch.zeros_like(ramp)], dim=2)  # zero at 7/8 and 1/8 of the width
    candidates = torch.tensor([[[True, True, False]]])
    x = choose_points(masks, torch.zeros(1, 1, 64, 64), candidates, random_shifts(1, 1), 4000)[0, 0, :3000, 0]
    distance = torch.minimum((x - 0.125).abs(), (x - 0.875).abs())
    assert distance.max().item() == pytest.approx(0.0625, abs=0.002)
    assert (x < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_draws_decide_the_points():
    masks, labels, candidates = random_masks(1, 2, 4, 8, 8), random_labels(1, 2), torch.ones(1, 2, 4).bool()
    shifts = random_shifts(1, 2)
    state = torch.get_rng_state()
    one, other = (choose_points(masks, labels, candidates, shifts) for _ in range(2))
    assert torch.equal(one, other) and one.shape == (1, 2, NUM_POINTS, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one, choose_points(masks, labels, candidates, 1 - shifts))
    # Of one object, whatever others are there.
    assert torch.equal(one[:, 1:], choose_points(*(part[:, 1:] for part in (masks, labels, candidates, shifts))))


def test_loss_at_points_in_closed_form():
    probability = 0.3
    masks = torch.full((1, 1, 1, 8, 8), math.log(probability / (1 - probability)))
    labels = torch.ones(1, 1, 32, 32)
    options = {"focal_alpha": -1, "focal_gamma": 0, "point_draws": random_shifts(1, 1)}
    result = object_losses(masks, torch.zeros(1, 1, 1), None, labels, **options)
    assert result.focal.item() == pytest.approx(-math.log(probability), rel=1e-5)
    predicted = probability * NUM_POINTS
    assert result.dice.item() == pytest.approx(1 - (2 * predicted + 1) / (predicted + NUM_POINTS + 1), rel=1e-5)
    # A quarter is foreground and a quarter ignored: a mask without a boundary is equally uncertain everywhere.
    labels[..., 16:, :] = 0.0
    labels[..., :16, 16:] = NAN
    result = object_losses(masks, torch.zeros(1, 1, 1), None, labels, **options)
    logits, targets, valid = at_points(
        masks, labels, choose_points(masks, labels, masks[..., 0, 0] < 0, random_shifts(1, 1))
    )
    share = ((targets * valid).sum() / valid.sum()).item()
    expected = -share * math.log(probability) - (1 - share) * math.log(1 - probability)
    assert result.focal.item() == pytest.approx(expected, rel=1e-5) and 0 < share < 1
    assert 0.7 * NUM_POINTS < valid.sum() < NUM_POINTS and logits.shape == (1, 1, 1, 1, NUM_POINTS)


def test_at_every_pixel_centre_the_loss_is_that_at_full_resolution(monkeypatch):
    masks, labels = random_masks(2, 2, 3, 8, 8), random_labels()
    labels[:, :, :, 28:] = NAN
    scores = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(1))
    upscaled = F.interpolate(masks.flatten(0, 1), (32, 32), mode="bilinear").unflatten(0, (2, 2))
    expected = object_losses(upscaled, scores, None, labels)
    centres = pixel_centres(32, 32).expand(2, 2, -1, -1)
    monkeypatch.setattr("sam_hf.losses.choose_points", lambda *_: centres)
    result = object_losses(masks, scores, None, labels, point_draws=random_shifts(2, 2))
    torch.testing.assert_close(result.focal, expected.focal)
    torch.testing.assert_close(result.dice, expected.dice)
    assert torch.equal(result.best, expected.best)
    # The IoU stays that of the mask grid: of uncertain points it would be too low.
    assert torch.equal(result.iou, object_losses(masks, scores, None, labels).iou)


def test_gradient_at_points_reaches_the_best_candidate_only():
    masks, labels = random_masks(1, 2, 3, 8, 8).requires_grad_(), random_labels(1)
    result = object_losses(masks, torch.zeros(1, 2, 3), None, labels, point_draws=random_shifts(1, 2))
    (result.focal + result.dice).sum().backward()
    assert torch.equal(masks.grad.flatten(3).any(-1), F.one_hot(result.best, 3).bool())


def test_padded_objects_cost_nothing_at_points():
    masks, labels = random_masks(1, 2, 3, 8, 8).requires_grad_(), random_labels(1)
    labels[:, 1] = NAN
    result = object_losses(masks, torch.zeros(1, 2, 3), None, labels, point_draws=random_shifts(1, 2))
    (result.focal + result.dice).sum().backward()
    assert result.focal[0, 1] == result.dice[0, 1] == 0 and not masks.grad[0, 1].any()


def test_squared_error_of_predicted_iou():
    masks, labels = random_masks(1, 2, 3, 32, 32), random_labels(1)
    scores = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(1))
    result = object_losses(masks, scores, None, labels, iou_loss="mse")
    torch.testing.assert_close(result.iou_regression, (scores - result.iou).square().mean(dim=-1))


@pytest.mark.parametrize("resolution", ["mask", "input", "points"])
def test_the_config_says_where_masks_are_compared(resolution):
    model = tiny_model(loss_resolution=resolution, iou_loss="mse")
    labels = random_labels(2, 2, 64, 64)
    output = model(random_pixels(), **random_prompts("points"), labels=labels, upscale_masks=True)
    masks = output.masks if resolution == "input" else output.pred_masks
    draws = torch.zeros(2, 2, 2, dtype=torch.float64) if resolution == "points" else None
    result = object_losses(masks, output.iou_scores, None, labels, iou_loss="mse", point_draws=draws)
    expected = 20 * result.focal.mean() + result.dice.mean() + result.iou_regression.mean()
    torch.testing.assert_close(output.loss, expected)
    other = tiny_model(loss_resolution="mask" if resolution != "mask" else "input", iou_loss="mse")
    assert abs(other(random_pixels(), **random_prompts("points"), labels=labels).loss - output.loss) > 1e-4
    given = model.object_losses(output.pred_masks, output.iou_scores, None, labels, point_draws=random_shifts(2, 2))
    assert torch.equal(given.dice, result.dice) == (resolution != "points")


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match=r"loss_resolution='full' should be one of \['mask', 'input', 'points'\]"):
        tiny_model(loss_resolution="full")
    with pytest.raises(ValueError, match="iou_loss='huber'"):
        tiny_model(iou_loss="huber")
