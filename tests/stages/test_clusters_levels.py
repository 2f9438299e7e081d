"""clusters against loops in float64, levels against AlignGPT's acceptance; both the same for any cut into parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from pipeline.stage import Evidence, VectorBlock
from schemas.sample import sample_id
from stages.clusters import Clusters
from stages.levels import Levels, level_of
from stages.vectors.blocks import unit


def evidence_of(columns: dict[str, Any], rows: int, per_part: int, vectors: np.ndarray | None = None, without: set[int] = frozenset()) -> Evidence:
    places = np.arange(rows)
    ids = pa.array([sample_id("t", str(at), "") for at in range(rows)], pa.binary())
    con = duckdb.connect()
    con.register("incoming", pa.table({"part": places // per_part, "row": places % per_part, "sample_id": ids, **columns}))
    con.execute('CREATE TABLE rows AS SELECT * REPLACE (part::INTEGER AS part, "row"::INTEGER AS "row") FROM incoming')

    def read(column: str) -> Iterator[VectorBlock]:
        assert vectors is not None and column == "image_emb"
        for start in range(0, rows, per_part):
            own = np.array([at for at in range(start, min(start + per_part, rows)) if at not in without])
            if len(own):
                yield VectorBlock(start // per_part, (own - start).astype(np.int32), vectors[own])

    return Evidence(con, rows, rows, vectors=read)


def resolved(stage: Clusters | Levels, evidence: Evidence, per_part: int) -> dict[int, dict[str, Any]]:
    table = stage.resolve(evidence).to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves] and [table[name].type for name in stage.resolves] == list(stage.resolves.values())
    return {one["part"] * per_part + one["row"]: {name: one[name] for name in stage.resolves} for one in table.to_pylist()}


def test_planted_clusters_get_one_label_each_and_the_eight_nearest_are_those_of_loops() -> None:
    draw = np.random.default_rng(0)
    centres = unit(draw.standard_normal((12, 32)).astype(np.float32))
    sizes = np.arange(12) * 20 + 30
    truth = draw.permutation(np.repeat(np.arange(12), sizes))
    vectors = unit(centres[truth] + 0.05 * draw.standard_normal((len(truth), 32)).astype(np.float32)).astype(np.float16)
    vectors[7] = 0
    stage = Clusters(Clusters.Params(count=40, iterations=10))
    found = resolved(stage, evidence_of({}, len(truth), 100, vectors, without={3, 5}), 100)
    assert set(found) == set(range(len(truth))) - {3, 5, 7}
    # More clusters than were planted: each found one lies inside a planted one.
    assert all(len({int(truth[at]) for at, one in found.items() if one["cluster"] == label}) == 1 for label in {one["cluster"] for one in found.values()})
    counts = Counter(one["cluster"] for one in found.values())
    assert sorted(counts.values(), reverse=True) == [counts[label] for label in sorted(counts)] and sorted(counts) == list(range(len(counts)))
    assert all(len(set(one["clusters"])) == 8 and one["clusters"][0] == one["cluster"] and 0.9 < one["cluster_cosine"] <= 1 for one in found.values())
    again = resolved(stage, evidence_of({}, len(truth), 1000, vectors, without={3, 5}), 1000)
    assert again == found
    assert resolved(Clusters(Clusters.Params(count=40, iterations=10, seed=1)), evidence_of({}, len(truth), 100, vectors, without={3, 5}), 100) != found


def test_labels_are_the_nearest_centroids_in_float64() -> None:
    draw = np.random.default_rng(1)
    vectors = unit(draw.standard_normal((30, 16)).astype(np.float32)).astype(np.float16)
    # As many clusters as rows: each row is its own centroid, so that the nearest ones are known.
    found = resolved(Clusters(Clusters.Params(count=30, top=3)), evidence_of({}, 30, 30, vectors), 30)
    own = {one["cluster"]: at for at, one in found.items()}
    assert len(own) == 30
    for at, one in found.items():
        wide = [[float(x) for x in vectors[k]] for k in range(30)]
        cosine = [
            sum(a * b for a, b in zip(wide[at], wide[k], strict=True)) / (sum(a * a for a in wide[k]) * sum(a * a for a in wide[at])) ** 0.5 for k in range(30)
        ]
        assert [own[label] for label in one["clusters"]] == sorted(range(30), key=lambda k: -cosine[k])[:3]


def test_no_row_with_an_embedding_is_no_error_and_a_wrong_column_is() -> None:
    assert resolved(Clusters(Clusters.Params()), evidence_of({}, 4, 4, np.zeros((4, 2), np.float16), without={0, 1, 2, 3}), 4) == {}
    with pytest.raises(RecipeError, match="holds float, not vectors"):
        Clusters(Clusters.Params(embeddings="clip_score")).check({"clip_score": pa.float32()})
    with pytest.raises(RecipeError, match="holds string, not numbers"):
        Levels(Levels.Params(column="text")).check({"text": pa.string()})


def test_aligngpt_acceptance_800_scores_give_eight_bins_of_100_and_edges_that_reproduce_them() -> None:
    draw = np.random.default_rng(0)
    scores = np.unique(draw.normal(0.28, 0.05, 900).astype(np.float32))[:800]
    scores = draw.permutation(scores)
    stage, evidence = Levels(Levels.Params()), evidence_of({"clip_score": scores}, 800, 90)
    found = resolved(stage, evidence, 90)
    levels = np.array([found[at]["level"] for at in range(800)])
    assert np.bincount(levels).tolist() == [100] * 8
    means = [scores[levels == level].mean() for level in range(8)]
    assert all(a < b for a, b in zip(means, means[1:], strict=False))
    edges = evidence.facts["levels"]["edges"]
    assert len(edges) == 9 and (edges[0], edges[-1]) == (float(scores.min()), float(scores.max()))
    assert np.array_equal(level_of(scores.astype(np.float64), edges), levels)
    for per_part in (7, 800):
        assert resolved(Levels(Levels.Params(edges=edges)), evidence_of({"clip_score": scores}, 800, per_part), per_part) == found


def test_levels_of_equal_width_of_ties_and_of_few_rows() -> None:
    scores: list[float | None] = [0.0, 1.0, 2.0, 3.0, 4.0, 7.9, 8.0, None, float("nan")]
    evidence = evidence_of({"s": pa.array(scores, pa.float64())}, 9, 9)
    found = resolved(Levels(Levels.Params(column="s", by="width", count=4)), evidence, 9)
    assert [found[at]["level"] if at in found else None for at in range(9)] == [0, 0, 1, 1, 2, 3, 3, None, None]
    assert evidence.facts["levels"]["edges"] == [0, 2, 4, 6, 8]
    tied = resolved(Levels(Levels.Params(column="s", count=4)), evidence_of({"s": [1.0] * 6 + [2.0, 3.0]}, 8, 8), 8)
    assert len({tied[at]["level"] for at in range(6)}) == 1 and tied[6]["level"] == tied[7]["level"] == 3
    few = resolved(Levels(Levels.Params(column="s")), evidence_of({"s": [0.3, 0.1]}, 2, 2), 2)
    assert few[0]["level"] > few[1]["level"]
    assert resolved(Levels(Levels.Params(column="s")), evidence_of({"s": pa.nulls(3, pa.float32())}, 3, 3), 3) == {}


def test_a_sample_is_drawn_of_rows_with_a_direction_however_few_they_are() -> None:
    vectors = np.random.default_rng(1).standard_normal((2000, 16)).astype(np.float16)
    without = set(range(2000)) - {3, 700, 701, 1500, 1999}
    vectors[700], vectors[701, 2] = 0, np.nan
    found = resolved(Clusters(Clusters.Params(count=2, rows_per_cluster=1)), evidence_of({}, 2000, 500, vectors, without), 500)
    assert set(found) == {3, 1500, 1999} and all(one["cluster_cosine"] > 0 for one in found.values())
    # All rows are the sample here: one of zeros would be a centroid, nearest to whatever is far from all others.
    opposite = np.array([[1, 0], [0, 0], [-1, 0.1]], np.float16)
    every = resolved(Clusters(Clusters.Params(count=3)), evidence_of({}, 3, 3, opposite), 3)
    assert set(every) == {0, 2} and {one["cluster_cosine"] for one in every.values()} == {1.0}
