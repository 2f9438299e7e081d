"""Groups, splits and shard cuts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stages.shards.plan import cut_groups, cut_shards, splits_of


@pytest.mark.parametrize("n, limit", [(1, 10), (10, 10), (11, 10), (99, 10), (100, 7), (5, 1)])
def test_shards_are_few_and_even(n: int, limit: int) -> None:
    cuts = cut_shards(np.ones(n, np.int64), limit, 10**9)
    counts = [stop - start for start, stop in cuts]
    assert [start for start, _ in cuts] == [0, *np.cumsum(counts)[:-1]] and sum(counts) == n
    assert len(cuts) == -(-n // limit)
    assert max(counts) <= limit and max(counts) - min(counts) <= 1


def test_byte_bound_holds_where_sizes_vary() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 1000)
    cuts = cut_shards(sizes, 10_000, 900)
    assert max(sizes[start:stop].sum() for start, stop in cuts) <= 900
    assert len(cuts) < 2 * sizes.sum() / 900


def test_one_image_above_the_byte_bound_does_not_scatter_the_others() -> None:
    sizes = np.full(100, 10)
    sizes[50] = 5000
    assert len(cut_shards(sizes, 10_000, 500)) == 2


def test_no_samples_no_shards() -> None:
    assert cut_shards(np.empty(0, np.int64), 10, 10) == []


def test_groups_are_consecutive_parts_or_a_seeded_permutation_of_all() -> None:
    assert cut_groups(5, 2, None) == [(0, 1), (2, 3), (4,)]
    shuffled = cut_groups(100, 10, 1)
    assert sorted(part for group in shuffled for part in group) == list(range(100))
    assert shuffled == cut_groups(100, 10, 1) != cut_groups(100, 10, 2)
    assert shuffled[0] != tuple(range(10))


def test_split_shares_and_that_a_label_decides_alone() -> None:
    labels = pa.array([f"c{i}" for i in range(20_000)])
    found = splits_of(labels, {"train": 0.9, "val": 0.08, "test": 0.02}, 0)
    shares = np.bincount(found, minlength=3) / len(found)
    assert np.abs(shares - [0.9, 0.08, 0.02]).max() < 0.01
    backwards = splits_of(labels[::-1], {"train": 0.9, "val": 0.08, "test": 0.02}, 0)
    assert (backwards[::-1] == found).all()
    assert (splits_of(labels, {"train": 0.9, "val": 0.1}, 1) != splits_of(labels, {"train": 0.9, "val": 0.1}, 0)).any()
