"""Only texts that pass the recipe's text rules are published, and a threshold moved later re-cuts the shards and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run

LOCAL = RunOptions(executor="local")


def pictures(out: Path, stages: list[Any]) -> RunResult:
    source = {"kind": "pictures", "rows": 60, "rows_per_part": 20}
    document = {"name": "pictures", "input": source, "stages": [{"store_images": {}}, {"rate": {}}, *stages], "jobs": [{"write_shards": {}}]}
    return run(build_recipe(document), out, LOCAL)


def index(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "dataset" / "shards" / "train-00000.parquet", columns=["caption", "texts", "number"]).to_pylist()


def rules(min_words: int) -> dict[str, Any]:
    return {"text_rules": {"min_words": min_words, "min_letters": None}}


def test_a_text_that_breaks_a_rule_is_neither_published_nor_the_caption(tmp_path: Path, file_bytes: Any) -> None:
    """`rate` gives each row a title and the single word 'another'; `best_last` puts that word first."""
    pictures(tmp_path / "run", [rules(1), {"best_last": {}}])
    assert {row["caption"] for row in index(tmp_path / "run")} == {"another"}
    assert {len(row["texts"]) for row in index(tmp_path / "run")} == {2}
    stored = file_bytes(tmp_path / "run" / "values")

    tight = pictures(tmp_path / "run", [rules(2), {"best_last": {}}])
    found = index(tmp_path / "run")
    assert len(found) > 40
    assert all(row["caption"] == f"BILDE NR. {row['number']} – «ÆØÅ»" for row in found)
    assert all([entry["text"] for entry in row["texts"]] == [row["caption"]] for row in found)
    assert not any(tight.tally.computed.values())
    assert file_bytes(tmp_path / "run" / "values") == stored, "a threshold of the rules computes nothing again"

    pictures(tmp_path / "fresh", [rules(2), {"best_last": {}}])
    assert file_bytes(tmp_path / "fresh" / "dataset") == file_bytes(tmp_path / "run" / "dataset")
