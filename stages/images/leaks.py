"""Whether one picture was made of another by a crop, a border, a line of text, another size or quality: hashes of windows, and a finer look.

The evaluation side is small, so that it carries the work: each of its pictures is hashed in many windows (`windows`), and a small grey copy is kept. A row is
hashed twice: as it is, and without its border. What the hashes bring together is then laid over each other and compared block by block (`agreement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from stages.images.hashes import hash_bits

SIDE = 128  # pictures are reduced to SIDE x SIDE before windows are cut
THUMB = 32  # side of the grey copy that an index keeps
VIEW = 24  # side of what is compared
BLOCKS = 4
VERSION = 1  # raise when windows, hashes or copies change
_SIZES = (0.96, 0.92, 0.88)
_FLAT = 12  # grey levels that a line of a border spans at most (2nd to 98th percentile)
_WIDEST = 0.25  # of a side that may be border
_LEAST_CONTRAST = 2.0  # standard deviation in grey levels below which a block shows nothing
_LEAST_BLOCKS = 4
_SPARED = 4  # blocks that may be spoilt

Box = tuple[float, float, float, float]  # top, left, bottom, right as shares of the sides


@dataclass(frozen=True, slots=True)
class Look:
    """One way in which a row is looked at: its hash (8 bytes) and grey view uint8 [VIEW, VIEW]."""

    hash: bytes
    view: np.ndarray


@cache
def windows() -> tuple[Box, ...]:
    """Windows of a picture: all of it, and squares of 96, 92 and 88 % at 3 x 3 places."""
    cut = [((1 - size) * down / 2, (1 - size) * right / 2, size) for size in _SIZES for down in range(3) for right in range(3)]
    return ((0.0, 0.0, 1.0, 1.0), *((top, left, top + size, left + size) for top, left, size in cut))


def border_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) in pixels of a grey picture uint8 [H, W] without plain lines at its edges."""
    height, width = grey.shape
    down, right_most = int(height * _WIDEST), int(width * _WIDEST)
    top, bottom, left, right = 0, height, 0, width
    while top < down and _plain(grey[top]):
        top += 1
    while height - bottom < down and _plain(grey[bottom - 1]):
        bottom -= 1
    while left < right_most and _plain(grey[top:bottom, left]):
        left += 1
    while width - right < right_most and _plain(grey[top:bottom, right - 1]):
        right -= 1
    return top, bottom, left, right


def _plain(line: np.ndarray) -> bool:
    low, high = np.percentile(line, (2, 98))
    return bool(high - low <= _FLAT)


def looks(pixels: np.ndarray, mirrored: bool = False) -> list[Look]:
    """How a row's picture uint8 [H, W, 3] is looked at: as it is, and without its border where it has one; with `mirrored`, both mirrored too."""
    grey = _grey(pixels)
    top, bottom, left, right = border_box(grey)
    cut = grey[top:bottom, left:right]
    pictures = [grey] if cut.shape == grey.shape else [grey, cut]
    if mirrored:
        pictures += [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    return [Look(hash_bits(_resized(_resized(picture, SIDE), 32)), _resized(picture, VIEW)) for picture in pictures]


def index_picture(pixels: np.ndarray) -> tuple[bytes, bytes, bytes]:
    """What an index keeps of a picture uint8 [H, W, 3]: hashes of the whole and of each window (8 bytes each), the box without its border
    (4 bytes: top, left, bottom, right in 1/SIDE), and its grey copy (THUMB * THUMB bytes)."""
    grey = _grey(pixels)
    small = _resized(grey, SIDE)
    top, bottom, left, right = border_box(small)
    box = bytes((top, left, bottom, right))
    cuts = [_cut(small, window, SIDE) for window in boxes(box)]
    return b"".join(hash_bits(_resized(cut, 32)) for cut in cuts), box, _resized(grey, THUMB).tobytes()


def boxes(box: bytes) -> list[Box]:
    """The windows that an index hashes, in the order of its hashes: the whole picture, then `windows` within the box."""
    top, left, bottom, right = (value / SIDE for value in box)
    height, width = bottom - top, right - left
    return [(0.0, 0.0, 1.0, 1.0), *((top + a * height, left + b * width, top + c * height, left + d * width) for a, b, c, d in windows())]


def agreement(thumb: np.ndarray, box: Box, view: np.ndarray) -> float:
    """How well a row's view (uint8 [VIEW, VIEW]) fits a window of an evaluation picture's copy (uint8 [THUMB, THUMB]): -1 to 1.

    The window is moved by small steps to where it fits best. Both are freed of slow changes of brightness, and the correlation is taken in 4 x 4 blocks. The
    answer is their median, or, where that is lower, the correlation of all blocks but the four that fit worst: a line of text spoils no more. The median
    leaves out blocks in which neither shows anything; 0 where fewer than four are left.
    """
    row = _detail(view)
    window = list(box)
    best = _fit(thumb, window, row)
    if best < 0.1:  # nothing alike: no small step makes it so
        return best
    for step in (0.02, 0.01):
        for _ in range(3):
            moved = False
            for side in range(4):
                for change in (-step, step):
                    tried = window.copy()
                    tried[side] = min(1.0, max(0.0, tried[side] + change))
                    fit = _fit(thumb, tried, row)
                    if fit > best:
                        best, window, moved = fit, tried, True
            if not moved:
                break
    return best


def _fit(thumb: np.ndarray, window: Sequence[float], row: np.ndarray) -> float:
    """The lower of two: the median of the blocks' correlations, and the correlation of all but the four that fit worst. row: float32 [16, n], centred."""
    cut = _detail(_cut(thumb, window, VIEW))
    own, other = np.sqrt((cut * cut).sum(1)), np.sqrt((row * row).sum(1))
    least = _LEAST_CONTRAST * np.sqrt(row.shape[1])
    seen = (own > least) | (other > least)
    if seen.sum() < _LEAST_BLOCKS:
        return 0.0
    products = (cut * row).sum(1)
    median = float(np.median(products[seen] / np.maximum(own * other, 1e-6)[seen]))
    gain = products.sum() / max(float((own * own).sum()), 1e-6)
    kept = np.argsort(((row - gain * cut) ** 2).sum(1), kind="stable")[:-_SPARED]
    whole = float(products[kept].sum() / max(np.sqrt((own[kept] ** 2).sum() * (other[kept] ** 2).sum()), 1e-6))
    return min(median, whole)


def _detail(view: np.ndarray) -> np.ndarray:
    """Blocks float32 [BLOCKS * BLOCKS, pixels] of a view without slow changes of brightness, each with mean 0."""
    values = view.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), 3)
    side = VIEW // BLOCKS
    blocks = values.reshape(BLOCKS, side, BLOCKS, side).swapaxes(1, 2).reshape(BLOCKS * BLOCKS, -1)
    return blocks - blocks.mean(1, keepdims=True)


def _cut(picture: np.ndarray, window: Sequence[float], side: int) -> np.ndarray:
    """A window of a square picture as [side, side], between pixels linearly."""
    top, left, bottom, right = (value * picture.shape[0] for value in window)
    high, wide = (bottom - top) / side, (right - left) / side
    matrix = np.array([[wide, 0, left - 0.5 + wide / 2], [0, high, top - 0.5 + high / 2]], np.float32)
    return cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)


def _resized(grey: np.ndarray, side: int) -> np.ndarray:
    """[side, side]; sides are averaged down by area, or enlarged linearly."""
    smaller = side < min(grey.shape)
    return cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
