"""Which of many stored hashes lie within a distance of a given one, exactly: tables of 16-bit pieces (multi-index hashing).

Norouzi, Punjani and Fleet 2012, Fast search in Hamming space with multi-index hashing, section 2: of hashes within a distance d that are cut into m pieces,
one piece differs in at most d // m bits. So a query is looked up, piece by piece, under all keys that near, and what is found is checked in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from stages.dups.hamming import Pairs, as_words, join

_PIECE_BITS = 16
_KEYS = 1 << _PIECE_BITS
_AT_ONCE = 1 << 21  # candidates, or pairs of brute force, checked together
# Nanoseconds on one core (x86, numpy 2.3): a key looked up, a candidate checked, a word of a pair in brute force. They only steer the choice.
_KEY_NS, _CANDIDATE_NS, _BRUTE_NS = 15.0, 25.0, 2.0


class HashTable:
    """Stored hashes, ready to be asked for those within `distance`. Few hashes, or a wide distance, are compared one by one."""

    def __init__(self, hashes: np.ndarray, distance: int):
        """hashes: uint64 [N] or uint8 [N, 8 or 32], equal ones allowed. Takes 4 bytes per hash and piece (16 bytes for 64 bits) beside the hashes."""
        self.words = as_words(hashes)
        self.rows, self.distance = self.words.shape[1], distance
        pieces = 64 * len(self.words) // _PIECE_BITS
        self.radius = distance // pieces
        self.masks = _masks(self.radius)
        probes = pieces * len(self.masks)
        looked_up = probes * (_KEY_NS + self.rows / _KEYS * _CANDIDATE_NS)
        self.brute = self.rows * len(self.words) * _BRUTE_NS <= looked_up
        self._tables: list[tuple[np.ndarray, np.ndarray]] = []
        if not self.brute:
            self._tables = [_table(piece) for piece in _pieces(self.words)]

    def near(self, queries: np.ndarray) -> Pairs:
        """Pairs (left: place among `queries`, shaped as the hashes; right: place of a stored hash) within the distance, by left, distance and right."""
        asked = as_words(queries)
        found = join(list(self._by_brute_force(asked) if self.brute else self._by_tables(asked)))
        return found.take(np.lexsort((found.right, found.distance, found.left)))

    def _by_brute_force(self, asked: np.ndarray) -> Iterator[Pairs]:
        if not self.rows:
            return
        tall = max(1, _AT_ONCE // self.rows)
        for top in range(0, asked.shape[1], tall):
            total = np.zeros((min(tall, asked.shape[1] - top), self.rows), np.uint16)
            for mine, word in zip(asked, self.words, strict=True):
                total += np.bitwise_count(mine[top : top + tall, None] ^ word[None])
            left, right = np.nonzero(total <= self.distance)
            yield Pairs(left + top, right, total[left, right].astype(np.uint8))

    def _by_tables(self, asked: np.ndarray) -> Iterator[Pairs]:
        pieces, stored = list(_pieces(asked)), list(_pieces(self.words))
        per_query = max(1.0, len(self.masks) * max(1.0, self.rows / _KEYS))
        step = max(1, int(_AT_ONCE / per_query))
        for nth, (order, starts) in enumerate(self._tables):
            for top in range(0, asked.shape[1], step):
                keys = (pieces[nth][top : top + step, None] ^ self.masks[None]).astype(np.int64)
                counts = starts[keys + 1] - starts[keys]
                rows = np.repeat(np.arange(top, top + len(keys)), counts.sum(1))
                flat = counts.ravel()
                place = np.arange(len(rows)) - np.repeat(np.cumsum(flat) - flat, flat) + np.repeat(starts[keys].ravel(), flat)
                yield self._checked(asked, rows, order[place].astype(np.int64), nth, pieces, stored)

    def _checked(self, asked: np.ndarray, left: np.ndarray, right: np.ndarray, nth: int, pieces: list[np.ndarray], stored: list[np.ndarray]) -> Pairs:
        """Those candidates that are near, and that no earlier piece finds."""
        total = np.zeros(len(left), np.uint16)
        for mine, word in zip(asked, self.words, strict=True):
            total += np.bitwise_count(mine[left] ^ word[right])
            near = np.flatnonzero(total <= self.distance)
            if len(near) < len(left):
                left, right, total = left[near], right[near], total[near]
        for earlier in range(nth):
            new = np.bitwise_count(pieces[earlier][left] ^ stored[earlier][right]) > self.radius
            left, right, total = left[new], right[new], total[new]
        return Pairs(left, right, total.astype(np.uint8))


def _pieces(words: np.ndarray) -> Iterator[np.ndarray]:
    """The 16-bit pieces (uint16 [N] each) of hashes [words, N]."""
    for word in words:
        quarters = word.view(np.uint16).reshape(-1, 4)
        yield from (quarters[:, nth] for nth in range(4))


def _table(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows by key, int32 or int64 [N]; where each key begins, int64 [65537])."""
    order = np.argsort(keys, kind="stable")
    starts = np.zeros(_KEYS + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=_KEYS), out=starts[1:])
    return order.astype(np.int32 if len(keys) < 1 << 31 else np.int64), starts


def _masks(radius: int) -> np.ndarray:
    """All 16-bit numbers of at most `radius` ones, fewest first (uint16)."""
    return np.array([sum(1 << bit for bit in bits) for ones in range(radius + 1) for bits in combinations(range(_PIECE_BITS), ones)], np.uint16)
