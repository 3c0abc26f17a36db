"""Prompts sampled uniformly from masks: the clicks and boxes of training, as pure functions.

`sample_initial_prompts` first, then `sample_error_clicks` after each prediction. Randomness is a tensor of uniform
`draws` that determines the result, so clicks repeat exactly on any device, in any batch and in any worker process.
Draws of clicks may be whole numbers below `DRAW_RANGE`, which devices without float64 have, too.

Axes: B images, N objects per image, P points per object, H, W mask size. Points are pixel indices (x, y) as
float32: the prompt encoder adds the 0.5 that moves them to pixel centres. Boxes are (x1, y1, x2, y2) in the
same frame.
"""

import math

import torch
from torch import Generator, Tensor

from ..masks import has_pixels, mask_boxes
from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING

# SAM 2 clamps the logits that it feeds back at inference (`sam2_image_predictor.py`); so do training and evaluation.
FEEDBACK_LIMIT = 32.0
BOX_NOISE, MAX_BOX_NOISE = 0.1, 20.0  # of a side: share of the box, pixels
INITIAL_DRAWS = 6  # of `sample_initial_prompts`, per object: point or box, which pixel, noise of the four box sides
DRAW_RANGE = 2**31  # a product with the number of pixels fits int64
PIXELS_AT_ONCE = 2**21  # of masks in which clicks are looked for together


def sample_error_clicks(
    target: Tensor,
    prediction: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    num_points: int = 1,
    draws: Tensor | None = None,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample clicks per object, uniformly and with replacement from the pixels where the prediction is wrong.

    A missed pixel gives a foreground click, a false one a background click. When nothing is wrong the click
    is a background one on a uniform background pixel; when there is no background either it is padding at (0,
    0).

    Args:
        target: bool [B, N, H, W], ground truth.
        prediction: bool [B, N, H, W]; None is the empty prediction, so that clicks land uniformly in the
            object.
        valid: bool [B, 1 or N, H, W], False where no click may land; None allows every pixel.
        num_points: P, the number of clicks per object.
        draws: float64 [B, N, P] in [0, 1), or int32 or int64 in [0, `DRAW_RANGE`), the position of each click in its
            region in row-major order.
        generator: draws them when `draws` is not given; a CPU generator gives the same clicks on every
            device.

    Returns:
        points: float32 [B, N, P, 2], (x, y) pixel indices.
        labels: int64 [B, N, P], foreground, background or padding.

    Raises:
        ValueError: for masks of another dtype or shape, or unless exactly one of `draws` and `generator` is
            given.

    Source: SAM paper, appendix A. The distribution is that of the arg-max over independent noise per pixel
    and click (SAM 2 `sample_random_points_from_errors`), by inverse CDF: no noise of mask size is drawn.
    """
    check_masks(target, prediction, valid)
    shape = *target.shape[:2], num_points
    draws = resolve_draws(draws, generator, shape, target.device, (torch.int32, torch.int64))
    draws = (draws * DRAW_RANGE if draws.is_floating_point() else draws).long()
    count, (height, width) = draws.shape[0] * draws.shape[1], target.shape[-2:]
    # A few objects at a time: counting their pixels takes several times the memory of their masks.
    at_once = max(PIXELS_AT_ONCE // max(height * width, 1), 1)
    targets, predictions = target.flatten(0, 1), None if prediction is None else prediction.flatten(0, 1)
    if valid is not None:
        # One per image is not repeated for all of its objects.
        owners = torch.arange(count, device=target.device) // (target.shape[1] if valid.shape[1] == 1 else 1)
    parts = []
    for first in range(0, max(count, 1), at_once):
        chosen = slice(first, first + at_once)
        predicted = None if predictions is None else predictions[chosen]
        allowed = None if valid is None else valid.flatten(0, 1)[owners[chosen]]
        parts.append(_error_clicks(targets[chosen], predicted, allowed, draws.flatten(0, 1)[chosen]))
    points, labels = (torch.cat(part).unflatten(0, target.shape[:2]) for part in zip(*parts, strict=True))
    return points, labels


def _error_clicks(
    target: Tensor, prediction: Tensor | None, valid: Tensor | None, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """`sample_error_clicks` for masks [K, H, W] and draws [K, P]."""
    region = within(target if prediction is None else target ^ prediction, valid)
    all_correct = region.sum(dim=(-2, -1), dtype=torch.int32)[..., None, None] == 0
    region = region | within(~target & all_correct, valid)
    x, y, empty = _pick_pixels(region, draws)
    inside = target.flatten(1).gather(-1, y * target.shape[-1] + x)
    labels = torch.where(inside, FOREGROUND, BACKGROUND).masked_fill(empty, PADDING)
    return torch.stack((x, y), dim=-1).float(), labels


def sample_initial_prompts(
    target: Tensor,
    *,
    valid: Tensor | None = None,
    draws: Tensor | None = None,
    generator: Generator | None = None,
    box_probability: float = 0.5,
    noise: str = "uniform",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the first prompt of every object: a uniform foreground point or a noisy box.

    An object without any pixel has no box; it gets a background click.

    Args:
        target: bool [B, N, H, W], ground truth.
        valid: bool [B, 1 or N, H, W], False where pixels are ignored; None allows every pixel.
        draws: float64 [B, N, INITIAL_DRAWS] in [0, 1).
        generator: draws them when `draws` is not given.
        box_probability: chance of a box instead of a point, in [0, 1].
        noise: see `jitter_boxes`.

    Returns:
        points: float32 [B, N, 1, 2], (x, y) pixel indices; (0, 0) for an object that has a box.
        labels: int64 [B, N, 1], foreground, background, or padding for an object that has a box.
        boxes: float32 [B, N, 4], NaN for an object that has a point.

    Raises:
        ValueError: as `sample_error_clicks` and `jitter_boxes`.
    """
    check_masks(target, None, valid)
    draws = resolve_draws(draws, generator, (*target.shape[:2], INITIAL_DRAWS), target.device)
    kind, position, sides = draws.split((1, 1, 4), dim=-1)
    target = within(target, valid)
    points, labels = sample_error_clicks(target, valid=valid, draws=position)
    boxes = jitter_boxes(
        boxes_from_masks(target),
        height=target.shape[-2],
        width=target.shape[-1],
        draws=sides,
        noise=noise,
    )
    is_box = (kind < box_probability) & ~boxes[..., :1].isnan()  # [B, N, 1]
    points = points.masked_fill(is_box[..., None], 0.0)
    return points, labels.masked_fill(is_box, PADDING), boxes.masked_fill(~is_box, math.nan)


def boxes_from_masks(target: Tensor) -> Tensor:
    """Tight boxes around masks: indices of the first and last column and row that belong to the mask.

    The prompt encoder adds 0.5 to box corners as it does to points, so a corner stands for the *centre* of
    the corner pixel; this is the convention SAM and SAM 2 were trained with. A mask one pixel wide has x1 ==
    x2.

    Args:
        target: bool [B, N, H, W].

    Returns:
        float32 [B, N, 4], (x1, y1, x2, y2); NaN where a mask is empty.

    Raises:
        ValueError: for masks of another dtype or shape.
    """
    check_masks(target, None, None)
    return mask_boxes(target).float().masked_fill(~has_pixels(target)[..., None], math.nan)


def jitter_boxes(
    boxes: Tensor,
    *,
    height: int,
    width: int,
    draws: Tensor | None = None,
    generator: Generator | None = None,
    noise: str = "uniform",
) -> Tensor:
    """Move each side of each box independently, as a person draws them, and clamp to the image.

    "uniform" moves by up to 10 % of the box side, at most 20 pixels (the SAM 2 code); "gaussian" has a standard
    deviation of 10 % of the side, cut at 20 pixels (the SAM paper, section A).

    Args:
        boxes: float32 [B, N, 4], (x1, y1, x2, y2) pixel indices; NaN rows stay NaN.
        height, width: size of the image in pixels.
        draws: float64 [B, N, 4] in [0, 1), one per side.
        generator: draws them when `draws` is not given.
        noise: "uniform" or "gaussian".

    Returns:
        float32 [B, N, 4], within [0, width - 1] and [0, height - 1].

    Raises:
        ValueError: for boxes of another shape, an unknown `noise`, or unless exactly one of `draws` and
            `generator` is given.
    """
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [B, N, 4] (x1, y1, x2, y2), got {list(boxes.shape)}")
    draws = resolve_draws(draws, generator, tuple(boxes.shape), boxes.device)
    scale = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2).double() * BOX_NOISE  # [B, N, 4]
    if noise == "uniform":
        offsets = (2 * draws - 1) * scale.clamp(max=MAX_BOX_NOISE)
    elif noise == "gaussian":
        # The clamp keeps a draw of exactly 0 away from minus infinity.
        offsets = (torch.special.ndtri(draws.clamp(min=2**-53)) * scale).clamp(-MAX_BOX_NOISE, MAX_BOX_NOISE)
    else:
        raise ValueError(f"noise must be 'uniform' or 'gaussian', got {noise!r}")
    limit = torch.tensor((width - 1, height - 1, width - 1, height - 1), device=boxes.device)
    return (boxes + offsets).clamp(torch.zeros_like(limit), limit).float()


def check_masks(target: Tensor, prediction: Tensor | None, valid: Tensor | None) -> None:
    if target.ndim != 4 or target.dtype != torch.bool:
        raise ValueError(f"target must be bool [B, N, H, W], got {target.dtype} {list(target.shape)}; threshold first")
    batch, objects, *size = target.shape
    for name, mask, counts in (("prediction", prediction, {objects}), ("valid", valid, {1, objects})):
        if mask is None:
            continue
        if mask.dtype != torch.bool or mask.shape not in {(batch, count, *size) for count in counts}:
            expected = " or ".join(str([batch, count, *size]) for count in sorted(counts))
            raise ValueError(f"{name} must be bool {expected} to match target, got {mask.dtype} {list(mask.shape)}")


def resolve_draws(
    draws: Tensor | None,
    generator: Generator | None,
    shape: tuple[int, ...],
    device: torch.device,
    whole: tuple[torch.dtype, ...] = (),
) -> Tensor:
    if generator is not None and draws is None:
        draws = torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)
    elif generator is not None or draws is None:
        raise ValueError("give exactly one of draws and generator: clicks never use the global random state")
    if draws.shape != shape or draws.dtype not in (torch.float64, *whole):
        dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in (torch.float64, *whole))
        raise ValueError(
            f"draws must be {dtypes} {list(shape)} (float32 cannot tell all pixels apart), "
            f"got {draws.dtype} {list(draws.shape)}"
        )
    return draws.to(device, non_blocking=device.type == "cuda")  # no host synchronisation


def within(region: Tensor, valid: Tensor | None) -> Tensor:
    return region if valid is None else region & valid


def missed_and_false(target: Tensor, prediction: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where valid pixels of the target are not predicted, and where others are: bool [B, N, H, W] each."""
    if prediction is None:
        return within(target, valid), torch.zeros_like(target)
    return within(target & ~prediction, valid), within(prediction & ~target, valid)


def _pick_pixels(region: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels at rank floor(draw * area / `DRAW_RANGE`) of a region [K, H, W]: int64 x, y [K, P], bool is-empty [K, 1].

    The row comes from the cumulated row areas and the column from that one row, so nothing larger than the
    masks is allocated. An empty region gives rank -1, which both searches place at 0.
    """
    # A sum of bools first copies the mask to its own dtype: int32 is half the memory and time of int64.
    row_ends = region.sum(-1, dtype=torch.int32).cumsum(-1)  # int64 [K, H]
    area = row_ends[..., -1:]
    rank = (draws * area // DRAW_RANGE).clamp(max=area - 1)
    y = torch.searchsorted(row_ends, rank, right=True)
    column_ends = region.gather(1, y[..., None].expand(*y.shape, region.shape[-1])).cumsum(-1)  # [K, P, W]
    row_start = row_ends.gather(-1, y) - column_ends[..., -1]
    x = torch.searchsorted(column_ends, (rank - row_start)[..., None], right=True)[..., 0]
    return x, y, area == 0


__all__ = [
    "DRAW_RANGE",
    "FEEDBACK_LIMIT",
    "INITIAL_DRAWS",
    "boxes_from_masks",
    "check_masks",
    "jitter_boxes",
    "missed_and_false",
    "sample_error_clicks",
    "sample_initial_prompts",
    "within",
]
