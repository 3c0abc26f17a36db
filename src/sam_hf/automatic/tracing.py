"""From mask logits on the coarse grid of the decoder to outlines in image pixels, a few masks at a time.

A mask is resized only where it can be positive, and what is kept of it are the positions at which it begins and ends
in each column: a few thousand numbers instead of millions of pixels. K counts masks; sizes are (height, width).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..crops import is_cut_by_crop
from ..masks import above, has_pixels, mask_boxes, stability_scores

PIXELS_PER_BLOCK = 64
BYTES_PER_PIXEL = 12  # a float, what is multiplied to get it, and bools


@dataclass(frozen=True)
class TracedMasks:
    """Masks that passed the filters.

    Args:
        index: int64 [k], which of the K masks.
        stability: float32 [k].
        boxes: int64 [k, 4], (x1, y1, x2, y2) in pixels of the image, x2 and y2 inside.
        changes: k times int64 [.], where the mask begins and ends in the image, read column by column.
    """

    index: Tensor
    stability: Tensor
    boxes: Tensor
    changes: list[Tensor]


class MaskTracer:
    """Resizes and outlines masks of one crop.

    Args:
        crop_box: where the crop lies in the image, (x1, y1, x2, y2).
        image_size: of the whole image.
        grid_size: of the mask logits; padded_size: of the model input; resized_size: of the crop within it.
        mask_threshold: logits above it are mask.
        stability_score_offset: see `stability_scores`.
        memory_budget: bytes that may be in use for masks at a time, at least those for one mask.
        device: of the logits.
    """

    def __init__(
        self,
        crop_box: tuple[int, int, int, int],
        image_size: tuple[int, int],
        grid_size: tuple[int, int],
        padded_size: tuple[int, int],
        resized_size: tuple[int, int],
        *,
        mask_threshold: float,
        stability_score_offset: float,
        memory_budget: int,
        device: torch.device,
    ):
        x1, y1, x2, y2 = crop_box
        self.crop_box, self.image_size = crop_box, image_size
        self.threshold, self.offset = mask_threshold, stability_score_offset
        self.crop_size = (y2 - y1, x2 - x1)
        self.rows, self.columns = (
            Resampling.of(resampling_matrix(*sizes), device)
            for sizes in zip(grid_size, padded_size, resized_size, self.crop_size, strict=True)
        )
        # Masks that are alone are resized where they are, and stay in the cache.
        pixels = self.crop_size[0] * self.crop_size[1]
        self.at_once = 1 if device.type == "cpu" else max(1, memory_budget // (BYTES_PER_PIXEL * pixels))

    def trace(self, logits: Tensor, stability_score_thresh: float) -> TracedMasks:
        """Outline masks [K, h, w] that are stable and that the crop does not cut; 0 or less calls all stable."""
        parts = []
        for start in range(0, max(len(logits), 1), self.at_once):
            part = self.trace_together(logits[start : start + self.at_once].float(), stability_score_thresh)
            parts.append(replace(part, index=part.index + start))
        return TracedMasks(
            index=torch.cat([part.index for part in parts]),
            stability=torch.cat([part.stability for part in parts]),
            boxes=torch.cat([part.boxes for part in parts]),
            changes=[changes for part in parts for changes in part.changes],
        )

    def trace_together(self, logits: Tensor, stability_score_thresh: float) -> TracedMasks:
        values, left, top = self.resize(logits)
        stability = stability_scores(values, self.threshold, self.offset)
        index = torch.arange(len(logits), device=logits.device)
        if stability_score_thresh > 0:
            index = (stability >= stability_score_thresh).nonzero()[:, 0]
        # One mask alone is large: not copied where it stays.
        masks = above(values if len(index) == len(values) else values[index], self.threshold)
        boxes = mask_boxes(masks.transpose(1, 2))
        boxes = boxes + boxes.new_tensor([left, top, left, top]) * has_pixels(masks)[:, None]
        boxes = boxes + boxes.new_tensor(self.crop_box[:2] * 2)
        is_whole = ~is_cut_by_crop(boxes, self.crop_box, self.image_size)
        x1, y1, _, _ = self.crop_box
        changes = find_changes(masks[is_whole], x1 + left, y1 + top, self.image_size[0])
        index, boxes = index[is_whole], boxes[is_whole]
        return TracedMasks(index, stability[index], boxes, changes)

    def resize(self, logits: Tensor) -> tuple[Tensor, int, int]:
        """Logits [K, h, w] in pixels of the crop, transposed: [K, columns, rows], and their first column and row.

        What lies outside is not above `threshold - offset`, because an interpolated value lies between its neighbours.
        """
        possible = above(logits, self.threshold - self.offset).any(0)
        x1, y1, x2, y2 = mask_boxes(possible).tolist()
        narrow, top = self.rows.resize(logits, y1, y2)  # [K, rows, w]
        values, left = self.columns.resize(narrow.transpose(1, 2), x1, x2)
        return values, left, top


class Resampling(NamedTuple):
    """A matrix [size, grid] whose non-zero entries lie near its diagonal, cut into dense blocks of rows.

    Args:
        blocks: [R, PIXELS_PER_BLOCK, width]; rows beyond the last are zero.
        cells: int64 [R, width], which columns of the matrix each block has.
        size: pixels that there are.
        first, last: see `reach`.
    """

    blocks: Tensor
    cells: Tensor
    size: int
    first: list[int]
    last: list[int]

    @classmethod
    def of(cls, matrix: Tensor, device: torch.device) -> "Resampling":
        blocks, cells = banded(matrix, PIXELS_PER_BLOCK)
        return cls(blocks.to(device), cells.to(device), len(matrix), *reach(matrix))

    def resize(self, values: Tensor, first: int, last: int) -> tuple[Tensor, int]:
        """[K, grid, n] to [K, pixels, n] and its first pixel, for the pixels that cells `first` to `last` reach."""
        start, end = self.first[first] // PIXELS_PER_BLOCK, self.last[last] // PIXELS_PER_BLOCK + 1
        pixels = (self.blocks[start:end] @ values[:, self.cells[start:end]]).flatten(1, 2)
        start *= PIXELS_PER_BLOCK
        return pixels[:, : self.size - start], start


def resampling_matrix(grid: int, padded: int, resized: int, size: int) -> Tensor:
    """SAM's way from the mask grid to pixels along one axis, float32 [size, grid].

    Linear to the padded input, cut to the resized crop, linear to the size of the crop.
    """
    to_input = F.interpolate(torch.eye(grid)[None], padded, mode="linear")[..., :resized]
    return F.interpolate(to_input, size, mode="linear")[0].T.contiguous()


def reach(matrix: Tensor) -> tuple[list[int], list[int]]:
    """First pixel that depends on each cell or a later one, and last that depends on it or an earlier one.

    Args:
        matrix: [size, grid]; cells in the padding may reach no pixel, and still get one.
    """
    size, _ = matrix.shape
    pixels = torch.arange(size)[:, None]
    depends = matrix > 0
    first = torch.where(depends, pixels, size - 1).amin(0).flip(0).cummin(0).values.flip(0)
    last = torch.where(depends, pixels, 0).amax(0).cummax(0).values
    return first.tolist(), last.tolist()


def banded(matrix: Tensor, rows_per_block: int) -> tuple[Tensor, Tensor]:
    """Cut a matrix [size, grid] whose non-zero entries lie near its diagonal into dense blocks.

    Returns:
        blocks: [R, rows_per_block, width]; rows beyond the last are zero.
        columns: int64 [R, width], where each block has its columns.
    """
    size, grid = matrix.shape
    blocks = F.pad(matrix, (0, 0, 0, -size % rows_per_block)).unflatten(0, (-1, rows_per_block))
    used = (blocks > 0).any(1).to(torch.uint8)
    first, last = used.argmax(1), grid - 1 - used.flip(1).argmax(1)
    width = int((last - first).max()) + 1
    columns = first.clamp(max=grid - width)[:, None] + torch.arange(width)
    return blocks.gather(2, columns[:, None].expand(-1, rows_per_block, -1)), columns


def find_changes(masks: Tensor, left: int, top: int, height: int) -> list[Tensor]:
    """Where masks begin and end in an image of `height` rows that is read column by column.

    Args:
        masks: bool [K, columns, rows], whose first column and row are `left` and `top` of the image.

    Returns:
        K times int64 [.] on the CPU, ascending.
    """
    _, columns, rows = masks.shape
    padded = F.pad(masks, (1, 1))
    is_change = padded[..., 1:] != padded[..., :-1]
    flat = true_indices(is_change.flatten())
    column, row = flat // (rows + 1), flat % (rows + 1)
    positions = (left + column % columns) * height + top + row
    counts = (flat // (columns * (rows + 1))).bincount(minlength=len(masks))
    # One transfer for all masks: a loop over them would wait for the device each time.
    return [join_columns(part) for part in positions.cpu().split(counts.tolist())]


def true_indices(flags: Tensor) -> Tensor:
    """int64, ascending. NumPy takes a tenth of PyTorch's time on CPUs."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero()[:, 0]


def join_columns(changes: Tensor) -> Tensor:
    """Leave out ends at the bottom of one column that are beginnings at the top of the next."""
    is_joint = torch.zeros(len(changes) + 1, dtype=torch.bool)
    is_joint[1:-1] = changes[1:] == changes[:-1]
    return changes[~(is_joint[1:] | is_joint[:-1])]


def run_lengths(changes: Tensor, image_size: tuple[int, int]) -> dict:
    """Changes of one mask as uncompressed run lengths; see `encode_rle`."""
    height, width = image_size
    ends = torch.tensor([0]), torch.tensor([height * width])
    counts = torch.cat([ends[0], changes, ends[1]]).diff().tolist()
    if len(changes) and counts[-1] == 0:  # the mask holds the last pixel
        counts.pop()
    return {"size": [height, width], "counts": counts}


__all__ = ["MaskTracer", "TracedMasks", "find_changes", "run_lengths"]
