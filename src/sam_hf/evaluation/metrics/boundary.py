"""Boundary IoU (Cheng et al. 2021): IoU of what lies near the outline, which a large object does not hide."""

import numpy as np
from scipy import ndimage

# Of the diagonal of the image; Cheng et al. 2021, section 4.
WIDTH_RATIO = 0.02


def boundary_width(size: tuple[int, int], ratio: float = WIDTH_RATIO) -> int:
    """How many pixels of an object count as its boundary in an image of (height, width) `size`, at least 1.

    Raises:
        ValueError: if `ratio` is not above 0.
    """
    if not ratio > 0:
        raise ValueError(f"got ratio {ratio}, expected a share of the diagonal above 0, such as {WIDTH_RATIO}")
    return max(1, round(ratio * float(np.hypot(*size))))


def mask_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that `width` erosions by a square of 3 x 3 pixels take away, bool [H, W].

    These are as near to a pixel outside by chessboard distance; all that is outside of the image is outside of the
    mask. So do `mask_to_boundary` of Cheng et al., and that of HQ-SAM (`train/utils/misc.py`).

    Args:
        mask: bool [H, W].
        width: in pixels, see `boundary_width`.
    """
    boundary = np.zeros(mask.shape, dtype=bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return boundary
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # Nothing beyond the box of a mask is mask, so that a border of one pixel is enough.
    distance = ndimage.distance_transform_cdt(np.pad(mask[box], 1), "chessboard")[1:-1, 1:-1]
    boundary[box] = mask[box] & (distance <= width)
    return boundary


def boundary_ious(
    predictions: np.ndarray, references: np.ndarray, *, valid: np.ndarray | None = None, ratio: float = WIDTH_RATIO
) -> np.ndarray:
    """Boundary IoU of pairs of masks, float64 [N]; 1 where both boundaries are empty.

    Args:
        predictions, references: bool [N, H, W].
        valid: bool [H, W] or [N, H, W], False for pixels that do not count. Boundaries are those of the whole masks,
            the edge of such a region is none.
        ratio: width of the boundary as a share of the diagonal of the image.

    Raises:
        ValueError: if shapes or types do not fit, or `ratio` is not above 0.
    """
    _check_masks(predictions, references, valid)
    width = boundary_width(predictions.shape[1:], ratio)
    ious = np.ones(len(predictions))
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        found, wanted = mask_boundary(prediction, width), mask_boundary(reference, width)
        both, either = found & wanted, found | wanted
        if valid is not None:
            counts = valid if valid.ndim == 2 else valid[index]
            both, either = both & counts, either & counts
        if either.any():
            ious[index] = np.count_nonzero(both) / np.count_nonzero(either)
    return ious


def _check_masks(predictions: np.ndarray, references: np.ndarray, valid: np.ndarray | None) -> None:
    named = {"predictions": predictions, "references": references} | ({} if valid is None else {"valid": valid})
    for name, masks in named.items():
        if masks.dtype != bool:
            raise ValueError(f"{name} are {masks.dtype}, expected bool masks; compare logits with 0 before")
    if predictions.ndim != 3 or predictions.shape != references.shape:
        raise ValueError(
            f"predictions are {list(predictions.shape)} and references {list(references.shape)}, expected [N, H, W] "
            "twice; bring masks to the size of the image before, such as by post_process_masks"
        )
    if valid is not None and valid.shape not in (predictions.shape, predictions.shape[1:]):
        raise ValueError(f"valid is {list(valid.shape)}, expected [H, W] or [N, H, W] of {list(predictions.shape)}")


__all__ = ["WIDTH_RATIO", "boundary_ious", "boundary_width", "mask_boundary"]
