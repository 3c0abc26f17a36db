"""Clicks as people make them: on the error that matters most, but seldom in its very centre."""

import numpy as np
import torch
from torch import Tensor

from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING
from .distances import depth_in_box
from .sampling import check_masks, missed_and_false, within


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
    parts = *missed_and_false(target, prediction, valid), within(~target, valid)
    masks = [part.flatten(0, 1).cpu().numpy() for part in parts]
    clicks = [_click(*item) for item in zip(*masks, draws.flatten().tolist(), strict=True)]
    found = torch.tensor(clicks, device=target.device).reshape(*target.shape[:2], 1, 3)
    return found[..., :2].float(), found[..., 2].long()


def _click(missed: np.ndarray, false: np.ndarray, background: np.ndarray, draw: float) -> tuple[int, int, int]:
    """x, y and label."""
    boxes, depths = zip(*map(depth_in_box, (missed, false, background)), strict=True)
    deepest = [depth.max(initial=0) for depth in depths]
    kind = 0 if deepest[0] > deepest[1] else 1 if deepest[1] else 2
    if not deepest[kind]:
        return 0, 0, PADDING
    chances = depths[kind].ravel().cumsum()
    index = int(np.searchsorted(chances, draw * chances[-1], side="right"))
    y, x = divmod(min(index, len(chances) - 1), depths[kind].shape[1])
    rows, columns = boxes[kind]
    return columns.start + x, rows.start + y, FOREGROUND if kind == 0 else BACKGROUND


__all__ = ["sample_people_clicks"]
