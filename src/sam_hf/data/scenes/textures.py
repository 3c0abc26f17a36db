"""Surface patterns and colours of a synthetic scene.

A pattern is a field, float32 [H, W] in 0..1, that a surface uses to blend its two colours. Objects and
backgrounds draw from the same patterns and hues; what is lighter than its scene is an object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

__all__ = ["PATTERNS", "Palette", "Surface", "clouds", "random_surface"]

Pattern = Callable[[np.random.Generator, int, int], np.ndarray]


class Palette:
    """Colours that go together: hues around one, within ranges of saturation and brightness.

    One scene in four is grey; others range from one hue to all of them. Objects are lighter than the background: a
    model can learn that in minutes, and how the clicked object differs from its neighbours next.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.grey = rng.random() < 0.25
        self.hue = rng.uniform()
        self.spread = rng.choice([0.03, 0.15, 0.5])
        self.saturation = np.sort(rng.uniform(0, 1, 2))
        middle = rng.uniform(0.3, 0.65)
        self.background = max(0.0, middle - 0.4), middle - 0.1
        self.objects = middle + 0.1, min(1.0, middle + 0.4)

    def colour(self, rng: np.random.Generator, is_object: bool) -> np.ndarray:
        """One RGB colour, float32 [3] in 0..1."""
        value = rng.uniform(*(self.objects if is_object else self.background))
        if self.grey:
            return np.full(3, value, dtype=np.float32)
        hue = self.hue + rng.uniform(-self.spread, self.spread)
        saturation = rng.uniform(*self.saturation)
        # HSV to RGB in its closed form.
        k = (np.array([5, 3, 1]) + 6 * hue) % 6
        return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


@dataclass(frozen=True)
class Surface:
    """A pattern in two colours, float32 RGB [3] each in 0..1."""

    pattern: Pattern
    first: np.ndarray
    second: np.ndarray

    def render(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """A piece of this surface, float32 [3, height, width]; the generator lays the pattern anew."""
        step = (self.second - self.first)[:, None, None]
        return self.pattern(rng, height, width) * step + self.first[:, None, None]

    def varied(self, rng: np.random.Generator) -> "Surface":
        """The same surface, somewhat brighter or darker."""
        shift = np.float32(rng.uniform(-0.2, 0.2))
        return Surface(self.pattern, self.first + shift, self.second + shift)


def random_surface(rng: np.random.Generator, palette: Palette, is_object: bool) -> Surface:
    """A random pattern in two colours, from faint to half of their full contrast."""
    first = palette.colour(rng, is_object)
    second = first + (palette.colour(rng, is_object) - first) * np.float32(rng.choice([0.1, 0.25, 0.5]))
    return Surface(PATTERNS[rng.integers(len(PATTERNS))], first, second)


def clouds(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise with features of about `cell` pixels, stretched to 0..1."""
    rows, columns = int(height / cell) + 3, int(width / cell) + 3
    small = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    # The window ends inside the outer cells: the interpolation there has neighbours on both sides.
    box = (1, 1, min(1 + width / cell, columns), min(1 + height / cell, rows))
    field = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC, box=box))
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-3)


def _grid(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in pixels, [H, W] each, turned by a random angle."""
    angle = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _period(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(4), np.log(40))))


def _wave(rng: np.random.Generator, position: np.ndarray, period: float) -> np.ndarray:
    """A wave between -1 and 1, from a sine to hard bars."""
    wave = np.sin(position * np.float32(2 * np.pi / period) + np.float32(rng.uniform(0, 6.3)))
    return np.clip(wave * np.float32(rng.choice([1.0, 2.0, 8.0])), -1, 1)


def _flat(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.zeros((height, width), dtype=np.float32)


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, _ = _grid(rng, height, width)
    return (x - x.min()) / max(float(np.ptp(x)), 1.0)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _grid(rng, height, width)
    if rng.random() < 0.5:
        x = x + _period(rng) * 0.2 * np.sin(y / np.float32(_period(rng)))
    return 0.5 + 0.5 * _wave(rng, x, _period(rng))


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _grid(rng, height, width)
    period = _period(rng)
    return 0.5 + 0.5 * _wave(rng, x, period) * _wave(rng, y, period * rng.uniform(0.6, 1.6))


def _dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _grid(rng, height, width)
    period = _period(rng)
    bumps = np.sin(x * np.float32(2 * np.pi / period)) + np.sin(y * np.float32(2 * np.pi / period))
    return np.clip((bumps - np.float32(rng.uniform(0.2, 1.0))) * 4, 0, 1)


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _grid(rng, height, width)
    period = _period(rng) + 4
    row = np.floor(y / period)
    joint_y = y - row * period < 1.5
    joint_x = (x + 0.5 * period * (row % 2) * 2) % (2 * period) < 1.5
    return (joint_x | joint_y).astype(np.float32)


def _rings(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = _grid(rng, height, width)
    x, y = x - rng.uniform(0, width), y - rng.uniform(-height, height) * 0.5
    return 0.5 + 0.5 * _wave(rng, np.sqrt(x * x + np.float32(rng.uniform(0.2, 1)) * y * y), _period(rng))


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cell = _period(rng)
    return 0.65 * clouds(rng, height, width, cell) + 0.35 * clouds(rng, height, width, max(cell / 3, 2))


def _patches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Camouflage: smooth noise cut at a level."""
    field = clouds(rng, height, width, _period(rng))
    return np.clip((field - np.float32(rng.uniform(0.35, 0.65))) * 10, 0, 1)


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return ndimage.uniform_filter(rng.random((height, width), dtype=np.float32), int(rng.integers(1, 4)))


def _wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, _ = _grid(rng, height, width)
    bend = clouds(rng, height, width, 24 + _period(rng))
    return 0.5 + 0.5 * _wave(rng, x + bend * np.float32(rng.uniform(10, 50)), _period(rng))


PATTERNS: tuple[Pattern, ...] = (
    _flat,
    _flat,
    _flat,
    _gradient,
    _stripes,
    _checks,
    _dots,
    _bricks,
    _rings,
    _clouds,
    _clouds,
    _patches,
    _grain,
    _wood,
)
