"""Losses of interactive segmentation: focal, dice, IoU regression and object score, on the best of M candidates.

NaN in labels of floats and -1 in those of signed integers is a pixel to ignore; an object that has no other is padding
and contributes nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import height_and_width
from .loss_points import choose_points, labels_at, logits_at, valid_pixels


@dataclass
class ObjectLosses:
    """Loss terms per object, each float32 [B, N], zero for padded objects.

    `valid` is bool [B, N]; `iou` [B, N, M] is the true IoU of every candidate; `best` int64 [B, N] is the candidate
    of lowest mask loss.
    """

    focal: Tensor
    dice: Tensor
    iou_regression: Tensor
    object_score: Tensor
    valid: Tensor
    iou: Tensor
    best: Tensor


@dataclass
class ObjectTargets:
    """What `object_losses` compares with, to be made once for several predictions of the same objects.

    `shares` and `valid` float32 [B, N, h, w] are those of `targets_at`; bool [B, N] tell which objects are not padding
    (`is_real`) and have any foreground (`has_object`). `labels` [B, N, H, W] are as they came.
    """

    labels: Tensor
    shares: Tensor
    valid: Tensor
    is_real: Tensor
    has_object: Tensor

    @classmethod
    def of(cls, labels: Tensor, size: tuple[int, int]) -> "ObjectTargets":
        """From labels [B, N, H, W] for masks of `size` (h, w)."""
        shares, valid = targets_at(labels, size)
        # Objects smaller than half a cell count, too.
        has_object = (shares > 0.5).flatten(2).any(dim=-1) | (labels.flatten(2) > 0.5).any(dim=-1)
        return cls(labels, shares, valid, valid.flatten(2).any(dim=-1), has_object)


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, alpha: float, gamma: float, normalized: bool = False
) -> Tensor:
    """Focal loss of each mask: the mean over its valid pixels (Lin et al. 2017, equation 5), or normalized.

    The normalized one (Sofiiuk et al. 2019, section 3.3) divides by the sum of the focusing factors instead of the
    number of pixels, so that its gradient neither fades as pixels become right, nor depends on the object's size.

    Args:
        logits: float [..., h, w].
        targets: float, in [0, 1]; valid: float, 1 for pixels that count; both broadcast to `logits`.
        alpha: weight of foreground, 1 - alpha of background; negative for no weighting.
        gamma: focusing exponent.
        normalized: see above; counts at least one wrong pixel's worth, so that a perfect mask has no gradient.

    Returns:
        float [...].
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets.expand_as(logits), reduction="none")
    weight = valid
    if gamma:
        probability = logits.sigmoid()
        error = probability + targets - 2 * probability * targets  # 1 - p_t for hard targets
        if gamma < 1:
            error = error.clamp(min=torch.finfo(error.dtype).tiny)  # the root has no gradient at 0
        focus = error if gamma == 1 else error * error if gamma == 2 else error**gamma
        loss = loss * focus
        weight = focus.detach() * valid if normalized else valid
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return (loss * valid).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 |p t| + 1) / (|p| + |t| + 1) over the valid pixels of each mask (Milletari et al. 2016; +1 as in SAM).

    Shapes as in `sigmoid_focal_loss`.
    """
    probability = logits.sigmoid() * valid
    overlap = (probability * targets).sum(dim=(-2, -1))
    total = probability.sum(dim=(-2, -1)) + (targets * valid).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU of bool masks [..., h, w] over valid pixels, float32 [...]; two empty masks agree perfectly, IoU 1."""
    # A sum of bools first copies them to its own dtype: not to int64.
    overlap = (prediction & target & valid).sum(dim=(-2, -1), dtype=torch.int32)
    union = ((prediction | target) & valid).sum(dim=(-2, -1), dtype=torch.int32)
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)


def targets_at(labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bring labels [B, N, H, W] to another grid by averaging areas.

    Returns:
        targets: float32 [B, N, h, w], share of foreground among the valid pixels of a cell.
        valid: float32 [B, N, h, w], 1 where a cell has any valid pixel.

    Raises:
        ValueError: labels in host memory that are not in [0, 1].
    """
    valid = valid_pixels(labels)
    targets = torch.where(valid, labels.float(), 0.0)
    check_range(targets)
    valid = valid.float()
    if labels.shape[-2:] != size:
        targets, valid = (F.interpolate(part, size, mode="area") for part in (targets, valid))
        targets = targets / valid.clamp(min=1e-6)
    return targets, (valid > 0).float()


def check_range(targets: Tensor) -> None:
    """Refuse labels such as 0 and 255, of which the loss is a large negative number.

    Where reading a value would wait for an accelerator, or a graph is being made, they are not looked at.

    Raises:
        ValueError: if one is not in [0, 1].
    """
    if torch.compiler.is_compiling() or type(targets) is not Tensor or targets.device.type != "cpu":
        return
    if not targets.numel():
        return
    low, high = (value.item() for value in targets.aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"labels are from {low:g} to {high:g}, expected 0 for background, 1 for the object and, for pixels to "
            "ignore, NaN (-1 in signed integers): divide masks of 0 and 255 by 255, and split maps of several objects "
            "(the processor does both)."
        )


def at_points(masks: Tensor, labels: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, N, M, h, w] and labels [B, N, H, W] at points [B, N, K, 2], as one row of pixels each.

    Returns:
        logits: float32 [B, N, M, 1, K].
        targets, valid: float32 [B, N, 1, 1, K].
    """
    logits, labels = logits_at(masks, points)[..., None, :], labels_at(labels, points)[:, :, None, None]
    valid = labels.isfinite()
    return logits, torch.where(valid, labels, 0.0), valid.float()


def object_losses(
    masks: Tensor,
    iou_scores: Tensor,
    object_score_logits: Tensor | None,
    labels: Tensor | ObjectTargets,
    *,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    focal_normalized: bool = False,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_loss: str = "l1",
    relaxation: float = 0.0,
    candidates: Tensor | None = None,
    point_draws: Tensor | None = None,
) -> ObjectLosses:
    """Losses of every object, with the mask loss on its best candidate (SAM paper, appendix A).

    Args:
        masks: logits [B, N, M, h, w]; iou_scores: [B, N, M]; object_score_logits: [B, N, 1] or None.
        labels: float, integer or bool [B, N, H, W] of 0 and 1, with NaN, or -1 in signed integers, in pixels to
            ignore. Compared at the grid of `masks`. Or their `ObjectTargets` at that grid.
        focal_alpha, focal_gamma, focal_normalized: see `sigmoid_focal_loss`.
        focal_weight, dice_weight: decide which candidate is the best.
        iou_loss: "l1" (SAM 2) or "mse" (SAM).
        relaxation: share of the mask loss that is the mean over candidates instead of the best one's, so that none is
            left without a gradient for good (relaxed winner takes all, Rupprecht et al. 2017, section 3).
        candidates: bool [B, N, M], candidates that take part; None means all.
        point_draws: [B, N, 2] in [0, 1), to compare masks at `NUM_POINTS` points that these decide, with the
            labels at their full resolution; None compares all pixels of the grid of `masks`.

    The IoU head learns the true IoU, on the grid of `masks`, of every candidate that takes part. Empty objects (no
    foreground) train the object score alone, when there is one.
    """
    masks, iou_scores = masks.float(), iou_scores.float()
    if isinstance(labels, Tensor):
        labels = ObjectTargets.of(labels, height_and_width(masks))
    targets, valid = labels.shares[:, :, None], labels.valid[:, :, None]
    is_real, has_object = labels.is_real, labels.has_object
    if candidates is None:
        candidates = torch.ones_like(iou_scores, dtype=torch.bool)

    if point_draws is None:
        compared = masks, targets, valid
    else:
        points = choose_points(masks, labels.labels, candidates, point_draws)
        compared = at_points(masks, labels.labels, points)
    focal = sigmoid_focal_loss(*compared, focal_alpha, focal_gamma, focal_normalized)
    dice = dice_loss(*compared)
    total = (focal_weight * focal + dice_weight * dice).masked_fill(~candidates, torch.inf)
    best = total.argmin(dim=-1)
    count = candidates.sum(dim=-1).clamp(min=1)

    def on_candidates(loss: Tensor) -> Tensor:
        of_best = loss.gather(2, best[..., None])[..., 0]
        return of_best.lerp((loss * candidates).sum(dim=-1) / count, relaxation) if relaxation else of_best

    iou = mask_iou(masks.detach() > 0, targets > 0.5, valid > 0)
    error = (iou_scores - iou).abs()
    regression = ((error if iou_loss == "l1" else error**2) * candidates).sum(dim=-1) / count

    mask_weight = is_real if object_score_logits is None else is_real & has_object
    if object_score_logits is None:
        object_score = torch.zeros_like(regression)
    else:
        object_score = F.binary_cross_entropy_with_logits(
            object_score_logits[..., 0].float(), has_object.float(), reduction="none"
        )
    return ObjectLosses(
        focal=on_candidates(focal) * mask_weight,
        dice=on_candidates(dice) * mask_weight,
        iou_regression=regression * mask_weight,
        object_score=object_score * is_real,
        valid=is_real,
        iou=iou,
        best=best,
    )


__all__ = [
    "ObjectLosses",
    "ObjectTargets",
    "at_points",
    "check_range",
    "dice_loss",
    "mask_iou",
    "object_losses",
    "sigmoid_focal_loss",
    "targets_at",
]
