"""Stored embeddings as blocks, and k-means on them: against loops in float64, and the same whatever the threads."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import Fatal
from pipeline.stage import VectorBlock
from stages.vectors.blocks import blocks, unit
from stages.vectors.kmeans import fit_centroids, in_order, nearest


def vectors(rows: int, width: int = 24, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32))


def test_blocks_hold_every_row_once_in_its_order_whatever_the_parts() -> None:
    whole = np.arange(60, dtype=np.float16).reshape(30, 2)
    for sizes in ([30], [1, 0, 12, 17], [7] * 4 + [2]):
        starts = np.cumsum([0, *sizes])
        parts = [VectorBlock(nth, np.arange(size, dtype=np.int32), whole[starts[nth] : starts[nth] + size]) for nth, size in enumerate(sizes) if size]
        found = list(blocks(parts, rows=8))
        assert [len(one) for one in found] == [8, 8, 8, 6]
        assert np.array_equal(np.concatenate([one.vectors for one in found]), whole)
        keys = np.concatenate([one.keys for one in found])
        assert keys.tolist() == [(nth << 32) + row for nth, size in enumerate(sizes) for row in range(size)]


def test_parts_of_two_models_are_refused() -> None:
    with pytest.raises(Fatal, match="part 1 has embeddings of 3 numbers, the parts before it of 2"):
        list(blocks([VectorBlock(0, np.zeros(1, np.int32), np.zeros((1, 2))), VectorBlock(1, np.zeros(1, np.int32), np.zeros((1, 3)))]))


def test_unit_leaves_no_row_that_would_be_near_everything() -> None:
    found = unit(np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1]], np.float16))
    assert found.dtype == np.float32 and found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, 0], [0, 0]]


def test_nearest_centroids_are_those_of_float64() -> None:
    rows, centroids = vectors(200), vectors(30, seed=1)
    places, cosines = nearest(rows, centroids, 5)
    for row, found, near in zip(rows.astype(np.float64), places, cosines, strict=True):
        products = [sum(a * b for a, b in zip(row, one, strict=True)) for one in centroids.astype(np.float64)]
        wanted = sorted(((float(value), -at) for at, value in enumerate(products)), reverse=True)[:5]
        assert found.tolist() == [-at for _, at in wanted] and np.allclose(near, [value for value, _ in wanted], atol=1e-6)


def test_planted_clusters_are_found_and_a_seed_gives_the_same_centroids() -> None:
    centres = vectors(6, seed=2)
    rows = unit(np.repeat(centres, 50, axis=0) + 0.05 * vectors(300, seed=3))
    first, again, other = (fit_centroids(rows, 6, seed=seed, iterations=20) for seed in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    labels = nearest(rows, first)[0][:, 0].reshape(6, 50)
    assert sum(len(set(group.tolist())) == 1 for group in labels) >= 4  # k-means may split one planted cluster and join two


def test_a_sample_smaller_than_the_count_is_its_own_centroids() -> None:
    rows = vectors(5)
    assert np.array_equal(fit_centroids(rows, 9, seed=0), rows)
    assert np.allclose(fit_centroids(rows, 1, seed=0)[0], rows.mean(0) / np.linalg.norm(rows.mean(0)), atol=1e-6)


def test_labels_are_the_same_whatever_the_threads() -> None:
    rows, centroids = vectors(3000, 64), vectors(100, 64, seed=1)
    one, four = (np.concatenate([found for _, found in in_order(np.split(rows, 10), lambda some: nearest(some, centroids, 3), threads)]) for threads in (1, 4))
    assert np.array_equal(one, four)
