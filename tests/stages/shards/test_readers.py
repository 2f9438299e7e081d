"""The dataset as other programs read it, and its Croissant metadata. One test per reader."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.recipe import Recipe
from pipeline.run import RunOptions, run
from schemas.dataset import Manifest
from stages.shards.croissant import check_croissant
from stages.shards.energon import energon_files, tar_offsets
from stages.shards.verify import verify_dataset

MakeRecipe = Callable[..., Recipe]
LOCAL = RunOptions(executor="local")


@pytest.fixture
def dataset(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    """200 rows with images of all three formats, in two splits of several shards."""
    run(make_recipe(splits={"train": 0.8, "val": 0.2}), tmp_path / "run", LOCAL)
    return tmp_path / "run" / "dataset"


def index_of(dataset: Path, split: str) -> list[dict[str, Any]]:
    shards = Manifest.load(dataset).splits[split].shards
    return pa.concat_tables([pq.read_table(dataset / shard.index) for shard in shards]).to_pylist()


def stored_image(dataset: Path, row: dict[str, Any]) -> bytes:
    """The image of an index row, read at its place."""
    for shard in Manifest.load(dataset).shards():
        if row["key"] in pq.read_table(dataset / shard.index, columns=["key"])["key"].to_pylist():
            data = (dataset / shard.tar).read_bytes()
            return data[row["offset"] : row["offset"] + row["size"]]
    raise AssertionError(row["key"])


# open_clip_torch 3.3.0 asks for webdataset <= 0.2.86 to train. A later one marks the end of each tar by an empty entry, at which open_clip's loader
# stops with KeyError 'fname'; asked not to, it does what 0.2.86 does. All else is the trainer as it comes.
_TRAIN = """
import functools, inspect, sys, open_clip, open_clip_train.data as data
if "eof_value" in inspect.signature(data.tar_file_expander).parameters:
    data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_open_clip_trainer_takes_steps(dataset: Path, tmp_path: Path) -> None:
    """open_clip's own trainer: it takes the number of samples from sizes.json, and trains an epoch of a tiny CLIP."""
    pytest.importorskip("open_clip_train", reason="open_clip_train comes with open_clip_torch")
    model = tmp_path / "tiny.json"
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    model.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    samples = Manifest.load(dataset).splits["train"].samples
    last = len(Manifest.load(dataset).splits["train"].shards) - 1
    options = ["--model", "tiny", "--train-data", f"{dataset}/shards/train-{{00000..{last:05d}}}.tar", "--dataset-type", "webdataset", "--batch-size", "16"]
    options += ["--epochs", "1", "--workers", "1", "--logs", str(tmp_path / "logs"), "--name", "t", "--log-every-n-steps", "1", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", _TRAIN, str(model), *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [line for line in done.stderr.splitlines() if "Train Epoch: 0" in line]
    assert len(steps) >= samples // 16 and f"/{-(-samples // 16) * 16} (" in steps[-1]
    assert (tmp_path / "logs/t/checkpoints/epoch_1.pt").is_file()


def test_webdataset(dataset: Path) -> None:
    import webdataset

    shards = [str(dataset / shard.tar) for shard in Manifest.load(dataset).splits["val"].shards]
    pairs = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg;png;webp", "txt", "json"))
    index = index_of(dataset, "val")
    assert [(image.size, text, record["key"]) for image, text, record in pairs] == [((r["width"], r["height"]), r["caption"], r["key"]) for r in index]


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package `datasets`, without network and with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return datasets


def test_hugging_face_reads_the_folder(dataset: Path, tmp_path: Path, hf: Any) -> None:
    """The card's YAML says where each split lies and of what types its samples are, whatever the first five look like."""
    found = hf.load_dataset(str(dataset), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "val"}
    for split in found:
        index = index_of(dataset, split)
        assert [sample["__key__"] for sample in found[split]] == [row["key"] for row in index]
        for sample, row in zip(found[split], index, strict=True):
            assert sample["txt"] == row["caption"] and sample["json"]["number"] == row["number"] and sample["json"]["licence"] == row["licence"]
            images = {ext: sample[ext] for ext in ("jpg", "png", "webp") if sample[ext] is not None}
            assert list(images) == [row["ext"]] and images[row["ext"]].size == (row["width"], row["height"])


def test_hugging_face_streams_named_tars_with_the_folders_features(dataset: Path, hf: Any) -> None:
    """Named tars alone have no card: the features are given."""
    features = hf.load_dataset_builder(str(dataset)).info.features
    files = {"train": str(dataset / "shards/train-*.tar")}
    found = list(hf.load_dataset("webdataset", data_files=files, features=features, streaming=True)["train"])
    assert [sample["__key__"] for sample in found] == [row["key"] for row in index_of(dataset, "train")]


def test_pandas(dataset: Path) -> None:
    pandas = pytest.importorskip("pandas")
    index = pandas.concat([pandas.read_parquet(dataset / shard.index) for shard in Manifest.load(dataset).splits["train"].shards])
    assert index["caption"].tolist() == [row["caption"] for row in index_of(dataset, "train")]
    rejected = pandas.concat([pandas.read_parquet(path) for path in sorted((dataset / "rejected").glob("*.parquet"))])
    assert len(index) + len(rejected) + Manifest.load(dataset).splits["val"].samples == 200
    assert rejected["reason"].notna().all() and (index["score"] >= 0.0999).all()


def test_duckdb_counts_reasons(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the README."""
    monkeypatch.chdir(dataset.parent)
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    (query,) = (line for line in readme.splitlines() if line.startswith("select reason, count(*)"))
    found = dict(duckdb.sql(query).fetchall())
    told = Counter[str]()
    for by_status in Manifest.load(dataset).counts["stages"].values():
        for reasons in by_status.values():
            told.update(reasons)
    assert found == told and sum(told.values()) > 20


def test_energon_reads_and_lints(dataset: Path) -> None:
    """Its linter loads every sample of every split through `.nv-meta` and the offsets beside the tars."""
    program = shutil.which("energon", path=str(Path(sys.executable).parent)) or shutil.which("energon")
    if program is None:
        pytest.skip("megatron-energon is not installed")
    done = subprocess.run([program, "lint", str(dataset)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "Skipping empty split part test" in done.stdout, done.stdout + done.stderr
    told = subprocess.run([program, "info", str(dataset)], capture_output=True, text=True, timeout=280)
    assert told.returncode == 0 and str(Manifest.load(dataset).samples) in told.stdout, told.stdout + told.stderr


def test_offsets_beside_a_tar_are_where_samples_begin(dataset: Path) -> None:
    import tarfile

    import numpy as np

    for shard in Manifest.load(dataset).shards():
        with tarfile.open(dataset / shard.tar) as archive:
            members = archive.getmembers()
            begins = [member.offset for member in members if not member.name.endswith((".txt", ".json"))]
            end = archive.offset
        assert np.frombuffer((dataset / shard.offsets).read_bytes(), "<u8").tolist() == [*begins, end]


def test_croissant_is_valid_and_gives_records(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    for place in ("core.constants", "operation_graph.operations.extract"):
        monkeypatch.setattr(f"mlcroissant._src.{place}.EXTRACT_PATH", type(mlcroissant._src.core.constants.EXTRACT_PATH)(tmp_path / "cache"))
    read = mlcroissant.Dataset(jsonld=str(dataset / "croissant.json"))
    issues = read.metadata.ctx.issues
    assert not issues.errors and not issues.warnings and "not standard" not in caplog.text
    pairs = [record for record in read.records("pairs")]
    index = {row["key"]: row for split in ("train", "val") for row in index_of(dataset, split)}
    assert len(pairs) == len(index)
    for record in pairs:
        row = index[record["pairs/key"].decode()]
        assert record["pairs/caption"].decode() == row["caption"] and record["pairs/number"] == row["number"]
    rejected = list(read.records("rejected"))
    assert len(rejected) == 200 - len(index) and all(record["rejected/reason"] for record in rejected)
    images = list(read.records("images"))
    first = Manifest.load(dataset).shards()[0]
    assert len(images) == first.samples
    for record in images:
        row = index[record["images/key"].decode()]
        assert record["images/image"].tobytes() == Image.open(io.BytesIO(stored_image(dataset, row))).tobytes()


def test_what_the_recipe_says_of_the_dataset_stands_in_card_and_croissant(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    said = {
        "title": "Nordic pictures", "description": "Pictures of the north.", "license": "CC-BY-4.0", "url": "https://example.org/nordic",
        "creator": "A. Nord", "date_published": "2026-03-01",
    }  # fmt: skip
    run(make_recipe(), tmp_path, LOCAL)
    card = (tmp_path / "dataset/README.md").read_text()
    assert "**Not given by the recipe: license, url, creator, date_published.**" in card and "license: other" in card
    tars = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset/shards").glob("train-*")}
    result = run(make_recipe(**said), tmp_path, LOCAL)
    assert result.jobs["write_shards"]["groups_written"] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset/shards").glob("train-*")} == tars  # no sample depends on them
    card, data = (tmp_path / "dataset/README.md").read_text(), json.loads((tmp_path / "dataset/croissant.json").read_text())
    assert "Not given" not in card and "license: cc-by-4.0" in card and card.count("Pictures of the north.") == 1
    assert (data["name"], data["description"], data["license"]) == (said["title"], said["description"], said["license"])
    assert (data["url"], data["creator"]["name"], data["datePublished"]) == (said["url"], said["creator"], said["date_published"])
    assert verify_dataset(tmp_path / "dataset") == []


@pytest.mark.parametrize(
    "change, told",
    [
        ({"creator": None}, "creator is required"),
        ({"datePublished": "yesterday"}, "datePublished 'yesterday' is no date"),
        ({"url": "pictures"}, "no absolute address"),
        ({"conformsTo": "http://mlcommons.org/croissant/1.0"}, "conformsTo"),
        ({"distribution": []}, "distribution"),
    ],
)
def test_our_check_finds_what_the_reference_validator_lets_pass(dataset: Path, change: dict[str, Any], told: str) -> None:
    data = json.loads((dataset / "croissant.json").read_text())
    manifest, columns = Manifest.load(dataset), pq.read_schema(dataset / Manifest.load(dataset).shards()[0].index).names
    assert check_croissant(data, manifest, columns) == []
    assert any(told in problem for problem in check_croissant({**data, **change}, manifest, columns))


def test_verify_finds_metadata_that_is_not_of_these_shards(dataset: Path) -> None:
    """Even where the manifest has the digests of the wrong files."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    for name, data in ((".nv-meta/split.yaml", b"split_parts: {}\n"), (shard["offsets"], (dataset / shard["offsets"]).read_bytes()[:-8])):
        (dataset / name).write_bytes(data)
        assert [problem.file for problem in verify_dataset(dataset, decode=False)] == [name]  # its digest
        sign(dataset, name, data, manifest, shard)
        assert [problem.file for problem in verify_dataset(dataset, decode=False)] == [name]
        (dataset / name).unlink()
        assert any(problem.file == name and "no such file" in problem.what for problem in verify_dataset(dataset, decode=False))
        places = pq.read_table(dataset / shard["index"], columns=["offset"])["offset"].to_pylist()
        right = energon_files(Manifest.load(dataset).splits).get(name) or tar_offsets(places, shard["tar_bytes"])
        (dataset / name).write_bytes(right)
        sign(dataset, name, right, manifest, shard)
        assert verify_dataset(dataset, decode=False) == []


def sign(dataset: Path, name: str, data: bytes, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """Write the digest of `data` into the manifest."""
    target, key = (manifest["files"], name) if name in manifest["files"] else (shard, "offsets_sha256")
    target[key] = hashlib.sha256(data).hexdigest()
    (dataset / "manifest.json").write_text(json.dumps(manifest))
