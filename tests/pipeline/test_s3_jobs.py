"""Training and evaluation of a run in object storage: on a local copy, with results where the run lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.errors import Fatal
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, run
from pipeline.storage import place_of
from stages.shards.local import local_dataset, local_root
from tests.pipeline.s3_server import BUCKET, S3Server

PICTURES = Path(__file__).parents[1] / "stages" / "shards" / "toys.py"
LOCAL = RunOptions(executor="local")
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(jobs: list[Any]) -> Recipe:
    registry.import_file(str(PICTURES))
    return build_recipe(
        {
            "name": "pictures",
            "input": {"kind": "pictures", "rows": 60, "rows_per_part": 20},
            "stages": [{"store_images": {}}, {"rate": {"min": 0.1}}],
            "jobs": [{"write_shards": {"max_samples": 12, "parts_per_group": 2}}, *jobs],
        }
    )


def test_a_model_is_trained_and_measured_on_a_local_copy(tmp_path: Path, s3: S3Server) -> None:
    pytest.importorskip("open_clip")
    train = {"model": TINY, "steps": 3, "batch_size": 8, "threads": 1, "device": "cpu", "workers": 0, "precision": "fp32"}
    jobs = [{"pretrain": train}, {"evaluate": {"split": "train"}}]
    near = run(recipe(jobs), tmp_path / "run", LOCAL)
    far = run(recipe(jobs), s3.place("run"), LOCAL)
    assert far.jobs["pretrain"]["weights_digest"] == near.jobs["pretrain"]["weights_digest"]
    assert far.jobs["evaluate"] == near.jobs["evaluate"]
    local = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(s3.files("run")) == {name for name in local if "/checkpoints/" not in name and name != "lock.turn"}
    assert json.loads(s3.files("run/pretrain/pretrain")["result.json"])["export"] == "pretrain/pretrain/export"
    s3.requests.clear()
    again = run(recipe(jobs), s3.place("run"), LOCAL)
    assert again.jobs == far.jobs | {"write_shards": again.jobs["write_shards"]}
    assert not [r for r in s3.requests if r.path.endswith(".tar")], "what is trained and measured is neither fetched nor done again"


def test_a_local_copy_is_checked_and_only_what_changed_is_fetched(s3: S3Server) -> None:
    run(recipe([]), s3.place("run"), LOCAL)
    dataset = place_of(s3.place("run/dataset"))
    folder = local_dataset(dataset)
    there = s3.files("run/dataset")
    copied = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert copied == {name: there[name] for name in copied} and {name for name in there if name.endswith(".tar")} <= set(copied)
    s3.requests.clear()
    assert local_dataset(dataset) == folder
    assert [r.name for r in s3.requests] == ["run/dataset/manifest.json"]
    (folder / "shards" / "train-00000.tar").unlink()
    s3.client.put_object(Bucket=BUCKET, Key="run/dataset/shards/train-00000.tar", Body=b"other bytes")
    with pytest.raises(Fatal, match="train-00000.tar: its SHA-256 is .* the file was changed"):
        local_dataset(dataset)
    assert not (local_root(dataset) / "manifest.json").exists(), "a copy that is not whole has no manifest"
