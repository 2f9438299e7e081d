"""near_dup and dedup over whole columns give what their queries give, for random evidence and random sets of living rows."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.stage import ColumnEvidence, Evidence, Stage
from stages.dedup import Dedup
from stages.near_dup import NearDup

PARTS = [70, 50, 80]
STARTS = np.concatenate([[0], np.cumsum(PARTS)])
ROWS = int(STARTS[-1])


def columns_of(seed: int, width: int) -> dict[str, pa.Array]:
    """Rows in families of near hashes and of equal bytes; sizes, scores and hashes with nulls and ties."""
    draw = np.random.default_rng(seed)
    family = draw.integers(0, 45, ROWS)
    base = draw.integers(0, 256, (45, width), dtype=np.uint8)
    hashes = base[family]
    for row in range(ROWS):
        for _ in range(draw.integers(0, 4) * width // 8):
            hashes[row, draw.integers(0, width)] ^= np.uint8(1 << draw.integers(0, 8))
    image = draw.integers(0, 120, ROWS)

    def some(values: list[Any], kind: pa.DataType, share: float = 0.1) -> pa.Array:
        return pa.array([None if draw.random() < share else value for value in values], kind)

    by = "phash" if width == 8 else "pdq"
    return {
        "sample_id": pa.array([draw.bytes(16) for _ in range(ROWS)], pa.binary(16)),
        by: some([row.tobytes() for row in hashes], pa.binary()),
        f"{by}_quality": pa.array(draw.choice([20, 50, 80], ROWS, p=[0.1, 0.2, 0.7]), pa.int16()),
        f"{by}_turned": pa.array([b""] * ROWS, pa.binary()),
        "raw_sha256": some([bytes([n]) * 32 for n in image.tolist()], pa.binary(32)),
        "clip_score": some(draw.choice([0.2, 0.25, 0.31], ROWS).tolist(), pa.float32()),
        "width": some(draw.choice([100, 200], ROWS).tolist(), pa.int32()),
        "height": some(draw.choice([100, 150], ROWS).tolist(), pa.int32()),
        "texts": pa.array([f"text {n}" for n in range(ROWS)]),
        "semantic_evidence": pa.nulls(ROWS),
        "crop_evidence": pa.nulls(ROWS),
    }


def by_query(stage: Stage, columns: dict[str, pa.Array], alive: np.ndarray, names: list[str]) -> pa.Table:
    """The stage's resolve as the machine asks it; its answer over all rows, null for rows without one."""
    places = np.flatnonzero(alive)
    part = np.searchsorted(STARTS, places, "right") - 1
    con = duckdb.connect()
    columns = {"phash": pa.nulls(ROWS), **columns}
    table = {"part": pa.array(part, pa.int32()), "row": pa.array(places - STARTS[part], pa.int32()), "sample_id": columns["sample_id"].take(places)}
    con.register("incoming", pa.table(table | {name: columns[name].take(places) for name in (spec.split("|")[0].rstrip("?") for spec in stage.reads_resolve)}))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    answer = stage.resolve(Evidence(con, ROWS, len(places), 0)).to_arrow_table()
    place = np.full(ROWS, -1)
    place[STARTS[answer["part"].to_numpy()] + answer["row"].to_numpy()] = np.arange(len(answer))
    index = pa.array(place, mask=place < 0)
    return pa.table({name: answer[name].cast(stage.resolves[name]).combine_chunks().take(index) for name in names})


def evidence_of(columns: dict[str, pa.Array], alive: np.ndarray, names: list[str], kept: dict[str, Any]) -> ColumnEvidence:
    def index(name: str, keys: Any, make: Any) -> dict[str, np.ndarray]:
        return kept.setdefault(name, None) or kept.update({name: make()}) or kept[name]

    return ColumnEvidence(columns.__getitem__, alive, STARTS, 0, frozenset(names), index, lambda name, array, make: make())


def values(column: Any) -> list[Any]:
    return (column if isinstance(column, pa.Array) else column(np.arange(ROWS))).to_pylist()


@pytest.mark.parametrize(("width", "distance"), [(8, 4), (8, 12), (32, 20)])
def test_whole_columns_give_what_the_queries_give(width: int, distance: int) -> None:
    scalars = ["dup_of", "kind", "distance", "cosine", "dup_component"]
    for seed in range(2):
        columns = columns_of(seed, width)
        near = NearDup(NearDup.Params(by="phash" if width == 8 else "pdq", search_distance=distance))
        kept: dict[str, Any] = {}  # the index is made once, for all sets of rows
        for share in (1.0, 0.7, 0.3):
            alive = np.random.default_rng(seed).random(ROWS) < share
            told = near.resolve_columns(evidence_of(columns, alive, ["near_evidence"], kept))
            assert told is not None
            found = by_query(near, columns, alive, ["near_evidence"])["near_evidence"].combine_chunks()
            assert [value for value in told["near_evidence"].to_pylist()] == found.to_pylist()
            for most, reach, keeper in ((distance // 2, 1.0, "pixels"), (distance, 1.5, "clip_score")):
                dedup = Dedup(Dedup.Params(max_distance=most, reach=reach, keeper=keeper))
                all_columns = {**columns, "near_evidence": told["near_evidence"]}
                joined = dedup.resolve_columns(evidence_of(all_columns, alive, scalars, {}))
                assert joined is not None
                expected = by_query(dedup, {**columns, "near_evidence": found}, alive, scalars)
                for name in scalars:
                    mine = [value if lives else None for value, lives in zip(values(joined[name]), alive, strict=True)]
                    assert mine == expected[name].to_pylist(), (name, seed, share, most)
                assert share < 1 or {"near", "bytes"} <= set(expected["kind"].to_pylist())


def test_clumps_and_turned_copies_are_left_to_the_query() -> None:
    columns = columns_of(0, 8)
    alive = np.ones(ROWS, bool)
    near = NearDup(NearDup.Params(by="phash", search_distance=12))
    turned = {**columns, "phash_turned": pa.array([b"12345678"] * ROWS, pa.binary())}
    assert near.resolve_columns(evidence_of(turned, alive, ["near_evidence"], {})) is None
    draw = np.random.default_rng(0)
    flat = [bytes([draw.integers(0, 256), draw.integers(0, 8), 0, 0, 0, 0, 0, 0]) for _ in range(ROWS)]
    assert near.resolve_columns(evidence_of({**columns, "phash": pa.array(flat, pa.binary())}, alive, ["near_evidence"], {})) is None


def test_without_hashes_equal_bytes_decide() -> None:
    columns = columns_of(1, 8) | {"near_evidence": pa.nulls(ROWS)}
    alive = np.random.default_rng(1).random(ROWS) < 0.8
    told = Dedup(Dedup.Params()).resolve_columns(evidence_of(columns, alive, ["kind", "dup_of"], {}))
    assert told is not None
    embedded = {**columns, "semantic_evidence": pa.array([{"within": 0.9}] * ROWS)}
    assert Dedup(Dedup.Params()).resolve_columns(evidence_of(embedded, alive, ["kind", "dup_of"], {})) is None
    expected = by_query(Dedup(Dedup.Params()), columns, alive, ["kind", "dup_of"])
    assert [kind if lives else None for kind, lives in zip(values(told["kind"]), alive, strict=True)] == expected["kind"].to_pylist()
