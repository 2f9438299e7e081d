"""Rendered scenes: a pure function of a seed, so that every row's truth is known.

A scene holds 1 to 5 objects on a 3 x 3 grid. Objects never overlap, and no two of one scene share both colour and
shape, so that 'the red star' always names exactly one object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.demo.backgrounds import BACKGROUNDS, background_canvas

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (25, 145, 50),
    "cyan": (40, 205, 215),
    "blue": (30, 70, 215),
    "purple": (125, 40, 165),
    "pink": (250, 130, 185),
    "brown": (120, 72, 35),
    "white": (248, 248, 248),
    "black": (22, 22, 24),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
TEXTURES: tuple[str, ...] = ("solid", "striped", "dotted", "checkered")
SIZES: dict[str, float] = {"small": 0.083, "medium": 0.117, "large": 0.155}
"""Size name -> radius as a share of the image's side."""
POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "center": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
"""Position name -> (row, column) of the 3 x 3 grid."""

_TEXTURE_SHARES = (0.4, 0.2, 0.2, 0.2)
_OBJECT_COUNT_SHARES = (0.22, 0.26, 0.22, 0.16, 0.14)
_FIXED_POINT_BITS = 4  # cv2 draws polygons with this many fractional bits


@dataclass(frozen=True)
class SceneObject:
    """One object; every field is a key of the tables of this module."""

    shape: str
    color: str
    texture: str
    size: str
    position: str

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column) on the 3 x 3 grid."""
        return POSITIONS[self.position]


@dataclass(frozen=True)
class Scene:
    """What is to be seen; `seed` also decides lighting, noise and small shifts of `render`."""

    seed: int
    background: str
    objects: tuple[SceneObject, ...]


def draw_scene(seed: int, count: int | None = None) -> Scene:
    """Draw the scene of a seed (any non-negative integer); `count` (1 to 9) takes the place of the drawn number of objects."""
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    colors = [color for color in COLORS if color not in BACKGROUNDS[background].hides]
    drawn = 1 + int(rng.choice(len(_OBJECT_COUNT_SHARES), p=_OBJECT_COUNT_SHARES))
    count = drawn if count is None else count
    kinds = rng.choice(len(colors) * len(SHAPES), size=count, replace=False)
    cells = rng.choice(len(POSITIONS), size=count, replace=False)
    positions, sizes = list(POSITIONS), list(SIZES)
    objects = []
    for kind, cell in zip(kinds, cells, strict=True):
        color, shape = divmod(int(kind), len(SHAPES))
        objects.append(
            SceneObject(
                shape=SHAPES[shape],
                color=colors[color],
                texture=TEXTURES[int(rng.choice(len(TEXTURES), p=_TEXTURE_SHARES))],
                size=sizes[int(rng.integers(len(sizes)))],
                position=positions[int(cell)],
            )
        )
    return Scene(seed=seed, background=background, objects=tuple(objects))


def render(scene: Scene, size: int = 128) -> NDArray[np.uint8]:
    """Draw a scene as RGB pixels, uint8 [size, size, 3].

    Drawn at 2 to 3 times the size and reduced by area, then lit unevenly and made noisy by the scene's seed.

    Raises:
        ValueError: size is below 16 pixels, where objects cannot be told apart.
    """
    if size < 16:
        raise ValueError(f"render: size {size} is too small to show a scene; use 16 or more")
    rng = np.random.Generator(np.random.PCG64([scene.seed, 1]))
    side = _drawn_side(size)
    canvas = background_canvas(scene.background, side, rng)
    outline = (235, 235, 235) if BACKGROUNDS[scene.background].dark else (35, 35, 35)
    for item in scene.objects:
        _draw_object(canvas, item, outline, rng)
    reduced = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return _light_and_noise(reduced, rng)


def object_boxes(scene: Scene, size: int = 128) -> NDArray[np.float64]:
    """Where `render(scene, size)` draws the objects: [n, 4] of left, top, right, bottom as shares of the side, outline included."""
    rng = np.random.Generator(np.random.PCG64([scene.seed, 1]))
    side = _drawn_side(size)
    background_canvas(scene.background, side, rng)  # takes its draws
    boxes = []
    for item in scene.objects:
        center, radius, turn, _ = _placement(item, side, rng)
        points = np.concatenate(_contours(item.shape, center, radius, turn)) / (1 << _FIXED_POINT_BITS)
        half_line = max(1, round(radius * 0.07)) / 2
        boxes.append([*(points.min(axis=0) - half_line), *(points.max(axis=0) + half_line + 1)])
    return np.clip(np.array(boxes) / side, 0, 1)


def _drawn_side(size: int) -> int:
    return size * (2 if size >= 96 else 3)


def _placement(item: SceneObject, side: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], float, float, list[float]]:
    """Centre and radius in pixels, angle, and shift of the colour's three channels (-1 to 1)."""
    share = SIZES[item.size]
    slack = min(0.03, 1 / 6 - share)  # stay inside the cell: objects never touch
    row, column = item.cell
    shift_x, shift_y, turn, *tint = rng.uniform(-1, 1, size=6)
    center = np.array([(column + 0.5) / 3 + slack * shift_x, (row + 0.5) / 3 + slack * shift_y]) * side
    return center, share * side, 0.14 * turn, tint


def _draw_object(
    canvas: NDArray[np.uint8], item: SceneObject, outline: tuple[int, int, int], rng: np.random.Generator
) -> None:
    center, radius, turn, tint = _placement(item, canvas.shape[0], rng)
    contours = _contours(item.shape, center, radius, turn)
    color = tuple(int(np.clip(c + 10 * t, 0, 255)) for c, t in zip(COLORS[item.color], tint, strict=True))
    _fill(canvas, contours, color)
    if item.texture != "solid":
        _paint_texture(canvas, contours, item.texture, _texture_ink(color), center, radius)
    cv2.polylines(canvas, contours, True, outline, max(1, round(radius * 0.07)), cv2.LINE_8, shift=_FIXED_POINT_BITS)


def _fill(canvas: NDArray[np.uint8], contours: list[NDArray[np.int32]], color: tuple[int, ...]) -> None:
    # fillPoly uses the even-odd rule: a second contour inside the first (the ring's) is a hole
    cv2.fillPoly(canvas, contours, color, cv2.LINE_8, shift=_FIXED_POINT_BITS)


def _paint_texture(
    canvas: NDArray[np.uint8],
    contours: list[NDArray[np.int32]],
    texture: str,
    ink: tuple[int, int, int],
    center: NDArray[np.float64],
    radius: float,
) -> None:
    half = math.ceil(radius) + 1
    x, y = (int(v) for v in np.round(center))
    left, top = max(0, x - half), max(0, y - half)
    window = canvas[top : y + half, left : x + half]
    mask: NDArray[np.uint8] = np.zeros(window.shape[:2], dtype=np.uint8)
    offset = np.array([left, top]) << _FIXED_POINT_BITS
    _fill(mask, [(contour - offset).astype(np.int32) for contour in contours], (1,))
    pattern = _pattern(texture, 2 * half)[top - y + half :, left - x + half :]
    window[(mask & pattern[: mask.shape[0], : mask.shape[1]]).astype(bool)] = ink


def _texture_ink(color: tuple[int, ...]) -> tuple[int, int, int]:
    """A clearly lighter or darker shade of the same hue, so that the object keeps its colour's name."""
    luma = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    toward, amount = (255, 0.68) if luma < 110 else (0, 0.58)
    red, green, blue = (round(c + (toward - c) * amount) for c in color)
    return red, green, blue


@lru_cache(maxsize=256)
def _pattern(texture: str, side: int) -> NDArray[np.uint8]:
    """Where the second shade goes: 0 or 1, uint8 [side, side]; periods follow the object's size."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    if texture == "striped":
        inked = ((x + y) * 3.6) % 1.0 < 0.42
    elif texture == "checkered":
        inked = (np.floor(x * 5) + np.floor(y * 5)) % 2 == 0
    elif texture == "dotted":
        inked = ((x * 3.6 + 0.5) % 1 - 0.5) ** 2 + ((y * 3.6 + 0.5) % 1 - 0.5) ** 2 < 0.30**2
    else:
        raise KeyError(f"texture {texture!r} has no pattern; known: {', '.join(TEXTURES)}")
    return inked.astype(np.uint8)


def _contours(shape: str, center: NDArray[np.float64], radius: float, angle: float) -> list[NDArray[np.int32]]:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scale = 1 << _FIXED_POINT_BITS
    return [np.round((center + radius * points @ turn.T) * scale).astype(np.int32) for points in _unit_contours(shape)]


@cache
def _unit_contours(shape: str) -> tuple[NDArray[np.float64], ...]:
    """Outlines within the unit circle, x to the right and y down."""
    around = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    circle = np.stack([np.cos(around), np.sin(around)], axis=1)
    if shape == "circle":
        return (circle * 0.93,)
    if shape == "ring":
        return (circle * 0.97, circle * 0.48)
    if shape == "heart":
        x = 16 * np.sin(around) ** 3
        y = 13 * np.cos(around) - 5 * np.cos(2 * around) - 2 * np.cos(3 * around) - np.cos(4 * around)
        return (np.stack([x, -(y + 2.5)], axis=1) / 17.0,)
    if shape == "star":
        spikes = np.arange(10) * math.pi / 5 - math.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)[:, None]
        return (np.stack([np.cos(spikes), np.sin(spikes)], axis=1) * reach,)
    corners = {
        "square": [(-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)],
        "triangle": [(0, -0.95), (0.92, 0.72), (-0.92, 0.72)],
        "diamond": [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)],
        "cross": [
            (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
            (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
        ],
    }  # fmt: skip
    return (np.array(corners[shape], dtype=np.float64),)


def _light_and_noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    side = image.shape[0]
    slope_x, slope_y, level, *tint = rng.uniform(-1, 1, size=6)
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = np.float32(slope_x) * ramp[None] + np.float32(slope_y) * ramp[:, None]
    light = np.float32(1 + 0.06 * level) + 0.12 * slope
    balance = (1 + 0.03 * np.array(tint)).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 5.0))
    lit = image * light[..., None] * balance + noise
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)
