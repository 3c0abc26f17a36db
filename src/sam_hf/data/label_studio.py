"""Label Studio's JSON export: one file for many images.

Source: labelstud.io, "Label Studio JSON format" and "Units of image annotations"; the run lengths of brushes are those
of the package `@thi.ng/rle-pack`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .annotated import Entry, NoMask, Shape
from .annotation_files import AnnotationFile, load_json, mentions, stated_size
from .image_places import written_name
from .outlines import ellipse, paste_mask, polygon
from .reader import IMAGE_SUFFIXES
from .rle import check_pixels

__all__ = ["LabelStudioFile", "decode_brush", "encode_brush"]


class LabelStudioFile(AnnotationFile):
    """Brushes, polygons and ellipses of Label Studio, of all who annotated; rectangles are boxes, which are no masks.

    Annotations that were cancelled and predictions are left out.
    """

    kind = "Label Studio"
    pattern = "*.json"

    @classmethod
    def is_written_in(cls, file: Path) -> bool:
        with file.open("rb") as opened:
            is_list = opened.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
        return is_list and mentions(file, b'"result"', b'"data"')

    def entries(self, file: Path) -> Iterable[Entry]:
        for task in load_json(file):
            done = [item for item in task["annotations"] if not item.get("was_cancelled")]
            regions = [region for item in done for region in _regions(item["result"])]
            sizes = (stated_size(item.get("original_height"), item.get("original_width")) for item in regions)
            yield Entry(_image_of(task["data"]), next(filter(None, sizes), None), regions)

    def shape(self, written: Any, size: tuple[int, int]) -> Shape:
        value = written["value"]
        stated = stated_size(written.get("original_height"), written.get("original_width")) or size
        if stated != size or written.get("image_rotation"):
            raise ValueError(
                f"it is drawn on an image of (height, width) {list(stated)}, turned by "
                f"{written.get('image_rotation', 0)} degrees; expected {list(size)}, not turned"
            )
        # Of the sides of the image, in percent.
        down, across = (side / 100 for side in size)
        if "rle" in value:
            return Shape(paste_mask(decode_brush(value["rle"], size), 0, 0, size))
        if "points" in value:
            return Shape(polygon((x * across, y * down) for x, y in value["points"]))
        if "radiusX" in value:
            radii = value["radiusX"] * across, value["radiusY"] * down
            return Shape(ellipse(value["x"] * across, value["y"] * down, *radii, value.get("rotation", 0)))
        raise NoMask("are boxes, which are no masks" if "height" in value else "are a point, which has no area")


def decode_brush(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """The mask of a brush, bool [H, W]: where the fourth channel of an RGBA image is 128 or more.

    The bits are: 32 for the number of values, 5 for the bits of a value less one, four times 4 for the possible bits
    of a length, less one; then blocks, each of 1 bit that tells a run of one value from a row of values, 2 bits for
    which of the four, the length less one, and the value or values.

    Args:
        packed: bytes.
        size: (height, width) of the image.

    Raises:
        ValueError: if they are no such image of that size.
    """
    check_pixels(size)
    bits = np.unpackbits(np.array(packed, dtype=np.uint8))
    text = (bits + ord("0")).tobytes().decode("ascii")
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(text[place - count : place], 2)

    number, value_bits, length_bits = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    if number != 4 * size[0] * size[1] or value_bits != 8:
        raise ValueError(
            f"a brush on an image of (height, width) {list(size)} has {4 * size[0] * size[1]} values of 8 bits, got "
            f"{number} of {value_bits}"
        )
    values = np.zeros(number, dtype=np.uint8)
    start = 0
    while start < number:
        is_run = read(1)
        length = read(length_bits[read(2)]) + 1
        block = values[start : start + length]
        if is_run:
            block[:] = read(8)
        else:
            block[:] = np.packbits(bits[place : place + 8 * length])
            place += 8 * length
        start += length
    if start > number or place > len(bits):
        raise ValueError(f"the run lengths of a brush give {start} of {number} values")
    return values.reshape(*size, 4)[:, :, 3] >= 128


def encode_brush(mask: np.ndarray) -> list[int]:
    """Bytes of a brush that is a mask, bool [H, W], 255 in all channels: runs alone, their lengths in 16 bits."""
    ends = np.append(np.flatnonzero(np.diff(mask.ravel())) + 1, mask.size)
    lengths, values = 4 * np.diff(ends, prepend=0), 255 * mask.ravel()[ends - 1].astype(np.int64)
    # A run of more than 2^16 values is several.
    counts = -(-lengths // 2**16)
    values, parts = values.repeat(counts), np.full(counts.sum(), 2**16)
    parts[counts.cumsum() - 1] = lengths - 2**16 * (counts - 1)
    blocks = (0b111 << 24 | (parts - 1) << 8 | values).astype(">u4").view(np.uint8)  # of 27 bits each
    header = f"{4 * mask.size:032b}{8 - 1:05b}{''.join(f'{size - 1:04b}' for size in (3, 4, 8, 16))}"
    bits = np.concatenate([np.array(list(header), np.uint8), np.unpackbits(blocks).reshape(-1, 32)[:, 5:].ravel()])
    return np.packbits(bits).tolist()


def _regions(result: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was drawn, once: shape and label may be two results of one id, and choices about the image are none."""
    regions: dict[Any, dict[str, Any]] = {}
    for number, item in enumerate(result):
        value = item.get("value")
        if isinstance(value, dict) and {"rle", "points", "x"} & set(value):
            regions.setdefault(str(item.get("id", number)), item)
    return list(regions.values())


def _image_of(data: dict[str, Any]) -> str:
    """The path of the image among the fields of a task, one called `image` first; empty if there is none."""
    texts = [
        value for key, value in sorted(data.items(), key=lambda item: item[0] != "image") if isinstance(value, str)
    ]
    return next((name for name in map(written_name, texts) if name.lower().endswith(IMAGE_SUFFIXES)), "")
