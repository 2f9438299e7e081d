"""UniPT's round trip: an Arrow table of images, caption lists and splits -> a run's shards -> exported Parquet -> rows again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from schemas.dataset import Manifest
from stages.shards.export import export_dataset
from stages.shards.verify import verify_dataset
from tests.stages.source.made_tars import picture, rows_of
from tests.stages.source.test_image_table import images_of, source

ROWS = 2_000
# The shares of the paper's table: test 0.1 %, val 0.05 %, restval 0.05 %, train the rest.
SPLITS = {"test": ROWS // 1000, "val": ROWS // 2000, "restval": ROWS // 2000}


def unipt_table() -> dict[int, dict[str, Any]]:
    """image_id -> row; every image is another one, and has one to three captions."""
    named = [name for name, count in SPLITS.items() for _ in range(count)]
    spread = {(at * 611 + 7) % ROWS: name for at, name in enumerate(named)}
    return {
        n: {
            "image": picture(n, (16 + n % 50, 16 + n // 50)), "caption": [f"A person in coat {n}, view {at}." for at in range(1 + n % 3)],
            "image_id": n, "split": spread.get(n, "train"),
        }
        for n in range(ROWS)
    }  # fmt: skip


def make(table: Path, out: Path, rows_per_part: int) -> Path:
    given = {"kind": "image_table", "table": str(table), "rows_per_part": rows_per_part}
    recipe = {"name": "unipt", "input": given, "stages": ["read_images", "exact_dup"], "jobs": [{"write_shards": {"split_column": "split"}}]}
    run(build_recipe(recipe), out, RunOptions(executor="local"))
    return out / "dataset"


def told(rows: list[dict[str, Any]], images: list[Any]) -> dict[int, tuple[bytes, list[str], str]]:
    return {row["image_id"]: (image, [entry["text"] for entry in row["texts"]], row["split"]) for row, image in zip(rows, images, strict=True)}


def test_unipt_acceptance_a_round_trip_keeps_counts_captions_bytes_and_split_fractions(tmp_path):
    rows = unipt_table()
    table = tmp_path / "in" / "unipt.arrow"
    table.parent.mkdir()
    made = pa.Table.from_pylist(list(rows.values()))
    with pa.OSFile(str(table), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made, 300)
    dataset, other = make(table, tmp_path / "run", 900), make(table, tmp_path / "other", 700)
    manifest = Manifest.load(dataset)
    assert {name: split.samples for name, split in manifest.splits.items()} == {**SPLITS, "train": ROWS - sum(SPLITS.values())}
    assert manifest.counts["kept"] == ROWS and verify_dataset(dataset) == []
    for shard in manifest.shards():
        assert set(pq.read_table(dataset / shard.index, columns=["split"])["split"].to_pylist()) == {Path(shard.tar).name.rpartition("-")[0]}
        assert (dataset / shard.tar).read_bytes() == (other / shard.tar).read_bytes()
    export_dataset(dataset, tmp_path / "export")
    again = rows_of(source(tmp_path / "export" / "data", text=["caption", "texts"]))
    assert [row["failure"] for row in again] == [None] * ROWS
    assert told(again, images_of(again)) == {n: (row["image"], row["caption"], row["split"]) for n, row in rows.items()}
    assert Counter(row["split"] for row in again) == Counter({**SPLITS, "train": ROWS - sum(SPLITS.values())})
    assert {(row["path"].partition("-")[0], row["split"]) for row in again} == {(name, name) for name in [*SPLITS, "train"]}
