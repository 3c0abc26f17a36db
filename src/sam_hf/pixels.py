"""Images of any kind to 8-bit RGB: the one way from values to pixels, for training and for use."""

import os
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from transformers.image_utils import ChannelDimension, ImageInput

from .image_files import decode_image, decode_opened, read_content

STRETCH_PERCENTILES = (0.1, 99.9)


def read_image(
    image: ImageInput, channel_format: str | ChannelDimension | None = None, *, stretch_contrast: bool = False
) -> Tensor:
    """Read one image of any kind as 8-bit RGB.

    - Files and PIL images are turned upright by their EXIF orientation; prompts refer to the upright image.
    - Palette, CMYK and the like are converted by PIL. Greyscale is repeated. Transparency is composited on
      white.
    - Files keep all 16 bits of their colours. A PIL image that is loaded has 8 of them left.
    - Integers from 0 to 255 of any type are 8-bit values. Wider ones (16-bit, int32) are scaled so that the
      image's own minimum becomes 0 and its maximum 255, because a 16-bit file says nothing of the range it
      uses.
    - Floats are 0 to 1.
    - `stretch_contrast` maps the 0.1 and 99.9 percentile of all channel values to 0 and 255, from any range.
      Pooling the channels keeps hues, and a stain that fills one channel does not saturate.

    Args:
        image: PIL image, path, URL, array or tensor [H, W], [H, W, C] or [C, H, W] with C in 1, 3, 4. Where
            both layouts fit, arrays are taken as [H, W, C] and tensors as [C, H, W].
        channel_format: "channels_first" or "channels_last", to settle the layout.

    Returns:
        uint8 [3, H, W].

    Raises:
        ValueError: no pixels, an unknown layout, floats that are not finite or not within 0 to 1, a TIFF file of
            several pages, or a path that is none. It names the file.
        OSError: by Pillow, if a file is damaged.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_file(os.fspath(image), stretch_contrast)
    if isinstance(image, PIL.Image.Image):
        image = decode_opened(image)
        channel_format = ChannelDimension.LAST
    prefer_first = isinstance(image, Tensor)
    if isinstance(image, PIL.Image.Image):
        pixels = _pil_to_array(image)
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
        pixels = (image.float() if image.is_floating_point() else image).numpy()
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise ValueError(f"images holds a {type(image).__name__}: expected PIL, numpy, torch, or a path or URL.")
    pixels = _channels_first(pixels, channel_format, prefer_first)
    colour = _to_uint8(pixels[:3], stretch_contrast)
    if len(pixels) == 4:
        colour = _composite_on_white(colour, pixels[3:])
    if len(colour) == 1:
        colour = np.repeat(colour, 3, axis=0)
    return torch.from_numpy(colour)


def _read_file(source: str, stretch_contrast: bool) -> Tensor:
    content = read_content(source)
    name = source if os.path.isfile(source) else "the image"  # not all of a text in base64
    try:
        return read_image(decode_image(content), ChannelDimension.LAST, stretch_contrast=stretch_contrast)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image, or of a format that Pillow does not know.") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _pil_to_array(image: PIL.Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise ValueError(f"images holds an image without pixels: its (width, height) is {image.size}.")
    image = PIL.ImageOps.exif_transpose(image)
    if (image.mode == "L" and not image.has_transparency_data) or image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _channels_first(pixels: np.ndarray, channel_format: Any, prefer_first: bool) -> np.ndarray:
    if pixels.size == 0:
        raise ValueError(f"images holds an image without pixels: its shape is {pixels.shape}.")
    if pixels.ndim == 2:
        return pixels[None]
    candidates: tuple[ChannelDimension, ...]
    if channel_format is None:
        order = (ChannelDimension.FIRST, ChannelDimension.LAST)
        candidates = order if prefer_first else order[::-1]
    else:
        candidates = (ChannelDimension(channel_format),)
    for candidate in candidates if pixels.ndim == 3 else ():
        first = pixels if candidate == ChannelDimension.FIRST else np.moveaxis(pixels, -1, 0)
        if len(first) in (1, 3, 4):
            return np.array(first, order="C")  # PIL's arrays are read-only
    raise ValueError(
        f"images holds an image of shape {pixels.shape}: expected [H, W], [H, W, C] or [C, H, W] with 1 "
        "(grey), 3 (RGB) or 4 (RGBA) channels. For several images pass a list."
    )


def _to_uint8(pixels: np.ndarray, stretch_contrast: bool) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels * np.uint8(255)
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if is_float and not np.isfinite(pixels).all():
        raise ValueError("images holds NaN or infinite values: replace them before, such as by np.nan_to_num.")
    if stretch_contrast:
        low, high = np.percentile(pixels, STRETCH_PERCENTILES)
        if low == high:
            return _to_uint8(pixels, False)
    elif pixels.dtype == np.uint8:
        return pixels
    else:
        low, high = float(pixels.min()), float(pixels.max())
        if is_float:
            if low < 0 or high > 1:
                raise ValueError(
                    f"images holds floats from {low:g} to {high:g}, expected 0 to 1: divide by the largest "
                    "possible value, convert to uint8, or set do_stretch_contrast=True."
                )
            low, high = 0.0, 1.0
        elif low >= 0 and high <= 255:
            return pixels.astype(np.uint8)
    scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
    return scaled.round().clip(0, 255).astype(np.uint8)


def _composite_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if np.issubdtype(alpha.dtype, np.floating) or alpha.dtype == bool:
        opaque = 1
    else:
        opaque = 65535 if alpha.dtype.itemsize == 2 and alpha.max() > 255 else 255
    if alpha.min() >= opaque:
        return colour
    opacity = alpha.astype(np.float32) / opaque
    return (colour * opacity + 255 * (1 - opacity)).round().clip(0, 255).astype(np.uint8)


__all__ = [
    "read_image",
]
