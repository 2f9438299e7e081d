"""Pairs of rows whose hashes are near, found by looking at each pair, and the spanning forest that stands for the pairs of a clump."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

TILE = (16, 4096)


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows: left < right (int64 [N]) and their distance (uint8 [N])."""

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, which: np.ndarray) -> Pairs:
        return Pairs(self.left[which], self.right[which], self.distance[which])


def join(pairs: Sequence[Pairs]) -> Pairs:
    """Several as one."""
    if not pairs:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    return Pairs(*(np.concatenate([getattr(some, name) for some in pairs]) for name in ("left", "right", "distance")))


def as_words(hashes: np.ndarray) -> np.ndarray:
    """Hashes as the columns of a uint64 array [words, N] from uint64 [N] or uint8 [N, 8 or 32]. Raises ValueError for other shapes."""
    if hashes.dtype == np.uint8 and hashes.ndim == 2 and hashes.shape[1] in (8, 32):
        hashes = np.ascontiguousarray(hashes).view(np.uint64)
    elif hashes.dtype == np.uint64 and hashes.ndim == 1:
        hashes = hashes[:, None]
    else:
        raise ValueError(f"hashes must be uint64 [N] or uint8 [N, 8 or 32], not {hashes.dtype} {list(hashes.shape)}")
    return np.ascontiguousarray(hashes.T)


def distances(words: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distance (uint16 [K]) between columns `left` and `right` [K] of hashes [words, N]."""
    total = np.zeros(len(left), np.uint16)
    for word in words:
        total += np.bitwise_count(word[left] ^ word[right])
    return total


def brute_pairs(words: np.ndarray, distance: int, start: int = 0, stop: int | None = None) -> Iterator[Pairs]:
    """Pairs within `distance` of hashes [words, N] whose left row is start <= row < stop, by looking at each; in tiles that fit the caches."""
    rows = words.shape[1]
    stop = rows if stop is None else min(stop, rows)
    tall, wide = TILE
    bits, count = np.empty(tall * wide, np.uint64), np.empty(tall * wide, np.uint8)
    total = np.empty(tall * wide, np.uint16)
    for top in range(start, stop, tall):
        bottom = min(top + tall, stop)
        for west in range(top, rows, wide):
            east = min(west + wide, rows)
            shape = (bottom - top, east - west)
            size = shape[0] * shape[1]
            xor, ones, near = bits[:size].reshape(shape), count[:size].reshape(shape), total[:size].reshape(shape)
            for nth, word in enumerate(words):
                np.bitwise_xor(word[top:bottom, None], word[None, west:east], out=xor)
                np.bitwise_count(xor, out=ones)
                if len(words) > 1:
                    np.add(near, ones, out=near) if nth else np.copyto(near, ones)
            measured = near if len(words) > 1 else ones
            hit = np.flatnonzero(measured.reshape(-1) <= distance)
            if not len(hit):
                continue
            left, right = hit // shape[1] + top, hit % shape[1] + west
            keep = left < right
            if keep.any():
                yield Pairs(left[keep], right[keep], measured.reshape(-1)[hit[keep]].astype(np.uint8))


def spanning_forest(words: np.ndarray, distance: int) -> Pairs:
    """Minimum spanning forest of hashes [words, N] over the links within `distance` (Prim): at most N - 1 edges, the same ones each time.

    At every threshold up to `distance` its edges join the same rows as all pairs do. Time grows with N^2, memory with N.
    """
    rows = words.shape[1]
    rest, others = np.arange(1, rows), words[:, 1:].copy()  # rows that are not in the tree yet stand first, and their hashes
    # To the tree: distance, and its nearest row. One word's bits fit a byte.
    kind = np.uint8 if len(words) == 1 else np.uint16
    reach, via = distances(words, np.zeros(rows - 1, np.int64), rest).astype(kind), np.zeros(rows - 1, np.int64)
    edges = np.empty((rows - 1, 3), np.int64)
    for left in range(rows - 1, 0, -1):
        place = int(reach[:left].argmin())
        row, last = int(rest[place]), left - 1
        edges[last] = via[place], row, reach[place]
        for array in (rest, reach, via):
            array[place] = array[last]
        others[:, place] = others[:, last]
        mine = words[:, row]
        ahead = np.bitwise_count(others[0, :last] ^ mine[0]).astype(kind, copy=False)
        for word, bits in zip(others[1:], mine[1:], strict=True):
            ahead += np.bitwise_count(word[:last] ^ bits)
        nearer = (ahead < reach[:last]).nonzero()[0]
        reach[nearer], via[nearer] = ahead[nearer], row
    edges = edges[edges[:, 2] <= distance]
    ends = np.sort(edges[:, :2], axis=1)
    return Pairs(ends[:, 0], ends[:, 1], edges[:, 2].astype(np.uint8))
