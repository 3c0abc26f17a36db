"""An image that answers prompts, as a whole or, where it is larger than the `tile_size` of its model, tile by tile."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..clicks import FEEDBACK_LIMIT
from ..image_processing_sam_hf import MASK_PROMPT_LOGIT
from ..layers import height_and_width
from ..modeling_sam_hf import SamHfModel
from ..processing_sam_hf import SamHfProcessor
from ..prompt_checks import is_ambiguous
from ..prompt_encoder import BACKGROUND, FOREGROUND, PADDING
from ..tiles import central_tiles, tile_boxes, tile_room


@dataclass(frozen=True)
class Answers:
    """What a model answers for N objects, M candidates of each.

    Args:
        logits: float [1, N, M, h, w], on the mask grid of the view of each object, within +-`FEEDBACK_LIMIT`, as the
            model was trained to get them back.
        iou_scores: float [1, N, M], predicted IoU.
        object_scores: float [1, N, 1], logits; None where the model has none.
        views: int64 [N], see `PromptedImage`; for `PromptedImage.to_pixels`, and with the next prompts.
    """

    logits: Tensor
    iou_scores: Tensor
    object_scores: Tensor | None
    views: Tensor


class EncodedView(NamedTuple):
    """What was made of a part of the image.

    `sizes` are the original one and the reshaped one, int64 [1, 2] each; `scale` (x, y), float32 [2], from pixels of
    the image to those of the model input, which has `padded_size`.
    """

    embeddings: list[Tensor]
    sizes: tuple[Tensor, Tensor]
    scale: Tensor
    padded_size: tuple[int, int]


class PromptedImage:
    """Encodes an image once, and answers prompts for objects in it, again and again.

    An image that fits the `tile_size` of the processor is seen as a whole. Of a larger one there are *views*: tiles of
    that side, of twice and four times the side and so on, and the whole image. Each is encoded when an object first
    needs it, and kept. An object is answered in the smallest tile that holds its box and foreground clicks, and of
    these in the most central: so small objects are seen large, and no prompt of a large one is moved or left out. Only
    background clicks outside of the tile are left out: its mask has nothing there. As clicks come, the view of an
    object may change, and its last answer, which the model gets back, is resampled.

    Args:
        model: in eval mode, on its device.
        processor: its own.
        image: uint8 [H, W, 3], of stretched contrast if the model wants that.
    """

    @torch.no_grad()
    def __init__(self, model: SamHfModel, processor: SamHfProcessor, image: np.ndarray):
        self.model, self.processor, self.image = model, processor, image
        self.size = image.shape[0], image.shape[1]
        # None in an image processor of code that is older than the setting.
        side: Any = getattr(processor.image_processor, "tile_size", None)
        self.levels = [tile_boxes(self.size, side)]
        while len(self.levels[-1]) > 1:
            side *= 2
            self.levels.append(tile_boxes(self.size, side))
        self.views = [box for boxes in self.levels for box in boxes]
        self.encoded: dict[int, EncodedView] = {}
        if len(self.views) == 1:
            self.encode(0)

    def encode(self, view: int) -> EncodedView:
        """A view, encoded at the first time."""
        if view not in self.encoded:
            x1, y1, x2, y2 = self.views[view]
            part = self.image[y1:y2, x1:x2]
            inputs = self.processor(images=part, return_tensors="pt", do_stretch_contrast=False)  # done already
            original, reshaped = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            pixels = inputs["pixel_values"].to(self.model.device)
            self.encoded[view] = EncodedView(
                embeddings=self.model.get_image_embeddings(pixels),
                sizes=(original, reshaped),
                scale=(reshaped[0] / original[0]).flip(0),
                padded_size=height_and_width(pixels),
            )
        return self.encoded[view]

    @torch.no_grad()
    def predict(
        self,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor | None = None,
        state: tuple[Tensor, Tensor] | None = None,
        multimask_output: bool | None = None,
    ) -> Answers:
        """Answer all prompts of N objects, which are on the CPU.

        Args:
            points: float32 [N, P, 2], clicks (x, y) in pixels of the image; P may be 0.
            labels: int64 [N, P], as the model takes them.
            boxes: float32 [N, 4] in pixels of the image; a NaN row is an object without box.
            state: what was answered before, for the model to correct: logits float [1, N, h, w], one mask of each
                object, and their `Answers.views`.
            multimask_output: as the model takes it.
        """
        views = self.choose_views(points, labels, boxes)
        masks = None if state is None else self.moved(*state, views)
        if multimask_output is None:
            # By all objects, as without tiles, and not by those of each tile.
            given = labels[None] if points.shape[1] else None, None if boxes is None else boxes[None]
            multimask_output = is_ambiguous(*given, masks, None)
        indices = [(views == view).nonzero()[:, 0] for view in views.unique()]
        outputs = []
        for index in indices:
            prompts = points[index], labels[index], None if boxes is None else boxes[index]
            inputs = self.model_inputs(int(views[index[0]]), *prompts)
            of_masks = None if masks is None else masks[:, index]
            outputs.append(self.model(**inputs, input_masks=of_masks, multimask_output=multimask_output))
        order = torch.cat(indices).argsort()

        def joined(name: str) -> Any:
            parts: list[Any] = [getattr(output, name, None) for output in outputs]
            return None if parts[0] is None else torch.cat(parts, dim=1)[:, order]

        logits = joined("pred_masks").clamp(-FEEDBACK_LIMIT, FEEDBACK_LIMIT)
        return Answers(logits, joined("iou_scores"), joined("object_score_logits"), views)

    def model_inputs(self, view: int, points: Tensor, labels: Tensor, boxes: Tensor | None) -> dict[str, Any]:
        """Embeddings and prompts, in pixels of the model input, of objects that are all answered in one view."""
        encoded, corner = self.encode(view), points.new_tensor(self.views[view][:2])
        is_outside = tile_room(points.flatten(0, 1), self.views)[:, view].view_as(labels) < 0
        labels = labels.masked_fill(is_outside & (labels == BACKGROUND), PADDING)
        inputs = {
            "input_points": (points - corner) * encoded.scale if points.shape[1] else None,
            "input_labels": labels if points.shape[1] else None,
            "input_boxes": None if boxes is None else (boxes - corner.repeat(2)) * encoded.scale.repeat(2),
        }
        given = {name: None if value is None else value[None].to(self.model.device) for name, value in inputs.items()}
        return {"image_embeddings": encoded.embeddings, **given}

    def choose_views(self, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        """int64 [N]: of the smallest tiles that hold the prompts of an object, the one that does so most centrally."""
        hulls = prompt_hulls(points, labels, boxes)
        views, first = torch.zeros(len(hulls), dtype=torch.long), len(self.views)
        for tiles in reversed(self.levels):
            first -= len(tiles)
            central = central_tiles(hulls, tiles)
            is_held = tile_room(hulls, tiles).gather(1, central[:, None])[:, 0] >= 0
            views = torch.where(is_held, first + central, views)
        return views

    def moved(self, logits: Tensor, old_views: Tensor, views: Tensor) -> Tensor:
        """Logits [1, N, h, w] of one mask of each object, on the mask grids of the new views."""
        changed = (old_views != views).nonzero()[:, 0].tolist()
        logits = logits.clone() if changed else logits
        for n in changed:
            logits[0, n] = self.resample(logits[0, n], int(old_views[n]), int(views[n]))
        return logits

    def resample(self, logits: Tensor, old: int, new: int) -> Tensor:
        """Logits [h, w] on the mask grid of another view; outside of the old one there is no mask."""
        (rows, is_old_row), (columns, is_old_column) = (
            self.old_places(axis, logits.shape[axis], old, new) for axis in (0, 1)
        )
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None].to(logits.device)
        moved = F.grid_sample(logits[None, None].float(), grid, padding_mode="border", align_corners=False)[0, 0]
        is_old = (is_old_row[:, None] & is_old_column).to(logits.device)
        return moved.to(logits.dtype).where(is_old, -MASK_PROMPT_LOGIT)

    def old_places(self, axis: int, num_cells: int, old: int, new: int) -> tuple[Tensor, Tensor]:
        """Where cells of the new mask grid are in the old one along an axis, from -1 to 1, and whether it has them."""
        source, target, x = self.encode(old), self.encode(new), 1 - axis  # sizes are (height, width)
        centers = (torch.arange(num_cells) + 0.5) * target.padded_size[axis] / num_cells
        positions = centers / target.scale[x] + self.views[new][x]
        start, end = self.views[old][x], self.views[old][x + 2]
        places = (positions - start) * source.scale[x] / source.padded_size[axis]
        return 2 * places - 1, (positions >= start) & (positions < end)

    def to_pixels(self, logits: Tensor, views: Tensor) -> Tensor:
        """Masks bool [N, M, H, W] in pixels of the image, of logits [1, N, M, h, w] in the given views."""
        masks = torch.zeros(*logits.shape[1:3], *self.size, dtype=torch.bool, device=logits.device)
        for n, view in enumerate(views.tolist()):  # one object at a time, for memory
            x1, y1, x2, y2 = self.views[view]
            sizes = self.encode(view).sizes
            masks[n, :, y1:y2, x1:x2] = self.processor.post_process_masks(logits[:, n : n + 1].float(), *sizes)[0][0]
        return masks


def prompt_hulls(points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
    """Boxes [N, 4] around the box and foreground clicks of each object; around all clicks, where it has neither."""
    counts = labels == FOREGROUND
    has_none = ~counts.any(1)
    if boxes is not None:
        has_none &= boxes.isnan().any(1)
    counts = counts | (has_none[:, None] & (labels == BACKGROUND))
    corners = points.masked_fill(~counts[..., None], torch.nan)
    if boxes is not None:
        corners = torch.cat([corners, boxes.unflatten(1, (2, 2))], dim=1)
    low, high = (corners.nan_to_num(nan=nan) for nan in (torch.inf, -torch.inf))
    return torch.cat([low.amin(1), high.amax(1)], dim=1)


__all__ = ["Answers", "PromptedImage"]
