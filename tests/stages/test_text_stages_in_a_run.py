"""The table stages in the whole machine: source, url_dup, repeated_text, text_rules, corrupt and select in one run."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from schemas.sample import sample_id

WORDS = "red car near the old stone bridge with two white birds over calm water".split()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """400 rows over 300 URLs; a fifth of the texts is none, a file name, a shop's name or German."""
    draw = random.Random(0)
    others = ["IMG_1234.jpg", "our little shop", "ein Hund läuft am Strand entlang", ""]
    return [
        {
            "url": f"http://a.example/{draw.randrange(300)}",
            "alt_text": " ".join(draw.sample(WORDS, 7)) if draw.random() < 0.8 else draw.choice(others),
            "similarity": draw.random(),
        }
        for _ in range(400)
    ]


def go(out: Path, table: Path, stages: list[Any], rows_per_part: int = 100) -> Path:
    recipe = {"input": {"kind": "url_table", "table": str(table), "rows_per_part": rows_per_part}, "stages": stages}
    run(build_recipe(recipe), out, RunOptions(executor="local"))
    return out


def verdicts(out: Path, stage: str) -> list[str | None]:
    """Reason of every row of the run, 'skipped' where it had left before; None where kept."""
    files = sorted((out / "verdicts" / stage).glob("*.parquet"))
    status = [row for file in files for row in pq.read_table(file).select(["status", "reason"]).to_pylist()]
    return ["skipped" if row["status"] == 3 else row["reason"] for row in status]


def expected_reasons(rows: list[dict[str, Any]], max_count: int) -> dict[str, list[str | None]]:
    """The first three stages, written as plain loops."""
    first: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    url_dup: list[str | None] = []
    for i, row in enumerate(rows):
        known = texts.setdefault(row["url"], [])
        url_dup.append("duplicate_row" if row["alt_text"] in known else "same_url" if known else None)
        first.setdefault(row["url"], i)
        if row["alt_text"] not in known:
            known.append(row["alt_text"])
    carried = Counter(text for url in first for text in texts[url])
    repeated: list[str | None] = []
    rules: list[str | None] = []
    own_reason = {"IMG_1234.jpg": "file_name", "": "empty", "ein Hund läuft am Strand entlang": "language"}
    for row, reason in zip(rows, url_dup, strict=True):
        left = [text for text in texts[row["url"]] if not text or carried[text] <= max_count]
        repeated.append("skipped" if reason else None if left else "repeated_text")
        passes = any(text not in own_reason for text in left)
        rules.append("skipped" if repeated[-1] else None if passes else own_reason[left[0]])
    return {"url_dup": url_dup, "repeated_text": repeated, "text_rules": rules}


STAGES: list[Any] = ["url_dup", {"repeated_text": {"max_count": 10}}, {"text_rules": {"languages": ["en"]}}]


def test_a_run_gives_the_verdicts_of_plain_loops(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    cut = {"select": {"top_fraction": {"column": "similarity", "fraction": 0.5}}}
    out = go(tmp_path / "run", table, [*STAGES, {"corrupt": {"eta": 0.1}}, cut])
    expected = expected_reasons(rows, 10)
    assert {name: verdicts(out, name) for name in expected} == expected
    assert {"repeated_text", "file_name", "language"} & set(expected["text_rules"] + expected["repeated_text"])
    alive = [i for i, reason in enumerate(expected["text_rules"]) if reason is None]
    best = set(sorted(alive, key=lambda i: -rows[i]["similarity"])[: len(alive) // 2])
    assert [i for i, reason in enumerate(verdicts(out, "select")) if reason is None] == sorted(best)
    swapped = pa.concat_tables(
        [pq.read_table(file) for file in sorted((out / "resolved" / "corrupt").glob("*.parquet"))]
    )
    donors = [donor for donor in swapped["donor"].to_pylist() if donor]
    assert len(donors) == len(alive) // 10
    assert set(donors) <= {sample_id("url_table", rows[i]["url"], rows[i]["alt_text"]).hex() for i in alive}


def test_thresholds_move_without_computing_and_part_size_changes_nothing(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    out = go(tmp_path / "run", table, STAGES)
    written = {path: path.stat().st_mtime_ns for path in (out / "values").rglob("*.parquet")}
    tight: list[Any] = [
        "url_dup",
        {"repeated_text": {"max_count": 10}},
        {"text_rules": {"languages": ["en"], "min_chars": 32}},
        {"select": {"where": "n_words < 9"}},
    ]
    go(out, table, tight)
    assert {path: path.stat().st_mtime_ns for path in (out / "values").rglob("*.parquet")} == written
    fresh = go(tmp_path / "fresh", table, tight, rows_per_part=37)
    for stage in ("url_dup", "repeated_text", "text_rules", "select"):
        assert verdicts(out, stage) == verdicts(fresh, stage)
    assert None in verdicts(out, "select")


def test_an_unknown_column_in_an_expression_is_told_before_anything_runs(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    with pytest.raises(RecipeError, match="n_wrods"):
        go(tmp_path / "run", table, [*STAGES, {"select": {"where": "n_wrods < 9"}}])
    assert not (tmp_path / "run" / "values").exists()
