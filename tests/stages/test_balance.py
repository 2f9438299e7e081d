"""balance on a real DuckDB connection: golden figures of the papers, loops for what is matched and drawn, closed formulas for the draws."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_params
from pipeline.stage import Evidence
from schemas.sample import TEXTS, make_text, sample_id
from stages.balance import Balance
from stages.balancing.entries import build_entries
from stages.balancing.matching import Matcher, read_entries, spaced
from stages.balancing.metaclip import keep_probabilities
from stages.noise_prob import NoiseProb

WORDS = "a big red dog runs over the st. new york times square cat".split()
TYPES = {"texts": TEXTS, "cluster": pa.int32(), "clip_score": pa.float32(), "url": pa.string(), "query": pa.string(), "tags": pa.list_(pa.string())}


def evidence_of(rows: list[dict[str, Any]], per_part: int = 1000, seed: int = 0) -> Evidence:
    names = [name for name in TYPES if name in rows[0]]
    table = [{"part": at // per_part, "row": at % per_part, "sample_id": sample_id("t", str(at), ""), **one} for at, one in enumerate(rows)]
    schema = pa.schema([("part", pa.int32()), ("row", pa.int32()), ("sample_id", pa.binary()), *[(name, TYPES[name]) for name in names]])
    con = duckdb.connect()
    con.register("incoming", pa.Table.from_pylist(table, schema=schema))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    return Evidence(con, len(rows), len(rows), seed)


def balanced(rows: list[dict[str, Any]], *, per_part: int = 1000, seed: int = 0, **params: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What resolve gave each row, in their order, and the tables of head and tail."""
    stage, evidence = Balance(Balance.Params(**params)), evidence_of(rows, per_part, seed)
    table = stage.resolve(evidence).to_arrow_table()
    assert table.column_names == ["part", "row", *stage.resolves]
    found = sorted(table.cast(pa.schema([("part", pa.int32()), ("row", pa.int32()), *stage.resolves.items()])).to_pylist(), key=lambda r: (r["part"], r["row"]))
    assert len(found) == len(rows)
    for one in found:
        drop = stage.decide({}, one)
        assert (drop.reason if drop else None) == one["balance_reason"] and (drop is None or drop.detail)
    return found, evidence.facts["balance"]


def kept(found: list[dict[str, Any]]) -> list[int]:
    return [at for at, one in enumerate(found) if one["balance_reason"] is None]


def texts(*several: str) -> dict[str, Any]:
    return {"texts": [make_text(one) for one in several]}


def test_metaclip_golden_keep_probabilities() -> None:
    assert keep_probabilities([5_000, 20_000, 40_000, 2_000_000], 20_000).tolist() == [1, 1, 0.5, 0.01]


def published_match(text: str, entries: list[str]) -> list[int]:
    """MetaCLIP's substr_matching as its code has it: every entry is looked for in the spaced text."""
    whole = f" {text} "
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        whole = whole.replace(mark, f" {mark} ")
    for white in ["\t", "\n", "\r"]:
        whole = whole.replace(white, " ")
    return [at for at, entry in enumerate(entries) if f" {entry} " in whole]


def test_matches_are_those_of_the_published_loop() -> None:
    draw = random.Random(0)
    entries = list(dict.fromkeys(" ".join(draw.choices(WORDS, k=draw.choice([1, 1, 2, 3, 4]))) for _ in range(150)))
    matcher, hits, some = Matcher(entries), 0, []
    for _ in range(600):
        text = "".join(draw.choice(WORDS) + draw.choice([" ", " ", " ", "  ", ", ", ".", "\t", "!", "\n"]) for _ in range(draw.randint(0, 12)))
        assert sorted(matcher(text)) == published_match(text, entries)
        hits += len(matcher(text))
        some.append(text)
    assert hits > 500
    odd = ["", " ", "  a", "the  st .", "a\0b", "ÄÖ", "dog  "]
    spaces = Matcher(["", "a", "a  b", "  a", "the  st .", " ", "b"])
    for one, several in ((matcher, some), (spaces, some + odd), (Matcher(["äö", "DOG"], True), odd), (Matcher([]), odd)):
        rows, places = one.of_texts(pa.array(several))
        assert list(zip(rows.tolist(), places.tolist(), strict=True)) == [(row, place) for row, text in enumerate(several) for place in sorted(one(text))]
    assert Matcher(["Big Dog", "dog"], ignore_case=True)("a BIG dog") == [0, 1] and Matcher(["dog"])("a Dog, hotdog") == []


def test_entries_are_built_by_count_and_mutual_information() -> None:
    draw = random.Random(1)
    some = [" ".join(draw.choice([["new", "york"], ["red"], ["dog"], ["the"], ["the"], ["!"]])[0:2][0] if draw.random() < 0.5 else "new york" for _ in range(6))
            for _ in range(300)] + ["new, york", "the\tend"]  # fmt: skip
    con = duckdb.connect()
    con.register("t", pa.table({"key": list(range(len(some))), "text": some}))
    con.execute("CREATE TABLE balance_texts AS SELECT * FROM t")
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in some:
        split = spaced(text).split(" ")
        good = [any(map(str.isalnum, one)) for one in split]
        words.update(one for one, fine in zip(split, good, strict=True) if fine)
        pairs.update(pair for pair, fine in zip(pairwise(split), pairwise(good), strict=True) if all(fine))
    total = sum(words.values())
    for least in (0.1, 1.0):
        wanted = {word for word, n in words.items() if n >= 50}
        wanted |= {f"{a} {b}" for (a, b), n in pairs.items() if n >= 50 and math.log2(n * total / words[a] / words[b]) >= least}
        found = build_entries(con, 50, least, False)
        assert set(found) == wanted and len(found) == len(wanted)
        assert "new york" in wanted and found[0] == words.most_common(1)[0][0]
    assert set(build_entries(con, 50, None, False)) == {word for word, n in words.items() if n >= 50}


def zipf_rows(count: int = 6000, seed: int = 3) -> list[dict[str, Any]]:
    """Rows of one or two texts; entry e<k> stands in a share 1 / k of them, the word 'rare' in a few, some texts match nothing."""
    draw = random.Random(seed)
    made = []
    for at in range(count):
        some = [" ".join(f"e{k}" for k in range(1, 30) if draw.random() < 1 / (k + 1)) or "nothing" for _ in range(1 + (at % 4 == 0))]
        made.append(texts(*[f"{one} text {at}.{nth}" for nth, one in enumerate(some)]))
    return made


@pytest.fixture(scope="module")
def entry_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("metadata") / "metadata.json"
    path.write_text(json.dumps([f"e{k}" for k in range(1, 30)] + ["never met"]))
    return str(path)


def test_metaclip_draws_follow_the_closed_formula_and_do_not_depend_on_the_cut(entry_file: str) -> None:
    rows, t = zipf_rows(), 300
    matched = [[[entry for entry in text["text"].split() if entry[0] == "e" and entry[1:].isdigit()] for text in row["texts"]] for row in rows]
    counts = Counter(entry for row in matched for text in row for entry in text)
    wanted = [1 - math.prod(1 - min(1, t / counts[entry]) for text in row for entry in text) for row in matched]
    found, [told] = balanced(rows, metadata={"file": entry_file, "t": t})
    assert [one["keep_probability"] for one in found] == pytest.approx(wanted, abs=1e-6)
    assert [one["matched_entries"] or [] for one in found] == [sorted({entry for text in row for entry in text}) for row in matched]
    expected, spread = sum(wanted), math.sqrt(sum(p * (1 - p) for p in wanted))
    assert abs(len(kept(found)) - expected) < 3 * spread and spread > 10
    assert all(one["balance_reason"] for one, row in zip(found, matched, strict=True) if not any(row))
    # Rows matched by one entry alone: the share of its rows that stays is t / n.
    for entry in ("e1", "e2", "e3"):
        alone = [at for at, row in enumerate(matched) if row == [[entry]]]
        share, p = sum(found[at]["balance_reason"] is None for at in alone), min(1, t / counts[entry])
        assert abs(share - p * len(alone)) < 3 * math.sqrt(len(alone) * p * (1 - p)) + 1e-9
    for other in ({"per_part": 37}, {"per_part": 6000}):
        again, [same] = balanced(rows, metadata={"file": entry_file, "t": t}, **other)
        assert [{k: v for k, v in one.items() if k not in ("part", "row")} for one in again] == [
            {k: v for k, v in one.items() if k not in ("part", "row")} for one in found
        ]
        assert same == told
    assert kept(balanced(rows, metadata={"file": entry_file, "t": t}, seed=1)[0]) != kept(found)
    # The table of head and tail, by loops.
    stays = set(kept(found))
    before = Counter(entry for row in matched for entry in {entry for text in row for entry in text})
    after = Counter(entry for at, row in enumerate(matched) if at in stays for entry in {entry for text in row for entry in text})
    assert told["head"] == [[entry, before[entry], after[entry]] for entry in sorted(before, key=lambda one: (-before[one], one))[:12]]
    assert sum(band[3] for band in told["bands"]) == sum(before.values()) and sum(band[4] for band in told["bands"]) == sum(after.values())
    assert told["groups"] == sum(band[2] for band in told["bands"]) == len(before)


def test_t_is_solved_for_a_wanted_size_and_any_t_follows_from_balance_t(entry_file: str) -> None:
    rows = zipf_rows(2000)
    found, [told] = balanced(rows, metadata={"file": entry_file, "size": 700})
    assert len(kept(found)) == told["after"] == 700
    assert kept(balanced(rows, metadata={"file": entry_file, "t": told["t"]})[0]) == kept(found)
    for t in (5, 80, 400):
        assert kept(balanced(rows, metadata={"file": entry_file, "t": t})[0]) == [
            at for at, one in enumerate(found) if one["balance_t"] is not None and one["balance_t"] < t
        ]
    everything, [told] = balanced(rows, metadata={"file": entry_file, "size": 5000})
    assert len(kept(everything)) == sum(one["balance_t"] is not None for one in everything)


def test_metadata_may_be_built_from_the_texts_and_first_texts_alone_be_read() -> None:
    rows = [texts("red dog runs" if at % 3 else "blue cat", "green bird") for at in range(300)]
    found, [told] = balanced(rows, metadata={"min_count": 50, "min_pmi": 0.5, "texts": "first", "t": 50})
    assert told["entries"] == 8 and {line[0] for line in told["head"]} == {"red", "dog", "runs", "red dog", "dog runs", "blue", "cat", "blue cat"}
    assert 30 < len(kept(found)) < 300
    assert not any("bird" in one["matched_entries"] for one in found)


def test_realsyn_caps_keep_105_151_and_446() -> None:
    sizes = [5, 20, 21, 40, 200, 1000]
    rows = [{"cluster": cluster} for cluster, size in enumerate(sizes) for _ in range(size)]
    random.Random(0).shuffle(rows)
    for most, wanted in ((20, 105), (35, 151), (180, 446)):
        found, [told] = balanced(rows, caps=[{"by": "cluster", "max": most}])
        stays = kept(found)
        assert len(stays) == wanted == told["after"]
        assert Counter(rows[at]["cluster"] for at in stays) == {cluster: min(size, most) for cluster, size in enumerate(sizes)}
        assert all(one["keep_probability"] == pytest.approx(min(1, most / sizes[row["cluster"]])) for one, row in zip(found, rows, strict=True))
        assert stays == kept(balanced(rows, per_part=11, caps=[{"by": "cluster", "max": most}])[0])
        assert stays != kept(balanced(rows, caps=[{"by": "cluster", "max": most}], seed=5)[0]) or most == 1000
    # Rows of the largest cluster are equally likely, wherever they stand: 6 seeds, 20 of 1,000 each.
    drawn = Counter(at for seed in range(6) for at in kept(balanced(rows, caps=[{"by": "cluster", "max": 20}], seed=seed)[0]) if rows[at]["cluster"] == 5)
    first = sum(n for at, n in drawn.items() if at < len(rows) // 2)
    share = sum(row["cluster"] == 5 for row in rows[: len(rows) // 2]) / 1000
    assert abs(first - 120 * share) < 3 * math.sqrt(120 * share * (1 - share))


def test_caps_take_any_column_or_expression_and_leave_rows_without_a_group() -> None:
    urls = [f"https://www.{'big' if at % 5 else 'Small'}.example:8080/{at}" for at in range(200)]
    rows = [{"url": url, "query": None if at % 2 else f"q{at % 8}", "cluster": at} for at, url in enumerate(urls)]
    found, [hosts, queries] = balanced(rows, caps=[{"by": "host(url)", "max": 50}, {"by": "query", "max": 3}])
    assert {line[0] for line in hosts["head"]} == {"big.example", "small.example"} and hosts["after"] == 50 + 40
    assert queries["before"] == 90 and all(after <= 3 for _, _, after in queries["head"])
    assert sum(rows[at]["query"] is None for at in kept(found)) == 90 - sum(before for _, before, _ in queries["head"])
    thirds, _ = balanced(rows, caps=[{"by": "cluster % 3", "max": 10}])
    assert Counter(rows[at]["cluster"] % 3 for at in kept(thirds)) == {0: 10, 1: 10, 2: 10}
    with pytest.raises(RecipeError, match="no column 'clutser'"):
        Balance(Balance.Params(caps=[{"by": "clutser", "max": 1}])).check({"cluster": pa.int32()})
    with pytest.raises(RecipeError, match="is a list, not one group"):
        Balance(Balance.Params(caps=[{"by": "tags", "max": 1}])).check({"tags": pa.list_(pa.string())})


def test_tldr_keeps_its_ratio_of_every_cluster_and_nothing_below_the_score_quantile() -> None:
    draw = np.random.default_rng(0)
    sizes = [1, 2, 3, 7, 50, 51, 400, 486] + [10] * 100
    rows = [{"cluster": cluster, "clip_score": float(draw.random())} for cluster, size in enumerate(sizes) for _ in range(size)]
    ratio = 0.5
    drawn, _ = balanced(rows, reduce={"ratio": ratio, "score": None})
    stays = Counter(rows[at]["cluster"] for at in kept(drawn))
    assert all(abs(stays[cluster] - ratio * size) < 1 for cluster, size in enumerate(sizes))
    ones, _ = balanced([{"cluster": at} for at in range(2000)], reduce={"ratio": 0.3, "score": None})
    assert abs(len(kept(ones)) - 600) < 3 * math.sqrt(2000 * 0.3 * 0.7)  # clusters of one row give their share too
    both, [told] = balanced(rows, reduce={"ratio": ratio, "quantile": 0.5})
    cut = sorted((row["clip_score"] for row in rows), reverse=True)[len(rows) // 2 - 1]
    assert all(rows[at]["clip_score"] >= cut for at in kept(both)) and set(kept(both)) <= set(kept(drawn))
    assert len(kept(both)) == told["after"] == pytest.approx(ratio * 0.5 * len(rows), rel=0.05)
    rows[3]["clip_score"], rows[4]["clip_score"] = None, float("nan")
    again, _ = balanced(rows, reduce={"ratio": 1, "quantile": 1})
    assert len(rows) - len(kept(again)) == 2 and again[3]["balance_detail"].startswith("score null")


def test_quotas_hold_for_each_tag_and_leave_rows_without_them() -> None:
    draw = random.Random(0)
    rows = [{"tags": sorted({draw.choice(["cat", "dog", "car", "sky"]) for _ in range(draw.randint(0, 3))})} for _ in range(1000)]
    found, [told] = balanced(rows, quota={"max": {"cat": 100, "dog": 50, "unicorn": 3}})
    stays = Counter(tag for at in kept(found) for tag in rows[at]["tags"])
    assert stays["cat"] <= 100 and stays["dog"] <= 50 and stays["dog"] > 40
    assert all(found[at]["balance_reason"] is None for at, row in enumerate(rows) if not {"cat", "dog"} & set(row["tags"]))
    assert {line[0]: line[2] for line in told["head"]} == {tag: stays[tag] for tag in ("cat", "dog")}
    assert kept(found) == kept(balanced(rows, per_part=13, quota={"max": {"cat": 100, "dog": 50, "unicorn": 3}})[0])
    single, _ = balanced([{"query": "ab"[at % 2]} for at in range(50)], quota={"by": "query", "max": {"a": 4}})
    assert len(kept(single)) == 29
    with pytest.raises(RecipeError, match="holds INTEGER"):
        balanced([{"cluster": 1}], quota={"by": "cluster", "max": {"1": 4}})


def test_each_rule_sees_what_those_before_it_let_stay(entry_file: str) -> None:
    rows = [{**row, "cluster": at % 7} for at, row in enumerate(zipf_rows(1500))]
    alone, _ = balanced(rows, metadata={"file": entry_file, "t": 100})
    found, told = balanced(rows, metadata={"file": entry_file, "t": 100}, caps=[{"by": "cluster", "max": 20}])
    assert told[1]["before"] == told[0]["after"] == len(kept(alone)) and set(kept(found)) < set(kept(alone))
    assert Counter(at % 7 for at in kept(found)) == dict.fromkeys(range(7), 20)
    sizes = Counter(at % 7 for at in kept(alone))
    for at in kept(found):
        assert found[at]["keep_probability"] == pytest.approx(alone[at]["keep_probability"] * 20 / sizes[at % 7], abs=1e-6)


def test_what_cannot_work_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="balance has no rule"):
        Balance.Params()
    with pytest.raises(ValueError, match="needs `t` or `size`"):
        Balance.Params(metadata={"t": None})
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(RecipeError, match="has no entries"):
        read_entries(str(empty))
    with pytest.raises(RecipeError, match="balance.metadata.file: cannot read"):
        Balance.Params(metadata={"file": str(tmp_path / "none.json")})
    before = Balance.Params(metadata={"file": str(empty)}).metadata.file_sha256
    empty.write_text("dog")
    assert Balance.Params(metadata={"file": str(empty)}).metadata.file_sha256 != before
    assert balanced([texts("a dog")], metadata={"file": str(empty)})
    for params, told in (({"metadata": {"foo": 3}}, "metadata: unknown key 'foo'"), ({"caps": [{"by": "cluster"}]}, "caps.0: 'max' is required")):
        with pytest.raises(RecipeError, match=f"stages.balance.{told}"):
            build_params(Balance, params, "stages.balance")
    with pytest.raises(RecipeError, match="no word stands 100 times in the 2 texts"):
        balanced([texts("a dog"), texts("a cat")], metadata={})
    types = {"word": pa.string(), "many": pa.list_(pa.int32()), "number": pa.float32(), "tags": pa.list_(pa.struct([("name", pa.string())]))}
    for params, told in (
        ({"reduce": {"cluster": "number", "score": "word"}}, "reduce.score: 'word' holds string, not numbers"),
        ({"reduce": {"cluster": "many", "score": None}}, "reduce.cluster: 'many' holds list"),
        ({"quota": {"by": "number", "max": {"a": 1}}}, "quota.by: 'number' holds float"),
        ({"quota": {"by": "many", "max": {"a": 1}}}, "quota.by: 'many' holds list"),
    ):
        with pytest.raises(RecipeError, match=f"stages.balance.{told}"):
            Balance(Balance.Params(**params)).check(types)
    Balance(Balance.Params(quota={"by": "tags", "max": {"a": 1}})).check(types)
    with pytest.raises(RecipeError, match="stages.noise_prob.column: 'word' holds string, not numbers"):
        NoiseProb(NoiseProb.Params(column="word")).check(types)
