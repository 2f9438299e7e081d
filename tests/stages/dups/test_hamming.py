"""Near pairs of hashes against plain loops: both widths, small and large distances, every way to cut the hash, clumps."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dups import passes
from stages.dups.components import components
from stages.dups.hamming import near_pairs
from stages.dups.pairs import Pairs, as_words, distances, join, spanning_forest
from stages.dups.search_plan import SearchPlan, _with_parts, make_plan


def mutated(seed: int, rows: int, bits: int, groups: int, most_flips: int) -> np.ndarray:
    """Distinct random hashes uint8 [N, bits / 8]: `groups` of them with ten copies each, 1 to most_flips bits off."""
    draw = np.random.default_rng(seed)
    some = draw.integers(0, 256, (rows, bits // 8), dtype=np.uint8)
    for group in range(groups):
        for copy in range(10):
            flips = np.zeros(bits, np.uint8)
            flips[draw.choice(bits, draw.integers(1, most_flips + 1), replace=False)] = 1
            some[groups + 10 * group + copy] = some[group] ^ np.packbits(flips)
    return np.unique(some, axis=0)[draw.permutation(len(np.unique(some, axis=0)))]


def by_looking_at_all(hashes: np.ndarray, distance: int) -> set[tuple[int, int, int]]:
    bits = np.unpackbits(hashes, axis=1).astype(np.int32)
    found = bits.sum(1)[:, None] + bits.sum(1)[None, :] - 2 * bits @ bits.T
    left, right = np.nonzero(np.triu(found <= distance, 1))
    return set(zip(left.tolist(), right.tolist(), found[left, right].tolist(), strict=True))


def listed(chunks: list[Pairs]) -> list[tuple[int, int, int]]:
    pairs = join(chunks)
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist(), strict=True))


@pytest.mark.parametrize(("bits", "distance"), [(64, 0), (64, 1), (64, 4), (64, 8), (64, 12), (256, 3), (256, 16), (256, 31), (256, 40)])
def test_the_same_pairs_as_looking_at_all_each_once(bits: int, distance: int) -> None:
    hashes = mutated(bits + distance, 1500, bits, 60, max(2, distance + 3))
    wanted = by_looking_at_all(hashes, distance)
    assert len(wanted) > 20 or distance == 0
    found = listed(list(near_pairs(hashes, distance)))
    assert len(found) == len(set(found)) and set(found) == wanted


@pytest.mark.parametrize(("bits", "distance"), [(64, 4), (64, 7), (256, 20)])
@pytest.mark.parametrize("words", [1, 2, 4, 8, 16, 32])
def test_every_plan_finds_the_same_pairs(bits: int, distance: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for a few rows and for ten million, whichever way they cut the hash, with all rows in one bucket and in many."""
    hashes = mutated(5, 800, bits, 30, distance + 2)
    wanted = by_looking_at_all(hashes, distance)
    tried = 0
    for rows in (2_000, 100_000, 10_000_000):
        plan = _with_parts(rows, bits, distance, words) if 8 <= bits // words <= 64 else None
        if plan is None or len(plan.passes) > 300:
            continue
        tried += 1
        monkeypatch.setattr(passes, "BUCKET_ROWS", {2_000: 4000, 100_000: 300, 10_000_000: 20}[rows])
        found = listed(list(near_pairs(hashes, distance, plan=plan, threads=2)))
        assert len(found) == len(set(found)) and set(found) == wanted
    assert tried or bits // words not in (64, 32, 16, 8) or bits == 256 and words <= 8 or words == 1


def test_the_order_of_the_pairs_does_not_depend_on_threads() -> None:
    hashes = mutated(1, 2000, 64, 80, 5)
    plan = _with_parts(1_000_000, 64, 4, 1)
    assert plan is not None
    assert listed(list(near_pairs(hashes, 4, plan=plan, threads=1))) == listed(list(near_pairs(hashes, 4, plan=plan, threads=4)))


def clump(seed: int, rows: int, flips: int) -> np.ndarray:
    """Distinct hashes uint8 [N, 8], each one of few bits off one hash."""
    draw = np.random.default_rng(seed)
    centre = draw.integers(0, 256, 8, dtype=np.uint8)
    some = np.repeat(np.unpackbits(centre)[None], rows, 0)
    for row in some:
        row[draw.choice(64, draw.integers(1, flips + 1), replace=False)] ^= 1
    return np.unique(np.packbits(some, axis=1), axis=0)


@pytest.mark.parametrize(("brute", "bucket"), [(False, 1 << 16), (False, 100), (True, 1 << 16)])
def test_a_clump_is_not_listed_and_joins_the_same_rows_at_every_distance(brute: bool, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BUCKET_ROWS", bucket)
    dense = clump(2, 900, 3)
    hashes = np.unique(np.concatenate([dense, mutated(3, 700, 64, 30, 6)]), axis=0)
    plan = SearchPlan((), 0.0) if brute else _with_parts(20_000, 64, 6, 2)
    assert plan is not None
    found = listed(list(near_pairs(hashes, 6, plan=plan)))
    everything = by_looking_at_all(hashes, 6)
    assert len(everything) > 200_000 and len(found) < 40_000
    assert len(found) == len(set(found)) and set(found) <= everything
    for distance in range(7):
        got, want = (
            components(len(hashes), *np.array([pair[:2] for pair in pairs if pair[2] <= distance], np.int64).reshape(-1, 2).T) for pairs in (found, everything)
        )
        assert np.array_equal(got, want), distance
    if not brute:
        dense_ones = {row.tobytes() for row in dense}
        inside = {at for at, row in enumerate(hashes) if row.tobytes() in dense_ones}
        far = {pair for pair in everything if pair[0] not in inside and pair[1] not in inside}
        assert far <= set(found)  # outside of the clump every pair stands


def test_the_spanning_forest_is_minimal() -> None:
    hashes = clump(4, 300, 5)
    words = as_words(hashes)
    forest = spanning_forest(words, 10)
    assert len(forest) == len(hashes) - 1
    # Kruskal over all pairs has the same number of edges of each distance
    kept: list[int] = []
    parent = list(range(len(hashes)))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for left, right, distance in sorted(by_looking_at_all(hashes, 10), key=lambda pair: pair[2]):
        if root(left) != root(right):
            parent[root(left)] = root(right)
            kept.append(distance)
    assert sorted(forest.distance.tolist()) == kept
    assert np.array_equal(distances(words, forest.left, forest.right), forest.distance)


def test_few_and_odd_hashes() -> None:
    assert listed(list(near_pairs(np.array([7], np.uint64), 4))) == []
    assert listed(list(near_pairs(np.array([0, 1, 2**64 - 1], np.uint64), 1))) == [(0, 1, 1)]
    with pytest.raises(ValueError, match="uint64"):
        list(near_pairs(np.zeros((3, 16), np.uint8), 4))
    with pytest.raises(ValueError, match="give 0 to 31"):
        list(near_pairs(np.arange(9, dtype=np.uint64), 32))


def test_many_rows_get_longer_keys_and_few_rows_none() -> None:
    assert make_plan(300, 64, 12).passes == ()
    few, many = make_plan(50_000, 64, 4), make_plan(10_000_000, 64, 4)
    bits = [np.mean([bin(one.mask).count("1") for one in plan.passes]) for plan in (few, many)]
    assert few.passes and bits[1] > bits[0] + 4
    assert many.cost < 120 < make_plan(10_000_000, 64, 12).cost
    assert passes.CLUMP_ROWS > 50
