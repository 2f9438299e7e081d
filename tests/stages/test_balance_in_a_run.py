"""clusters, levels, concepts, noise_prob and balance through the machine: one recipe, other parts, a moved cap."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import registry
from pipeline.changed import changed_run
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, open_run, run
from pipeline.whatif_report import whatif

KINDS = {"dog": 120, "cat": 40, "car": 9}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    registry.import_file(str(Path(__file__).with_name("balance_plugins.py")))
    words = [kind for kind, count in KINDS.items() for _ in range(count)]
    places = sorted(range(len(words)), key=lambda at: at * 7919 % 169)
    columns = {"url": [f"https://h{at % 3}.example/{at}" for at in places], "alt_text": [f"{words[at]} number {at}" for at in places],
               "score": [at / 169 for at in places], "loss": [(5.0 if at % 5 == 0 else 1.0) + (at % 7) / 10 for at in places]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    return tmp_path


def ran(folder: Path, name: str, rows_per_part: int, most: int) -> RunResult:
    (folder / "names.txt").write_text("C1\tdog\nC2\tcat\n")
    stages = [
        "text_embedding", {"clusters": {"count": 3, "top": 2}}, {"levels": {"column": "score"}}, {"noise_prob": {"column": "loss"}},
        {"concepts": {"dictionary": str(folder / "names.txt"), "min_score": 1}}, {"balance": {"caps": [{"by": "cluster", "max": most}]}},
    ]  # fmt: skip
    data = {"name": "balance", "input": {"kind": "url_table", "table": str(folder / "rows.parquet"), "rows_per_part": rows_per_part}, "stages": stages}
    return run(build_recipe(data), folder / name, RunOptions(executor="local", jobs=False))


def rows_of(result: RunResult) -> dict[str, dict[str, Any]]:
    found = {}
    columns = ["url", "alt_text", "cluster", "clusters", "level", "noise_prob", "concepts", "keep_probability"]
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        reasons = result.view.final(view)["reason"].to_pylist()
        for row, reason in zip(result.view.read(view, columns).to_pylist(), reasons, strict=True):
            found[row.pop("url")] = {**row, "reason": reason}
    return found


def test_one_recipe_has_them_all_and_parts_change_nothing(table: Path) -> None:
    first = ran(table, "first", 20, 30)
    found = rows_of(first)
    assert found == rows_of(ran(table, "other", 169, 30))
    kinds = {url: row["alt_text"].split()[0] for url, row in found.items()}
    assert {(kind, found[url]["cluster"]) for url, kind in kinds.items()} == {("dog", 0), ("cat", 1), ("car", 2)}
    assert Counter(kinds[url] for url, row in found.items() if row["reason"] is None) == {"dog": 30, "cat": 30, "car": 9}
    assert {row["reason"] for row in found.values()} == {None, "balanced_out"}
    assert Counter(row["level"] for row in found.values()).most_common()[0][1] <= 22 and {row["level"] for row in found.values()} == set(range(8))
    assert all((row["noise_prob"] > 0.5) == (int(row["alt_text"].split()[-1]) % 5 == 0) for row in found.values())
    ids = {"dog": ["C1"], "cat": ["C2"], "car": []}
    assert all([span["id"] for span in found[url]["concepts"][0]["spans"]] == ids[kind] for url, kind in kinds.items())
    facts = first.view.facts()
    assert len(facts["levels"]["levels"]["edges"]) == 9 and facts["balance"]["balance"][0]["head"] == [["0", 120, 30], ["1", 40, 30], ["2", 9, 9]]
    (table / "names.txt").unlink()
    assert open_run(table / "first").facts() == facts  # the dictionary may be gone
    assert facts["clusters"]["clusters"] == {"count": 3, "sample": 169} and len(facts["noise_prob"]["noise_prob"]["means"]) == 2


def test_a_moved_cap_embeds_nothing_again_and_a_smaller_one_keeps_some_of_the_same_rows(table: Path) -> None:
    wide = rows_of(ran(table, "run", 50, 60))
    files = {path: path.stat().st_mtime_ns for path in (table / "run" / "values" / "text_embedding").iterdir()}
    again = ran(table, "run", 50, 10)
    narrow = rows_of(again)
    assert {url for url, row in narrow.items() if row["reason"] is None} < {url for url, row in wide.items() if row["reason"] is None}
    assert sum(row["reason"] is None for row in narrow.values()) == 29
    assert len(files) == 8 and all(path.stat().st_mtime_ns == written for path, written in files.items())
    assert narrow == rows_of(ran(table, "fresh", 50, 10))


def test_whatif_asks_the_query_of_metadata_and_of_a_cap_by_an_expression(table: Path) -> None:
    balance = {"metadata": {"min_count": 1, "t": 3}, "caps": [{"by": "host(url)", "max": 25}, {"by": "domain(url)", "max": 60}]}
    data = {"name": "b", "input": {"kind": "url_table", "table": str(table / "rows.parquet"), "rows_per_part": 50}, "stages": [{"balance": balance}]}
    run(build_recipe(data), table / "run", RunOptions(executor="local"))
    for nth, (setting, value) in enumerate((("t", 30), ("size", 40))):
        balance["metadata"] = {"min_count": 1, setting: value}
        fresh = run(build_recipe(data), table / f"fresh{nth}", RunOptions(executor="local")).view.counts()["balance"]["kept"]
        assert whatif(changed_run(table / "run", [f"balance.metadata.{setting}={value}"]), tokens=False)["kept"]["then"] == fresh
