"""Backgrounds of the rendered scenes, painted once per size and varied by a generator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Background:
    """`hides` are object colours that would be hard to see on it; `dark` asks for a light outline."""

    hides: tuple[str, ...]
    dark: bool = False


BACKGROUNDS: dict[str, Background] = {
    "white": Background(hides=("white",)),
    "gray": Background(hides=()),
    "light blue": Background(hides=("cyan",)),
    "sunset": Background(hides=("orange", "purple", "pink")),
    "meadow": Background(hides=("green", "cyan")),
    "night": Background(hides=("black",), dark=True),
    "sand": Background(hides=("brown", "yellow")),
    "grid paper": Background(hides=("white",)),
    "wood": Background(hides=("brown", "orange")),
    "sea": Background(hides=("blue", "cyan")),
}


def background_canvas(name: str, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A fresh RGB canvas uint8 [side, side, 3]; textured ones are shifted sideways by the generator."""
    shift = int(rng.integers(side))
    return np.ascontiguousarray(np.roll(_painted(name, side), shift, axis=1))


@lru_cache(maxsize=64)
def _painted(name: str, side: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    image = _PAINTERS[name](x, y)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _plain(red: int, green: int, blue: int, like: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.broadcast_to(np.array([red, green, blue], dtype=np.float32), (*like.shape, 3)).copy()


def _blend(top: tuple[int, int, int], bottom: tuple[int, int, int], t: NDArray[np.float32]) -> NDArray[np.float32]:
    first, last = np.array(top, dtype=np.float32), np.array(bottom, dtype=np.float32)
    return first + (last - first) * t[..., None]


def _grain(like: NDArray[np.float32], cells: int, strength: float) -> NDArray[np.float32]:
    """Fixed blocky noise: the same at each call, scaled to the canvas."""
    field = np.random.Generator(np.random.PCG64(cells)).normal(0, strength, (cells, cells)).astype(np.float32)
    index = np.arange(like.shape[0]) * cells // like.shape[0]
    return field[np.ix_(index, index)][..., None]


def _sunset(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    upper = _blend((120, 60, 140), (240, 130, 110), np.clip(y * 2, 0, 1))
    lower = _blend((240, 130, 110), (255, 205, 120), np.clip(y * 2 - 1, 0, 1))
    return np.where(y[..., None] < 0.5, upper, lower)


def _meadow(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    sky = _blend((130, 190, 240), (205, 230, 250), np.clip(y / 0.55, 0, 1))
    grass = _blend((130, 195, 95), (85, 160, 65), np.clip((y - 0.55) / 0.45, 0, 1)) + _grain(x, 64, 8)
    return np.where(y[..., None] < 0.55, sky, grass)


def _night(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    image = _blend((8, 10, 32), (30, 32, 74), y)
    stars = (np.random.Generator(np.random.PCG64(7)).random((40, 2)) * x.shape[0]).astype(int)
    for row, column in stars:
        image[row : row + 2, column : column + 2] = (225, 225, 205)
    return image


def _sand(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    dunes = 10 * np.sin(2 * np.pi * (y * 5 + 0.25 * np.sin(2 * np.pi * x)))
    return _plain(226, 200, 150, x) + dunes[..., None] + _grain(x, 96, 9)


def _grid_paper(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    line = ((x * 12) % 1 < 0.12) | ((y * 12) % 1 < 0.12)
    return np.where(line[..., None], _plain(150, 185, 225, x), _plain(250, 250, 244, x))


def _wood(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    veins = 12 * np.sin(2 * np.pi * (y * 21 + 0.6 * np.sin(2 * np.pi * x * 2)))
    image = _plain(178, 124, 76, x) + veins[..., None]
    image[(y * 4) % 1 < 0.06] = (96, 60, 34)
    return image


def _sea(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    crest = (y * 7 + 0.22 * np.sin(2 * np.pi * x * 4)) % 1 < 0.16
    return np.where(crest[..., None], _plain(190, 225, 245, x), _blend((70, 150, 205), (35, 95, 165), y))


_PAINTERS = {
    "white": lambda x, y: _plain(247, 247, 247, x),
    "gray": lambda x, y: _plain(142, 142, 142, x),
    "light blue": lambda x, y: _plain(165, 208, 242, x),
    "sunset": _sunset,
    "meadow": _meadow,
    "night": _night,
    "sand": _sand,
    "grid paper": _grid_paper,
    "wood": _wood,
    "sea": _sea,
}
