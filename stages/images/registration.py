"""Whether one picture is a part of another: their small grey copies are laid over each other and compared, but for one band or frame that may be spoilt.

Of a pair each picture is tried as the whole of which the other is a crop (at most `LEAST_SIZE` of each side is left). First on a grid of windows by the
correlation of what is left without slow changes of brightness, then the window's four sides are moved by small steps. The answer (`match_scores`) is
taken where the two fit best, in overlapping blocks: a line of text, a logo or a frame spoils some of them, and what is the same in both only
because both bear the same line of text is not seen in the other blocks.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

THUMB = 32  # side of the grey copy that is stored
VIEW = 24  # side of what is compared
LEAST_SIZE = 0.88
CHUNK = 512  # pairs that are measured together: some 60 MB
_COARSE = (1.0, 0.95, 0.9)
_STEPS = (0.03, 0.015, 0.0075)
_ROUNDS = 2
_UNLIKE = 0.1  # correlation on the grid below which no small step helps
_SIGMA = 3.0  # pixels of a view: slower changes of brightness are taken out
_BLOCK, _HOP = 8, 4  # side of a block and steps between blocks, in pixels of a view
_BAND, _FRAME = 7, 3  # rows that a line of text may spoil; pixels that a frame takes on each side
_NOISE = 1.0  # variance in grey levels below which a block shows nothing
_LEAST_CONTRAST = 2.0  # standard deviation in grey levels of what is left: else there is nothing to compare
_WORST = 3  # blocks whose mean stands for how well the worst part fits


def thumbnail(pixels: np.ndarray) -> bytes:
    """Grey copy (THUMB * THUMB bytes) of square pixels uint8 [S, S, 3]."""
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()


def match_scores(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How well the better of the two ways fits, -1 to 1, of pairs of thumbnails uint8 [N, THUMB, THUMB] each (float32 [N]).

    The mean of two correlations, each block by itself freed of its mean: over all blocks, and of the three blocks that fit worst. A band of rows or the
    frame is left out where that fits better. At most 0.1 where too little is to be seen.
    """
    found = np.empty(len(one), np.float32)
    for start in range(0, len(one), CHUNK):
        a, b = (thumbs[start : start + CHUNK].astype(np.float32) for thumbs in (one, other))
        found[start : start + CHUNK] = np.maximum(_one_way(a, b), _one_way(b, a))
    return found


def _one_way(whole: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Scores of `part` as a crop of `whole` (float32 [N, THUMB, THUMB])."""
    full = np.tile(np.float32([0, 0, 1, 1]), (len(part), 1))
    view = _detail(_cut(part, full))
    unit = _unit(view)
    windows, fits = full.copy(), np.full(len(part), -2, np.float32)
    for box in _grid():
        _take(whole, unit, np.tile(box, (len(part), 1)), windows, fits)
    alike = np.flatnonzero(fits >= _UNLIKE)
    near, best, rest = windows[alike], fits[alike], unit[alike]
    pictures = whole[alike]
    for step in _STEPS:
        for _ in range(_ROUNDS):
            for side in range(4):
                for change in (-step, step):
                    tried = near.copy()
                    tried[:, side] = np.clip(tried[:, side] + np.float32(change), *((0, 1 - LEAST_SIZE) if side < 2 else (LEAST_SIZE, 1)))
                    _take(pictures, rest, tried, near, best)
    scores = fits.copy()
    if len(alike):
        scores[alike] = _agreement(_detail(_cut(pictures, near)), view[alike])
    return scores


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
def _blur() -> np.ndarray:
    """A Gaussian blur along one axis as a matrix [VIEW, VIEW], mirrored at the edges."""
    offsets = np.arange(1 - VIEW, VIEW)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    matrix = np.zeros((VIEW, VIEW))
    for row in range(VIEW):
        places = np.abs(row + offsets)
        np.add.at(matrix[row], np.where(places < VIEW, places, 2 * (VIEW - 1) - places), weights / weights.sum())
    return matrix.astype(np.float32)


def _detail(views: np.ndarray) -> np.ndarray:
    return views - _blur() @ views @ _blur().T


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


def _agreement(cut: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The best score over what may be left out, of pairs of views [N, VIEW, VIEW] (float32 [N])."""
    best = np.full(len(view), -1, np.float32)
    sums = np.stack([cut, view, cut * cut, view * view, cut * view])
    for columns, choices in _masks():
        across = _runs(sums * columns)  # [5, N, VIEW, blocks across]
        widths = _runs(columns)
        for rows in choices:
            down = _runs((across * rows[:, None]).swapaxes(-1, -2))
            best = np.maximum(best, _score(down.reshape(5, len(view), -1), np.outer(widths, _runs(rows)).ravel()))
    return best


def _score(sums: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """From sums over the blocks (of one view, the other, their squares and products, [5, N, blocks]) of so many `pixels` each."""
    seen = pixels >= _BLOCK * _BLOCK / 4
    one, other, ones, others, both = sums[:, :, seen]
    pixels = pixels[seen]
    a, b = (np.maximum(squares - means * means / pixels, 0) for squares, means in ((ones, one), (others, other)))
    c, floor = both - one * other / pixels, _NOISE * pixels
    blocks = (c + floor) / np.sqrt((a + floor) * (b + floor))
    whole = (c.sum(1) + floor.sum()) / np.sqrt((a.sum(1) + floor.sum()) * (b.sum(1) + floor.sum()))
    worst = np.partition(blocks, _WORST - 1, axis=1)[:, :_WORST].mean(1)
    shown = np.minimum(a.sum(1), b.sum(1)) >= _LEAST_CONTRAST**2 * pixels.sum()
    return np.where(shown, (whole + worst) / 2, 0)


def _runs(values: np.ndarray) -> np.ndarray:
    """Sums over runs of _BLOCK at steps of _HOP along the last axis."""
    total = np.concatenate([np.zeros((*values.shape[:-1], 1), np.float32), values.cumsum(-1)], axis=-1)[..., ::_HOP]
    return total[..., _BLOCK // _HOP :] - total[..., : -(_BLOCK // _HOP)]
