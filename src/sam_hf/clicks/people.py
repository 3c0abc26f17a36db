"""Clicks as people make them: on the error that matters most, but seldom in its very centre."""

import numpy as np
import torch
from torch import Tensor

from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING
from .sampling import check_masks, within


def sample_people_clicks(
    target: Tensor, prediction: Tensor | None = None, *, valid: Tensor | None = None, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Click a pixel of the largest error, with a chance that grows with its depth.

    Which error it is, and the label, are those of `sample_center_clicks`; the pixel is any of that kind of error, with
    a chance in proportion to its distance to the nearest pixel outside. When nothing is wrong the click is a
    background one in the background; without one it is padding at (0, 0).

    Source: RClicks (Antonov et al., NeurIPS 2024, arXiv 2410.11722), who measured 475,000 clicks of people. Of the
    models without weights that they compare with these (`experiments/eval_cm/eval_cm_all.csv` of their repository)
    this one, "DT", is the nearest: a two-dimensional Kolmogorov-Smirnov agreement of .22, .23, .25, .26 and .14 on
    GrabCut, Berkeley, DAVIS, COCO-MVal and TETRIS, where uniform clicks have .15, .16, .15, .20 and .10. Their
    network, which sees the image, has .48 to .55. There is no parameter.

    Args:
        target: bool [B, N, H, W], ground truth.
        prediction: bool [B, N, H, W]; None is the empty prediction.
        valid: bool [B, 1 or N, H, W], False where pixels are ignored; None counts every pixel.
        draws: float64 [B, N] in [0, 1), which pixel.

    Returns:
        points: float32 [B, N, 1, 2], (x, y) pixel indices, on the device of `target`.
        labels: int64 [B, N, 1], foreground, background or padding.

    Raises:
        ValueError: for masks or draws of another dtype or shape.
    """
    check_masks(target, prediction, valid)
    if draws.shape != target.shape[:2] or draws.dtype != torch.float64:
        raise ValueError(f"draws must be float64 {list(target.shape[:2])}, got {draws.dtype} {list(draws.shape)}")
    missed = within(target if prediction is None else target & ~prediction, valid)
    false = within(torch.zeros_like(target) if prediction is None else prediction & ~target, valid)
    background = within(~target, valid)
    masks = [part.flatten(0, 1).cpu().numpy() for part in (missed, false, background)]
    clicks = [_click(*item) for item in zip(*masks, draws.flatten().tolist(), strict=True)]
    found = torch.tensor(clicks, device=target.device).reshape(*target.shape[:2], 1, 3)
    return found[..., :2].float(), found[..., 2].long()


def _click(missed: np.ndarray, false: np.ndarray, background: np.ndarray, draw: float) -> tuple[int, int, int]:
    """x, y and label."""
    depths = [_depth(missed), _depth(false)]
    if not missed.any() and not false.any():
        depths[1] = _depth(background)
        if not background.any():
            return 0, 0, PADDING
    is_missed = depths[0].max() > depths[1].max()
    depth = depths[0 if is_missed else 1]
    chances = depth.ravel().cumsum()
    index = int(np.searchsorted(chances, draw * chances[-1], side="right"))
    y, x = divmod(min(index, depth.size - 1), depth.shape[1])
    return x, y, FOREGROUND if is_missed else BACKGROUND


def _depth(region: np.ndarray) -> np.ndarray:
    """Distance to the nearest pixel outside a region, which lies around the image, too: float64 [H, W]."""
    from scipy.ndimage import distance_transform_edt  # only the "train" extra brings scipy

    depth = np.zeros(region.shape)
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if rows.size:
        # No outside pixel is nearer than the ring around the bounding box: the transform of the box is exact.
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        depth[box] = distance_transform_edt(np.pad(region[box], 1))[1:-1, 1:-1]
    return depth


__all__ = ["sample_people_clicks"]
