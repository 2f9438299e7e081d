"""near_dup and dedup on a real DuckDB connection: evidence of equal bytes and near hashes, one keeper, its texts."""

from __future__ import annotations

import random

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import Fatal, RecipeError
from pipeline.stage import Evidence
from schemas.outcome import Reason
from schemas.sample import TEXTS, make_text, sample_id
from stages.dedup import Dedup
from stages.exact_dup import ExactDup
from stages.near_dup import NEAR, NearDup

HASHES = {f"{kind}{suffix}": pa.int16() if suffix == "_quality" else pa.binary() for kind in ("pdq", "phash") for suffix in ("", "_quality", "_turned")}
OTHERS = {"raw_sha256": pa.binary(), "clip_score": pa.float32(), "texts": TEXTS, "width": pa.int32(), "height": pa.int32()}


def flipped(base: int, *bits: int) -> int:
    for bit in bits:
        base ^= 1 << bit
    return base


def row(phash: int, *, raw: int | None = None, quality: int = 80, pixels: int = 10, score: float | None = 0.3, text: str = "t", turned: bytes = b"") -> dict:
    return {
        "phash": phash.to_bytes(8, "big"), "phash_quality": quality, "phash_turned": turned, "pdq": (phash << 100).to_bytes(32, "big"), "pdq_quality": quality,
        "pdq_turned": b"", "raw_sha256": (raw if raw is not None else random.getrandbits(250)).to_bytes(32, "big"), "clip_score": score,
        "texts": [make_text(text, clip_score=score)], "width": pixels, "height": 10,
    }  # fmt: skip


def evidence_of(rows: list[dict], types: dict[str, pa.DataType], per_part: int = 3) -> Evidence:
    table = [{"part": at // per_part, "row": at % per_part, "sample_id": sample_id("t", str(at), ""), **one} for at, one in enumerate(rows)]
    schema = pa.schema([("part", pa.int32()), ("row", pa.int32()), ("sample_id", pa.binary()), *types.items()])
    con = duckdb.connect()
    con.register("incoming", pa.Table.from_pylist(table, schema=schema))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    return Evidence(con, len(rows), len(rows))


def ordered(stage, evidence: Evidence) -> list[dict]:
    table = stage.resolve(evidence).to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves]
    for name, kind in stage.resolves.items():
        table.column(name).cast(kind)
    return sorted(table.to_pylist(), key=lambda found: (found["part"], found["row"]))


def both(rows: list[dict], near: dict | None = None, dedup: dict | None = None, per_part: int = 3) -> tuple[list[dict], list[dict], Dedup]:
    """What near_dup and then dedup resolve for each row."""
    search = NearDup(NearDup.Params(by="phash", **(near or {})))
    found = {(one["part"], one["row"]): one["near_evidence"] for one in ordered(search, evidence_of(rows, HASHES | OTHERS, per_part))}
    pairs = [found.get((at // per_part, at % per_part)) for at in range(len(rows))]
    stage = Dedup(Dedup.Params(**(dedup or {})))
    joined = [{name: one[name] for name in OTHERS} | {"near_evidence": some} for one, some in zip(rows, pairs, strict=True)]
    return pairs, ordered(stage, evidence_of(joined, OTHERS | {"near_evidence": NEAR}, per_part)), stage


def hex_id(at: int) -> str:
    return sample_id("t", str(at), "").hex()


BASE = 0x0123456789ABCDEF


def test_pairs_are_stored_with_their_distance_on_the_first_row_of_each_hash() -> None:
    rows = [row(BASE), row(flipped(BASE, 0)), row(BASE), row(flipped(BASE, 0, 1, 2)), row(~BASE & (1 << 64) - 1)]
    pairs, _, _ = both(rows, per_part=2)
    assert [one["pairs"] for one in pairs] == [
        [{"part": 0, "row": 1, "distance": 1}, {"part": 1, "row": 1, "distance": 3}],
        [{"part": 1, "row": 1, "distance": 2}],
        None,  # equal to the first
        None,
        None,
    ]
    assert {one["within"] for one in pairs} == {12} and pairs[0]["hash"] == BASE.to_bytes(8, "big")


def test_near_rows_are_one_component_and_the_largest_stays_with_all_texts() -> None:
    rows = [
        row(BASE, pixels=10, score=0.4, text="small"),
        row(flipped(BASE, 3), pixels=30, score=0.2, text="large"),
        row(flipped(BASE, 3, 4), pixels=20, score=None, text="unscored"),
        row(flipped(BASE, *range(20)), text="far"),
    ]
    _, found, stage = both(rows)
    assert [one["dup_of"] for one in found] == [hex_id(1), None, hex_id(1), None]
    assert [one["distance"] for one in found] == [1, None, 1, None] and [one["kind"] for one in found] == ["near", None, "near", None]
    assert [one["dup_component"] for one in found] == [hex_id(1)] * 3 + [None]
    assert [(entry["text"], entry["source"]) for entry in found[1]["texts"]] == [("small", hex_id(0)), ("large", hex_id(1)), ("unscored", hex_id(2))]
    drop = stage.decide({}, found[0])
    assert drop is not None and drop.reason == Reason.NEAR_DUP and drop.detail == f"{hex_id(1)}, 1 bits"
    assert stage.decide({}, found[1]) is None
    _, by_score, _ = both(rows, dedup={"keeper": "clip_score"})
    assert [one["dup_of"] for one in by_score] == [None, hex_id(0), hex_id(0), None]


def test_bytes_and_hashes_join_one_component_with_one_keeper() -> None:
    rows = [
        row(BASE, raw=7, pixels=10, score=0.3),  # same bytes as the next
        row(BASE, raw=7, pixels=10, score=0.5),
        row(flipped(BASE, 9), raw=8, pixels=99),
        row(flipped(BASE, 9), raw=9, pixels=50),  # equal hash, other bytes
    ]
    _, found, stage = both(rows)
    assert [one["dup_of"] for one in found] == [hex_id(2)] * 2 + [None] + [hex_id(2)]
    # of two rows with the same bytes the better one is gone for being near, the other for its bytes
    assert [one["kind"] for one in found] == ["bytes", "near", None, "near"]
    assert [one["distance"] for one in found] == [1, 1, None, 0]
    assert [drop.reason if (drop := stage.decide({}, one)) else None for one in found] == [Reason.EXACT_DUP, Reason.NEAR_DUP, None, Reason.NEAR_DUP]


def test_max_distance_decides_below_the_distance_searched() -> None:
    rows = [row(BASE), row(flipped(BASE, *range(5))), row(flipped(BASE, *range(10, 20)))]
    for distance, kept in ((4, 3), (5, 2), (10, 1)):
        _, found, _ = both(rows, dedup={"max_distance": distance})
        assert sum(one["dup_of"] is None for one in found) == kept
    with pytest.raises(Fatal, match="raise near_dup.search_distance"):
        both(rows, near={"search_distance": 8}, dedup={"max_distance": 9})


def test_a_chain_is_split_where_its_ends_are_far_apart() -> None:
    rows = [row(flipped(BASE, *range(0, 6 * step))) for step in range(10)]
    _, found, _ = both(rows, dedup={"max_distance": 6})
    components = [one["dup_component"] for one in found]
    assert 3 <= len(set(components)) <= 5
    for component in set(components):
        places = [at for at, one in enumerate(components) if one == component]
        assert 6 * (places[-1] - places[0]) <= 18
    assert len({one["dup_component"] for one in both(rows, dedup={"max_distance": 6, "reach": 100})[1]}) == 1


def test_flat_pictures_are_joined_by_their_bytes_only() -> None:
    rows = [row(0, quality=3, raw=1), row(0, quality=3, raw=2), row(1, quality=3, raw=1)]
    pairs, found, _ = both(rows)
    assert pairs == [None] * 3
    assert [one["kind"] for one in found].count("bytes") == 1 and sum(one["dup_of"] is None for one in found) == 2
    assert found[1]["distance"] is None and found[1]["dup_component"] is None
    _, all_of_them, _ = both(rows, near={"min_quality": 0})
    assert sum(one["dup_of"] is None for one in all_of_them) == 1


def test_turned_copies_are_joined_where_asked_for() -> None:
    draw = random.Random(1)
    mirror = [draw.getrandbits(64) for _ in range(3)]
    rows = [
        row(BASE, turned=mirror[0].to_bytes(8, "big")),
        row(flipped(mirror[0], 5), turned=flipped(BASE, 7).to_bytes(8, "big")),  # a mirrored copy, one bit off
        row(mirror[1], turned=mirror[2].to_bytes(8, "big")),
    ]
    pairs, found, _ = both(rows, near={})
    assert pairs[0]["pairs"] == [{"part": 0, "row": 1, "distance": 1}]
    assert [one["dup_component"] is None for one in found] == [False, False, True]
    assert sorted(one["distance"] for one in found if one["dup_of"]) == [1]


def test_turned_pairs_are_those_of_plain_loops() -> None:
    draw = np.random.default_rng(0)
    bases = [int(value) for value in draw.integers(0, 2**63, 40)]
    rows = []
    for at in range(120):
        near = flipped(bases[at % 40], *draw.choice(64, 3, replace=False).tolist())
        turned = b"".join(flipped(bases[(at + k) % 40], *draw.choice(64, 2, replace=False).tolist()).to_bytes(8, "big") for k in (1, 2, 5))
        rows.append(row(near, turned=turned))
    pairs, _, _ = both(rows, near={"search_distance": 7})
    wanted = set()
    for a in range(120):
        for b in range(a + 1, 120):
            copies = [(one["phash"], [one["phash_turned"][at : at + 8] for at in (0, 8, 16)]) for one in (rows[a], rows[b])]
            candidates = [(copies[0][0], copies[1][0]), *((copies[0][0], t) for t in copies[1][1]), *((copies[1][0], t) for t in copies[0][1])]
            least = min((int.from_bytes(x, "big") ^ int.from_bytes(y, "big")).bit_count() for x, y in candidates)
            if least <= 7:
                wanted.add((a, b, least))
    found = {(at, p["part"] * 3 + p["row"], p["distance"]) for at, one in enumerate(pairs) for p in one["pairs"] or []}
    assert len(wanted) > 100 and found == wanted


def test_dedup_without_near_dup_does_what_exact_dup_does() -> None:
    rows = [row(at, raw=at % 3, score=at / 20, text=f"text {at}") for at in range(8)]
    rows = [{name: one[name] for name in OTHERS} for one in rows]
    found = ordered(Dedup(Dedup.Params()), evidence_of(rows, OTHERS))
    exact = ordered(ExactDup(ExactDup.Params()), evidence_of(rows, OTHERS))
    assert [{name: one[name] for name in ("dup_of", "kind", "dup_component", "texts")} for one in found] == [
        {name: one[name] for name in ("dup_of", "kind", "dup_component", "texts")} for one in exact
    ]
    assert sum(one["dup_of"] is None for one in found) == 3


def test_rows_without_any_duplicate_or_hash_stay() -> None:
    rows = [row(BASE), row(~BASE & (1 << 64) - 1)]
    for some in (rows, rows[:1], [row(BASE, quality=0), row(BASE, quality=0)]):
        assert all(one["dup_of"] is None and one["dup_component"] is None for one in both(some)[1])


def test_components_do_not_depend_on_how_the_rows_are_cut_into_parts() -> None:
    draw = np.random.default_rng(4)
    bases = [int(value) for value in draw.integers(0, 2**63, 12)]
    rows = [row(flipped(bases[at % 12], *draw.choice(64, 4, replace=False).tolist()), raw=int(draw.integers(0, 60)), text=f"t{at}") for at in range(90)]
    one, other = both(rows, per_part=7)[1], both(rows, per_part=90)[1]
    assert [{k: v for k, v in found.items() if k not in ("part", "row")} for found in one] == [
        {k: v for k, v in found.items() if k not in ("part", "row")} for found in other
    ]


def test_a_recipe_that_cannot_work_says_so() -> None:
    with pytest.raises(RecipeError, match="put `dedup` here"):
        ExactDup(ExactDup.Params()).check({"near_evidence": NEAR})
    with pytest.raises(RecipeError, match="less than half"):
        NearDup(NearDup.Params(by="phash", search_distance=32)).check({})
