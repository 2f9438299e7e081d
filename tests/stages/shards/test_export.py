"""export: Parquet with embedded images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import Recipe
from pipeline.run import RunOptions, run
from schemas.dataset import Manifest
from stages.shards.export import export_dataset

MakeRecipe = Callable[..., Recipe]
MAX_BYTES = 60_000  # of images that have about 1 KB


@pytest.fixture
def dataset(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    run(make_recipe(rows=400, rows_per_part=200, max_samples=70, splits={"train": 0.9, "val": 0.1}), tmp_path / "run", RunOptions(executor="local"))
    return tmp_path / "run" / "dataset"


def rows_of(dataset: Path, split: str) -> list[dict]:
    """Index rows with the bytes of their image."""
    rows = []
    for shard in Manifest.load(dataset).splits[split].shards:
        tar = (dataset / shard.tar).read_bytes()
        rows += [{**row, "bytes": tar[row["offset"] : row["offset"] + row["size"]]} for row in pq.read_table(dataset / shard.index).to_pylist()]
    return rows


def test_files_hold_every_pair_in_order_within_bounds(dataset: Path, tmp_path: Path) -> None:
    found = export_dataset(dataset, tmp_path / "out", max_bytes=MAX_BYTES)
    files = sorted((tmp_path / "out/data").glob("train-*.parquet"))
    assert len(files) > 2 and [path.name for path in files] == [f"train-{at:05d}-of-{len(files):05d}.parquet" for at in range(len(files))]
    rows = rows_of(dataset, "train")
    exported = pa.concat_tables([pq.read_table(path) for path in files]).to_pylist()
    assert found == {"rows": len(rows) + len(rows_of(dataset, "val")), "files": len(files) + 1, "written": len(files) + 1, "out": str(tmp_path / "out")}
    assert [(row["image"], row["caption"], row["texts"], row["score"]) for row in exported] == [
        ({"bytes": row["bytes"], "path": f"{row['key']}.{row['ext']}"}, row["caption"], row["texts"], row["score"]) for row in rows
    ]
    assert [row["image_sha256"] for row in exported] == [row["image_sha256"].hex() for row in rows]
    assert exported[0].keys() & {"offset", "size", "ext"} == set()
    for path in files:
        assert sum(len(image["bytes"]) for image in pq.read_table(path)["image"].to_pylist()) <= MAX_BYTES


def test_row_groups_have_100_rows_and_a_page_index(dataset: Path, tmp_path: Path) -> None:
    export_dataset(dataset, tmp_path / "out", split="train")
    (path,) = (tmp_path / "out/data").iterdir()
    meta = pq.read_metadata(path)
    sizes = [meta.row_group(at).num_rows for at in range(meta.num_row_groups)]
    assert len(sizes) > 2 and set(sizes[:-1]) == {100} and 0 < sizes[-1] <= 100
    assert all(meta.row_group(0).column(at).has_offset_index for at in range(meta.num_columns))
    assert path.name == "train-00000-of-00001.parquet"


def test_a_second_call_writes_only_what_is_missing_or_changed(dataset: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = export_dataset(dataset, out, max_bytes=MAX_BYTES)
    files = {path.name: path.read_bytes() for path in (out / "data").iterdir()}
    lost, cut = sorted(files)[:2]
    (out / "data" / lost).unlink()
    (out / "data" / cut).write_bytes(files[cut][:5000])  # cut, as by a crash of the machine
    assert export_dataset(dataset, out, max_bytes=MAX_BYTES)["written"] == 2
    assert {path.name: path.read_bytes() for path in (out / "data").iterdir()} == files
    assert export_dataset(dataset, out, max_bytes=MAX_BYTES)["written"] == 0
    run(make_recipe(rows=400, rows_per_part=200, max_samples=70, splits={"train": 0.9, "val": 0.1}, min=0.8), dataset.parent, RunOptions(executor="local"))
    again = export_dataset(dataset, out, max_bytes=MAX_BYTES)
    assert again["rows"] < first["rows"] / 2 and len(list((out / "data").iterdir())) == again["files"] < first["files"]


def test_datasets_reads_the_export_with_images(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    export_dataset(dataset, tmp_path / "out", max_bytes=MAX_BYTES)
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "val"} and isinstance(found["train"].features["image"], datasets.Image)
    rows = rows_of(dataset, "train")
    for sample, row in zip(found["train"], rows, strict=True):
        assert sample["image"].size == (row["width"], row["height"]) and sample["caption"] == row["caption"]
    assert found["train"][0]["image"].tobytes() == Image.open(io.BytesIO(rows[0]["bytes"])).tobytes()


def test_what_cannot_be_exported_is_told(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--split trian: .*did you mean 'train'"):
        export_dataset(dataset, tmp_path / "out", split="trian")
    with pytest.raises(RecipeError, match="lies in the dataset"):
        export_dataset(dataset, dataset / "export")
    tar = dataset / Manifest.load(dataset).shards()[0].tar
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(Fatal, match="train-00000.tar: .*the tar was cut"):
        export_dataset(dataset, tmp_path / "out")
    assert list((tmp_path / "out/data").iterdir()) == []
