"""Losses against closed forms, torchvision and a loop over pixels in float64."""

import math

import pytest
import torch
from tiny_models import random_labels, random_pixels, random_prompts, tiny_model
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from sam_hf.losses import ObjectLosses, dice_loss, mask_iou, object_losses, sigmoid_focal_loss, targets_at

ONES = torch.ones(2, 2)
NAN = math.nan


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(
    ("alpha", "gamma", "expected"),
    [
        # One foreground pixel of probability 0.8, three background pixels of 0.25.
        (-1, 0, (-math.log(0.8) - 3 * math.log(0.75)) / 4),
        (-1, 2, (-(0.2**2) * math.log(0.8) - 3 * 0.25**2 * math.log(0.75)) / 4),
        (0.25, 2, (-0.25 * 0.2**2 * math.log(0.8) - 3 * 0.75 * 0.25**2 * math.log(0.75)) / 4),
        (0.25, 1, (-0.25 * 0.2 * math.log(0.8) - 3 * 0.75 * 0.25 * math.log(0.75)) / 4),
        (0.0, 0.5, -3 * 0.25**0.5 * math.log(0.75) / 4),
    ],
)
def test_focal_value(alpha, gamma, expected):
    logits = torch.tensor([[logit(0.8), logit(0.25)], [logit(0.25), logit(0.25)]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert sigmoid_focal_loss(logits, targets, ONES, alpha, gamma).item() == pytest.approx(expected, rel=1e-6)


def test_normalized_focal_value_and_its_lower_bound():
    # One foreground pixel of probability 0.3, five background pixels of 0.6: focusing factors 0.7^2 and 0.6^2.
    logits = torch.tensor([[logit(0.3), logit(0.6), logit(0.6)], [logit(0.6), logit(0.6), logit(0.6)]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    sums = -0.7 * 0.7**2 * math.log(0.3) - 0.3 * 4 * 0.6**2 * math.log(0.4)
    result = sigmoid_focal_loss(logits, targets, valid, 0.7, 2, normalized=True)
    assert result.item() == pytest.approx(sums / (0.7**2 + 4 * 0.6**2), rel=1e-6)
    # Nearly right everywhere: not divided by less than one pixel.
    easy = torch.where(targets > 0, 3.0, -3.0)
    p = 1 / (1 + math.exp(3.0))
    expected = -(0.7 + 0.3 * 4) * p**2 * math.log(1 - p)
    assert sigmoid_focal_loss(easy, targets, valid, 0.7, 2, normalized=True).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_dice_value():
    logits = torch.tensor([[logit(0.8), logit(0.25)], [logit(0.25), logit(0.25)]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = 1 - (2 * 0.8 + 1) / (0.8 + 3 * 0.25 + 1 + 1)
    assert dice_loss(logits, targets, ONES).item() == pytest.approx(expected, rel=1e-6)


def test_iou_value():
    prediction = torch.tensor([[True, True], [False, False]])
    target = torch.tensor([[True, False], [True, False]])
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    assert mask_iou(prediction, target, everywhere).item() == pytest.approx(1 / 3)
    upper = torch.tensor([[True, True], [False, False]])
    assert mask_iou(prediction, target, upper).item() == pytest.approx(1 / 2)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert mask_iou(nothing, nothing, everywhere).item() == 1
    assert mask_iou(prediction, nothing, everywhere).item() == 0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 1.0), (-1, 2.0), (0.25, 0.0), (0.25, 1.5)])
def test_focal_equals_torchvision(alpha, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4, 9, 7, generator=generator)).requires_grad_()
    targets = (torch.rand(4, 9, 7, generator=generator) > 0.6).float()
    expected = torchvision_focal_loss(logits, targets, alpha, gamma, reduction="none").mean(dim=(1, 2))
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    result = sigmoid_focal_loss(logits, targets, torch.ones_like(targets), alpha, gamma)
    (gradient,) = torch.autograd.grad(result.sum(), logits)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_extreme_logits_stay_finite(gamma):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    (sigmoid_focal_loss(logits, targets, ONES, 0.25, gamma) + dice_loss(logits, targets, ONES)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("normalized", [False, True])
def test_gradients_of_a_small_gamma_are_finite(gamma, normalized):
    logits = torch.tensor([[200.0, -200.0, 200.0, 0.3]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    sigmoid_focal_loss(logits, targets, torch.ones(1, 4), 0.25, gamma, normalized).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0] == 0 and logits.grad[0, 3] < 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_other_values_are_refused(dtype):
    masks, scores = torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 3)
    labels = torch.zeros(1, 1, 16, 16, dtype=dtype)
    labels[..., :8] = 255
    with pytest.raises(ValueError, match="labels are from 0 to 255, expected 0 .* divide masks of 0 and 255 by 255"):
        object_losses(masks, scores, None, labels)
    with pytest.raises(ValueError, match="labels are from -1 to 0"):
        object_losses(masks, scores, None, torch.where(labels == 255, -1.0, float("nan")))
    assert object_losses(masks, scores, None, labels / 255).focal.isfinite().all()


def test_targets_are_shares_of_valid_pixels():
    labels = torch.tensor([[1.0, 1.0, NAN, NAN], [1.0, 0.0, NAN, NAN], [0.0, 0.0, 1.0, NAN], [0.0, 0.0, 0.0, NAN]])
    targets, valid = targets_at(labels[None, None], (2, 2))
    assert torch.equal(targets[0, 0], torch.tensor([[0.75, 0.0], [0.0, 0.5]]))
    assert torch.equal(valid[0, 0], torch.tensor([[1.0, 0.0], [1.0, 1.0]]))


def test_targets_on_their_own_grid_are_kept():
    labels = random_labels() > 0.5
    targets, valid = targets_at(labels, (32, 32))
    assert torch.equal(targets, labels.float()) and bool(valid.all())


def naive_object_losses(
    masks: Tensor, scores: Tensor, object_scores: Tensor, labels: Tensor, candidates: Tensor, options: dict
) -> dict[str, list[float]]:
    """What `object_losses` says, pixel by pixel in Python floats; labels on the grid of the masks."""
    found: dict[str, list[float]] = {name: [] for name in ("focal", "dice", "iou_regression", "object_score", "best")}
    for b in range(masks.shape[0]):
        for n in range(masks.shape[1]):
            pixels = [
                (y, x, value)
                for y, row in enumerate(labels[b, n].tolist())
                for x, value in enumerate(row)
                if not math.isnan(value)
            ]
            has_object = any(value > 0.5 for _, _, value in pixels)
            per_candidate = {}
            errors = []
            for m in range(masks.shape[2]):
                if not candidates[b, n, m]:
                    continue
                focal = overlap = predicted = 0.0
                both = either = 0
                for y, x, t in pixels:
                    z = masks[b, n, m, y, x].item()
                    p = 1 / (1 + math.exp(-z))
                    entropy = -t * math.log(p) - (1 - t) * math.log(1 - p)
                    weight = abs(p * (1 - t) + (1 - p) * t) ** options["focal_gamma"]
                    alpha = options["focal_alpha"]
                    focal += entropy * weight * (alpha * t + (1 - alpha) * (1 - t))
                    overlap += p * t
                    predicted += p
                    both += z > 0 and t > 0.5
                    either += z > 0 or t > 0.5
                total = predicted + sum(t for _, _, t in pixels)
                dice = 1 - (2 * overlap + 1) / (total + 1)
                per_candidate[m] = (focal / max(len(pixels), 1), dice)
                errors.append(abs(scores[b, n, m].item() - (both / either if either else 1.0)))
            best = min(
                per_candidate,
                key=lambda m: (
                    options["focal_weight"] * per_candidate[m][0] + options["dice_weight"] * per_candidate[m][1]
                ),
            )
            counts = bool(pixels) and has_object
            found["best"].append(best)
            found["focal"].append(per_candidate[best][0] * counts)
            found["dice"].append(per_candidate[best][1] * counts)
            found["iou_regression"].append(sum(errors) / len(errors) * counts)
            z = object_scores[b, n, 0].item()
            p = 1 / (1 + math.exp(-z))
            found["object_score"].append(-math.log(p if has_object else 1 - p) * bool(pixels))
    return found


def loss_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Two images of four objects: hard, soft, empty and padded targets, with pixels to ignore."""
    generator = torch.Generator().manual_seed(0)
    masks = 3 * torch.randn(2, 4, 4, 6, 5, generator=generator)
    scores = torch.rand(2, 4, 4, generator=generator)
    object_scores = torch.randn(2, 4, 1, generator=generator)
    labels = (torch.rand(2, 4, 6, 5, generator=generator) > 0.5).float()
    labels[:, 1] = torch.rand(2, 6, 5, generator=generator)
    labels[:, 2] = 0.0
    labels[:, 3] = NAN
    labels[0, :, :2] = NAN
    candidates = torch.tensor([False, True, True, True]).repeat(2, 4, 1)
    candidates[1, :2] = ~candidates[1, :2]
    return masks, scores, object_scores, labels, candidates


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0), (0.25, 0.0)])
def test_object_losses_equal_a_loop(alpha, gamma):
    options = {"focal_alpha": alpha, "focal_gamma": gamma, "focal_weight": 5.0, "dice_weight": 2.0}
    *tensors, candidates = loss_inputs()
    result = object_losses(*tensors, **options, candidates=candidates)
    expected = naive_object_losses(*tensors, candidates, options)
    assert len(set(expected["best"])) > 2  # the choice matters here
    for name, values in expected.items():
        if name == "best":  # of objects without pixels any candidate is
            values = [
                v if ok else b for v, ok, b in zip(values, result.valid.flatten(), result.best.flatten(), strict=True)
            ]
        torch.testing.assert_close(
            getattr(result, name).flatten().double(), torch.tensor(values).double(), rtol=1e-5, atol=1e-6
        )
    assert result.valid.tolist() == [[True, True, True, False]] * 2


def test_without_object_score_empty_objects_train_the_mask():
    masks, scores, _, labels, _ = loss_inputs()
    result = object_losses(masks, scores, None, labels)
    assert (result.focal[:, 2] > 0).all() and (result.iou_regression[:, 2] > 0).all()
    assert not result.object_score.any() and not result.focal[:, 3].any()


def test_relaxation_gives_every_candidate_that_takes_part_its_share():
    masks = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, scores = random_labels(1, 2, 8, 8), torch.full((1, 2, 4), 0.5)
    candidates = torch.tensor([[[True, True, False, True], [True, False, False, False]]])
    alone = [
        object_losses(masks, scores, None, labels, candidates=torch.arange(4).expand(1, 2, 4) == index)
        for index in range(4)
    ]
    best = object_losses(masks, scores, None, labels, candidates=candidates)
    relaxed = object_losses(masks, scores, None, labels, candidates=candidates, relaxation=0.3)
    for name in ("focal", "dice"):
        mean = sum(getattr(alone[index], name)[0, 0] for index in (0, 1, 3)) / 3
        expected = 0.7 * getattr(best, name)[0, 0] + 0.3 * mean
        assert getattr(relaxed, name)[0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
        # Of one candidate there is nothing to share.
        assert getattr(relaxed, name)[0, 1].item() == pytest.approx(getattr(alone[0], name)[0, 1].item(), rel=1e-5)
    (relaxed.focal + relaxed.dice).sum().backward()
    reached = (masks.grad != 0).flatten(3).any(-1)
    assert torch.equal(reached, candidates)


def test_gradient_flows_through_the_best_candidate_only():
    masks, scores, object_scores, labels, _ = loss_inputs()
    masks.requires_grad_()
    scores.requires_grad_()
    result = object_losses(masks, scores, object_scores, labels)
    (result.focal.sum() + result.dice.sum()).backward(retain_graph=True)
    trained = masks.grad.flatten(3).any(dim=-1)
    best = torch.nn.functional.one_hot(result.best, 4).bool()
    best[:, 2:] = False  # empty and padded
    assert torch.equal(trained, best)
    assert scores.grad is None
    masks.grad = None
    result.iou_regression.sum().backward()
    assert masks.grad is None or not masks.grad.any()  # the true IoU is a target
    assert scores.grad[:, :2].all() and not scores.grad[:, 2:].any()


def test_empty_and_padded_objects_train_what_they_should():
    masks, scores, object_scores, labels, _ = loss_inputs()
    tensors = [part.requires_grad_() for part in (masks, scores, object_scores)]
    result = object_losses(*tensors, labels)
    total = result.focal + result.dice + result.iou_regression + result.object_score
    total[:, 2:].sum().backward()
    assert not masks.grad.any() and not scores.grad.any()
    assert object_scores.grad[:, 2].all() and not object_scores.grad[:, 3].any()


def test_ignored_pixels_do_not_matter():
    masks, scores, object_scores, labels, _ = loss_inputs()
    changed = torch.where(labels.isnan()[:, :, None], torch.full_like(masks, 50.0), masks)
    one, other = (object_losses(part, scores, object_scores, labels) for part in (masks, changed))
    for name in ("focal", "dice", "iou_regression", "object_score", "best"):
        assert torch.equal(getattr(one, name)[:, :3], getattr(other, name)[:, :3]), name
    other = object_losses(changed.requires_grad_(), scores, object_scores, labels)
    (other.focal.sum() + other.dice.sum()).backward()
    assert not changed.grad[labels.isnan()[:, :, None].expand_as(changed)].any()


def test_perfect_prediction_costs_nothing():
    labels = random_labels(height=16, width=16)
    masks = 60 * (2 * labels - 1)[:, :, None]
    result = object_losses(masks, torch.ones(2, 2, 1), torch.full((2, 2, 1), 60.0), labels)
    for name in ("focal", "dice", "iou_regression", "object_score"):
        assert getattr(result, name).max() < 1e-6, name
    assert torch.equal(result.iou, torch.ones(2, 2, 1))


def test_small_objects_below_a_cell_still_are_objects():
    labels = torch.zeros(1, 1, 16, 16)
    labels[0, 0, 5, 5] = 1.0
    result = object_losses(torch.zeros(1, 1, 1, 4, 4), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), labels)
    assert result.focal.all() and result.object_score.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16, torch.uint8])
def test_any_label_dtype(dtype):
    masks, scores, object_scores, _, _ = loss_inputs()
    labels = random_labels(2, 4, 12, 10)
    result, expected = (object_losses(masks, scores, object_scores, part) for part in (labels.to(dtype), labels))
    assert torch.equal(result.focal, expected.focal) and torch.equal(result.object_score, expected.object_score)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
@pytest.mark.parametrize("is_at_points", [False, True])
def test_minus_one_of_integers_is_what_nan_is_of_floats(dtype, is_at_points):
    masks, scores, object_scores, _, _ = loss_inputs()
    labels = random_labels(2, 4, 12, 10)
    labels[:, 0, 3:7] = labels[:, 1, :, 5:] = labels[1, 2] = NAN
    draws = torch.rand(2, 4, 2, dtype=torch.float64) if is_at_points else None
    one, other = (
        object_losses(masks, scores, object_scores, part, point_draws=draws)
        for part in (labels, labels.nan_to_num(-1).to(dtype))
    )
    assert one.valid.tolist() == [[True] * 4, [True, True, False, True]]
    for name in ("focal", "dice", "iou_regression", "object_score", "valid", "iou"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_loss_is_the_weighted_sum_of_means_over_real_objects():
    weights = {"focal_weight": 3.0, "dice_weight": 0.5, "iou_weight": 2.0, "object_score_weight": 0.25}
    model = tiny_model(decoder={"use_object_score": True}, **weights, focal_alpha=0.6, focal_gamma=1)
    labels = random_labels()
    labels[1, 1] = NAN
    output = model(random_pixels(), **random_prompts("points"), labels=labels, multimask_output=True)
    result: ObjectLosses = object_losses(
        output.pred_masks,
        output.iou_scores,
        output.object_score_logits,
        labels,
        focal_alpha=0.6,
        focal_gamma=1,
        focal_weight=3.0,
        dice_weight=0.5,
    )
    terms = {
        "focal": result.focal.sum() / 3,
        "dice": result.dice.sum() / 3,
        "iou": result.iou_regression.sum() / 3,
        "object_score": result.object_score.sum() / 3,
    }
    expected = 3 * terms["focal"] + 0.5 * terms["dice"] + 2 * terms["iou"] + 0.25 * terms["object_score"]
    torch.testing.assert_close(output.loss, expected)
    best = result.iou.gather(2, result.best[..., None])[..., 0]
    terms["mask_iou"] = (best[0].sum() + best[1, 0]) / 3
    for name, term in terms.items():
        torch.testing.assert_close(output.loss_dict[name], term.detach())
        assert not output.loss_dict[name].requires_grad


def test_a_batch_without_objects_has_a_loss_of_zero():
    model = tiny_model(decoder={"use_object_score": True})
    labels = torch.full((2, 2, 64, 64), NAN)
    output = model(random_pixels(), **random_prompts("points"), labels=labels)
    assert output.loss.item() == 0.0
    output.loss.backward()
    assert all(part.grad is None or not part.grad.any() for part in model.parameters())
