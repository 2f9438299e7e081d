"""Only texts that pass the recipe's text rules are published, and a threshold moved later re-cuts the shards and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from stages.pretrain.data import ShardDataset

LOCAL = RunOptions(executor="local")


def pictures(out: Path, stages: list[Any], **job: Any) -> RunResult:
    source = {"kind": "pictures", "rows": 60, "rows_per_part": 20}
    document = {"name": "pictures", "input": source, "stages": [{"store_images": {}}, {"rate": {}}, *stages], "jobs": [{"write_shards": job}]}
    if any("caption" in str(stage) for stage in stages):
        document["models"] = {"mllm": {"kind": "fake"}}
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


CAPTION = {"caption_short": {"use": "caption", "format": "short"}}


def test_written_captions_stand_beside_the_texts_and_the_complement_joins_both(tmp_path: Path) -> None:
    pictures(tmp_path / "run", [rules(2), CAPTION], complement="caption_short.text")
    found = pq.read_table(tmp_path / "run" / "dataset" / "shards" / "train-00000.parquet").to_pylist()
    written = [row for row in found if row["caption_short.text"] is not None]
    assert len(written) > 40
    for row in written:
        (alt_text, caption) = row["texts"]
        assert (caption["kind"], caption["text"], caption["model"]) == ("caption_short", row["caption_short.text"], row["caption_short.model"])
        assert caption["prompt"] == "caption_short@1" and caption["source"] == row["key"]
        assert row["caption"] == f"{alt_text['text']}; {caption['text']}"
    samples = ShardDataset(tmp_path / "run" / "dataset")
    place = [samples.key(at) for at in range(len(samples))].index(written[0]["key"])
    assert samples.kinds(place) == ["caption", "alt_text", "caption_short"], "the joined text is none of the two"
    alone = pictures(tmp_path / "run", [rules(2), CAPTION], caption="caption_short.text|text")
    assert not any(alone.tally.computed.values())
    assert {row["caption"] for row in index(tmp_path / "run")} >= {row["caption_short.text"] for row in written}
