"""Only texts that pass the recipe's text rules are published, and a threshold moved later re-cuts the shards and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import RecipeError
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
    assert samples.all_kinds() == {"caption", "alt_text", "caption_short"}
    alone = pictures(tmp_path / "run", [rules(2), CAPTION], caption="caption_short.text|text")
    assert not any(alone.tally.computed.values())
    assert {row["caption"] for row in index(tmp_path / "run")} >= {row["caption_short.text"] for row in written}


CHECK = {"check": {"use": "caption_check", "of": "caption_short", "model": "clip"}}
ATTRIBUTES = {"written": {"use": "attributes", "model": "clip", "embeddings": "clip_score"}}


def folder_run(folder: Path, out: Path, **job: Any) -> dict[str, dict[str, Any]]:
    """Rows of the index by file name; `written` is an attributes stage beside a caption."""
    document = {
        "name": "folder",
        "input": {"kind": "image_folder", "folder": str(folder)},
        "models": {"mllm": {"kind": "fake"}, "clip": CLIP},
        "stages": [{"read_images": {}}, {"clip_score": {"model": "clip", "min": None, "keep_without_text": True}}, CAPTION, CHECK, ATTRIBUTES],
        "jobs": [{"write_shards": job}],
    }
    run(build_recipe(document), out, LOCAL)
    found = pq.read_table(out / "dataset" / "shards" / "train-00000.parquet").to_pylist()
    return {Path(row["path"]).stem: row for row in found}


CLIP = {"kind": "open_clip", "weights": "bundled:rendered_clip"}


def test_images_without_alt_text_get_what_was_written_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (name, text) in enumerate((("told", "a red circle"), ("mute", None), ("blank", "  "))):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(folder / f"{name}.png")
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    rows = folder_run(folder, tmp_path / "run", caption="alt_text|caption_short.text")
    assert rows["told"]["caption"] == "a red circle"
    assert all(rows[name]["caption"] == rows[name]["caption_short.text"] for name in ("mute", "blank"))
    for name, row in rows.items():
        assert [entry["kind"] for entry in row["texts"]] == ["alt_text"] * (name == "told") + ["caption_short", "written"]
        caption, attributes = row["texts"][-2:]
        assert caption["clip_score"] == row["check.s_xc"] is not None and attributes["text"] == row["written.text"]
    joined = folder_run(folder, tmp_path / "run", complement="caption_short.text")
    assert joined["told"]["caption"] == f"a red circle; {joined['told']['caption_short.text']}"
    assert all(joined[name]["caption"] == joined[name]["caption_short.text"] for name in ("mute", "blank"))
    samples = ShardDataset(tmp_path / "run" / "dataset")
    assert sorted(map(samples.kinds, range(3)), key=len) == [["caption_short", "written"]] * 2 + [["caption", "alt_text", "caption_short", "written"]]
    with pytest.raises(RecipeError, match=r"write_shards.caption: no column 'caption_shrot.text' \(did you mean 'caption_short.text'\?\)"):
        folder_run(folder, tmp_path / "run", caption="caption_shrot.text|alt_text")
