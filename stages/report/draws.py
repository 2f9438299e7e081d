"""Draws of a few rows from many, part by part: the k with the smallest keys."""

from __future__ import annotations

import heapq

import numpy as np
import pyarrow as pa

Place = tuple[int, int]  # part, row


def random_keys(sample_ids: pa.Array, seed: int) -> np.ndarray:
    """A pseudo-random uint64 per row from its sample_id (16 bytes each) and a seed: splitmix64 of the first 8 bytes.

    A row's key depends on nothing else, so a draw is the same whatever the size of the parts."""
    raw = np.frombuffer(sample_ids.cast(pa.binary(16)).buffers()[1], np.uint64)[sample_ids.offset * 2 :][: 2 * len(sample_ids) : 2]
    with np.errstate(over="ignore"):
        mixed = raw + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class Draw:
    """The `size` places with the smallest keys of all that were offered; equal keys go by place."""

    def __init__(self, size: int):
        self.size = size
        self._heap: list[tuple[float, int, int]] = []  # negated, so that the worst stands first

    def offer(self, part: int, rows: np.ndarray, keys: np.ndarray) -> None:
        """Offer rows (int [N]) of a part with their keys ([N])."""
        if not self.size or not len(rows):
            return
        if len(rows) > self.size:
            # Rows with a key equal to the last one taken stay in, and their places decide.
            limit = np.partition(keys, self.size - 1)[self.size - 1]
            best = keys <= limit
            rows, keys = rows[best], keys[best]
        for row, key in zip(rows.tolist(), keys.tolist(), strict=True):
            entry = (-key, -part, -row)
            if len(self._heap) < self.size:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def places(self) -> list[Place]:
        """The places drawn, smallest key first."""
        return [(-part, -row) for _, part, row in sorted(self._heap, reverse=True)]
