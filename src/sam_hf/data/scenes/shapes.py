"""Outlines of the objects of a synthetic scene.

An outline is a polygon, float [K, 2], of (x, y) around the origin at any size: the scene turns, stretches and
scales it to the area it wants. A shape is one outline, or two where the second is cut out of the first.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["SHAPES", "random_shape", "turned"]

NUM_VERTICES = 96


def random_shape(rng: np.random.Generator) -> list[np.ndarray]:
    """One random shape, stretched and turned, as outlines [K, 2]; from the second on they are holes."""
    stretch = np.array([1.0, rng.uniform(0.45, 1.0)])
    return turned(rng, [outline * stretch for outline in SHAPES[rng.integers(len(SHAPES))](rng)])


def turned(rng: np.random.Generator, shape: list[np.ndarray]) -> list[np.ndarray]:
    """The same shape at another angle."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [outline @ turn for outline in shape]


def _angles(num: int = NUM_VERTICES) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, num, endpoint=False)


def _polar(radius: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return np.stack((radius * np.cos(angles), radius * np.sin(angles)), axis=1)


def _ellipse(rng: np.random.Generator) -> list[np.ndarray]:
    return [_polar(np.ones(NUM_VERTICES), _angles())]


def _rounded_rectangle(rng: np.random.Generator) -> list[np.ndarray]:
    """A superellipse: power 2 is a circle, 20 almost a sharp rectangle."""
    cos, sin = np.cos(_angles()), np.sin(_angles())
    power = 2 / rng.choice([3.0, 5.0, 9.0, 20.0])
    return [np.stack((np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power), axis=1)]


def _polygon(rng: np.random.Generator) -> list[np.ndarray]:
    num = int(rng.integers(3, 8))
    angles = (np.arange(num) + rng.uniform(-0.35, 0.35, num)) * 2 * np.pi / num
    return [_polar(rng.uniform(0.65, 1.0, num), angles)]


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    num = 2 * int(rng.integers(4, 10))
    radius = np.ones(num)
    radius[1::2] = rng.uniform(0.4, 0.75)
    return [_polar(radius, _angles(num))]


def _flower(rng: np.random.Generator) -> list[np.ndarray]:
    lobes = int(rng.integers(3, 9))
    depth = rng.uniform(0.1, 0.35)
    # Powers of a cosine range from soft petals to the teeth of a gear.
    wave = np.cos(lobes * _angles())
    return [_polar(1 + depth * np.sign(wave) * np.abs(wave) ** rng.choice([0.2, 1.0]), _angles())]


def _blob(rng: np.random.Generator) -> list[np.ndarray]:
    """Low-frequency noise on the radius."""
    orders = np.arange(1, 7)
    amplitude = rng.normal(0, 0.45, 6) / orders
    phase = rng.uniform(0, 2 * np.pi, 6)
    wobble = (amplitude[:, None] * np.cos(orders[:, None] * _angles() + phase[:, None])).sum(0)
    return [_polar(np.exp(0.8 * wobble), _angles())]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    outer = (_ellipse, _rounded_rectangle, _blob)[rng.integers(3)](rng)[0]
    return [outer, outer * rng.uniform(0.4, 0.7) + rng.uniform(-0.1, 0.1, 2)]


def _crescent(rng: np.random.Generator) -> list[np.ndarray]:
    circle = _ellipse(rng)[0]
    return [circle, circle * rng.uniform(0.7, 0.95) + np.array([rng.uniform(0.35, 0.6), 0])]


def _leaf(rng: np.random.Generator) -> list[np.ndarray]:
    x = np.linspace(-1, 1, NUM_VERTICES // 2)
    bulge = rng.uniform(0.3, 0.6) * (1 - x**2) ** rng.uniform(0.6, 1.5)
    bend = rng.uniform(-0.4, 0.4) * x**2
    upper = np.stack((x, bend + bulge), axis=1)
    lower = np.stack((x, bend - bulge * rng.uniform(0.2, 1.0)), axis=1)
    return [np.concatenate((upper, lower[::-1]))]


def _stroke(rng: np.random.Generator) -> list[np.ndarray]:
    """A thick wavy line: handwriting, worms, cables. Its heading stays within 80 degrees: no crossings."""
    along = np.linspace(0, 1, NUM_VERTICES // 2)
    waves = rng.normal(size=3)[:, None] * np.sin(
        np.pi * np.arange(1, 4)[:, None] * along + rng.uniform(0, 6.3, (3, 1))
    )
    heading = rng.uniform(0.3, 1.4) * np.tanh(waves.sum(0))
    direction = np.stack((np.cos(heading), np.sin(heading)), axis=1)
    path = np.cumsum(direction, axis=0) / len(along)
    width = rng.uniform(0.03, 0.08) * (1 + 0.4 * np.sin(rng.uniform(0, 12) * along))
    side = direction[:, ::-1] * [-1, 1] * width[:, None]
    outline = np.concatenate((path + side, (path - side)[::-1]))
    return [outline - outline.mean(0)]


def _letter(rng: np.random.Generator) -> list[np.ndarray]:
    """Bars at right angles: L, T, U, H, E, F and the like, from one or two sides of a stem."""
    thick = rng.uniform(0.25, 0.4)
    heights = np.array([1 - thick, 0, -1 + thick])
    right = rng.random(3) < 0.6
    left = rng.random(3) < 0.3
    right[rng.integers(3)] = True
    outline = [(-thick, -1.0), (thick, -1.0)]
    for y, used in zip(heights[::-1], right[::-1], strict=True):
        if used:
            outline += [(thick, y - thick), (1.0, y - thick), (1.0, y + thick), (thick, y + thick)]
    outline += [(thick, 1.0), (-thick, 1.0)]
    for y, used in zip(heights, left, strict=True):
        if used:
            outline += [(-thick, y + thick), (-1.0, y + thick), (-1.0, y - thick), (-thick, y - thick)]
    return [np.array(outline)]


SHAPES: tuple[Callable[[np.random.Generator], list[np.ndarray]], ...] = (
    _ellipse,
    _rounded_rectangle,
    _polygon,
    _star,
    _flower,
    _blob,
    _blob,
    _ring,
    _crescent,
    _leaf,
    _stroke,
    _letter,
)
