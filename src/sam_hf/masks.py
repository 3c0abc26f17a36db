"""What masks are measured by and stored as: stability, boxes, run lengths, and which of many to keep.

Rules and default thresholds are those of the SAM paper, appendix B. Sizes are (height, width), boxes (x1, y1, x2, y2)
with x2 and y2 inside, as in SAM; K counts masks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from .crops import is_cut_by_crop


def best_masks(masks: Tensor, iou_scores: Tensor) -> Tensor:
    """Of M candidates [B, N, M, ...] the one that the model rates highest, [B, N, ...]: what a person is shown.

    Training, evaluation and scripts all choose by this, so that what is trained is what is shown.

    Args:
        iou_scores: predicted IoU [B, N, M]; -inf for a candidate that does not take part.
    """
    best = iou_scores.argmax(dim=-1).flatten().to(masks.device)
    # Not `take_along_dim`, whose index has the size of the masks.
    chosen = masks.flatten(0, 1)[torch.arange(len(best), device=best.device), best]
    return chosen.unflatten(0, iou_scores.shape[:2])


def stability_scores(logits: Tensor, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """How little masks depend on the threshold: IoU of the masks at `threshold` plus and minus `offset`.

    Args:
        logits: float [..., H, W].

    Returns:
        float32 [...]; 0 where even the larger mask is empty.
    """
    inner, outer = (count_true(above(logits, level).flatten(-2)) for level in (threshold + offset, threshold - offset))
    return inner / outer.clamp(min=1)


def above(values: Tensor, level: float) -> Tensor:
    """`values > level`. PyTorch compares one number after the other on CPUs, NumPy several at a time."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values > level
    return torch.from_numpy(np.greater(values.detach().numpy(), np.float32(level)))


def count_true(flags: Tensor) -> Tensor:
    """Along the last axis of bool [..., L]: int64 [...]; by NumPy on CPUs for the same reason."""
    if flags.device.type != "cpu":
        return flags.sum(-1)
    counts = [np.count_nonzero(row) for row in flags.reshape(-1, flags.shape[-1]).numpy()]
    return torch.tensor(counts, dtype=torch.int64).reshape(flags.shape[:-1])


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks: bool [..., H, W] -> int64 [..., 4] with x2, y2 inside; an empty mask has (0, 0, 0, 0)."""
    edges, pixels = [], masks.view(torch.uint8)
    for is_inside in (pixels.amax(-2), pixels.amax(-1)):  # columns, rows; not `any`, see `has_pixels`
        last = is_inside.shape[-1] - 1 - is_inside.flip(-1).argmax(-1)
        edges.append((is_inside.argmax(-1), last))
    (left, right), (top, bottom) = edges
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    return boxes * has_pixels(masks)[..., None]


def has_pixels(masks: Tensor) -> Tensor:
    """Which masks are not empty: bool [..., H, W] -> bool [...]. `any` takes 30 times as long on CPUs."""
    return masks.view(torch.uint8).amax(-1).amax(-1).bool()


def filter_masks(
    logits: Tensor,
    iou_scores: Tensor,
    crop_box: tuple[int, int, int, int],
    image_size: tuple[int, int],
    *,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    mask_threshold: float = 0.0,
    stability_score_offset: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep masks that the model is sure of, that are stable, and that their crop does not cut.

    Args:
        logits: float [K, H, W], on the pixels of the crop.
        iou_scores: float [K], predicted IoU.
        crop_box: where the crop lies in the image.
        image_size: (height, width) of the whole image.
        pred_iou_thresh, stability_score_thresh: a mask must score higher; 0 or less keeps all.
        mask_threshold: logits above it are mask.

    Returns:
        masks: bool [k, H, W], still on the pixels of the crop.
        scores: [k], of `iou_scores`.
        boxes: int64 [k, 4], in pixels of the image.
    """
    if pred_iou_thresh > 0:
        keep = iou_scores > pred_iou_thresh
        logits, iou_scores = logits[keep], iou_scores[keep]
    if stability_score_thresh > 0:
        keep = stability_scores(logits, mask_threshold, stability_score_offset) > stability_score_thresh
        logits, iou_scores = logits[keep], iou_scores[keep]
    masks = logits > mask_threshold
    boxes = mask_boxes(masks)
    boxes = boxes + boxes.new_tensor(crop_box[:2] * 2)
    keep = ~is_cut_by_crop(boxes, crop_box, image_size)
    return masks[keep], iou_scores[keep], boxes[keep]


def encode_rle(masks: Tensor) -> list[dict[str, Any]]:
    """Masks as uncompressed run lengths in COCO's order, column by column.

    Args:
        masks: bool [K, H, W].

    Returns:
        K times `{"size": [H, W], "counts": [...]}`, lengths of background and mask in turn, background first;
        `pycocotools.mask.frPyObjects(rle, H, W)` compresses one.
    """
    height, width = masks.shape[-2:]
    pixels = masks.transpose(-1, -2).flatten(1)
    changes = pixels[:, 1:] != pixels[:, :-1]
    # One transfer for all masks: a loop over them would wait for the device each time.
    ends = (changes.nonzero()[:, 1] + 1).cpu().split(changes.sum(-1).tolist())
    begin, end = torch.tensor([0]), torch.tensor([height * width])
    encoded = []
    for starts_inside, mask_ends in zip(pixels[:, 0].tolist(), ends, strict=True):
        counts = torch.cat([begin, mask_ends, end]).diff().tolist()
        encoded.append({"size": [height, width], "counts": [0, *counts] if starts_inside else counts})
    return encoded


def decode_rle(rle: dict[str, Any]) -> Tensor:
    """Undo `encode_rle` for one mask: bool [H, W]."""
    height, width = rle["size"]
    counts = torch.tensor(rle["counts"])
    is_inside = torch.arange(len(counts)) % 2 == 1
    return is_inside.repeat_interleave(counts).reshape(width, height).T.contiguous()


def suppress_duplicates(boxes: Tensor, scores: Tensor, iou_thresh: float = 0.7) -> Tensor:
    """Greedy non-maximum suppression: indices int64 [k] of what stays, best score first.

    Args:
        boxes: [K, 4].
        scores: [K] of any float type.
        iou_thresh: of two boxes that overlap by more, the one with the lower score goes.
    """
    # torchvision wants boxes and scores of one type, and half precision would merge pixels.
    return nms(boxes.float(), scores.to(boxes.device, torch.float32), iou_thresh)


def suppress_overlaps(changes: Sequence[Tensor], boxes: Tensor, scores: Tensor, thresh: float) -> Tensor:
    """Greedy non-maximum suppression of masks which may touch: indices int64 [k] of what stays, best score first.

    Boxes of objects that lie side by side may overlap by much and their masks do not; a mask that lies in another is a
    part of it, however small. So what counts is the share of the smaller mask that the other holds.

    Args:
        changes: K masks as ascending positions, int64 [.] on the CPU, where one begins and ends in turn, in pixels
            that are counted column by column.
        boxes: int64 [K, 4] around them, which spare the comparison of most; x2 and y2 inside.
        scores: float [K].
        thresh: of two masks that share more, the one with the lower score goes.
    """
    runs = [positions.numpy() for positions in changes]
    areas = np.array([(run[1::2] - run[::2]).sum() for run in runs])
    corners = boxes.cpu().numpy()
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        apart = (corners[index, :2] > corners[kept, 2:]).any(1) | (corners[kept, :2] > corners[index, 2:]).any(1)
        rivals = np.array(kept, dtype=int)[~apart]
        shares = (shared_pixels(runs[index], runs[other]) / min(areas[index], areas[other]) for other in rivals)
        if not any(share > thresh for share in shares):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def shared_pixels(one: np.ndarray, other: np.ndarray) -> float:
    """How many pixels two masks have in common; each is its positions, see `suppress_overlaps`."""
    # How much of the other lies before each position: grows within its runs, and only there.
    before = np.zeros(len(other))
    before[1::2] = np.cumsum(other[1::2] - other[::2])
    before[2::2] = before[1:-1:2]
    shared = np.interp(one, other, before)
    return (shared[1::2] - shared[::2]).sum()


__all__ = [
    "above",
    "best_masks",
    "decode_rle",
    "encode_rle",
    "filter_masks",
    "has_pixels",
    "mask_boxes",
    "shared_pixels",
    "stability_scores",
    "suppress_duplicates",
    "suppress_overlaps",
]
