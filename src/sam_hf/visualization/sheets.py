"""A sheet of pictures that shows what clicks do, object by object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..prompt_encoder import FOREGROUND
from .overlays import CLICK_COLORS, Color, draw_boxes, draw_clicks, draw_masks, rgb_image

TARGET_COLOR, PREDICTION_COLOR = (255, 200, 0), (30, 144, 255)
MARGIN, CAPTION_HEIGHT, FONT_SIZE = 6, 22, 14


@dataclass(frozen=True)
class SheetRow:
    """One object and what a model made of it, click after click.

    Attributes:
        image: [H, W].
        target: bool [H, W], ground truth.
        predictions: by number of prompts, the bool [H, W] mask after that many.
        points: [P, 2], all clicks in order; labels: [P].
        box: [4], (x1, y1, x2, y2), if that is the first prompt, before all clicks.
    """

    image: Image.Image | np.ndarray
    target: ArrayLike
    predictions: Mapping[int, ArrayLike]
    points: ArrayLike
    labels: ArrayLike
    box: ArrayLike | None = None


def prediction_sheet(rows: Sequence[SheetRow], cell_size: int = 288) -> Image.Image:
    """A grid for people to judge a model by: image, ground truth, and the mask after each number of clicks.

    Every row shows the part of its image that holds the object, the predictions and the clicks, scaled to the
    cell and stretched in contrast. Captions give the number of clicks and the IoU with the ground truth.

    Args:
        rows: objects; those with fewer predictions leave cells empty.
        cell_size: side of a cell in pixels.

    Raises:
        ValueError: without rows, or for masks of another size than their image.
    """
    if not rows:
        raise ValueError("rows is empty: a sheet needs at least one object")
    counts = sorted({count for row in rows for count in row.predictions})
    pitch = (cell_size + MARGIN, cell_size + CAPTION_HEIGHT)
    sheet = Image.new("RGB", ((2 + len(counts)) * pitch[0] + MARGIN, len(rows) * pitch[1] + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for index, row in enumerate(rows):
        for column, (picture, caption) in enumerate(_cells(row, counts, cell_size)):
            left, top = MARGIN + column * pitch[0], MARGIN + index * pitch[1]
            sheet.paste(picture, (left, top))
            draw.text((left, top + picture.height + 2), caption, fill="black", font=font)
    return sheet


def _cells(row: SheetRow, counts: list[int], cell_size: int) -> list[tuple[Image.Image, str]]:
    """Picture and caption of each cell of a row."""
    image = rgb_image(row.image)
    target = _mask_of(row.target, image, "target")
    masks = {count: _mask_of(mask, image, f"predictions[{count}]") for count, mask in row.predictions.items()}
    points, labels = np.asarray(row.points, dtype=float).reshape(-1, 2), np.asarray(row.labels).reshape(-1)
    clicks = points[np.isin(labels, list(CLICK_COLORS))]
    window = _window(np.any([target, *masks.values()], axis=0), clicks)
    width, height = window[2] - window[0], window[3] - window[1]
    scale = cell_size / max(width, height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))

    # Masks and clicks are drawn after scaling, so that contours stay sharp and discs legible on tiny images.
    crop = image.crop(window).resize(size, Image.Resampling.BICUBIC)
    crop = ImageOps.autocontrast(crop, cutoff=0.1, preserve_tone=True)  # micrographs can be nearly black

    def overlay(mask: np.ndarray, color: Color) -> Image.Image:
        resized = Image.fromarray(mask).crop(window).resize(size, Image.Resampling.NEAREST)
        return draw_masks(crop, np.asarray(resized)[None], [color], alpha=0.4)

    def scaled(corners: np.ndarray) -> np.ndarray:
        return (corners + 0.5 - window[:2]) * scale - 0.5

    cells = [(crop, "image"), (overlay(target, TARGET_COLOR), "ground truth")]
    for count in counts:
        if count not in masks:
            cells.append((Image.new("RGB", size, "white"), ""))
            continue
        picture, num_clicks, prompts = overlay(masks[count], PREDICTION_COLOR), count, []
        if row.box is not None:
            corners = np.asarray(row.box, dtype=float).reshape(2, 2)
            picture = draw_boxes(picture, scaled(corners).reshape(1, 4), [CLICK_COLORS[FOREGROUND]])
            num_clicks, prompts = count - 1, ["box"]
        picture = draw_clicks(picture, scaled(points[:num_clicks]), labels[:num_clicks])
        prompts += [f"{num_clicks} click{'s' if num_clicks > 1 else ''}"] if num_clicks else []
        caption = f"{', '.join(prompts)}, IoU {_iou(masks[count], target):.2f}"
        cells.append((picture, caption))
    return cells


def _window(region: np.ndarray, points: np.ndarray) -> tuple[int, int, int, int]:
    """Square (left, top, right, bottom) around a region and points with context, cut at the image."""
    height, width = region.shape
    y, x = np.nonzero(region)
    x, y = np.concatenate((x, points[:, 0])), np.concatenate((y, points[:, 1]))
    if x.size == 0:
        return 0, 0, width, height
    centre_x, centre_y = (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2
    half = max(0.75 * max(np.ptp(x) + 1, np.ptp(y) + 1), 24)
    return (
        int(max(0, centre_x - half)),
        int(max(0, centre_y - half)),
        int(min(width, np.ceil(centre_x + half))),
        int(min(height, np.ceil(centre_y + half))),
    )


def _mask_of(mask: ArrayLike, image: Image.Image, name: str) -> np.ndarray:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != (image.height, image.width):
        raise ValueError(f"{name} must be [{image.height}, {image.width}] like its image, got {list(mask.shape)}")
    return mask


def _iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """1 when both are empty."""
    union = (prediction | target).sum()
    return float((prediction & target).sum() / union) if union else 1.0


__all__ = [
    "SheetRow",
    "prediction_sheet",
]
