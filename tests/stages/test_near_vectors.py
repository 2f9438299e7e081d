"""The search for near embeddings against a loop over all pairs: borders, equal vectors, clumps, clusters that are split."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.stage import VectorBlock
from stages.dups.components import components, greatest_forest
from stages.vectors import near as module
from stages.vectors.blocks import blocks, unit
from stages.vectors.near import NearSearch


def planted(rows: int, width: int = 32, seed: int = 0) -> np.ndarray:
    """Float16 vectors: half in wide clusters, half uniform; every fifth row is a copy of another at cosine 0.88 to 1."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((8, width))
    made = unit(draw.standard_normal((rows, width)).astype(np.float32))
    made[::2] = unit((0.8 * unit(centres.astype(np.float32))[draw.integers(0, 8, len(made[::2]))] + 0.6 * made[::2]).astype(np.float32))
    copies = np.arange(0, rows, 5)
    base, noise = made[(copies + 7) % rows], unit(draw.standard_normal((len(copies), width)).astype(np.float32))
    noise = unit(noise - (noise * base).sum(1, keepdims=True) * base)
    cosine = draw.uniform(0.88, 1, (len(copies), 1)).astype(np.float32)
    made[copies] = cosine * base + np.sqrt(1 - cosine**2) * noise
    return made.astype(np.float16)


def found_by(vectors: np.ndarray, folder: Path, cosine: float, per_part: int = 700, **options) -> tuple[dict[tuple[int, int], float], NearSearch]:
    def read():
        parts = range(-(-len(vectors) // per_part))
        mine = [vectors[part * per_part : (part + 1) * per_part] for part in parts]
        return blocks((VectorBlock(part, np.arange(len(own), dtype=np.int32), own) for part, own in zip(parts, mine, strict=True)), rows=512)

    search = NearSearch(duckdb.connect(), read, lambda count: unit(vectors[:: max(1, len(vectors) // count)]), cosine, folder, **options)
    pairs = {}
    for some in search.pairs():
        left, right = ((side >> 32) * per_part + (side & 0xFFFFFFFF) for side in (some.left, some.right))
        for a, b, value in zip(left.tolist(), right.tolist(), some.cosine.tolist(), strict=True):
            assert a < b and pairs.get((a, b), value) == value, "a pair that comes twice has one cosine"
            pairs[a, b] = value
    return pairs, search


def all_pairs(vectors: np.ndarray, cosine: float) -> dict[tuple[int, int], float]:
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    near = np.round(wide @ wide.T, 4)
    return {(a, b): near[a, b] for a, b in zip(*np.nonzero(near >= cosine), strict=True) if a < b}


@pytest.mark.parametrize("clusters", [1, 25])
def test_pairs_are_those_of_all_products_where_every_border_is_looked_across(tmp_path: Path, clusters: int) -> None:
    vectors = planted(3000)
    wanted = all_pairs(vectors, 0.9)
    found, search = found_by(vectors, tmp_path, 0.9, clusters=clusters, probes=clusters)
    assert set(found) == set(wanted) and len(wanted) > 400 and search.crowded == 0
    assert max(abs(found[pair] - wanted[pair]) for pair in wanted) < 1.5e-4
    across = [(a, b) for a, b in wanted if search.labels[a] != search.labels[b]]
    assert clusters == 1 or len(across) > 50, "pairs across borders were among them"


def test_few_probes_miss_little_and_say_that_they_may(tmp_path: Path) -> None:
    vectors = planted(3000, width=96)
    wanted = all_pairs(vectors, 0.9)
    found, search = found_by(vectors, tmp_path, 0.9, clusters=40, probes=12)
    assert set(found) <= set(wanted) and len(found) >= 0.98 * len(wanted) and search.crowded > 0
    own_cluster_alone, _ = found_by(vectors, tmp_path, 0.9, clusters=40, probes=1)
    assert len(own_cluster_alone) < len(found), "looking across borders finds pairs"


def test_the_size_of_a_part_changes_nothing(tmp_path: Path) -> None:
    vectors = planted(2000)
    assert found_by(vectors, tmp_path, 0.9, clusters=20, probes=4)[0] == found_by(vectors, tmp_path, 0.9, per_part=97, clusters=20, probes=4)[0]


def test_equal_vectors_are_paired_with_the_first_of_them_and_a_clump_by_a_forest(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    centre = unit(draw.standard_normal((1, 32)).astype(np.float32))
    clump = unit(centre + 0.01 * draw.standard_normal((900, 32)).astype(np.float32)).astype(np.float16)
    vectors = np.concatenate([clump, np.repeat(planted(10, seed=5)[:1], 50, axis=0), planted(1000)])
    found, _ = found_by(vectors, tmp_path, 0.9, clusters=10, probes=10)
    assert {pair for pair in found if 900 <= pair[0] < 950} == {(900, other) for other in range(901, 950)}
    inside = [pair for pair in found if pair[1] < 900]
    assert 899 <= len(inside) < 5 * 900
    label = components(900, *np.array(inside).T)
    assert len(set(label.tolist())) == 1


def test_a_cluster_that_is_too_large_is_split_and_its_pairs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 200)
    vectors = planted(3000)
    found, search = found_by(vectors, tmp_path, 0.9, clusters=4, probes=100)
    assert set(found) == set(all_pairs(vectors, 0.9)) and np.bincount(search.labels).max() < 400


def test_rows_without_a_direction_are_near_nothing(tmp_path: Path) -> None:
    vectors = np.concatenate([np.zeros((2, 8), np.float16), np.full((2, 8), np.nan, np.float16), np.eye(8, dtype=np.float16)])
    assert found_by(vectors, tmp_path, 0.5)[0] == {}


def test_the_greatest_forest_joins_what_all_edges_join_at_every_weight() -> None:
    draw = np.random.default_rng(2)
    left, right = draw.integers(0, 80, (2, 900))
    open_ = left != right
    left, right = np.minimum(left, right)[open_], np.maximum(left, right)[open_]
    weight = draw.integers(0, 12, len(left)) / 10
    kept = greatest_forest(left, right, weight)
    assert len(kept) <= 79 and sorted(set(kept.tolist())) == kept.tolist()
    for least in np.unique(weight):
        every, some = weight >= least, weight[kept] >= least
        assert np.array_equal(components(80, left[every], right[every]), components(80, left[kept][some], right[kept][some]))
