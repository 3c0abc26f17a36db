"""Compose a synthetic scene: background, objects laid over each other from back to front, light, camera."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import random_shape, turned
from .textures import Palette, Surface, clouds, random_surface

__all__ = ["paint_scene"]

MIN_OBJECTS = 3
MIN_VISIBLE_PIXELS = 64
MIN_VISIBLE_SHARE = 0.35
# Smallest and largest object as shares of the image.
AREA_SHARES = (0.02, 0.3)
MAX_ATTEMPTS = 8
# A place where less of an object lies on background is taken with this chance to try another.
MOSTLY_BESIDE, CROWDING_AVOIDED = 0.75, 0.8
SUPERSAMPLING = 3
# More than the largest shift of a shadow and its blur together.
SHADOW_MARGIN = 12
# How much an object differs from what it lies on, in units of full brightness: at its border, and in mean colour.
# Less would be camouflage, which no model learns to see in a first training of minutes.
BORDER_CONTRAST, MEAN_CONTRAST = 0.12, 0.2


def paint_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene of the given (height, width).

    Returns:
        image: uint8 [H, W, 3].
        labels: int16 [H, W]; 0 is background, each k > 0 the visible pixels of one object; at least three of
            them.
    """
    while True:
        scene = _Scene(rng, size)
        scene.add_objects()
        labels = scene.visible_labels()
        if np.count_nonzero(np.bincount(labels.ravel())) > MIN_OBJECTS:
            return scene.photograph(), labels


@dataclass(frozen=True)
class _Cutout:
    """A silhouette within the image: `coverage`, float32 [h, w] in 0..1, of the pixels of `window`."""

    window: tuple[slice, slice]
    coverage: np.ndarray

    @cached_property
    def mask(self) -> np.ndarray:
        return self.coverage > 0.5

    def part_of(self, image: np.ndarray) -> np.ndarray:
        """The window of an image [3, H, W], not a copy."""
        rows, columns = self.window
        return image[:, rows, columns]


class _Scene:
    """The painting in progress."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.size = size
        self.palette = Palette(rng)
        self.shadow_offset = rng.integers(-6, 7, 2) if rng.random() < 0.4 else None
        self.owner = np.zeros(size, dtype=np.int16)
        self.full_areas = [0]
        self.image = self._background()

    def _background(self) -> np.ndarray:
        """A surface, often a second one beyond a border, and clutter: edges that bound no object."""
        rng, (height, width) = self.rng, self.size
        image = random_surface(rng, self.palette, False).render(rng, height, width)
        if rng.random() < 0.5:
            level = clouds(rng, height, width, 0.4 * max(self.size))
            if rng.random() < 0.5:
                level = level + np.linspace(-2, 2, height, dtype=np.float32)[:, None]
            sharpness = rng.choice([8.0, 60.0])
            region = np.clip((level - np.float32(rng.uniform(0.3, 0.7))) * np.float32(sharpness) + 0.5, 0, 1)
            image += region * (random_surface(rng, self.palette, False).render(rng, height, width) - image)
        if rng.random() < 0.4:
            image += self._clutter() * (self._paint(False) - image)
        return image

    def _paint(self, is_object: bool) -> np.ndarray:
        return self.palette.colour(self.rng, is_object)[:, None, None]

    def _clutter(self) -> np.ndarray:
        """Specks and wires too thin to be objects, float32 [H, W] in 0..1."""
        rng, (height, width) = self.rng, self.size
        layer = Image.new("L", (width, height))
        draw = ImageDraw.Draw(layer)
        extent = np.array([width, height])
        for corner in rng.uniform(0, 1, (rng.integers(0, 80), 2)) * extent:
            draw.ellipse([*corner, *(corner + rng.uniform(1, 4, 2))], fill=255)
        for ends in rng.uniform(-0.2, 1.2, (rng.integers(0, 5), 2, 2)) * extent:
            draw.line([tuple(end) for end in ends], fill=255, width=int(rng.integers(1, 3)))
        return np.asarray(layer, dtype=np.float32) * np.float32(rng.uniform(0.4, 1.0) / 255)

    def add_objects(self) -> None:
        """Lay objects of different looks, or many of one look, the larger ones rather at the back."""
        rng = self.rng
        low, high = np.log(AREA_SHARES)
        if rng.random() < 0.3:
            shape, surface = random_shape(rng), random_surface(rng, self.palette, True)
            share = np.exp(rng.uniform(low, 0.5 * (low + high)))
            for _ in range(rng.integers(4, 10)):
                self._add(turned(rng, shape), share * rng.uniform(0.8, 1.25), lambda: surface.varied(rng))
            return
        shares = np.exp(rng.uniform(low, high, rng.integers(3, 10)))
        shares *= min(1.0, 1.0 / shares.sum())
        for share in shares[np.argsort(-shares * rng.lognormal(0, 0.6, len(shares)))]:
            self._add(random_shape(rng), max(share, AREA_SHARES[0]), lambda: random_surface(rng, self.palette, True))

    def _add(self, shape: list[np.ndarray], share: float, next_surface: Callable[[], Surface]) -> None:
        """Try places and surfaces until the object can be told from what it lies on; give it up otherwise."""
        area = share * self.owner.size
        for _ in range(MAX_ATTEMPTS):
            centre = self.rng.uniform(0, 1, 2) * self.size[::-1]
            cutout = _cut_out(shape, area, centre, self.size)
            if cutout is None or cutout.mask.sum() < max(0.5 * area, MIN_VISIBLE_PIXELS):
                continue
            beside = (self.owner[cutout.window][cutout.mask] == 0).mean() > MOSTLY_BESIDE
            if not beside and self.rng.random() < CROWDING_AVOIDED:
                continue
            pixels = self._dress(cutout.coverage, next_surface())
            beneath = cutout.part_of(self.image)
            if not _stands_out(cutout.mask, pixels, beneath):
                pixels += np.float32(-0.3 if beneath.mean() > 0.5 else 0.3)
                if not _stands_out(cutout.mask, pixels, beneath):
                    continue
            self._lay(cutout, pixels)
            return

    def _dress(self, coverage: np.ndarray, surface: Surface) -> np.ndarray:
        """Colours of an object on its window, float32 [3, h, w]: pattern, roundness, a mark, a rim."""
        rng, (height, width) = self.rng, coverage.shape
        pixels = surface.render(rng, height, width)
        roundness, mark, rim = rng.random(3)
        if roundness < 0.35:
            edge = 1 - _soften(coverage, 0.15 * min(height, width))
            pixels *= 1 - np.float32(rng.uniform(0.3, 0.9)) * edge
        if mark < 0.3:
            where = rng.uniform(0.3, 0.7, 2) * (width, height)
            cutout = _cut_out(random_shape(rng), rng.uniform(0.05, 0.25) * coverage.sum(), where, coverage.shape)
            if cutout is not None:
                part = cutout.part_of(pixels)
                part += cutout.coverage * (self._paint(True) - part)
        if rim < 0.25:
            pixels += (coverage - _shrink(coverage, int(rng.integers(1, 4)))) * (self._paint(True) - pixels)
        return pixels

    def _lay(self, cutout: _Cutout, pixels: np.ndarray) -> None:
        if self.shadow_offset is not None:
            self._darken(cutout, self.shadow_offset.tolist())
        beneath = cutout.part_of(self.image)
        beneath += cutout.coverage * (pixels - beneath)
        self.owner[cutout.window][cutout.mask] = len(self.full_areas)
        self.full_areas.append(int(cutout.mask.sum()))

    def _darken(self, cutout: _Cutout, offset: Sequence[int]) -> None:
        """The soft shadow of an object on what is behind it: an edge that bounds no object."""
        # Padding keeps what the shift and the blur move from coming back in on the other side.
        shadow = np.roll(np.pad(cutout.coverage, SHADOW_MARGIN), offset, axis=(0, 1))
        whole, part = [], []
        for side, length in zip(cutout.window, self.size, strict=True):
            start, stop = side.start - SHADOW_MARGIN, side.stop + SHADOW_MARGIN
            whole.append(slice(max(start, 0), min(stop, length)))
            part.append(slice(max(-start, 0), min(stop, length) - start))
        rows, columns = whole
        self.image[:, rows, columns] *= 1 - 0.5 * _soften(shadow, 4)[tuple(part)]

    def visible_labels(self) -> np.ndarray:
        """Owners of the pixels, without the objects that are hidden too much."""
        visible = np.bincount(self.owner.ravel(), minlength=len(self.full_areas))
        kept = (visible >= MIN_VISIBLE_PIXELS) & (visible >= MIN_VISIBLE_SHARE * np.array(self.full_areas))
        return np.where(kept[self.owner], self.owner, 0).astype(np.int16)

    def photograph(self) -> np.ndarray:
        """Light, contrast, focus and sensor noise; uint8 [H, W, 3]."""
        rng, (height, width) = self.rng, self.size
        image = self.image  # [3, H, W]
        light, cast, dull, blur = rng.random(4)
        if light < 0.6:
            falloff = clouds(rng, height, width, rng.uniform(0.5, 1.0) * max(self.size))
            image *= 1 - np.float32(rng.uniform(0.1, 0.6)) * falloff
        if cast < 0.2:
            image *= self._cast_shadow()
        if dull < 0.25:
            middle = np.float32(rng.uniform(0.2, 0.8))
            image = middle + (image - middle) * np.float32(rng.uniform(0.4, 0.7))
        image = (image * np.float32(255)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        if blur < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.4)))
        channels = 1 if self.palette.grey or rng.random() < 0.5 else 3
        strength = rng.uniform(0, 4 if dull < 0.25 else 10)
        noise = rng.standard_normal((channels, height, width), dtype=np.float32) * np.float32(strength)
        noisy = np.asarray(picture).transpose(2, 0, 1) + noise
        return np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def _cast_shadow(self) -> np.ndarray:
        """Brightness, float32 [H, W], of a straight shadow over everything."""
        rng, (height, width) = self.rng, self.size
        slope = rng.normal(size=2)
        slope /= np.hypot(*slope) * rng.uniform(2, 12)
        y = (np.arange(height, dtype=np.float32) - rng.uniform(0.2, 0.8) * height)[:, None]
        x = np.arange(width, dtype=np.float32) - rng.uniform(0.2, 0.8) * width
        return 1 - np.float32(rng.uniform(0.25, 0.5)) * np.clip(y * slope[0] + x * slope[1], 0, 1).astype(np.float32)


def _cut_out(shape: list[np.ndarray], area: float, centre: np.ndarray, size: tuple[int, int]) -> _Cutout | None:
    """Draw a shape of about `area` pixels at `centre` (x, y); None if it lies outside (height, width)."""
    low, high = shape[0].min(0), shape[0].max(0)
    # Thin shapes are limited by the image's sides rather than by their area.
    scale = min(np.sqrt(area / _polygon_area(shape)), 0.85 * min(size[::-1] / (high - low)))
    outlines = [(outline - 0.5 * (low + high)) * scale + centre for outline in shape]
    start = np.floor(outlines[0].min(0)).clip(0).astype(int)
    stop = np.ceil(outlines[0].max(0)).clip(0, size[::-1]).astype(int)
    if (stop <= start).any():
        return None
    layer = Image.new("L", tuple((stop - start) * SUPERSAMPLING))
    draw = ImageDraw.Draw(layer)
    for level, outline in enumerate(outlines):
        draw.polygon(((outline - start) * SUPERSAMPLING).ravel().tolist(), fill=0 if level else 255)
    coverage = np.asarray(layer.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)
    return _Cutout((slice(start[1], stop[1]), slice(start[0], stop[0])), coverage)


def _polygon_area(shape: list[np.ndarray]) -> float:
    """Area of the outline by the shoelace formula; a hole counts half, since it may lie partly outside."""
    areas = []
    for outline in shape:
        following = np.concatenate((outline[1:], outline[:1]))
        areas.append(0.5 * abs(outline[:, 0] @ following[:, 1] - outline[:, 1] @ following[:, 0]))
    return areas[0] - 0.5 * sum(areas[1:])


def _stands_out(mask: np.ndarray, pixels: np.ndarray, beneath: np.ndarray) -> bool:
    """Whether an object differs from what it lies on along its border, and in mean colour."""
    difference = np.abs(pixels - beneath).max(0)
    border = mask & ~_shrink(mask, 1)
    if (difference[border] > BORDER_CONTRAST).mean() < 0.7:
        return False
    share = mask / np.float32(mask.sum())
    return bool(np.abs(((pixels - beneath) * share).sum((1, 2))).max() > MEAN_CONTRAST)


def _shrink(coverage: np.ndarray, distance: int) -> np.ndarray:
    """Erode by a diamond of that radius; at the image's border the object is taken to go on."""
    for _ in range(distance):
        padded = np.pad(coverage, 1, mode="edge")
        coverage = np.minimum.reduce(
            (coverage, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        )
    return coverage


def _soften(coverage: np.ndarray, radius: float) -> np.ndarray:
    """Blur a mask, float32 [h, w] in 0..1."""
    layer = Image.fromarray((coverage * 255).astype(np.uint8))
    return np.asarray(layer.filter(ImageFilter.BoxBlur(radius)), dtype=np.float32) / np.float32(255)
