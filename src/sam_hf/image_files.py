"""Image files to decoded images: upright, of one page, and as deep as they were written.

`read_image` makes 8-bit RGB of them. Whoever reads images, for training or for use, decodes them here.
"""

import base64
import binascii
import io
import os
import struct
import sys
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL import ExifTags

__all__ = ["decode_image", "decode_opened", "frame_sizes", "orientation", "read_content", "refuse_pages"]

# Pillow keeps the high byte of 16-bit colours. Read in the other byte order, it keeps the low one.
WIDE_COLOURS = tuple(f"{channels};16{order}" for channels in ("RGB", "RGBX", "RGBA") for order in "BLN")
WIDE_GREY_ALPHA = "LA;16B"
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

# From the upright image back to how its file stores it, by EXIF orientation.
TURN_BACK = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}
IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, SUBFILE_TYPE, PLANAR_CONFIGURATION = 256, 257, 258, 254, 284
REDUCED_OR_MASK = 1 | 4  # bits of SUBFILE_TYPE: a page that goes with another one
URL_TIMEOUT = 60  # seconds
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TAIL_CHUNKS = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}


def read_content(source: str) -> bytes:
    """The encoded image of a path, a URL, or a text in base64 (with or without `data:image/...;base64,`).

    Raises:
        OSError: if the file or URL cannot be read.
        ValueError: if the text is none of these.
    """
    if os.path.isfile(source):
        with open(source, "rb") as file:
            return file.read()
    if source.startswith(("http://", "https://")):
        # Some servers refuse requests that do not say who asks.
        with urlopen(Request(source, headers={"User-Agent": "sam_hf"}), timeout=URL_TIMEOUT) as response:
            return response.read()
    try:
        text = source.split(",", 1)[1] if source.startswith("data:image/") else source
        content = base64.b64decode("".join(text.split()), validate=True)
        PIL.Image.open(io.BytesIO(content)).close()
    except (IndexError, OSError, ValueError, binascii.Error) as error:
        raise ValueError(
            f"{_shortened(source)!r} is no image source: neither a file, nor a URL (http:// or https://), nor an "
            f"image in base64. Check the path; the current folder is {os.getcwd()}."
        ) from error
    return content


def decode_image(content: bytes, *, frame: int | None = None, as_stored: bool = False) -> PIL.Image.Image | np.ndarray:
    """Decode an image file.

    Args:
        content: the file.
        frame: the page of a TIFF file to read; None where it must be the only one. Of an animation, 0 by default.
        as_stored: do not turn the image as its EXIF or TIFF orientation says.

    Returns:
        A loaded PIL image in the mode of the file, without an orientation that would turn it once more; or, of colours
        with 16 bits, uint16 [H, W, 3] or [H, W, 4] (RGB, RGBA).

    Raises:
        OSError, SyntaxError: by Pillow, if the file is damaged or no image.
        ValueError: if there are several pages, or colours with 16 bits in separate planes, of which Pillow reads 8.
    """
    with PIL.Image.open(io.BytesIO(content)) as image:
        if frame is None:
            refuse_pages(image)
        rawmode = _rawmode(image)
        _refuse_planes(image)
    if rawmode in WIDE_COLOURS:
        high, low = (
            np.asarray(_decode(content, frame, as_stored, mode), dtype=np.uint16)
            for mode in (rawmode, rawmode[:-1] + OTHER_ORDER[rawmode[-1]])
        )
        return high << 8 | low
    if rawmode == WIDE_GREY_ALPHA:
        # Four bytes per pixel, as RGBA: two of the grey, two of the alpha.
        pairs = np.asarray(_decode(content, frame, as_stored, "RGBA"), dtype=np.uint16)
        return (pairs[..., ::2] << 8 | pairs[..., 1::2])[..., [0, 0, 0, 1]]
    return _decode(content, frame, as_stored)


def decode_opened(image: PIL.Image.Image) -> PIL.Image.Image | np.ndarray:
    """What `decode_image` makes of an image that PIL has opened, and not loaded yet; others as they are.

    Only for files that Pillow itself does not read right: colours with 16 bits, of which it drops 8, and uncompressed
    TIFF on its side, whose file it maps with height and width exchanged (Pillow 13.0).
    """
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or not _misread(image):
        return image
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    return decode_image(content, frame=image.tell())


def frame_sizes(image: PIL.Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) upright and as stored, of an image that PIL has opened and not loaded yet."""
    stored = image.height, image.width
    if image.format == "TIFF":
        # The size that Pillow gives is the upright one, or that as stored, depending on its version.
        stored = image.tag_v2[IMAGE_LENGTH], image.tag_v2[IMAGE_WIDTH]  # type: ignore[attr-defined]
    return (stored[::-1] if orientation(image) >= 5 else stored), stored


def orientation(image: PIL.Image.Image) -> int:
    """1 to 8 as in EXIF; 1 is upright."""
    # Of a PNG file without EXIF in its head, Pillow decodes the whole picture, to look behind it.
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"} and not _has_tail(image):
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def refuse_pages(image: PIL.Image.Image) -> None:
    """Refuse a TIFF file with several pages, of which Pillow shows the first; reduced copies of a page are none.

    Raises:
        ValueError: says how many pages there are.
    """
    if image.format != "TIFF" or getattr(image, "n_frames", 1) == 1:
        return
    pages = 0
    for frame in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(frame)
        pages += not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK  # type: ignore[attr-defined]
    image.seek(0)
    if pages > 1:
        raise ValueError(
            f"the TIFF file has {pages} pages, expected one: save each as a file of its own, or pass the page as an "
            "array."
        )


def _decode(content: bytes, frame: int | None, as_stored: bool, rawmode: str | None = None) -> PIL.Image.Image:
    # From memory, as Pillow maps files wrongly, see `decode_opened`.
    with PIL.Image.open(io.BytesIO(content)) as image:
        if frame:
            image.seek(frame)
        if rawmode is not None:
            image.tile = [_with_rawmode(tile, rawmode) for tile in image.tile]
        stored_orientation = orientation(image)
        image.load()  # turns a TIFF file
        turned = image if orientation(image) == 1 else PIL.ImageOps.exif_transpose(image)
        if as_stored and stored_orientation in TURN_BACK:
            turned = turned.transpose(TURN_BACK[stored_orientation])
        # Not its other information, as the orientation is used up, and records go from process to process.
        info = {key: value for key, value in turned.info.items() if key == "transparency"}
        decoded = turned.copy() if turned is image else turned
        decoded.info = info
        return decoded


def _rawmode(image: PIL.Image.Image) -> str:
    """How the file stores a pixel, by Pillow's name; "" where it does not say."""
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _with_rawmode(tile: Any, rawmode: str) -> Any:
    arguments = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    return getattr(type(tile), "_make", tuple)((*tile[:3], arguments))  # a plain tuple in earlier versions


def _misread(image: PIL.Image.Image) -> bool:
    return _rawmode(image) in (*WIDE_COLOURS, WIDE_GREY_ALPHA) or (image.format == "TIFF" and orientation(image) >= 5)


def _refuse_planes(image: PIL.Image.Image) -> None:
    if image.format != "TIFF" or len(image.getbands()) == 1:
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(PLANAR_CONFIGURATION) == 2 and 16 in tags.get(BITS_PER_SAMPLE, ()):
        raise ValueError(
            "the TIFF file holds colours with 16 bits in separate planes, of which Pillow reads 8 bits: save it with "
            "interleaved channels (PLANARCONFIG contiguous) or as PNG, or pass an array."
        )


def _has_tail(image: PIL.Image.Image) -> bool:
    """Whether a PNG file that is not loaded yet has EXIF or text behind its pixels; True if it is loaded."""
    file = getattr(image, "fp", None)
    if file is None:
        return True
    position = file.tell()
    file.seek(len(PNG_SIGNATURE))
    kinds = []
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        kinds.append(kind)
        file.seek(length + 4, os.SEEK_CUR)  # and its checksum
    file.seek(position)
    behind = kinds[kinds.index(b"IDAT") :] if b"IDAT" in kinds else kinds
    return not TAIL_CHUNKS.isdisjoint(behind)


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
