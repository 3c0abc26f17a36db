"""Masks, clicks and boxes drawn over an image.

Images are 8-bit PIL images or uint8 arrays [H, W] or [H, W, 3]; masks, points and boxes are arrays, CPU
tensors or lists in the pixels of the image, a point or box corner meaning the centre of that pixel. Nothing
is drawn in place.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from ..prompt_encoder import BACKGROUND, FOREGROUND

Color = tuple[int, int, int]
CLICK_COLORS = {FOREGROUND: (40, 200, 70), BACKGROUND: (230, 50, 50)}


def object_colors(count: int) -> list[Color]:
    """RGB colours that stay far apart in hue for any number of objects; the first ones never change."""
    golden_ratio = (5**0.5 - 1) / 2
    hues = [(0.58 + index * golden_ratio) % 1 for index in range(count)]
    colors = (colorsys.hsv_to_rgb(hue, 0.8, 1.0) for hue in hues)
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors]


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
    pixels = np.asarray(rgb_image(image)).astype(np.float32)
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
    image = rgb_image(image)
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
    image = rgb_image(image)
    draw = ImageDraw.Draw(image)
    for box, color in zip(boxes, colors, strict=False):
        if not np.isnan(box).any():
            draw.rectangle(box.tolist(), outline=color, width=_stroke(*image.size))
    return image


def rgb_image(image: Image.Image | np.ndarray) -> Image.Image:
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


__all__ = [
    "CLICK_COLORS",
    "Color",
    "draw_boxes",
    "draw_clicks",
    "draw_masks",
    "object_colors",
    "rgb_image",
]
