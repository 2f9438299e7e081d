"""dedup over whole columns: groups of equal values, keepers, and who is whose duplicate, on arrays over the rows of the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def equal_groups(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose values another row has too (int64 [M], in groups, rising within each) and the number of each's group (int64 [M]). words: uint64 [W, N]."""
    order = np.argsort(words[0], kind="stable")
    first = words[0][order]
    again = np.zeros(len(order), bool)
    again[1:] = first[1:] == first[:-1]
    shared = again.copy()
    shared[:-1] |= again[1:]
    rows = order[shared]
    rows = rows[np.lexsort((rows, *(word[rows] for word in words[::-1])))]
    same = np.zeros(len(rows), bool)
    same[1:] = np.logical_and.reduce([word[rows[1:]] == word[rows[:-1]] for word in words]) if len(rows) > 1 else False
    group = np.cumsum(~same) - 1
    several = np.bincount(group)[group] > 1 if len(group) else np.zeros(0, bool)
    return rows[several], group[several]


def living_groups(rows: np.ndarray, group: np.ndarray, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of groups (as `equal_groups` gives them) those with two living rows or more, and their living rows. alive: bool [N]."""
    lives = alive[rows]
    rows, group = rows[lives], group[lives]
    several = np.bincount(group)[group] > 1 if len(group) else np.zeros(0, bool)
    return rows[several], group[several]


def firsts(group: np.ndarray) -> np.ndarray:
    """Place of the first of each one's group (int64 [M]); the groups stand together."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return np.repeat(starts, np.diff(starts, append=len(group)))


def best_of(group: np.ndarray, most: Sequence[np.ndarray], least: Sequence[np.ndarray]) -> np.ndarray:
    """Place of the best of each one's group (int64 [M]): by the greatest of each of `most` (float64 [M]), then the least of each of `least`.

    The groups stand together; of equals the first is best.
    """
    if not len(group):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    lengths = np.diff(starts, append=len(group))
    dense = np.repeat(np.arange(len(starts)), lengths)
    may = np.ones(len(group), bool)
    for values in most:
        tried = np.where(may, values, -np.inf)
        may &= tried == np.maximum.reduceat(tried, starts)[dense]
    left = np.flatnonzero(may)
    left = left[np.lexsort((left, *(values[left] for values in least[::-1]), dense[left]))]
    head = np.concatenate([[True], dense[left[1:]] != dense[left[:-1]]])
    return left[head][dense]


def hex_column(raw: np.ndarray) -> pa.Array:
    """uint8 [M, B] as texts of 2 B hex digits."""
    digits = np.empty((len(raw), raw.shape[1] * 2), np.uint8)
    digits[:, ::2], digits[:, 1::2] = _HEX[raw >> 4], _HEX[raw & 15]
    offsets = np.arange(len(raw) + 1, dtype=np.int32) * np.int32(digits.shape[1])
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(digits))


def spread_of(words: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Bits that are not the same in all rows of each component (int64): an upper bound of the bits between two of them. words: uint64 [W, N]."""
    total = np.zeros(len(starts), np.int64)
    for word in words:
        mine = word[rows]
        total += np.bitwise_count(np.bitwise_or.reduceat(mine, starts) & ~np.bitwise_and.reduceat(mine, starts))
    return total


def bits_between(words: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distance of columns of hashes uint64 [W, N] (int16 [M])."""
    return sum((np.bitwise_count(word[left] ^ word[right]).astype(np.int16) for word in words), np.zeros(len(left), np.int16))
