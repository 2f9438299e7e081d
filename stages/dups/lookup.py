"""Which of many stored hashes lie within a distance of a given one, exactly: tables of pieces of the hashes (multi-index hashing).

Norouzi, Punjani and Fleet 2012, Fast search in Hamming space with multi-index hashing, section 2: of hashes within a distance d that are cut into m pieces,
one piece differs in at most d // m bits. So a query is looked up, piece by piece, under all keys that near, and what is found is checked in full.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stages.dups.pairs import Pairs, as_words, join

_AT_ONCE = 1 << 21  # candidates, or pairs of brute force, checked together
# Nanoseconds on one core (x86, numpy 2.3): a key looked up, a candidate checked, a word of a pair in brute force. They only steer the choice.
_KEY_NS, _CANDIDATE_NS, _BRUTE_NS = 15.0, 25.0, 2.0
_PER_WORD = (4, 3)  # pieces that a word is cut into: of 16 bits, or of 21 and 22, which pay with millions of hashes


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bits of a hash: `width` bits of word `word` from bit `shift` on."""

    word: int
    shift: int
    width: int

    def of(self, words: np.ndarray) -> np.ndarray:
        """The bits of hashes [words, N] as numbers (uint32 [N])."""
        return (words[self.word] >> np.uint64(self.shift) & np.uint64((1 << self.width) - 1)).astype(np.uint32)


class HashTable:
    """Stored hashes, ready to be asked for those within `distance`. Few hashes, or a wide distance, are compared one by one."""

    def __init__(self, hashes: np.ndarray, distance: int):
        """hashes: uint64 [N] or uint8 [N, 8 or 32], equal ones allowed. Takes 4 bytes per hash and piece (12 or 16 bytes for 64 bits) beside the hashes."""
        self.words = as_words(hashes)
        self.rows, self.distance = self.words.shape[1], distance
        costs = {per_word: self._cost(per_word) for per_word in _PER_WORD}
        self.pieces = _pieces(len(self.words), min(costs, key=lambda per_word: costs[per_word]))
        self.radius = distance // len(self.pieces)
        self.brute = self.rows * len(self.words) * _BRUTE_NS <= min(costs.values())
        self._tables = [] if self.brute else [_table(piece.of(self.words), piece.width) for piece in self.pieces]

    def _cost(self, per_word: int) -> float:
        """Nanoseconds of one query."""
        pieces = _pieces(len(self.words), per_word)
        return sum(_keys(piece.width, self.distance // len(pieces)) * (_KEY_NS + self.rows / (1 << piece.width) * _CANDIDATE_NS) for piece in pieces)

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
        for nth, ((order, starts), piece) in enumerate(zip(self._tables, self.pieces, strict=True)):
            masks, mine = _masks(piece.width, self.radius), piece.of(asked)
            step = max(1, int(_AT_ONCE / (len(masks) * max(1.0, self.rows / (1 << piece.width)))))
            for top in range(0, len(mine), step):
                keys = mine[top : top + step, None] ^ masks[None]
                first = starts[keys].astype(np.int64)
                counts = starts[keys + 1] - first
                rows = np.repeat(np.arange(top, top + len(keys)), counts.sum(1))
                flat = counts.ravel()
                place = np.arange(len(rows)) - np.repeat(np.cumsum(flat) - flat, flat) + np.repeat(first.ravel(), flat)
                yield self._checked(asked, rows, order[place].astype(np.int64), nth)

    def _checked(self, asked: np.ndarray, left: np.ndarray, right: np.ndarray, nth: int) -> Pairs:
        """Those candidates that are near, and that no earlier piece finds."""
        total = np.zeros(len(left), np.uint16)
        for mine, word in zip(asked, self.words, strict=True):
            total += np.bitwise_count(mine[left] ^ word[right])
            near = np.flatnonzero(total <= self.distance)
            if len(near) < len(left):
                left, right, total = left[near], right[near], total[near]
        for earlier in self.pieces[:nth]:
            new = np.bitwise_count(earlier.of(asked[:, left]) ^ earlier.of(self.words[:, right])) > self.radius
            left, right, total = left[new], right[new], total[new]
        return Pairs(left, right, total.astype(np.uint8))


def _pieces(words: int, per_word: int) -> list[Piece]:
    """Each word cut into `per_word` pieces that are as equal as can be."""
    edges = [64 * nth // per_word for nth in range(per_word + 1)]
    return [Piece(word, low, high - low) for word in range(words) for low, high in zip(edges, edges[1:], strict=False)]


def _table(keys: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows by key; where each key begins, and the end), int32 where that holds N, else int64."""
    kind = np.int32 if len(keys) < 1 << 31 else np.int64
    starts = np.zeros((1 << width) + 1, kind)
    np.cumsum(np.bincount(keys, minlength=1 << width), out=starts[1:])
    return np.argsort(keys, kind="stable").astype(kind), starts


def _keys(width: int, radius: int) -> int:
    return sum(math.comb(width, ones) for ones in range(radius + 1))


@functools.lru_cache(maxsize=16)
def _masks(width: int, radius: int) -> np.ndarray:
    """All numbers of `width` bits with at most `radius` ones, fewest first (uint32)."""
    return np.array([sum(1 << bit for bit in bits) for ones in range(radius + 1) for bits in combinations(range(width), ones)], np.uint32)
