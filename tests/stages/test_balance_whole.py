"""balance over whole columns gives what its queries give: every rule, for random rows with nulls, ties and equal ids, and random living rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from stages.balance import Balance
from tests.stages.dups.test_whole_columns import ROWS, by_query, evidence_of

STRUCT = pa.list_(pa.struct([("name", pa.string()), ("score", pa.float32())]))
TAGS = ["cat", "dog", "car", "sky"]


def columns_of(seed: int) -> dict[str, pa.Array]:
    """Groups of all sizes in columns of every kind; a tenth of the values null; rows 0 to 4 stand in the input twice."""
    draw = np.random.default_rng(seed)

    def some(values: list[Any], kind: pa.DataType | None = None, share: float = 0.1) -> pa.Array:
        return pa.array([None if draw.random() < share else value for value in values], kind)

    ids = [draw.bytes(16) for _ in range(ROWS)]
    ids[100:105] = ids[:5]
    tags = [draw.choice(TAGS, draw.integers(0, 5)).tolist() for _ in range(ROWS)]
    cluster = (15 ** draw.random(ROWS)).astype(int)
    return {
        "sample_id": pa.array(ids, pa.binary(16)),
        "cluster": some(cluster.tolist(), pa.int32()),
        "level": some(draw.choice([0.5, 1.0, -0.0, 0.0, np.nan], ROWS).tolist(), pa.float32()),
        "digest": some([bytes([7, n]) for n in cluster.tolist()], pa.binary()),
        "good": some((draw.random(ROWS) < 0.5).tolist(), pa.bool_()),
        "query": some(draw.choice(["null", "it's", "a"], ROWS).tolist(), pa.string()),
        "url": some([f"https://h{n}.example/{at}" for at, n in enumerate(cluster.tolist())], pa.string()),
        "clip_score": some(draw.choice([0.2, 0.25, 0.31, 0.4, np.nan, np.inf], ROWS).tolist(), pa.float32()),
        "none": pa.nulls(ROWS, pa.int32()),
        "tags": some([[*one, None] for one in tags], pa.list_(pa.string())),
        "named": some([[{"name": tag, "score": 0.5} for tag in one] for one in tags], STRUCT),
    }


CAPS = ["cluster", "level", "digest", "good", "query", "none", "cluster % 4", "host(url)", "cluster + level"]
RULES: list[dict[str, Any]] = [
    *({"caps": [{"by": by, "max": 3}]} for by in CAPS),
    *({"caps": [{"by": "cluster", "max": most}]} for most in (0, 1000)),
    *({"reduce": {"ratio": ratio, "quantile": quantile}} for ratio, quantile in ((0.5, 0.5), (0.3, 0.7), (1 / 3, 0), (1, 1), (0, 1))),
    *({"reduce": {"cluster": by, "ratio": 0.7, "score": None}} for by in ("query", "level", "digest", "none")),
    {"reduce": {"cluster": "query", "score": "cluster", "quantile": 0.4}},
    *({"quota": {"by": by, "max": {"cat": 20, "dog": 5, "unicorn": 3, "sky": 0}}} for by in ("tags", "named")),
    {"quota": {"by": "query", "max": {"null": 4, "it's": 1000}}},
    {
        "reduce": {"ratio": 0.8, "quantile": 0.9}, "caps": [{"by": "cluster", "max": 20}, {"by": "host(url)", "max": 12}],
        "quota": {"max": {"cat": 9, "dog": 30}}, "seed": 3,
    },
]  # fmt: skip


def test_each_rule_and_all_together_give_what_the_queries_give() -> None:
    out = 0
    for nth, params in enumerate(RULES):
        stage, columns, kept = Balance(Balance.Params(**params)), columns_of(nth % 3), dict[str, Any]()
        for share in (1.0, 0.6) if nth else (0.6, 0.0):
            alive = np.random.default_rng(nth).random(ROWS) < share
            told = stage.resolve_columns(evidence_of(columns, alive, list(stage.resolves), kept))
            assert told is not None, params
            expected = by_query(stage, columns, alive, list(stage.resolves))
            places = np.flatnonzero(alive)
            for name in stage.resolves:
                column = told[name]
                found = column.take(pa.array(places)) if isinstance(column, pa.Array) else column(places)
                assert found.to_pylist() == expected[name].take(pa.array(places)).to_pylist(), (params, share, name)
            out += len(places) - expected["balance_reason"].take(pa.array(places)).null_count
    assert out > 10 * ROWS


def test_what_columns_cannot_judge_is_left_to_the_query() -> None:
    columns, alive = columns_of(0), np.ones(ROWS, bool)
    for params in ({"metadata": {"t": 5}}, {"caps": [{"by": "query + 1", "max": 1}]}, {"quota": {"by": "cluster", "max": {"1": 1}}}):
        stage = Balance(Balance.Params(**params))
        assert stage.resolve_columns(evidence_of(columns, alive, list(stage.resolves), {})) is None
    with pytest.raises(RecipeError, match="holds INTEGER"):
        by_query(stage, columns, alive, [])
