"""Points at which a mask loss stands for that of all pixels: most where the model is in doubt, the others anywhere.

PointRend (Kirillov et al. 2020, section 3.1) with the numbers of Mask2Former. Points are (x, y) in [0, 1) of the
padded image, so that masks and labels may have different grids.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_POINTS = 12544
OVERSAMPLING = 3
UNCERTAIN_SHARE = 0.75
# In labels of signed integers, what NaN is in those of floats.
IGNORED = -1
# Of the R2 sequence (Roberts 2018): its points cover the unit square evenly, wherever it starts.
STEPS = (0.7548776662466927, 0.5698402909980532)


def spread_points(shift: Tensor, num_points: int) -> Tensor:
    """`num_points` points spread evenly over the unit square.

    Args:
        shift: float32 or float64 [..., 2] in [0, 1), the first point. If it is uniform, so is every other point.

    Returns:
        float32 [..., num_points, 2].
    """
    numbers = torch.arange(num_points, device=shift.device)
    # In whole 2**-31ths, as not every device has float64; of these float32 keeps 24 bits.
    first = (shift * 2**31).long()[..., None, :]
    axes = [first[..., axis] + numbers * round(step * 2**31) for axis, step in enumerate(STEPS)]
    return (torch.stack(axes, dim=-1) % 2**31 // 2**7).float() / 2**24


def logits_at(masks: Tensor, points: Tensor) -> Tensor:
    """Masks [B, N, M, h, w] at points [B, N, K, 2], bilinearly as masks are upscaled: [B, N, M, K]."""
    grid = (2 * points - 1).to(masks.dtype).flatten(0, 1)[:, None]
    sampled = F.grid_sample(masks.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].unflatten(0, masks.shape[:2])


def valid_pixels(labels: Tensor) -> Tensor:
    """bool, False where labels of any shape say to ignore a pixel: NaN in floats, `IGNORED` in signed integers."""
    if labels.dtype.is_signed and not labels.is_floating_point():
        return labels != IGNORED
    return labels.isfinite()


def labels_at(labels: Tensor, points: Tensor) -> Tensor:
    """The pixels of labels [B, N, H, W] that points [B, N, K, 2] lie in: float32 [B, N, K], NaN if ignored."""
    height, width = labels.shape[-2:]
    sides = zip(points.unbind(-1), (width, height), strict=True)
    x, y = ((part * side).long().clamp(max=side - 1) for part, side in sides)
    values = labels.flatten(2).gather(-1, y * width + x)
    return values.float().masked_fill(~valid_pixels(values), torch.nan)


@torch.no_grad()
def choose_points(
    masks: Tensor, labels: Tensor, candidates: Tensor, shift: Tensor, num_points: int = NUM_POINTS
) -> Tensor:
    """Where to compare masks with labels; all candidates of an object at the same points, so that they can compete.

    Of `OVERSAMPLING` times as many points as needed those count as uncertain where any candidate is nearest to its
    boundary. No point of `UNCERTAIN_SHARE` is on an ignored pixel as long as there are others.

    Args:
        masks: logits [B, N, M, h, w]; labels: [B, N, H, W], as `valid_pixels` takes them.
        candidates: bool [B, N, M], candidates that take part.
        shift: [B, N, 2] in [0, 1), decides the points of each object.

    Returns:
        float32 [B, N, num_points, 2].
    """
    num_tried, num_uncertain = OVERSAMPLING * num_points, int(UNCERTAIN_SHARE * num_points)
    tried, others = spread_points(shift, num_tried + num_points - num_uncertain).tensor_split([num_tried], dim=2)
    margin = logits_at(masks, tried).abs().masked_fill(~candidates[..., None], torch.inf).amin(dim=2)
    margin = margin.masked_fill(labels_at(labels, tried).isnan(), torch.inf)
    uncertain = margin.topk(num_uncertain, largest=False).indices[..., None]
    return torch.cat([torch.take_along_dim(tried, uncertain, dim=2), others], dim=2)


__all__ = ["IGNORED", "NUM_POINTS", "choose_points", "labels_at", "logits_at", "spread_points", "valid_pixels"]
