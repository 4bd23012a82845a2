"""`shapes`: a generated 10-class set of 32x32 pictures, for demonstrations and tests that must not download anything.

Every picture holds one target shape, of random size, place, tilt and colours, over a shaded and noisy background
with two thin strokes as clutter. Shapes are small (a radius of 6 to 12 pixels) and some differ only in a detail
(circle and hexagon, heart and triangle, star and cross), so a coarse patch grid loses what tells them apart.
"""

from collections.abc import Callable

import numpy as np

IMAGE_SIZE = 32

_Array = np.ndarray


def _circle(x: _Array, y: _Array) -> _Array:
    return np.hypot(x, y) - 0.9


def _square(x: _Array, y: _Array) -> _Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.75


def _polygon(sides: int, radius: float) -> Callable[[_Array, _Array], _Array]:
    angles = 2 * np.pi * np.arange(sides) / sides
    inner = radius * np.cos(np.pi / sides)

    def distance(x: _Array, y: _Array) -> _Array:
        faces = [x * np.cos(a) + y * np.sin(a) - inner for a in angles]
        return np.max(faces, axis=0)

    return distance


def _star(x: _Array, y: _Array) -> _Array:
    # The boundary radius falls linearly from a tip to the notch beside it.
    angle = np.arctan2(y, x) % (2 * np.pi / 5)
    to_tip = np.abs(angle - np.pi / 5) / (np.pi / 5)
    return np.hypot(x, y) - (0.42 + 0.62 * to_tip**1.5)


def _ring(x: _Array, y: _Array) -> _Array:
    return np.abs(np.hypot(x, y) - 0.72) - 0.2


def _cross(x: _Array, y: _Array) -> _Array:
    across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return np.maximum(across - 0.27, along - 0.9)


def _heart(x: _Array, y: _Array) -> _Array:
    x, y = 1.15 * x, 0.1 - 1.15 * y  # rows grow downwards, and so does its tip
    return (x**2 + y**2 - 0.6) ** 3 - x**2 * y**3


def _crescent(x: _Array, y: _Array) -> _Array:
    return np.maximum(np.hypot(x, y) - 0.9, 0.72 - np.hypot(x - 0.45, y))


def _bars(x: _Array, y: _Array) -> _Array:
    return np.maximum(np.abs(np.abs(x) - 0.5) - 0.22, np.abs(y) - 0.8)


OUTLINES: dict[str, Callable[[_Array, _Array], _Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon(3, 1.05),
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "hexagon": _polygon(6, 0.95),
    "bars": _bars,
}
"""Signed functions of (x, y) for each shape, negative inside, each about one unit in radius."""

CLASS_NAMES = tuple(OUTLINES)


def generate(num_images: int, seed: int) -> tuple[_Array, _Array]:
    """Draw `num_images` pictures with balanced classes in random order; the same seed gives the same bytes.

    Returns:
        images: uint8 `[N, 32, 32, 3]`.
        labels: int64 `[N]`, indices into `CLASS_NAMES`.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(num_images) % len(CLASS_NAMES)).astype(np.int64)
    images = np.empty((num_images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for start in range(0, num_images, 1024):
        part = slice(start, start + 1024)
        images[part] = _draw(labels[part], rng)
    return images, labels


def _draw(labels: _Array, rng: np.random.Generator) -> _Array:
    n, size = len(labels), IMAGE_SIZE
    pixel = np.arange(size) + 0.5
    column, row = (axis[None] for axis in np.meshgrid(pixel, pixel))

    def per_image(low: float, high: float) -> _Array:
        return rng.uniform(low, high, (n, 1, 1))

    radius = per_image(6, 12)
    centre_x, centre_y = (size / 2 + per_image(-1, 1) * np.minimum(4, size / 2 - radius) for _ in range(2))
    turn = per_image(-0.4, 0.4)
    dx, dy = (column - centre_x) / radius, (row - centre_y) / radius
    x, y = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)

    coverage = np.empty((n, size, size))
    for label, inside in enumerate(OUTLINES.values()):
        chosen = labels == label
        if chosen.any():
            coverage[chosen] = _antialias(inside(x[chosen], y[chosen]))

    foreground, background = _contrasting_colours(n, rng)
    shade = per_image(-0.25, 0.25) * (column / size - 0.5) + per_image(-0.25, 0.25) * (row / size - 0.5)
    canvas = background[:, None, None, :] + shade[..., None]
    for _ in range(2):
        canvas = _stroke(canvas, column, row, rng)
    canvas = canvas + coverage[..., None] * (foreground[:, None, None, :] - canvas)
    canvas = canvas + rng.normal(0, 1, canvas.shape) * rng.uniform(0.02, 0.08, (n, 1, 1, 1))
    return np.asarray(np.clip(canvas, 0, 1) * 255 + 0.5, np.uint8)


def _antialias(signed: _Array) -> _Array:
    """Coverage in [0, 1], with an edge one pixel wide whatever the function's slope."""
    gy, gx = np.gradient(signed, axis=(1, 2))
    return np.clip(0.5 - signed / np.maximum(np.hypot(gx, gy), 1e-6), 0, 1)


def _contrasting_colours(n: int, rng: np.random.Generator) -> tuple[_Array, _Array]:
    background = rng.uniform(0.1, 0.9, (n, 3))
    step = rng.normal(size=(n, 3))
    step *= rng.uniform(0.35, 0.8, (n, 1)) / np.linalg.norm(step, axis=1, keepdims=True)
    # A step that leaves the colour cube is taken the other way, so that clipping does not eat the contrast.
    step = np.where((background + step > 1) | (background + step < 0), -step, step)
    return np.clip(background + step, 0, 1), background


def _stroke(canvas: _Array, column: _Array, row: _Array, rng: np.random.Generator) -> _Array:
    n, size = len(canvas), IMAGE_SIZE
    angle = rng.uniform(0, np.pi, (n, 1, 1))
    offset = rng.uniform(-size / 2, size / 2, (n, 1, 1))
    away = np.abs((column - size / 2) * np.cos(angle) + (row - size / 2) * np.sin(angle) - offset)
    colour = rng.uniform(0, 1, (n, 1, 1, 3))
    cover = np.clip(1.2 - away, 0, 1) * rng.uniform(0.2, 0.7, (n, 1, 1))
    return canvas + cover[..., None] * (colour - canvas)
