"""Covering designs leave a choice free of errors wherever the errors are, and parting and collapsing hashes equal numpy's own."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from stages.dups import parting
from stages.dups.components import components
from stages.dups.coverings import COVERINGS
from stages.dups.search_plan import Pass, make_plan


@pytest.mark.parametrize("errors", sorted(COVERINGS))
def test_every_placement_of_errors_leaves_a_choice_untouched(errors: int) -> None:
    for blocks, choices in COVERINGS[errors]:
        agree = choices[0].bit_count()
        assert all(one.bit_count() == agree and one >> blocks == 0 for one in choices)
        for placed in combinations(range(blocks), errors):
            hit = sum(1 << block for block in placed)
            assert any(not one & hit for one in choices), (blocks, placed)
        plain = min(comb(errors + r, r) for r in range(1, 65) if r * blocks >= agree * (errors + r))
        assert len(choices) < plain, f"no better than every choice of {agree} of {blocks} blocks"


@pytest.mark.parametrize(("bits", "distance", "rows"), [(64, 4, 10**6), (64, 4, 10**7), (64, 6, 10**6), (256, 31, 10**6)])
def test_passes_of_a_group_share_their_leading_bits_and_stand_together(bits: int, distance: int, rows: int) -> None:
    passes = make_plan(rows, bits, distance).passes
    leads = [(one.word, one.part, one.lead) for one in passes]
    assert len(set(leads)) == 1 + sum(a != b for a, b in zip(leads, leads[1:], strict=False))
    for one in passes:
        assert one.lead & one.mask == one.lead and one.mask & one.part == one.mask
        assert "01" not in f"{one.lead:b}", "leading bits are neighbours"
    assert len(set(passes)) == len(passes) and isinstance(passes[0], Pass)


@pytest.mark.parametrize("bits", [1, 6, 9])
def test_parted_rows_are_those_with_equal_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "_CHUNK", 1000)
    values = np.random.default_rng(3).integers(0, 2**64, 5300, dtype=np.uint64)
    values[:900] = 7  # one bucket is far larger than the others
    key = values >> np.uint64(11) & np.uint64(2**bits - 1)
    buckets = list(parting.parted(values, 11, bits))
    assert [len(rows) for rows, _ in buckets] == np.unique(key, return_counts=True)[1].tolist()
    for rows, some in buckets:
        assert np.all(np.diff(rows) > 0) and np.array_equal(some, values[rows]) and len(set(key[rows].tolist())) == 1
    assert np.array_equal(np.concatenate([rows for rows, _ in buckets]), np.argsort(key, kind="stable"))


@pytest.mark.parametrize("rows", [0, 1, 500, 9000])
def test_distinct_values_and_their_places(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "_CHUNK", 700)
    monkeypatch.setattr(parting, "BUCKET_ROWS", 1000)
    values = np.random.default_rng(rows).integers(0, 2**64, rows, dtype=np.uint64)
    values[rows // 2 :] = values[: rows - rows // 2]
    wanted, places = np.unique(values, return_inverse=True)
    found, which = parting.distinct_places(values)
    assert np.array_equal(found, wanted) and np.array_equal(which, places)


def test_components_of_few_rows_among_many() -> None:
    draw = np.random.default_rng(8)
    left, right = draw.integers(0, 3000, (2, 900))
    label = list(range(3000))
    for _ in range(3000):  # the least label goes along the edges until nothing changes
        before = label.copy()
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            label[a] = label[b] = min(label[a], label[b])
        if label == before:
            break
    assert np.array_equal(components(3000, left, right), label)
