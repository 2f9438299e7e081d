"""Spherical k-means by faiss: centroids fitted on a sample, rows assigned to their nearest centroids in blocks.

The fit is seeded and runs on one thread, and blocks of an assignment have one shape and one thread each, so that the same vectors give the same centroids
and labels on a machine of the same kind, however many cores it has.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import RecipeError

T = TypeVar("T")
_FAISS = threading.Lock()


def load_faiss() -> Any:
    """The module faiss. Raises RecipeError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise RecipeError("clusters of embeddings need the package faiss-cpu: install pairmill[clusters]") from error
    return faiss


def fit_centroids(sample: np.ndarray, count: int, *, seed: int, iterations: int = 10) -> np.ndarray:
    """Centroids float32 [K, D] of length 1 from a sample float32 [N, D] of length 1. K is `count`, or N where the sample has fewer rows.

    Lloyd's iterations from a seeded draw of rows; a cluster that runs empty takes half of a large one (faiss's rule).
    """
    if sample.ndim != 2 or not len(sample) or count < 1:
        raise ValueError(f"k-means needs vectors [N, D] and a count of at least 1, not {list(sample.shape)} and {count}")
    if count >= len(sample):
        return sample.copy()
    if count == 1:
        mean = sample.sum(axis=0, dtype=np.float64, keepdims=True)
        return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    faiss = load_faiss()
    options = {"niter": iterations, "seed": seed % 2**31, "spherical": True, "gpu": False, "min_points_per_centroid": 1, "max_points_per_centroid": len(sample)}
    with _FAISS:
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            machine = faiss.Kmeans(sample.shape[1], count, **options)
            machine.train(np.ascontiguousarray(sample, np.float32))
        finally:
            faiss.omp_set_num_threads(before)
    return np.asarray(machine.centroids, np.float32).copy()


def nearest(vectors: np.ndarray, centroids: np.ndarray, top: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The `top` nearest centroids of each row, nearest first: places int32 [N, top] and cosines float32 [N, top]. Both float32 of length 1.

    `top` is cut to the number of centroids. Uses the calling thread alone.
    """
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)  # a setting of the calling thread
    cosines, places = faiss.knn(vectors, centroids, min(top, len(centroids)), metric=faiss.METRIC_INNER_PRODUCT)
    return places.astype(np.int32), cosines


def products_above(left: np.ndarray, right: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner products above `least` of rows [N, D] and [M, D], float32: where those of each left row begin (int64 [N + 1]), the products, the right rows.

    Uses the calling thread alone: faiss, since numpy's products take all cores at every call.
    """
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(right.shape[1])
    index.add(right)
    limits, products, places = index.range_search(left, least)
    return limits.astype(np.int64), products, places


def in_order(items: Iterable[Any], work: Callable[[Any], T], threads: int | None = None) -> Iterator[T]:
    """Results of `work` in the order of the items, several at a time (None: cores at hand, at most 8); few of them wait."""
    workers = threads or max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def good_count(rows: int) -> int:
    """Clusters for that many rows where the search for near pairs costs least: assigning grows with them, comparing within them falls. 1 below 8,192 rows."""
    return 1 if rows < 8192 else round(4 * math.sqrt(rows))
