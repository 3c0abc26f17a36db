"""Random crops, scales, flips and light for an image and its masks, before the processor.

Boxes and windows are in pixels of the image, sizes are (height, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..loss_points import IGNORED
from ..tiles import central_tiles, check_tile_size, tile_boxes
from .label_map import label_map_from_objects, resize_labels
from .schema import SegmentedObject, decode_masks, ignored_pixels, rgb_array, targets_from_masks

__all__ = ["PhotometricJitter", "RandomCropScaleFlip", "RandomTile"]

# SAM's mean colour, which its normalisation turns into the zeros that it pads with.
FILL = (124, 116, 104)
# A cut object is kept whatever was cut off if it covers this share of what the model sees.
LARGE_SHARE = 0.01
MAX_WINDOWS = 4


@dataclass(frozen=True)
class PhotometricJitter:
    """Random brightness, contrast, gamma and colour cast: one lookup table for each channel.

    Args:
        brightness: largest shift, as a share of white.
        contrast: largest relative change of contrast about mid-grey.
        gamma: largest factor or divisor of the exponent; 1 is none.
        colour: largest relative change of a single channel.
    """

    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 1.4
    colour: float = 0.05

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change a uint8 image [H, W, 3]; every draw comes from `rng`."""
        shift = rng.uniform(-self.brightness, self.brightness)
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        exponent = self.gamma ** rng.uniform(-1, 1)
        gains = 1 + rng.uniform(-self.colour, self.colour, 3)
        values = (np.arange(256) / 255) ** exponent
        values = (values - 0.5) * contrast + 0.5 + shift
        table = (255 * gains * values[:, None]).round().clip(0, 255).astype(np.uint8)
        return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=-1)


@dataclass(frozen=True)
class RandomCropScaleFlip:
    """Crop, scale and flip an image with the masks of its objects, to a longest side of `size`.

    At scale s an object is s times as large in the model input as it is when the whole image is resized to
    the longest side `size`. s > 1 shows a window of 1/s of the longest side; s < 1 shows the whole image
    smaller, in a corner of an image of longest side `size` filled with SAM's mean colour (without that
    filling, the processor would scale it back up). The processor pads the shorter side as usual.

    The window contains a randomly chosen object as far as it fits. Only objects whose boxes meet the window
    are decoded. An object is returned if in the output it

    - has at least `min_pixels` and covers at most `max_share`, and
    - still shows `min_visible` of its area, or covers 1 % of the output.

    With `tile_size`, scale 1 is that of a tile: in a larger image it shows a window of the size of a tile, and s < 1
    shows more of the image as far as there is more.

    If no object passes, another window is tried, and at last the whole image. Crowd regions are pixels to ignore.

    Args:
        size: longest side of the output in pixels; that of the model input.
        scale: lowest and highest s, drawn log-uniformly, so that halving is as likely as doubling.
        hflip, vflip: whether to mirror left-right, up-down, each with probability one half.
        rot90: whether to turn by a random multiple of 90 degrees.
        min_pixels, min_visible, max_share: see above.
        jitter: change of brightness and colour, or None.
        tile_size: side, in pixels of the image, of the tiles that larger images are cut into in use, or None.
        keep_aspect_ratio: False for a processor that stretches images to squares. Windows then have the shape of the
            image, or of a tile, and outputs are squares, in which an object is stretched as it is in use.

    Raises:
        ValueError: if `size` or `tile_size` is not positive or `scale` not two ascending positive numbers.
    """

    size: int
    scale: tuple[float, float] = (0.5, 2.0)
    hflip: bool = True
    vflip: bool = False
    rot90: bool = False
    min_pixels: int = 16
    min_visible: float = 0.25
    max_share: float = 0.9
    jitter: PhotometricJitter | None = None
    tile_size: int | None = None
    keep_aspect_ratio: bool = True

    def __post_init__(self) -> None:
        check_tile_size(self.tile_size)
        if self.size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {self.size}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (lowest, highest), both positive, got {self.scale}")

    def __call__(
        self,
        image: Image.Image | np.ndarray,
        objects: Sequence[SegmentedObject],
        rng: np.random.Generator,
        max_objects: int | None = None,
        with_label_map: bool = False,
    ) -> tuple[np.ndarray, ...]:
        """Augment one record; equal `rng` states give equal results.

        Args:
            image: as `rgb_array` takes it.
            objects: the record's objects; their masks have the size of the image.
            rng: the only source of chance.
            max_objects: return at most so many, drawn at random before they are decoded. None for all.
            with_label_map: also return all of them, however little of each is visible, in one picture.

        Returns:
            image: uint8 [H, W, 3], the longest side is `size`.
            masks: bool [N, H, W] of the objects still visible, in random order, for the processor's
                `segmentation_maps`; float32 with NaN in pixels to ignore, where crowd regions are in view.
            label_map, if asked for: int32 [H, W] as `label_map_from_objects`, `IGNORED` beside the image.

        Raises:
            ValueError: if the objects do not have the image's size.
        """
        pixels = rgb_array(image)
        _check_sizes(objects, pixels.shape[:2])
        targets = [item for item in objects if not item["iscrowd"]]
        # The scale that shows all of the image.
        whole = min(reference / length for reference, length in self._references(pixels.shape[:2]))
        for attempt in range(MAX_WINDOWS + 1):
            scale = np.exp(rng.uniform(*np.log(self.scale))) if attempt < MAX_WINDOWS else whole
            view = self._view(targets, pixels.shape[:2], scale, rng)
            masks = self._masks(targets, view, rng, max_objects)
            if len(masks) or not targets:
                break
        shown = _resize(pixels[view.rows, view.columns], view.size)
        if self.jitter is not None:
            shown = self.jitter(shown, rng)
        ignored = ignored_pixels(objects, pixels.shape[:2])
        if ignored is not None:
            ignored = _place(_resize(ignored[view.rows, view.columns], view.size), view.canvas, False)
        layers = [_place(shown, view.canvas, FILL), targets_from_masks(masks, ignored)]
        if with_label_map:
            inside = [item for item in objects if view.meets(item["bbox"])]
            labels = label_map_from_objects(inside, pixels.shape[:2])[view.rows, view.columns]
            layers.append(_place(resize_labels(labels, view.size), view.canvas, IGNORED))
        return self._flip(layers, rng)

    def _references(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """For each axis the length in pixels of the image that fills the output at scale 1, and at the lowest."""
        lengths = [max(size)] * 2 if self.keep_aspect_ratio else size
        return [(min(length, self.tile_size or length), length) for length in lengths]

    def _view(
        self,
        targets: Sequence[SegmentedObject],
        size: tuple[int, int],
        scale: float,
        rng: np.random.Generator,
    ) -> "_View":
        """Draw the window, around a random object if there is one."""
        sides, factors = [], []
        for reference, length in self._references(size):
            # In whole pixels, so that a window fills the output exactly.
            sides.append(min(length, max(1, round(reference / scale))))
            factors.append(min(scale * (length / reference), 1.0) * self.size / sides[-1])
        x, y, width, height = targets[int(rng.integers(len(targets)))]["bbox"] if targets else (0, 0, size[1], size[0])
        rows = _random_span(y, y + height, min(sides[0], size[0]), size[0], rng)
        columns = _random_span(x, x + width, min(sides[1], size[1]), size[1], rng)
        scaled_height, scaled_width = (
            max(1, round((span.stop - span.start) * factor))
            for span, factor in zip((rows, columns), factors, strict=True)
        )
        canvas = (scaled_height, self.size) if scaled_width >= scaled_height else (self.size, scaled_width)
        if not self.keep_aspect_ratio:
            canvas = (self.size, self.size)
        return _View(rows, columns, (scaled_height, scaled_width), canvas, factors[0] * factors[1])

    def _masks(
        self,
        targets: Sequence[SegmentedObject],
        view: "_View",
        rng: np.random.Generator,
        max_objects: int | None,
    ) -> np.ndarray:
        """Masks bool [N, H, W] of the objects that are visible enough, before the flips."""
        inside = [item for item in targets if view.meets(item["bbox"])]
        masks: list[np.ndarray] = []
        for index in rng.permutation(len(inside)):
            if max_objects is not None and len(masks) == max_objects:
                break
            # One at a time: all of a large image at once would be N x H x W bytes.
            window = decode_masks([inside[index]])[0, view.rows, view.columns]
            mask = _resize(window, view.size)
            if self._is_visible(mask, inside[index]["area"] * view.growth):
                masks.append(_place(mask, view.canvas, False))
        return np.stack(masks) if masks else np.zeros((0, *view.canvas), dtype=bool)

    def _is_visible(self, mask: np.ndarray, full_area: float) -> bool:
        area = int(mask.sum())
        enough = area >= self.min_visible * full_area or area >= LARGE_SHARE * mask.size
        return self.min_pixels <= area <= self.max_share * mask.size and enough

    def _flip(self, layers: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Image [H, W, 3], masks [N, H, W], and a label map [H, W], if there is one, all alike."""
        mirrored, upended = rng.random(2) < 0.5
        turns = int(rng.integers(4)) if self.rot90 else 0
        flipped = []
        for layer, (rows, columns) in zip(layers, ((0, 1), (1, 2), (0, 1)), strict=False):
            if self.hflip and mirrored:
                layer = np.flip(layer, columns)
            if self.vflip and upended:
                layer = np.flip(layer, rows)
            # A copy, even where nothing was resized: the caller may write to it.
            flipped.append(np.array(np.rot90(layer, turns, axes=(rows, columns)), order="C"))
        return tuple(flipped)


class RandomTile(RandomCropScaleFlip):
    """The tile that shows a random object most centrally, as it is: larger images without augmentation.

    Which objects of it are returned is as in the base class, whose scale and flips it does not have.

    Args:
        tile_size: side in pixels of the image.
    """

    def __init__(self, tile_size: int):
        super().__init__(tile_size, (1.0, 1.0), hflip=False, tile_size=tile_size)

    def _view(
        self, targets: Sequence[SegmentedObject], size: tuple[int, int], scale: float, rng: np.random.Generator
    ) -> "_View":
        boxes = tile_boxes(size, self.tile_size if scale == 1 else None)  # at last the whole image
        index = int(rng.integers(len(targets) or len(boxes)))
        if targets:
            x, y, width, height = targets[index]["bbox"]
            index = int(central_tiles(torch.tensor([[x, y, x + width - 1, y + height - 1]]), boxes))
        x1, y1, x2, y2 = boxes[index]
        shape = y2 - y1, x2 - x1
        return _View(slice(y1, y2), slice(x1, x2), shape, shape, 1.0)


@dataclass(frozen=True)
class _View:
    """A window of the image, the size it is scaled to, the canvas that this is laid on, and how areas grow by it."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    canvas: tuple[int, int]
    growth: float

    def meets(self, box: Sequence[float]) -> bool:
        x, y, width, height = box
        return (
            x < self.columns.stop
            and y < self.rows.stop
            and x + width > self.columns.start
            and y + height > self.rows.start
        )


def _random_span(low: float, high: float, length: int, limit: int, rng: np.random.Generator) -> slice:
    """A span of `length` pixels within 0..limit that holds low..high, or lies within it if that is longer."""
    first, last = np.clip(sorted((int(high) - length, int(low))), 0, limit - length)
    start = int(rng.integers(first, last + 1))
    return slice(start, start + length)


def _resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [h, w, 3] or a bool mask [h, w] with one filter, so that image and masks stay aligned.

    PIL's bilinear filter covers the area when it shrinks; a mask holds the pixels that it covers by half or
    more.
    """
    if array.shape[:2] == size:
        return array
    is_mask = array.dtype == bool
    values = Image.fromarray(array.astype(np.uint8) * 255 if is_mask else np.ascontiguousarray(array))
    resized = np.asarray(values.resize(size[::-1], Image.Resampling.BILINEAR))
    return resized >= 128 if is_mask else resized


def _place(array: np.ndarray, canvas: tuple[int, int], fill: tuple[int, int, int] | int) -> np.ndarray:
    """Lay an array [h, w, ...] into the top left corner of a canvas filled with one value."""
    if array.shape[:2] == canvas:
        return array
    placed = np.empty((*canvas, *array.shape[2:]), dtype=array.dtype)
    placed[:] = fill
    placed[: array.shape[0], : array.shape[1]] = array
    return placed


def _check_sizes(objects: Sequence[SegmentedObject], size: tuple[int, int]) -> None:
    wrong = [item["segmentation"]["size"] for item in objects if tuple(item["segmentation"]["size"]) != size]
    if wrong:
        raise ValueError(f"objects must have the image's (height, width) {size}, {len(wrong)} have not: {wrong[0]}")
