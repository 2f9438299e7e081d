"""Each local source through the whole machine to a dataset: read_images, exact_dup, write_shards; and a dataset as a source."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.chain import Chain
from pipeline.explain import explain
from pipeline.recipe import build_recipe, load_recipe
from pipeline.run import RunOptions, run
from schemas.dataset import Manifest
from stages.shards.verify import verify_dataset
from tests.stages.source.made_tars import picture, write_tar

STAGES = ["read_images", "exact_dup"]
DATA = Path(__file__).parents[1] / "data" / "img2dataset"
TEXTS = {f"k{n:02}": f"a caption of number {n}" for n in range(12)}


def make(out: Path, given: dict[str, Any], stages: list[Any] | None = None) -> dict[str, Any]:
    """Run to the end; the dataset as {'pairs': {(image, caption)}, 'rejected': {path: reason}, 'index': rows}."""
    recipe = {"name": "t", "input": {"rows_per_part": 5, **given}, "stages": stages or STAGES, "jobs": ["write_shards"]}
    run(build_recipe(recipe), out, RunOptions(executor="local"))
    assert verify_dataset(out / "dataset") == []
    return dataset_of(out)


def dataset_of(out: Path) -> dict[str, Any]:
    manifest = Manifest.load(out / "dataset")
    pairs, index = [], []
    for shard in manifest.shards():
        rows = pq.read_table(out / "dataset" / shard.index).to_pylist()
        with tarfile.open(out / "dataset" / shard.tar) as tar:
            pairs += [(tar.extractfile(f"{row['key']}.{row['ext']}").read(), row["caption"]) for row in rows]  # type: ignore[union-attr]
        index += rows
    rejected = [row for entry in manifest.rejected for row in pq.read_table(out / "dataset" / entry.path).to_pylist()]
    assert len(index) + len(rejected) == manifest.counts["input"]
    return {"pairs": sorted(pairs), "rejected": {row["path"]: row["reason"] for row in rejected}, "index": index}


def fill_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, (key, text) in enumerate(TEXTS.items()):
        (folder / f"{key}.jpg").write_bytes(picture(number))
        (folder / f"{key}.txt").write_text(text)
    return folder


def fill_tars(folder: Path) -> Path:
    members = [[(f"{key}.jpg", picture(number)), (f"{key}.txt", text.encode())] for number, (key, text) in enumerate(TEXTS.items())]
    for shard in range(3):
        write_tar(folder / f"{shard:05}.tar", [member for pair in members[shard * 4 : shard * 4 + 4] for member in pair])
    return folder


def test_tars_and_folder_of_the_same_images_give_the_same_pairs(tmp_path):
    folder = make(tmp_path / "r1", {"kind": "image_folder", "folder": str(fill_folder(tmp_path / "folder"))})
    tars = make(tmp_path / "r2", {"kind": "webdataset_tars", "tars": str(fill_tars(tmp_path / "tars"))})
    expected = sorted((picture(number), text) for number, text in enumerate(TEXTS.values()))
    assert folder["pairs"] == tars["pairs"] == expected
    assert folder["rejected"] == tars["rejected"] == {}
    assert {row["path"] for row in folder["index"]} == {f"{key}.jpg" for key in TEXTS}
    published = set(folder["index"][0]) | set(tars["index"][0])
    assert "path" in published and not any(name.rpartition(".")[2].startswith("source_") for name in published)


def test_a_dataset_depends_on_no_place_and_its_tars_are_a_source(tmp_path):
    datasets = []
    for place in ("a", "b/deeper"):
        make(tmp_path / place / "run", {"kind": "image_folder", "folder": str(fill_folder(tmp_path / place / "in"))})
        files = sorted(path for path in (tmp_path / place / "run" / "dataset").rglob("*") if path.is_file())
        datasets.append([(path.relative_to(tmp_path / place).as_posix(), path.read_bytes()) for path in files])
    assert datasets[0] == datasets[1]
    given = {"kind": "webdataset_tars", "tars": str(tmp_path / "a/run/dataset/shards/*.tar"), "texts_field": "texts"}
    again = make(tmp_path / "again", given)
    assert again["pairs"] == dataset_of(tmp_path / "a" / "run")["pairs"] and again["rejected"] == {}
    assert {row["input_path"] for row in again["index"]} == {f"{key}.jpg" for key in TEXTS}
    assert [entry["text"] for entry in again["index"][0]["texts"]] == [again["index"][0]["caption"]]


def test_several_captions_and_duplicates_join_and_failures_are_accounted_for(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, number in {"a.jpg": 1, "b.jpg": 1, "c.jpg": 3}.items():
        (folder / name).write_bytes(picture(number))
    (folder / "bad.jpg").write_bytes(picture(4)[:200])
    lines = [("a.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three"), ("c.jpg", "four"), ("lost.jpg", "five")]
    (folder / "t.jsonl").write_text("".join(json.dumps({"file_name": name, "caption": text}) + "\n" for name, text in lines))
    found = make(tmp_path / "run", {"kind": "image_folder", "folder": str(folder), "table": "t.jsonl"})
    assert set(found["rejected"].values()) == {"exact_dup", "missing_image", "corrupt_image"}
    assert found["rejected"]["lost.jpg"] == "missing_image" and found["rejected"]["bad.jpg"] == "corrupt_image"
    texts = sorted(sorted(entry["text"] for entry in row["texts"]) for row in found["index"])
    assert texts == [["four"], ["one", "three", "two"]]


def test_output_of_img2dataset(tmp_path):
    found = make(tmp_path / "run", {"kind": "img2dataset_output", "folder": str(DATA / "webdataset")})
    assert sorted(caption for _, caption in found["pairs"]) == ["caption 0", "caption 15", "caption 22", "caption 23"]
    assert len(found["rejected"]) == 20 and {"http_4xx", "opted_out", "too_small", "dns"} <= set(found["rejected"].values())
    assert {row["url"].rpartition("/")[2] for row in found["index"]} == {"ok0.jpg", "ok1.jpg", "ok2.jpg", "ok3.jpg"}


def test_url_dup_joins_rows_of_tars_by_their_url_and_leaves_those_without_one(tmp_path):
    records = {"a": "http://x/1", "b": "http://x/1", "c": None, "d": None}
    members = []
    for number, (key, url) in enumerate(records.items()):
        members += [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps({"caption": f"text {key}", "url": url}).encode())]
    tar = write_tar(tmp_path / "t.tar", members)
    found = make(tmp_path / "run", {"kind": "webdataset_tars", "tars": str(tar)}, ["url_dup", {"repeated_text": {"max_count": 1}}, *STAGES])
    assert found["rejected"] == {"t.tar/b.jpg": "same_url"} and len(found["index"]) == 3


def test_caption_folder_keeps_images_without_captions(tmp_path):
    folder = fill_folder(tmp_path / "in")
    for caption in folder.glob("*.txt"):
        caption.unlink()
    recipe = load_recipe("caption_folder", [f"input.folder={folder}"])
    run(recipe, tmp_path / "run", RunOptions(executor="local"))
    found = dataset_of(tmp_path / "run")
    assert [caption for _, caption in found["pairs"]] == [""] * 12 and found["rejected"] == {}


def test_explain_finds_a_row_by_its_path(tmp_path):
    make(tmp_path / "run", {"kind": "webdataset_tars", "tars": str(fill_tars(tmp_path / "tars"))})
    (life,) = explain(tmp_path / "run", "00001.tar/k05.jpg")
    assert life["became"] == "kept" and life["source"]["alt_text"] == TEXTS["k05"]
    assert life["source"]["source_file"] == str(tmp_path / "tars" / "00001.tar")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeline.cli", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", ["image_folder", "image_table", "webdataset_tars", "img2dataset_output", "read_images", "download_img2dataset"])
def test_help_of_sources_and_stages(name):
    from pipeline.console import Console
    from pipeline.describe import describe, print_one

    found = describe(name)
    out = io.StringIO()
    print_one(found, Console(file=out, width=120))
    assert name in out.getvalue() and all(parameter["description"] for parameter in found["parameters"])


@pytest.mark.parametrize(("name", "option"), [("curate_tars", "tars"), ("curate_tables", "table"), ("curate_img2dataset", "folder")])
def test_the_recipes_for_curation_bind_their_columns(tmp_path, name, option):
    place = fill_tars(tmp_path / "tars") if option == "tars" else DATA / "webdataset"
    if option == "table":
        place = tmp_path / "t.parquet"
        pq.write_table(pa.table({"image": [picture(1)], "caption": ["a text"]}), place)
    chain = Chain(load_recipe(name, [f"input.{option}={place}"]))
    assert [node.name for node in chain.nodes][-4:] == ["read_images", "clip_score", "exact_dup", "select"]


def test_plan_and_wrong_keys_on_the_command_line(tmp_path):
    folder = fill_folder(tmp_path / "in")
    done = command("plan", "caption_folder", "--set", f"input.folder={folder}", "--out", str(tmp_path / "run"))
    assert done.returncode == 0 and "read_images" in done.stdout and not (tmp_path / "run").exists(), done.stderr
    wrong = command("plan", "caption_folder", "--set", f"input.foldr={folder}", "--out", str(tmp_path / "run"))
    assert wrong.returncode == 2 and "did you mean 'folder'?" in wrong.stderr
