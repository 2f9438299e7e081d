"""Whether one picture is a part of another: small copies are laid over each other and compared, but for one band or frame that may be spoilt.

Of a pair each picture is tried as the whole of which the other is a crop (at most `LEAST_SIZE` of each side is left). First on a grid of windows by the
correlation of what is left without slow changes of brightness, then the window's four sides are moved by small steps. The two answers of `laid_over` are
taken where they fit best. The match is a correlation in overlapping blocks: a line of text, a logo or a frame spoils some of them, and what is the same in
both only because both bear the same line of text is not seen in the other blocks. The difference is that of the worst small block in grey levels: two plain
pictures of the same kind, with a circle in the one and a ring in the other, agree nearly everywhere, so that no correlation over all parts them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

THUMB = 32  # side of the copy that is stored
CHROMA = 16  # side of its two colour differences
THUMB_BYTES = THUMB**2 + 2 * CHROMA**2
VIEW = 24  # side of what is compared
LEAST_SIZE = 0.88
CHUNK = 512  # pairs that are measured together: some 60 MB
_COARSE = (1.0, 0.95, 0.9)
_STEPS = (0.03, 0.015, 0.0075)
_ROUNDS = 2
_UNLIKE = 0.1  # correlation on the grid below which no small step helps
_FINE, _SLOW = 1.0, 3.0  # Gaussians in pixels of a view: finer detail than the one, which a new size changes, and slower changes than the other are taken out
_BLOCK, _HOP = 8, 4  # side of a block and steps between blocks, in pixels of a view
_BAND, _FRAME = 7, 3  # rows that a line of text may spoil; pixels that a frame takes on each side
_NOISE = 2.0  # variance in grey levels below which a block shows nothing
_LEAST_CONTRAST = 1.0  # standard deviation in grey levels of what is left: else there is nothing to compare
_WEIGHTS = (1.0, 2.0, 2.0)  # of the contrast of brightness and of the two colour differences
_WORST = 6  # of 25 blocks: their mean stands for how well the worst part fits
_SMALL, _SMALL_HOP = 4, 2  # the blocks of the difference: of the size of a small object
_LINE = 4  # rows that a line of text may take from the difference
_WIDE = 0.45  # least width of what differs in these rows, as a share of the picture's: an object is narrower than a line of text


def thumbnail(pixels: np.ndarray) -> bytes:
    """Small copy (THUMB_BYTES) of square pixels uint8 [S, S, 3]: brightness [THUMB, THUMB], then Cr and Cb [CHROMA, CHROMA], as in a JPEG of 4:2:0."""
    small = cv2.cvtColor(cv2.resize(pixels, (THUMB, THUMB), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2YCrCb)
    colours = cv2.resize(small[..., 1:], (CHROMA, CHROMA), interpolation=cv2.INTER_AREA)
    return small[..., 0].tobytes() + colours.transpose(2, 0, 1).tobytes()


def _planes(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails uint8 [N, THUMB_BYTES] as float32 [3, N, THUMB, THUMB]: brightness, Cr, Cb."""
    values = thumbs.astype(np.float32)
    colours = values[:, THUMB**2 :].reshape(-1, 2, CHROMA, CHROMA).swapaxes(0, 1)
    times = THUMB // CHROMA
    return np.concatenate([values[:, : THUMB**2].reshape(1, -1, THUMB, THUMB), colours.repeat(times, axis=2).repeat(times, axis=3)])


def laid_over(one: np.ndarray, other: np.ndarray, written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match (-1 to 1) and difference (grey levels, 0 and more) of pairs of thumbnails uint8 [N, THUMB_BYTES] each (float32 [N] each).

    Match, of the better of the two ways: the mean of two correlations of brightness and colour differences, each block by itself freed of its mean: over all
    blocks, and of the six blocks that fit worst. A band of rows or the frame is left out where that fits better. At most 0.1 where too little is to be seen.
    Difference: the root of the mean square of the block of 4 x 4 of 24 x 24 pixels that differs most. written: bool [N], pairs of which one may bear
    a line of text: of these a band of rows is left out where what it holds is as wide as a line of text.
    """
    match, difference = np.empty(len(one), np.float32), np.empty(len(one), np.float32)
    for start in range(0, len(one), CHUNK):
        here = slice(start, start + CHUNK)
        a, b = (_planes(thumbs[here]) for thumbs in (one, other))
        ways = [_one_way(whole, part, written[here]) for whole, part in ((a, b), (b, a))]
        match[here] = np.maximum(ways[0].match, ways[1].match)
        difference[here] = np.where(ways[1].fit > ways[0].fit, ways[1].difference, ways[0].difference)
    return match, difference


class _Way(NamedTuple):
    """Float32 [N] each; `fit`: the correlation by which the window was chosen."""

    match: np.ndarray
    difference: np.ndarray
    fit: np.ndarray


def _one_way(wholes: np.ndarray, parts: np.ndarray, written: np.ndarray) -> _Way:
    """`parts` as crops of `wholes` (float32 [3, N, THUMB, THUMB]); the brightness says where they lie."""
    whole, part = wholes[0], parts[0]
    full = np.tile(np.float32([0, 0, 1, 1]), (len(part), 1))
    unit = _unit(_detail(_cut(part, full)))
    windows, fits = full.copy(), np.full(len(part), -2, np.float32)
    for box in _grid():
        _take(whole, unit, np.tile(box, (len(part), 1)), windows, fits)
    alike = np.flatnonzero(fits >= _UNLIKE)
    windows[alike], fits[alike] = _moved(whole[alike], unit[alike], windows[alike], fits[alike])
    views = [(_detail(_cut(a, windows)), _detail(_cut(b, full))) for a, b in zip(wholes, parts, strict=True)]
    match = fits.copy()
    if len(alike):
        match[alike] = _agreement([(cut[alike], view[alike]) for cut, view in views])
    return _Way(match, _difference(views, written), fits)


def _moved(whole: np.ndarray, unit: np.ndarray, windows: np.ndarray, fits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows with their sides moved by small steps to where they fit best, and how well."""
    for step in _STEPS:
        for _ in range(_ROUNDS):
            for side in range(4):
                for change in (-step, step):
                    tried = windows.copy()
                    tried[:, side] = np.clip(tried[:, side] + np.float32(change), *((0, 1 - LEAST_SIZE) if side < 2 else (LEAST_SIZE, 1)))
                    _take(whole, unit, tried, windows, fits)
    return windows, fits


@cache
def _grid() -> tuple[np.ndarray, ...]:
    """Windows (top, left, bottom, right, shares of the sides) of each size at three places both ways."""
    places = [(size, down * (1 - size) / 2, right * (1 - size) / 2) for size in _COARSE for down in range(3) for right in range(3)]
    return tuple(np.float32([top, left, top + size, left + size]) for size, top, left in dict.fromkeys(places))


def _take(whole: np.ndarray, unit: np.ndarray, tried: np.ndarray, windows: np.ndarray, fits: np.ndarray) -> None:
    """Puts windows that fit better than what `windows` and `fits` hold in their place."""
    fit = (_unit(_detail(_cut(whole, tried))) * unit).sum(1)
    better = fit > fits
    windows[better], fits[better] = tried[better], fit[better]


def _cut(pictures: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """A window of each picture [N, THUMB, THUMB] as [N, VIEW, VIEW], between pixels linearly."""
    down, across = (_sampling(windows[:, side], windows[:, side + 2]) for side in (0, 1))
    return (down @ pictures) @ across.transpose(0, 2, 1)


def _sampling(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Matrices [N, VIEW, THUMB] that take VIEW places between two shares of a side."""
    step = (high - low)[:, None] * np.float32(THUMB / VIEW)
    places = np.clip(low[:, None] * THUMB + step * (np.arange(VIEW, dtype=np.float32) + 0.5) - 0.5, 0, THUMB - 1)
    return np.maximum(0, 1 - np.abs(places[..., None] - np.arange(THUMB, dtype=np.float32)))


@cache
def _blur(sigma: float) -> np.ndarray:
    """A Gaussian blur along one axis as a matrix [VIEW, VIEW], mirrored at the edges."""
    offsets = np.arange(1 - VIEW, VIEW)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((VIEW, VIEW))
    for row in range(VIEW):
        places = np.abs(row + offsets)
        np.add.at(matrix[row], np.where(places < VIEW, places, 2 * (VIEW - 1) - places), weights / weights.sum())
    return matrix.astype(np.float32)


def _detail(views: np.ndarray) -> np.ndarray:
    fine, slow = _blur(_FINE), _blur(_SLOW)
    return fine @ views @ fine.T - slow @ views @ slow.T


def _unit(views: np.ndarray) -> np.ndarray:
    """[N, pixels] of mean 0 and length 1."""
    flat = views.reshape(len(views), VIEW * VIEW)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.sqrt((flat * flat).sum(1, keepdims=True)), 1e-6)


@cache
def _masks() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Columns that are compared (float32 [VIEW]), with the choices of rows (float32 [M, VIEW]): all, all but a band; and for the frame both without it."""
    rows = np.ones((VIEW - _BAND + 2, VIEW), np.float32)
    for top in range(VIEW - _BAND + 1):
        rows[top + 1, top : top + _BAND] = 0
    inner = np.zeros(VIEW, np.float32)
    inner[_FRAME:-_FRAME] = 1
    return (np.ones(VIEW, np.float32), rows), (inner, inner[None])


def _agreement(views: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The best score over what may be left out, of pairs of views [N, VIEW, VIEW], brightness first (float32 [N])."""
    count = len(views[0][0])
    best = np.full(count, -1, np.float32)
    sums = np.stack([np.stack([cut, view, cut * cut, view * view, cut * view]) for cut, view in views])
    for columns, choices in _masks():
        across = _runs(sums * columns)  # [planes, 5, N, VIEW, blocks across]
        widths = _runs(columns)
        for rows in choices:
            down = _runs((across * rows[:, None]).swapaxes(-1, -2))
            best = np.maximum(best, _score(down.reshape(len(views), 5, count, -1), np.outer(widths, _runs(rows)).ravel()))
    return best


def _score(sums: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """From sums over blocks of so many `pixels`: of one view, the other, their squares and products [planes, 5, N, blocks]."""
    seen = pixels >= _BLOCK * _BLOCK / 4
    one, other, ones, others, both = sums[..., seen].swapaxes(0, 1)
    pixels = pixels[seen]
    weights = np.array(_WEIGHTS[: len(sums)], np.float32)
    squares = [np.maximum(square - mean * mean / pixels, 0) for square, mean in ((ones, one), (others, other))]
    a, b, c = (np.tensordot(weights, values, 1) for values in (*squares, both - one * other / pixels))
    floor = _NOISE * pixels
    blocks = (c + floor) / np.sqrt((a + floor) * (b + floor))
    whole = (c.sum(1) + floor.sum()) / np.sqrt((a.sum(1) + floor.sum()) * (b.sum(1) + floor.sum()))
    worst = np.partition(blocks, _WORST - 1, axis=1)[:, :_WORST].mean(1)
    shown = np.minimum(a.sum(1), b.sum(1)) >= _LEAST_CONTRAST**2 * pixels.sum()
    return np.where(shown, (whole + worst) / 2, 0)


def _difference(views: list[tuple[np.ndarray, np.ndarray]], written: np.ndarray) -> np.ndarray:
    """Grey levels (float32 [N]) by which the worst small block of pairs of views [N, VIEW, VIEW] differs; a band is left out of those that are `written` on."""
    squares = sum(weight * (cut - view) ** 2 for weight, (cut, view) in zip(_WEIGHTS, views, strict=True))
    blocks = _runs(_runs(squares, _SMALL, _SMALL_HOP).swapaxes(-1, -2), _SMALL, _SMALL_HOP) / np.float32(_SMALL**2)
    rows = blocks.max(axis=1)  # [N, rows of blocks]
    worst, tops = rows.max(axis=1), np.arange(0, VIEW - _SMALL + 1, _SMALL_HOP)
    for top in range(VIEW - _LINE + 1):
        rest = rows[:, (tops + _SMALL <= top) | (tops >= top + _LINE)].max(axis=1)
        within = squares[:, top : top + _LINE].mean(axis=1)
        wide = within.sum(1) ** 2 >= _WIDE * VIEW * (within * within).sum(1)  # the width that a line of equal strength everywhere would have
        worst = np.where(written & wide, np.minimum(worst, rest), worst)
    return np.sqrt(worst)


def _runs(values: np.ndarray, length: int = _BLOCK, hop: int = _HOP) -> np.ndarray:
    """Sums over runs of so many at steps of `hop` along the last axis."""
    total = np.concatenate([np.zeros((*values.shape[:-1], 1), np.float32), values.cumsum(-1)], axis=-1)[..., ::hop]
    return total[..., length // hop :] - total[..., : -(length // hop)]
