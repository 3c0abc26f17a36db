"""The deterministic user of evaluation, who clicks the centre of the largest error (SAM paper, appendix D.1)."""

import numpy as np
import torch
from torch import Tensor

from ..masks import has_pixels
from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING
from .distances import depth_in_box, is_in_host_memory, squared_distances
from .sampling import check_masks, missed_and_false, within


def sample_center_clicks(
    target: Tensor,
    prediction: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    clicked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Click the pixel deepest inside the largest error: the deterministic user of evaluation.

    Depth is the exact Euclidean distance to the nearest pixel outside the missed (or false) region, where the
    image is surrounded by outside pixels. The deepest pixel wins, the first one in row-major order if several
    are equal; a tie between missed and false gives a background click. When no unclicked error is left the
    click is a background one at the deepest background pixel, and padding at (0, 0) when there is none.

    Args:
        target: bool [B, N, H, W], ground truth.
        prediction: bool [B, N, H, W]; None is the empty prediction.
        valid: bool [B, 1 or N, H, W], False where pixels are ignored; None counts every pixel.
        clicked: float [B, N, P, 2], pixels that must not be clicked again; rows outside the image (NaN too)
            are skipped.

    Returns:
        points: float32 [B, N, 1, 2], (x, y) pixel indices, on the device of `target`.
        labels: int64 [B, N, 1], foreground, background or padding.

    Raises:
        ValueError: for masks or clicks of another dtype or shape.

    Source: SAM paper, appendix D.1; RITM `isegm/inference/clicker.py` (`clicked` is its map of clicks made).
    """
    check_masks(target, prediction, valid)
    if clicked is None:
        clicked = target.new_empty((*target.shape[:2], 0, 2), dtype=torch.float32)
    if clicked.ndim != 4 or clicked.shape[:2] != target.shape[:2] or clicked.shape[-1] != 2:
        raise ValueError(f"clicked must be [B, N, P, 2] for target {list(target.shape)}, got {list(clicked.shape)}")

    missed, false = missed_and_false(target, prediction, valid)
    is_correct = ~has_pixels(_without_clicked(missed | false, clicked))
    false = false | (within(~target, valid) & is_correct[..., None, None])
    (missed_depth, missed_points), (depth, points) = _deepest_pixels([missed, false], clicked)
    is_missed = missed_depth > depth
    points = torch.where(is_missed[..., None], missed_points, points)
    labels = torch.where(is_missed, FOREGROUND, BACKGROUND).masked_fill((depth == 0) & ~is_missed, PADDING)
    return points[:, :, None].float(), labels[:, :, None]


def _without_clicked(values: Tensor, clicked: Tensor) -> Tensor:
    """Values [B, N, H, W] with 0 at the clicked pixels [B, N, P, 2]."""
    if not clicked.shape[2] or not values.numel():
        return values
    height, width = values.shape[-2:]
    x, y = clicked.to(values.device).floor().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Clicks outside go to one more pixel, which is cut off again.
    position = torch.where(inside, y.long() * width + x.long(), height * width)
    padded = torch.cat([values.flatten(2), values.new_zeros(*values.shape[:2], 1)], dim=2)
    return padded.scatter(2, position, 0)[..., :-1].unflatten(2, (height, width))


def _deepest_pixels(regions: list[Tensor], clicked: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Squared depth int64 [B, N] and (x, y) int64 [B, N, 2] of the first deepest unclicked pixel; zeros if none.

    Takes several bool [B, N, H, W] and float [B, N, P, 2].
    """
    if is_in_host_memory(regions[0]):  # scipy is faster there, and each region needs its bounding box only
        return [_deepest_pixels_in_turn(part, clicked) for part in regions]
    depth, points = _deepest_pixels_at_once(torch.cat(regions), clicked.repeat(len(regions), 1, 1, 1))
    return list(zip(depth.chunk(len(regions)), points.chunk(len(regions)), strict=True))


def _deepest_pixels_in_turn(regions: Tensor, clicked: Tensor) -> tuple[Tensor, Tensor]:
    """`_deepest_pixels` of one region after the other."""
    masks, clicks = regions.flatten(0, 1).numpy(), clicked.flatten(0, 1).cpu().numpy()
    pixels = [_deepest_pixel(*item) for item in zip(masks, clicks, strict=True)]
    found = torch.tensor(pixels, dtype=torch.int64).reshape(*regions.shape[:2], 3)
    return found[..., 0], found[..., 1:]


def _deepest_pixels_at_once(regions: Tensor, clicked: Tensor) -> tuple[Tensor, Tensor]:
    """`_deepest_pixels` in tensor operations only."""
    batch, num_objects, _, width = regions.shape
    if regions.numel() == 0:
        return clicked.new_zeros(batch, num_objects).long(), clicked.new_zeros(batch, num_objects, 2).long()
    depth = _without_clicked(squared_distances(regions), clicked).flatten(2)
    index = depth.argmax(-1)
    deepest = depth.gather(2, index[..., None])[..., 0].long()
    return deepest, torch.stack((index % width, index // width), dim=-1) * (deepest > 0)[..., None]


def _deepest_pixel(region: np.ndarray, clicked: np.ndarray) -> tuple[int, int, int]:
    """Squared depth, x and y of the first deepest unclicked pixel of a bool [H, W] region; zeros if none."""
    box, depth = depth_in_box(region)
    if not depth.size:
        return 0, 0, 0
    top, left = box[0].start, box[1].start
    x, y = (np.floor(clicked) - (left, top)).T
    inside = (x >= 0) & (x < depth.shape[1]) & (y >= 0) & (y < depth.shape[0])
    depth[y[inside].astype(int), x[inside].astype(int)] = 0
    y, x = divmod(int(depth.argmax()), depth.shape[1])
    squared = round(float(depth[y, x]) ** 2)
    return (squared, int(left) + x, int(top) + y) if squared else (0, 0, 0)


__all__ = [
    "sample_center_clicks",
]
