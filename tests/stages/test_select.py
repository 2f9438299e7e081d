from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.stage import Evidence, params_affecting
from stages.select import Select

TYPES = {"score": pa.float32(), "lang": pa.string(), "uid": pa.string()}


def identifier(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()[:16]


def table_of(scores: list[float | None], langs: list[str] | None = None) -> pa.Table:
    n = len(scores)
    columns = {
        "part": pa.array([i // 4 for i in range(n)], pa.int32()),
        "row": pa.array([i % 4 for i in range(n)], pa.int32()),
        "sample_id": pa.array([identifier(i) for i in range(n)], pa.binary()),
        "score": pa.array(scores, pa.float32()),
        "lang": pa.array(langs or ["en"] * n),
        "uid": pa.array([identifier(i + 1000).hex() for i in range(n)]),
    }
    return pa.table(columns)


def verdicts(params: dict[str, Any], table: pa.Table, total: int | None = None, seed: int = 0) -> list[str | None]:
    """Run resolve (where there is one) and decide as the machine does; the reasons in row order."""
    stage = Select(Select.Params(**params))
    rows = table.to_pylist()
    resolved: list[dict[str, Any]] = [{} for _ in rows]
    if stage.has_resolve:
        seen = {"part", "row", "sample_id", *stage.reads_resolve}
        con = duckdb.connect()
        con.register("t", table.select([name for name in table.column_names if name in seen]))
        con.execute("CREATE TABLE rows AS SELECT * FROM t")
        found = stage.resolve(Evidence(con, total or len(rows), len(rows), seed)).to_arrow_table().to_pylist()
        by_place = {(row["part"], row["row"]): row for row in found}
        resolved = [by_place.get((row["part"], row["row"]), {}) for row in rows]
    seen_by_decide = [{name: row[name] for name in stage.reads_decide} for row in rows]
    drops = [stage.decide(row, values) for row, values in zip(seen_by_decide, resolved, strict=True)]
    return [drop.reason if drop else None for drop in drops]


def kept(params: dict[str, Any], table: pa.Table, **kwargs: Any) -> list[int]:
    return [i for i, reason in enumerate(verdicts(params, table, **kwargs)) if reason is None]


def test_where_alone_is_judged_without_a_barrier() -> None:
    stage = Select(Select.Params(where="score >= 0.25 and lang == 'en'"))
    assert not stage.has_resolve and tuple(stage.reads_decide) == ("score", "lang")
    assert verdicts(
        {"where": "score >= 0.25 and lang == 'en'"}, table_of([0.25, 0.2, None, 0.5], ["en", "en", "en", "de"])
    ) == [None, "expression", "expression", "expression"]
    drop = stage.decide({"score": 0.125, "lang": "en"}, {})
    assert drop is not None and drop.detail == "score=0.125, lang='en'"


@pytest.mark.parametrize(
    ("fraction", "rows", "n"), [(0.29, 100, 29), (0.3, 10, 3), (0.5, 7, 3), (1.0, 5, 5), (0.0, 5, 0), (0.7, 10, 7)]
)
def test_top_fraction_keeps_floor_of_fraction_times_rows(fraction: float, rows: int, n: int) -> None:
    scores = [((i * 37) % 101) / 101 for i in range(rows)]
    best = sorted(range(rows), key=lambda i: -scores[i])[:n]
    assert kept({"top_fraction": {"column": "score", "fraction": fraction}}, table_of(scores)) == sorted(best)


def test_top_fraction_of_the_input_counts_rows_that_left_before() -> None:
    table = table_of([float(i) for i in range(10)])
    assert kept({"top_fraction": {"column": "score", "fraction": 0.3, "of": "input"}}, table, total=20) == [
        4,
        5,
        6,
        7,
        8,
        9,
    ]


def test_ties_at_the_cut_are_drawn_by_seed_and_not_by_order() -> None:
    table = table_of([1.0] * 5 + [0.5] * 200)
    cut = {"top_fraction": {"column": "score", "fraction": 0.5}}
    first, again, other = kept(cut, table, seed=1), kept(cut, table, seed=1), kept(cut, table, seed=2)
    assert first == again != other and len(first) == len(other) == 102
    assert set(range(5)) <= set(first) & set(other)
    assert 20 < sum(1 for i in first if i > 105) < 80  # a draw, not the first rows
    assert kept({**cut, "seed": 9}, table, seed=1) != first


def test_nulls_and_nans_are_never_in_the_top() -> None:
    assert kept({"top_fraction": {"column": "score", "fraction": 1.0}}, table_of([None, float("nan"), 0.1])) == [2]


def test_percentile_keeps_the_values_at_its_edges() -> None:
    table = table_of([float(i) for i in range(1, 101)])
    ordered = [float(i) for i in range(1, 101)]
    low = float(np.quantile(ordered, 0.7, method="inverted_cdf"))
    high = float(np.quantile(ordered, 0.9, method="inverted_cdf"))
    assert kept({"percentile": {"column": "score", "min": 70, "max": 90}}, table) == [
        i for i, v in enumerate(ordered) if low <= v <= high
    ]
    assert verdicts({"percentile": {"column": "score", "min": 0}}, table_of([None, float("nan"), 1.0])) == [
        "below_cut",
        "below_cut",
        None,
    ]


def test_cuts_follow_each_other() -> None:
    table = table_of([float(i) for i in range(8)], ["en", "de"] * 4)
    params = {"where": "lang == 'en'", "top_fraction": {"column": "score", "fraction": 0.25}}
    assert verdicts(params, table) == [
        "below_cut",
        "expression",
        "below_cut",
        "expression",
        None,
        "expression",
        None,
        "expression",
    ]


@pytest.fixture(params=["txt", "txt.gz", "parquet", "parquet-binary", "npy"])
def id_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A list of the uids (npy: DataComp's pairs; else sample_ids) of rows 1 and 3, and the column to match."""
    wanted = [identifier(i) for i in (3, 1, 77)]
    path = tmp_path / f"ids.{request.param.partition('-')[0]}"
    if request.param == "npy":
        uids = sorted(identifier(i + 1000).hex() for i in (3, 1, 77))
        np.save(path, np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], np.dtype("u8,u8")))
        yield str(path), "uid"
        return
    if request.param == "parquet":
        pq.write_table(pa.table({"uid": ["x"] * 3, "sample_id": [one.hex() for one in wanted]}), path)
    elif request.param == "parquet-binary":
        pq.write_table(pa.table({"sample_id": pa.array(wanted, pa.binary(16))}), path)
    else:
        text = "# ids\n" + "\n\n".join(one.hex().upper() for one in wanted) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    yield str(path), "sample_id"


def test_rows_in_a_list_of_ids_are_kept(id_file: tuple[str, str]) -> None:
    path, column = id_file
    params = {"ids_file": path, "ids_column": column}
    assert verdicts(params, table_of([0.1] * 5)) == ["not_listed", None, "not_listed", None, "not_listed"]


def test_a_changed_id_file_changes_the_parameters(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("aa\n")
    before = Select.Params(ids_file=str(path))
    path.write_text("bbbb\n")
    after = Select.Params(ids_file=str(path))
    assert before.ids_sha256 != after.ids_sha256
    assert not params_affecting(after, "compute")  # all of them decide: nothing is ever computed again


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"where": "score >"}, "character 8"),
        ({"ids_file": "nowhere/ids.txt"}, "nowhere/ids.txt"),
    ],
)
def test_wrong_parameters_are_told_with_their_place(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Select.Params(**params)


def test_files_that_are_no_lists_of_ids_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros(3))
    pq.write_table(pa.table({"sample_ids": ["a"]}), tmp_path / "other.parquet")
    np.save(tmp_path / "cut.npy", np.zeros(3, np.dtype("u8,u8")))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-8])
    for name, message in (
        ("floats.npy", "u8,u8"),
        ("other.parquet", "no column sample_id or uid"),
        ("cut.npy", "ends after 2 of 3"),
    ):
        with pytest.raises(RecipeError, match=message):
            verdicts({"ids_file": str(tmp_path / name)}, table_of([0.1]))


def test_a_cut_over_texts_is_refused() -> None:
    with pytest.raises(RecipeError, match="holds VARCHAR, not numbers"):
        verdicts({"top_fraction": {"column": "lang", "fraction": 0.5}}, table_of([0.1, 0.2]))
