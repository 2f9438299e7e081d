"""Vectors on disk in the order of their clusters: the rows of one cluster lie side by side, however many there are in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.vectors.kmeans import in_order, nearest


@dataclass(frozen=True)
class ByCluster:
    """`vectors` float16 [N, D] mapped from a file and `rows` int64 [N], the number of each among those that came, cluster by cluster, rising in each;
    `starts` int64 [K + 1]: where each cluster begins."""

    vectors: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def cluster(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (float32 [n, D]) and numbers (int64 [n]) of one cluster."""
        own = slice(self.starts[place], self.starts[place + 1])
        return self.vectors[own].astype(np.float32), self.rows[own]


def by_cluster(read: Callable[[], Iterable[np.ndarray]], centroids: np.ndarray, file: Path, threads: int | None = None) -> ByCluster:
    """Each vector to its nearest centroid (float32 [K, D]); `read` gives blocks float32 [n, D] of length 1, twice the same. Rows of zeros are left out (-1)."""

    def place(block: np.ndarray) -> np.ndarray:
        return np.where(block.any(axis=1), nearest(block, centroids)[0][:, 0], -1)

    found = [*in_order(read(), place, threads), np.empty(0, np.int32)]
    places = np.concatenate(found)
    rows = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
    starts = np.concatenate([[0], np.cumsum(np.bincount(places[rows], minlength=len(centroids)))])
    where = np.full(len(places), -1)
    where[rows] = np.arange(len(rows))
    vectors = np.memmap(file, np.float16, "w+", shape=(max(1, len(rows)), centroids.shape[1]))
    at = 0
    for block in read():
        to = where[at : at + len(block)]
        vectors[to[to >= 0]] = block[to >= 0]
        at += len(block)
    return ByCluster(vectors[: len(rows)], rows, starts)
