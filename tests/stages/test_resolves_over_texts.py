"""url_dup, repeated_text, exact_dup and corrupt: corpus-wide steps on a real DuckDB connection."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import duckdb
import pyarrow as pa
import pytest

from pipeline.stage import Evidence, Stage
from schemas.outcome import Reason
from schemas.sample import TEXTS, make_text, sample_id
from stages.corrupt import Corrupt
from stages.exact_dup import ExactDup
from stages.repeated_text import RepeatedText
from stages.url_dup import UrlDup

URL_ROWS = {"url": pa.string(), "alt_text": pa.string()}


def evidence_of(
    rows: list[dict], types: dict[str, pa.DataType], per_part: int = 3, shuffle: int | None = None
) -> Evidence:
    """Table `rows` with part and row by place; `shuffle` changes the physical order only."""
    table = [
        {
            "part": i // per_part,
            "row": i % per_part,
            "sample_id": sample_id("t", row.get("url") or str(i), row.get("alt_text") or ""),
            **row,
        }
        for i, row in enumerate(rows)
    ]
    if shuffle is not None:
        random.Random(shuffle).shuffle(table)
    schema = pa.schema([("part", pa.int32()), ("row", pa.int32()), ("sample_id", pa.binary()), *types.items()])
    con = duckdb.connect()
    con.register("arrow_rows", pa.Table.from_pylist(table, schema=schema))
    con.execute("CREATE TABLE rows AS SELECT * FROM arrow_rows")
    return Evidence(con, total=len(rows), alive=len(rows), seed=7)


def resolve(stage: Stage, evidence: Evidence) -> list[dict]:
    """Result in the order of the input (the machine sorts), checked against the declared columns and types."""
    table = stage.resolve(evidence).to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves]
    for name, kind in stage.resolves.items():
        table.column(name).cast(kind)  # raises where the type does not fit
    return sorted(table.to_pylist(), key=lambda found: (found["part"], found["row"]))


def texts_in(row: dict) -> list[str]:
    return [entry["text"] for entry in row["texts"] or []]


def reasons(stage: Stage, rows: list[dict]) -> list[str | None]:
    return [drop.reason if (drop := stage.decide({}, row)) else None for row in rows]


def test_url_dup_keeps_the_first_row_and_joins_the_other_texts() -> None:
    rows = [
        {"url": "http://a.example/x.jpg", "alt_text": "one"},
        {"url": "http://b.example/y.jpg", "alt_text": "other"},
        {"url": "http://a.example/x.jpg", "alt_text": "two"},
        {"url": "http://a.example/x.jpg", "alt_text": "one"},
        {"url": "http://a.example/x.jpg", "alt_text": "two"},
        {"url": "http://a.example/x.jpg", "alt_text": "three"},
    ]
    stage = UrlDup(UrlDup.Params())
    found = resolve(stage, evidence_of(rows, URL_ROWS))
    assert reasons(stage, found) == [None, None, "same_url", "duplicate_row", "duplicate_row", "same_url"]
    assert [row["n_same_url"] for row in found] == [5, 1, 5, 5, 5, 5]
    assert texts_in(found[0]) == ["one", "two", "three"]
    sources = [sample_id("t", rows[i]["url"], rows[i]["alt_text"]).hex() for i in (0, 2, 5)]
    assert [entry["source"] for entry in found[0]["texts"]] == sources
    assert {row["url_keeper"] for row in found if row["n_same_url"] == 5} == {sources[0]}
    assert found[1]["texts"] == [make_text("other", source=sample_id("t", rows[1]["url"], "other").hex())]
    drop = stage.decide({}, found[2])
    assert drop is not None and sources[0] in drop.detail


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("HTTP://Ex.Example/A.jpg", "http://ex.example/A.jpg", True),
        (" http://ex.example/a.jpg\n", "http://ex.example/a.jpg", True),
        ("http://ex.example:80/a.jpg", "http://ex.example/a.jpg", True),
        ("https://ex.example:443/a.jpg", "https://ex.example/a.jpg", True),
        ("http://ex.example/a.jpg#top", "http://ex.example/a.jpg", True),
        ("http://ex.example", "http://ex.example/", True),
        ("http://ex.example?q=1", "http://ex.example/?q=1", True),
        ("http://ex.example:8080/a.jpg", "http://ex.example/a.jpg", False),
        ("http://ex.example:443/a.jpg", "http://ex.example/a.jpg", False),
        ("http://ex.example/A.jpg", "http://ex.example/a.jpg", False),
        ("http://ex.example/a.jpg?w=1", "http://ex.example/a.jpg?w=2", False),
        ("http://ex.example/a.jpg", "https://ex.example/a.jpg", False),
        ("http://User@ex.example/a.jpg", "http://user@ex.example/a.jpg", False),
        ("photos/a#1.jpg", "photos/a#2.jpg", False),
    ],
)
def test_url_dup_compares_urls_after_light_normalisation(one: str, other: str, same: bool) -> None:
    found = resolve(
        UrlDup(UrlDup.Params()), evidence_of([{"url": one, "alt_text": "a"}, {"url": other, "alt_text": "b"}], URL_ROWS)
    )
    assert [row["n_same_url"] for row in found] == ([2, 2] if same else [1, 1])


def test_url_dup_takes_over_at_most_max_texts() -> None:
    rows = [{"url": "http://a.example/", "alt_text": f"t{i}"} for i in range(9)]
    found = resolve(UrlDup(UrlDup.Params(max_texts=4)), evidence_of(rows, URL_ROWS))
    assert texts_in(found[0]) == ["t0", "t1", "t2", "t3"]
    assert reasons(UrlDup(UrlDup.Params()), found) == [None] + ["same_url"] * 8


def test_url_dup_reads_a_null_text_as_empty() -> None:
    rows = [{"url": "http://a.example/", "alt_text": None}, {"url": "http://a.example/", "alt_text": ""}]
    stage = UrlDup(UrlDup.Params())
    assert reasons(stage, resolve(stage, evidence_of(rows, URL_ROWS))) == [None, "duplicate_row"]


def text_rows(texts_per_url: list[tuple[str, str]]) -> list[dict]:
    return [{"url": url, "texts": text} for url, text in texts_per_url]


def test_repeated_text_counts_distinct_urls_at_the_edge() -> None:
    ten = [(f"http://a.example/{i}", "ten times") for i in range(10)]
    eleven = [
        (f"http://b.example/{i}", text)
        for i, text in enumerate(["Eleven  times", "eleven times\u00a0"] * 5 + ["ELEVEN TIMES"])
    ]
    same_url = [("http://c.example/", "one url")] * 12
    stage = RepeatedText(RepeatedText.Params())
    found = resolve(stage, evidence_of(text_rows(ten + eleven + same_url), {"url": pa.string(), "texts": pa.string()}))
    assert reasons(stage, found) == [None] * 10 + [Reason.REPEATED_TEXT] * 11 + [None] * 12
    assert {row["n_text"] for row in found[:10]} == {10} and {row["n_text"] for row in found[10:21]} == {11}
    assert {row["n_text"] for row in found[21:]} == {1}
    assert stage.decide({}, found[10]).detail == "11 URLs carry it, at most 10"  # type: ignore[union-attr]


def test_repeated_text_keeps_a_row_with_another_text() -> None:
    common = [{"url": f"http://a.example/{i}", "texts": [make_text("shop")]} for i in range(3)]
    common[1]["texts"] = [make_text("shop"), make_text("a red chair")]
    stage = RepeatedText(RepeatedText.Params(max_count=2))
    found = resolve(stage, evidence_of(common, {"url": pa.string(), "texts": TEXTS}))
    assert reasons(stage, found) == [Reason.REPEATED_TEXT, None, Reason.REPEATED_TEXT]
    assert found[1]["n_text"] == 3 and found[1]["least_n_text"] == 1


def test_repeated_text_leaves_empty_texts_to_text_rules() -> None:
    rows = text_rows([(f"http://a.example/{i}", text) for i, text in enumerate(["", " ", None, ""])])  # type: ignore[list-item]
    stage = RepeatedText(RepeatedText.Params(max_count=1))
    assert reasons(stage, resolve(stage, evidence_of(rows, {"url": pa.string(), "texts": pa.string()}))) == [None] * 4


def test_repeated_text_takes_its_count_from_a_preset() -> None:
    assert RepeatedText.Params(preset="wukong").max_count == 10
    assert RepeatedText.Params(preset="wukong", max_count=3).max_count == 3


DUP_TYPES = {
    "raw_sha256": pa.binary(),
    "clip_score": pa.float32(),
    "texts": TEXTS,
    "width": pa.int32(),
    "height": pa.int32(),
}


def dup_row(content: str | None, score: float | None, width: int, text: str) -> dict:
    raw = None if content is None else content.encode() * 32
    return {
        "raw_sha256": raw,
        "clip_score": score,
        "texts": [make_text(text, clip_score=score)],
        "width": width,
        "height": 10,
    }


def test_exact_dup_keeps_the_best_scored_row_with_all_texts() -> None:
    rows = [
        dup_row("a", 0.20, 10, "low"),
        dup_row("a", 0.30, 10, "high"),
        dup_row("a", None, 99, "unscored"),
        dup_row("b", 0.10, 10, "alone"),
        dup_row(None, 0.50, 10, "no bytes"),
        dup_row(None, 0.50, 10, "no bytes either"),
    ]
    stage = ExactDup(ExactDup.Params())
    found = resolve(stage, evidence_of(rows, DUP_TYPES))
    assert reasons(stage, found) == [Reason.EXACT_DUP, None, Reason.EXACT_DUP, None, None, None]
    keeper = sample_id("t", "1", "").hex()
    assert [row["dup_component"] for row in found] == [keeper] * 3 + [None] * 3
    assert found[0]["dup_of"] == keeper == stage.decide({}, found[0]).detail  # type: ignore[union-attr]
    assert found[0]["kind"] == "bytes"
    assert texts_in(found[1]) == ["high", "low", "unscored"]
    assert [entry["source"] for entry in found[1]["texts"]] == [sample_id("t", str(i), "").hex() for i in (1, 0, 2)]
    assert [texts_in(row) for row in found[3:]] == [["alone"], ["no bytes"], ["no bytes either"]]


def test_exact_dup_breaks_ties_by_pixels_then_by_id() -> None:
    rows = [
        dup_row("a", 0.3, 10, "small"),
        dup_row("a", 0.3, 20, "large"),
        dup_row("b", 0.3, 10, "x"),
        dup_row("b", 0.3, 10, "y"),
    ]
    found = resolve(ExactDup(ExactDup.Params()), evidence_of(rows, DUP_TYPES))
    assert found[0]["dup_of"] == sample_id("t", "1", "").hex()
    assert found[2]["dup_component"] == min(sample_id("t", str(i), "") for i in (2, 3)).hex()


def test_exact_dup_works_on_raw_alt_texts_without_scores() -> None:
    rows = [{"raw_sha256": b"x" * 32, "texts": text} for text in ("one", "two", "one")]
    found = resolve(ExactDup(ExactDup.Params()), evidence_of(rows, {"raw_sha256": pa.binary(), "texts": pa.string()}))
    keeper = next(row for row in found if not row["dup_of"])
    assert sorted(texts_in(keeper)) == ["one", "two"] and sum(1 for row in found if row["dup_of"]) == 2


@pytest.mark.parametrize(
    ("stage", "types"),
    [
        (UrlDup(UrlDup.Params()), URL_ROWS),
        (ExactDup(ExactDup.Params()), DUP_TYPES),
        (RepeatedText(RepeatedText.Params(max_count=3)), {"url": pa.string(), "texts": TEXTS}),
        (Corrupt(Corrupt.Params(eta=0.5)), {"texts": TEXTS}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_results_do_not_depend_on_physical_order(stage: Stage, types: dict) -> None:
    draw = random.Random(3)
    rows = [
        {"url": f"http://a.example/{draw.randrange(20)}", "alt_text": f"t{draw.randrange(3)}"}
        | dup_row(str(draw.randrange(9)), draw.choice([0.1, 0.2, None]), draw.randrange(3), f"text {draw.randrange(9)}")
        for _ in range(100)
    ]
    rows = [{name: row[name] for name in types} for row in rows]
    plain = resolve(stage, evidence_of(rows, types))
    assert (
        plain
        == resolve(stage, evidence_of(rows, types, shuffle=1))
        == resolve(stage, evidence_of(rows, types, shuffle=2))
    )


@pytest.mark.parametrize(
    ("eta", "rows", "swapped"),
    [(0.05, 200, 10), (0.29, 100, 29), (0.5, 7, 3), (1.0, 50, 50), (0.0, 10, 0), (0.34, 3, 1)],
)
def test_corrupt_swaps_exactly_floor_eta_n_rows(eta: float, rows: int, swapped: int) -> None:
    given = [{"texts": f"text {i}"} for i in range(rows)]
    evidence = evidence_of(given, {"texts": pa.string()})
    found = resolve(Corrupt(Corrupt.Params(eta=eta)), evidence)
    ids = {sample_id("t", str(i), "").hex(): i for i in range(rows)}
    assert sum(row["corrupted"] for row in found) == swapped
    for i, row in enumerate(found):
        if row["corrupted"]:
            assert ids[row["donor"]] != i and row["text"] == f"text {ids[row['donor']]}" == texts_in(row)[0]
        else:
            assert row["donor"] is None and row["text"] == f"text {i}"
    if swapped > 1:  # a derangement of the chosen rows: their texts are handed round among them
        chosen = {i for i, row in enumerate(found) if row["corrupted"]}
        assert {ids[found[i]["donor"]] for i in chosen} == chosen


def test_corrupt_gives_no_row_an_equal_text_where_that_is_possible() -> None:
    for common, others in itertools.product((0, 3, 10), (10, 13)):
        given = [{"texts": "common"}] * common + [{"texts": f"t{i}"} for i in range(others)]
        found = resolve(Corrupt(Corrupt.Params(eta=1.0)), evidence_of(given, {"texts": pa.string()}))
        assert all(row["text"] != before["texts"] for row, before in zip(found, given, strict=True))
    given = [{"texts": "common"}] * 8 + [{"texts": f"t{i}"} for i in range(2)]
    found = resolve(Corrupt(Corrupt.Params(eta=1.0)), evidence_of(given, {"texts": pa.string()}))
    changed = sum(row["text"] != before["texts"] for row, before in zip(found, given, strict=True))
    assert changed == 4  # two of the eight get another text, and both others do: no more is possible
    assert Counter(row["text"] for row in found) == Counter(row["texts"] for row in given)


def test_corrupt_draws_other_rows_with_another_seed() -> None:
    given = [{"texts": f"text {i}"} for i in range(100)]
    picked = [
        [
            row["corrupted"]
            for row in resolve(Corrupt(Corrupt.Params(eta=0.2, seed=seed)), evidence_of(given, {"texts": pa.string()}))
        ]
        for seed in (0, 0, 1)
    ]
    assert picked[0] == picked[1] != picked[2]
