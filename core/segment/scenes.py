"""Generated scenes with known answers: coloured shapes over a textured background, and prompts that name them.

A scene is drawn as a list of objects, and rendered at any size afterwards. Colours of one name vary, objects carry
gradients, stripes and speckle, overlap one another, and lie over a greyish background with strokes, shading and noise
that never has the colour of an object.
"""

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.shapes import OUTLINES

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
# Hue in degrees, saturation and value in [0, 1], each as (low, high).
COLOURS = {
    "red": ((-7, 6), (0.8, 1.0), (0.7, 0.95)),
    "orange": ((24, 34), (0.85, 1.0), (0.9, 1.0)),
    "yellow": ((51, 60), (0.75, 1.0), (0.88, 1.0)),
    "green": ((100, 145), (0.6, 1.0), (0.45, 0.8)),
    "blue": ((208, 236), (0.7, 1.0), (0.6, 0.95)),
    "purple": ((270, 292), (0.6, 0.9), (0.5, 0.8)),
    "white": ((0, 360), (0.0, 0.04), (0.94, 1.0)),
    "black": ((0, 360), (0.0, 0.2), (0.02, 0.09)),
}
# Radius as a share of the picture's shorter side; what lies between the two has no word.
SIZES = {"small": (0.07, 0.105), "medium": (0.12, 0.155), "large": (0.175, 0.25)}
SIZE_WORDS = ("small", "large")
TEXTURES = ("plain", "gradient", "stripes", "speckle")

# Two objects may overlap while their centres are this share of the sum of their radii apart; of one colour, never.
_CLOSEST = 0.72
_APART = 1.12
_WORDS_OF_NO_OBJECT = (
    *("dog", "cat", "car", "tree", "house", "person", "chair", "table", "bird", "boat", "flower", "cloud", "apple"),
    *("bottle", "shoe", "window", "phone", "lamp", "fish", "horse", "train", "cup", "guitar", "zebra", "mountain"),
    *("diamond", "arrow", "oval", "pentagon", "spiral", "pink", "brown", "grey", "cyan", "turquoise"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One object. Places and radius are in shares of the picture's shorter side; colours are RGB in [0, 1]."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]
    texture: str
    texture_strength: float
    texture_angle: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Objects from back to front, and the seed that everything else follows from."""

    seed: int
    aspect: float
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A prompt with its meaning. None leaves an attribute open; `noise` is a word that names nothing here."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    noise: str | None = None

    @property
    def text(self) -> str:
        """The prompt, such as `large green ring` or `blue object`."""
        words = (self.size, self.colour, self.noise or self.shape or "object")
        return " ".join(word for word in words if word)

    def matches(self, thing: SceneObject) -> bool:
        """Whether the prompt names this object."""
        return self.noise is None and all(
            wanted is None or wanted == has
            for wanted, has in ((self.shape, thing.shape), (self.colour, thing.colour), (self.size, thing.size))
        )


def generate_scene(seed: int, *, aspect: float = 1.0) -> Scene:
    """A scene of one to six objects; the same seed gives the same scene. `aspect`: width over height."""
    rng = np.random.default_rng([seed, 1])
    width, height = max(aspect, 1.0), max(1 / aspect, 1.0)
    objects: list[SceneObject] = []
    wanted = int(rng.integers(1, 7))
    for _ in range(40 * wanted):
        if len(objects) == wanted:
            break
        candidate = _random_object(rng, width, height)
        if all(_may_stand_beside(candidate, other) for other in objects):
            objects.append(candidate)
    return Scene(seed=seed, aspect=aspect, objects=tuple(objects))


def _random_object(rng: np.random.Generator, width: float, height: float) -> SceneObject:
    colour = str(rng.choice(list(COLOURS)))
    size = str(rng.choice(list(SIZES), p=(0.35, 0.3, 0.35)))
    radius = float(rng.uniform(*SIZES[size]))
    hue, saturation, value = (float(rng.uniform(*bounds)) for bounds in COLOURS[colour])
    return SceneObject(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        size=size,
        x=float(rng.uniform(radius, width - radius)),
        y=float(rng.uniform(radius, height - radius)),
        radius=radius,
        angle=float(rng.uniform(-0.5, 0.5)),
        rgb=colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value),
        texture=str(rng.choice(TEXTURES)),
        texture_strength=float(rng.uniform(0.1, 0.25)),
        texture_angle=float(rng.uniform(0, np.pi)),
    )


def _may_stand_beside(one: SceneObject, other: SceneObject) -> bool:
    distance = np.hypot(one.x - other.x, one.y - other.y)
    nearest = _APART if one.colour == other.colour else _CLOSEST
    return bool(distance >= nearest * (one.radius + other.radius))


def render(scene: Scene, short_side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        image: uint8 `[height, width, 3]`, RGB.
        object_map: uint8 `[height, width]`, the index of the visible object plus one, 0 for the background.
    """
    height = round(short_side * max(1 / scene.aspect, 1.0))
    width = round(short_side * max(scene.aspect, 1.0))
    rng = np.random.default_rng([scene.seed, 2])
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / short_side, (y + 0.5) / short_side
    canvas = _background(x, y, rng)
    object_map = np.zeros((height, width), np.uint8)
    for index, thing in enumerate(scene.objects):
        reach = 1.15 * thing.radius
        rows = slice(max(0, int((thing.y - reach) * short_side)), int((thing.y + reach) * short_side) + 2)
        columns = slice(max(0, int((thing.x - reach) * short_side)), int((thing.x + reach) * short_side) + 2)
        dx, dy = x[rows, columns] - thing.x, y[rows, columns] - thing.y
        cos, sin = np.cos(thing.angle), np.sin(thing.angle)
        signed = OUTLINES[thing.shape]((dx * cos + dy * sin) / thing.radius, (dy * cos - dx * sin) / thing.radius)
        slope_y, slope_x = np.gradient(signed)
        coverage = np.clip(0.5 - signed / np.maximum(np.hypot(slope_x, slope_y), 1e-6), 0, 1)
        surface = _surface(thing, dx, dy, rng)
        canvas[rows, columns] += coverage[..., None] * (surface - canvas[rows, columns])
        object_map[rows, columns][coverage > 0.5] = index + 1
    canvas += rng.normal(0, 1, canvas.shape).astype(np.float32) * rng.uniform(0, 0.05)
    return np.asarray(np.clip(canvas, 0, 1) * 255 + 0.5, np.uint8), object_map


def _background(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    base = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.18), rng.uniform(0.38, 0.72))
    shade = rng.uniform(-0.12, 0.12) * (x - 0.5) + rng.uniform(-0.12, 0.12) * (y - 0.5)
    for _ in range(int(rng.integers(0, 4))):  # low waves: clouds, or the weave of a cloth
        fx, fy = rng.uniform(-25, 25, 2)
        shade = shade + rng.uniform(0, 0.035) * np.sin(fx * x + fy * y + rng.uniform(0, 6.3))
    for _ in range(int(rng.integers(0, 4))):  # thin strokes
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
        away = np.abs((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) - offset)
        shade = shade + rng.uniform(-0.14, 0.14) * np.clip(2 - away / 0.004, 0, 1)
    return (np.asarray(base, np.float32) + shade[..., None]).astype(np.float32)


def _surface(thing: SceneObject, dx: np.ndarray, dy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    along = (dx * np.cos(thing.texture_angle) + dy * np.sin(thing.texture_angle)) / thing.radius
    if thing.texture == "gradient":
        pattern = (along + 1) / 2
    elif thing.texture == "stripes":
        pattern = (np.sin(9 * along) > 0).astype(np.float32)
    elif thing.texture == "speckle":
        pattern = rng.uniform(0, 1, dx.shape)
    else:
        pattern = np.zeros_like(along)
    strength = thing.texture_strength * pattern[..., None]
    rgb = np.asarray(thing.rgb, np.float32)
    if thing.colour == "black":
        return rgb + 0.4 * strength
    return rgb * (1 - (0.4 if thing.colour == "white" else 1.0) * strength)


def query_masks(queries: Sequence[Query], scene: Scene, object_map: np.ndarray) -> np.ndarray:
    """The true answer to each query: bool `[num_queries, height, width]`, all visible parts of what it names."""
    named = np.zeros((len(queries), len(scene.objects) + 1), bool)
    for row, query in enumerate(queries):
        named[row, 1:] = [query.matches(thing) for thing in scene.objects]
    return named[:, object_map]


def instance_masks(query: Query, scene: Scene, object_map: np.ndarray) -> list[np.ndarray]:
    """The visible part of each object that the query names, bool `[height, width]` each."""
    return [object_map == i + 1 for i, thing in enumerate(scene.objects) if query.matches(thing)]


def draw_queries(
    scene: Scene, rng: np.random.Generator, *, num_present: int, num_absent: int, use_sizes: bool = True
) -> list[Query]:
    """Distinct prompts for a scene: first those that name something in it, then those that name nothing.

    Half of the absent ones are near misses (an object's own words with one changed), the rest other shapes and colours,
    or words of no object at all. May return fewer where the scene has not as many.
    """
    present: dict[Query, None] = {}
    for _ in range(8 * num_present):
        if len(present) < num_present:
            present[_describe(scene.objects[rng.integers(len(scene.objects))], rng, use_sizes)] = None
    absent: dict[Query, None] = {}
    for query in _misses(scene, rng, use_sizes):
        if len(absent) >= num_absent:
            break
        if not any(query.matches(thing) for thing in scene.objects):
            absent[query] = None
    return [*present, *absent]


def _describe(thing: SceneObject, rng: np.random.Generator, use_sizes: bool) -> Query:
    form = rng.choice(4, p=(0.4, 0.25, 0.15, 0.2))
    has_word = use_sizes and thing.size in SIZE_WORDS
    return Query(
        shape=None if form == 2 else thing.shape,
        colour=None if form == 1 else thing.colour,
        size=thing.size if has_word and (form == 3 or rng.uniform() < 0.15) else None,
    )


def _misses(scene: Scene, rng: np.random.Generator, use_sizes: bool) -> Iterator[Query]:
    for _ in range(200):
        thing = scene.objects[rng.integers(len(scene.objects))]
        query = _describe(thing, rng, use_sizes)
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
        kind = rng.uniform()
        if kind < 0.25 and query.shape:
            yield Query(shape=shape, colour=query.colour, size=query.size)
        elif kind < 0.5 and query.colour:
            yield Query(shape=query.shape, colour=colour, size=query.size)
        elif kind < 0.58 and query.size:
            yield Query(shape=query.shape, colour=query.colour, size="small" if query.size == "large" else "large")
        elif kind < 0.85:
            yield Query(shape=shape, colour=colour if rng.uniform() < 0.6 else None)
        else:
            noise = str(rng.choice(_WORDS_OF_NO_OBJECT))
            yield Query(noise=noise, colour=colour if rng.uniform() < 0.3 else None)


def vocabulary() -> tuple[str, ...]:
    """Every word that `Query.text` can hold."""
    return (*SHAPES, *COLOURS, *SIZE_WORDS, "object", *_WORDS_OF_NO_OBJECT)
