"""Pictures of masks, clicks and boxes, for people: overlays, and a sheet that shows what clicks do.

Images are 8-bit PIL images or uint8 arrays [H, W] or [H, W, 3]; masks, points and boxes are arrays, CPU
tensors or lists in the pixels of the image, a point or box corner meaning the centre of that pixel. Nothing
is drawn in place.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from .prompt_encoder import BACKGROUND, FOREGROUND

__all__ = ["SheetRow", "draw_boxes", "draw_clicks", "draw_masks", "object_colors", "prediction_sheet"]

Color = tuple[int, int, int]

CLICK_COLORS = {FOREGROUND: (40, 200, 70), BACKGROUND: (230, 50, 50)}
TARGET_COLOR, PREDICTION_COLOR = (255, 200, 0), (30, 144, 255)
MARGIN, CAPTION_HEIGHT, FONT_SIZE = 6, 22, 14


def object_colors(count: int) -> list[Color]:
    """RGB colours that stay far apart in hue for any number of objects; the first ones never change."""
    golden_ratio = (5**0.5 - 1) / 2
    hues = [(0.58 + index * golden_ratio) % 1 for index in range(count)]
    return [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.8, 1.0)) for hue in hues]


def draw_masks(
    image: Image.Image | np.ndarray,
    masks: ArrayLike,
    colors: Sequence[Color] | None = None,
    alpha: float = 0.5,
) -> Image.Image:
    """Tint the pixels of every mask and draw its contour in full colour, later masks over earlier ones.

    Args:
        image: [H, W].
        masks: bool [N, H, W].
        colors: N RGB colours, `object_colors` unless given.
        alpha: opacity of the tint, in [0, 1].

    Returns:
        RGB image of the same size.

    Raises:
        ValueError: for masks of another shape than the image, or too few colours.
    """
    pixels = np.asarray(_rgb(image)).astype(np.float32)
    height, width = pixels.shape[:2]
    masks = np.asarray(masks, dtype=bool)
    if masks.ndim != 3 or masks.shape[1:] != (height, width):
        raise ValueError(f"masks must be [N, {height}, {width}] to match the image, got {list(masks.shape)}")
    colors = object_colors(len(masks)) if colors is None else colors
    if len(colors) < len(masks):
        raise ValueError(f"colors must hold one RGB triple for each of {len(masks)} masks, got {len(colors)}")
    for mask, color in zip(masks, colors, strict=False):
        pixels[mask] += alpha * (np.asarray(color, dtype=np.float32) - pixels[mask])
        pixels[_contour(mask, _stroke(width, height))] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_clicks(image: Image.Image | np.ndarray, points: ArrayLike, labels: ArrayLike) -> Image.Image:
    """Draw clicks as discs with a white rim: green foreground, red background. Other labels are not clicks.

    Args:
        points: [P, 2], (x, y) pixel indices.
        labels: [P].

    Returns:
        RGB image of the same size.

    Raises:
        ValueError: unless every point has one label.
    """
    points, labels = np.asarray(points, dtype=float).reshape(-1, 2), np.asarray(labels).reshape(-1)
    if len(points) != len(labels):
        raise ValueError(f"labels must hold one value for each of {len(points)} points, got {len(labels)}")
    image = _rgb(image)
    draw, stroke = ImageDraw.Draw(image), _stroke(*image.size)
    for (x, y), label in zip(points, labels.tolist(), strict=True):
        if label in CLICK_COLORS:
            draw.circle((x, y), 4 * stroke, fill=CLICK_COLORS[label], outline="white", width=stroke)
    return image


def draw_boxes(
    image: Image.Image | np.ndarray, boxes: ArrayLike, colors: Sequence[Color] | None = None
) -> Image.Image:
    """Draw the outlines of boxes [N, 4] (x1, y1, x2, y2), pixel indices; rows of NaN are no box.

    Raises:
        ValueError: for boxes of another shape, or too few colours.
    """
    boxes = np.asarray(boxes, dtype=float)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [N, 4] (x1, y1, x2, y2), got {list(boxes.shape)}")
    colors = object_colors(len(boxes)) if colors is None else colors
    if len(colors) < len(boxes):
        raise ValueError(f"colors must hold one RGB triple for each of {len(boxes)} boxes, got {len(colors)}")
    image = _rgb(image)
    draw = ImageDraw.Draw(image)
    for box, color in zip(boxes, colors, strict=False):
        if not np.isnan(box).any():
            draw.rectangle(box.tolist(), outline=color, width=_stroke(*image.size))
    return image


@dataclass(frozen=True)
class SheetRow:
    """One object and what a model made of it, click after click.

    Attributes:
        image: [H, W].
        target: bool [H, W], ground truth.
        predictions: by number of clicks, the bool [H, W] mask after that many.
        points: [P, 2], all clicks in order; labels: [P].
    """

    image: Image.Image | np.ndarray
    target: ArrayLike
    predictions: Mapping[int, ArrayLike]
    points: ArrayLike
    labels: ArrayLike


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
    image = _rgb(row.image)
    target = _mask_of(row.target, image, "target")
    masks = {count: _mask_of(mask, image, f"predictions[{count}]") for count, mask in row.predictions.items()}
    points, labels = np.asarray(row.points, dtype=float).reshape(-1, 2), np.asarray(row.labels).reshape(-1)
    clicks = points[np.isin(labels, list(CLICK_COLORS))]
    window = _window(np.any([target, *masks.values()], axis=0), clicks)
    scale = cell_size / max(window[2] - window[0], window[3] - window[1])
    size = tuple(max(1, round(scale * side)) for side in (window[2] - window[0], window[3] - window[1]))

    # Masks and clicks are drawn after scaling, so that contours stay sharp and discs legible on tiny images.
    crop = image.crop(window).resize(size, Image.Resampling.BICUBIC)
    crop = ImageOps.autocontrast(crop, cutoff=0.1, preserve_tone=True)  # micrographs can be nearly black

    def overlay(mask: np.ndarray, color: Color) -> Image.Image:
        scaled = Image.fromarray(mask).crop(window).resize(size, Image.Resampling.NEAREST)
        return draw_masks(crop, np.asarray(scaled)[None], [color], alpha=0.4)

    cells = [(crop, "image"), (overlay(target, TARGET_COLOR), "ground truth")]
    for count in counts:
        if count not in masks:
            cells.append((Image.new("RGB", size, "white"), ""))
            continue
        shown = (points[:count] + 0.5 - window[:2]) * scale - 0.5
        picture = draw_clicks(overlay(masks[count], PREDICTION_COLOR), shown, labels[:count])
        caption = f"{count} click{'s' if count > 1 else ''}, IoU {_iou(masks[count], target):.2f}"
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


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """A copy in RGB."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _stroke(width: int, height: int) -> int:
    """Line width that can be seen when the whole image is looked at."""
    return max(1, round(max(width, height) / 320))


def _contour(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Pixels of the mask within `thickness` of a pixel outside; the image border is no contour."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(thickness))
    return mask & (np.asarray(blurred) < 255)


def _iou(prediction: np.ndarray, target: np.ndarray) -> float:
    """1 when both are empty."""
    union = (prediction | target).sum()
    return float((prediction & target).sum() / union) if union else 1.0
