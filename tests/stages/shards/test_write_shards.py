"""write_shards: the dataset of a run, its bytes, and what changes when the run changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import Recipe
from pipeline.run import RunOptions, RunResult, open_run, run
from schemas.dataset import Manifest
from stages.shards.verify import verify_dataset

MakeRecipe = Callable[..., Recipe]
FileBytes = Callable[[Path], dict[str, bytes]]
LOCAL = RunOptions(executor="local")


def summary(result: RunResult) -> dict:
    return result.jobs["write_shards"]


def index_of(dataset: Path, split: str = "train") -> pa.Table:
    shards = Manifest.load(dataset).splits[split].shards
    return pa.concat_tables([pq.read_table(dataset / shard.index) for shard in shards])


def rejected_of(dataset: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(dataset / entry.path) for entry in Manifest.load(dataset).rejected])


def marks(dataset: Path, suffix: str = ".tar") -> dict[str, tuple[int, int]]:
    """Digest of each shard's tar -> (inode, mtime): both change when the file is written again."""
    found = {}
    for path in sorted((dataset / "shards").glob(f"*{suffix}")):
        state = path.stat()
        found[hashlib.sha256(path.read_bytes()).hexdigest()] = (state.st_ino, state.st_mtime_ns)
    return found


def test_webdataset_reads_what_was_stored(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    import webdataset

    run(make_recipe(), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    shards = [str(dataset / shard.tar) for shard in Manifest.load(dataset).splits["train"].shards]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("pil"))
    index = index_of(dataset)
    assert [sample["__key__"] for sample in samples] == index["key"].to_pylist()
    for sample, row in zip(samples, index.to_pylist(), strict=True):
        image = sample[row["ext"]]
        assert image.size == (row["width"], row["height"])
        assert sample["txt"] == row["caption"] == row["alt_text"].upper()
        record = sample["json"]
        assert record["url"] == row["url"] and record["number"] == row["number"] and record["score"] == row["number"] % 100 / 100
        assert record["image_sha256"] == row["image_sha256"].hex() and record["source.status"] == 200
        assert [text["text"] for text in record["texts"]] == [row["caption"], "another"]
        assert not {"offset", "size", "ext", "tar"} & record.keys()
    assert any(sample["json"]["similarity"] is None for sample in samples)  # NaN


def test_index_gives_the_place_of_each_image_and_embeddings_stand_apart(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    for shard in Manifest.load(dataset).shards():
        index, tar = pq.read_table(dataset / shard.index), (dataset / shard.tar).read_bytes()
        assert index.column_names[:6] == ["key", "offset", "size", "ext", "caption", "texts"]
        for row in index.to_pylist():
            assert hashlib.sha256(tar[row["offset"] : row["offset"] + row["size"]]).digest() == row["image_sha256"]
        vectors = pq.read_table(dataset / shard.embeddings)
        field = vectors.schema.field("image_emb")
        assert field.metadata == {b"dtype": b"float16", b"shape": b"8"} and vectors["key"].to_pylist() == index["key"].to_pylist()
        numbers = [np.frombuffer(value, np.float16)[0] for value in vectors["image_emb"].to_pylist()]
        assert numbers == [number % 10 for number in index["number"].to_pylist()]
        assert pq.ParquetFile(dataset / shard.index).metadata.row_group(0).column(0).has_column_index


def test_every_row_is_in_one_place_with_its_reason(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    result = run(make_recipe(repeated=(30, 31, 151), same=(16,)), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    kept, rejected, manifest = index_of(dataset), rejected_of(dataset), Manifest.load(dataset)
    assert kept.num_rows + rejected.num_rows == 200
    why = Counter(zip(*(rejected[name].to_pylist() for name in ("stage", "status", "reason")), strict=True))
    numbers = [n - 1 if n in (30, 31, 151) else n for n in range(200)]
    bad = sum(n % 41 == 40 for n in numbers)
    missing = sum(n % 7 == 6 and n % 41 != 40 for n in numbers)
    low = sum(n % 100 < 10 and n % 7 != 6 and n % 41 != 40 for n in numbers)
    # 30 repeats 29, 31 repeats 30 and so is the only row of number 30, 151 repeats 150
    assert why == {
        ("source", "failed", "bad_row"): bad, ("store_images", "failed", "http_4xx"): missing,
        ("rate", "dropped", "low_clip"): low, ("write_shards", "dropped", "duplicate_row"): 2,
    }  # fmt: skip
    assert kept.num_rows == 200 - bad - missing - low - 2 == manifest.counts["kept"] == summary(result)["samples"]
    assert len(set(kept["key"].to_pylist())) == kept.num_rows
    assert manifest.counts["stages"]["write_shards"] == {"dropped": {"duplicate_row": 2}, "failed": {}}
    rows = {row["number"]: row for row in rejected.to_pylist() if row["reason"] != "duplicate_row"}
    assert rows[40]["url"] == "u40" and rows[40]["licence"] == "CC0" and rows[40]["width"] is None
    assert rows[6]["detail"] == "status 404 for u6" and rows[6]["score"] is None
    assert rows[5]["score"] == np.float32(0.05) and rows[5]["source.status"] == 200 and rows[5]["key"] == rows[5]["sample_id"]
    sizes = json.loads((dataset / "shards/sizes.json").read_text())
    assert sizes == {Path(shard.tar).name: shard.samples for shard in manifest.shards()} and max(sizes.values()) <= 12
    assert "duplicate_row | 2" in (dataset / "README.md").read_text()
    assert verify_dataset(dataset) == []


def test_of_repeated_rows_the_first_stays_across_groups(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(repeated=(50,)), tmp_path, LOCAL)  # row 49 ends the first group, its repetition begins the second
    dataset = tmp_path / "dataset"
    assert index_of(dataset)["number"].to_pylist().count(49) == 1
    reasons = {part: pq.read_table(dataset / f"rejected/part-{part:05d}.parquet")["reason"].to_pylist() for part in (1, 2)}
    assert "duplicate_row" not in reasons[1] and reasons[2].count("duplicate_row") == 1


def test_bytes_do_not_depend_on_place_time_order_or_executor(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(), tmp_path / "a", LOCAL)
    run(make_recipe(backwards=True, place="/elsewhere"), tmp_path / "b" / "deeper", LOCAL)
    first, second = file_bytes(tmp_path / "a" / "dataset"), file_bytes(tmp_path / "b" / "deeper" / "dataset")
    assert first == second and len(first) > 40
    assert {p.name for p in (tmp_path / "a/blobs").rglob("*.tar")} != {p.name for p in (tmp_path / "b").rglob("blobs/*/*.tar")}
    assert not any(str(tmp_path).encode() in data for data in first.values())


def test_bytes_are_equal_on_ray(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    pytest.importorskip("ray")
    run(make_recipe(), tmp_path / "local", LOCAL)
    run(make_recipe(), tmp_path / "ray", RunOptions(executor="ray", workers=2))
    assert file_bytes(tmp_path / "ray" / "dataset") == file_bytes(tmp_path / "local" / "dataset")


def test_nothing_is_written_when_nothing_changed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()}
    again = run(make_recipe(), tmp_path, LOCAL)
    assert summary(again)["groups_written"] == 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "blobs")  # the images of shards that stay are never read again
    shutil.rmtree(tmp_path / "jobs")
    again = run(make_recipe(), tmp_path, LOCAL)
    assert summary(again)["groups_written"] == 4 and summary(again)["files_placed"] == 0
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*") if path.is_file()} == before


def test_a_moved_threshold_cuts_only_the_groups_concerned(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    """min 0.3 drops rows 10 to 29 and 110 to 129 of 200: groups 0 and 2 of four. Group 0 loses shards, so later ones move up."""
    run(make_recipe(min=0.1), tmp_path / "run", LOCAL)
    dataset = tmp_path / "run" / "dataset"
    before, names = marks(dataset), len(list(dataset.glob("shards/*.tar")))
    result = run(make_recipe(min=0.3), tmp_path / "run", LOCAL)
    after = marks(dataset)
    assert summary(result)["groups_written"] == 2 and len(after) < names
    kept = before.keys() & after.keys()
    assert len(kept) >= 8 and all(before[digest] == after[digest] for digest in kept)
    run(make_recipe(min=0.3), tmp_path / "fresh", LOCAL)
    assert file_bytes(tmp_path / "fresh" / "dataset") == file_bytes(dataset)
    run(make_recipe(min=0.1), tmp_path / "run", LOCAL)
    run(make_recipe(min=0.1), tmp_path / "fresh2", LOCAL)
    assert file_bytes(tmp_path / "fresh2" / "dataset") == file_bytes(dataset)


def test_old_dataset_stays_whole_until_the_new_one_is_ready(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(min=0.1), tmp_path, LOCAL)
    before = file_bytes(tmp_path / "dataset")
    run(make_recipe(min=0.3), tmp_path, RunOptions(executor="local", jobs=False))
    view = open_run(tmp_path)
    job = view.chain.recipe.jobs[0]
    for task in job.tasks(view):
        job.run_task(view, task)
    assert file_bytes(tmp_path / "dataset") == before
    job.finish(view, [])
    assert file_bytes(tmp_path / "dataset") != before and verify_dataset(tmp_path / "dataset") == []


def test_splits_keep_components_and_equal_images_together(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # numbers 2k and 2k+1 are one component, but for those of `loose`, which have the image of their predecessor
    loose = tuple(range(12, 200, 10))
    options = {"same": tuple(n + 1 for n in range(12, 200, 10)), "pairs": {"width": 2, "loose": list(loose)}}
    run(make_recipe(splits={"train": 0.5, "val": 0.3, "test": 0.2}, **options), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    places: dict[int, str] = {}
    for split in ("train", "val", "test"):
        for number in index_of(dataset, split)["number"].to_pylist():
            places[number] = split
    both = [(n, n + 1) for n in range(0, 200, 2) if n in places and n + 1 in places]
    assert len(both) > 50 and all(places[a] == places[b] for a, b in both)
    assert len([a for a, _ in both if a in loose]) > 5  # held together by the image alone
    assert len({places[a] for a, _ in both if a in loose}) > 1
    assert verify_dataset(dataset) == []
    manifest = Manifest.load(dataset)
    assert [Path(shard.tar).name for shard in manifest.splits["val"].shards][:2] == ["val-00000.tar", "val-00001.tar"]


@pytest.mark.parametrize("pairs", [{"width": 2, "loose": list(range(12, 200, 10))}, None])
def test_a_column_names_the_splits_and_what_belongs_together_follows_its_first_row(make_recipe: MakeRecipe, tmp_path: Path, pairs: dict | None) -> None:
    folds = ("val", "train", "train", "test_1", "train")
    run(make_recipe(split_column="fold", folds=folds, same=tuple(n + 1 for n in range(12, 200, 10)), pairs=pairs), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    places = {n: split for split in Manifest.load(dataset).splits for n in index_of(dataset, split)["number"].to_pylist()}
    assert list(Manifest.load(dataset).splits) == ["test_1", "train", "val"] and len(places) > 140
    joined = set(range(0, 200, 2)) if pairs else set(range(12, 200, 10))  # n and n + 1 are one component, or one image
    first = {n: n - 1 if n - 1 in joined and n - 1 in places else n for n in places}
    assert places == {n: folds[first[n] % 5] for n in places}
    assert len([n for n in places if folds[n % 5] != places[n]]) > 5
    assert verify_dataset(dataset) == []


def test_a_column_of_splits_that_does_not_name_them_is_told(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for folds, told in ((("a", None), r"'source.fold' is null in \d+ kept rows, the first with the key [0-9a-f]{32}"), (("a", "../b"), r"the value '\.\./b'")):
        with pytest.raises(RecipeError, match=told):
            run(make_recipe(rows=20, split_column="fold", folds=folds), tmp_path / str(len(told)), LOCAL)
    with pytest.raises(RecipeError, match="more than 100 values"):
        run(make_recipe(split_column="number"), tmp_path / "b", LOCAL)
    with pytest.raises(RecipeError, match=r"split_column: no column 'numbr'.*did you mean 'number'"):
        run(make_recipe(rows=20, split_column="numbr"), tmp_path / "c", LOCAL)
    with pytest.raises(RecipeError, match="give one of the two"):
        make_recipe(splits={"a": 0.5, "b": 0.5}, split_column="licence")


def test_shuffled_order_is_another_but_the_same_rows(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(), tmp_path / "input", LOCAL)
    run(make_recipe(order="shuffled", seed=1), tmp_path / "one", LOCAL)
    run(make_recipe(order="shuffled", seed=1), tmp_path / "again", LOCAL)
    run(make_recipe(order="shuffled", seed=2), tmp_path / "two", LOCAL)
    orders = {name: index_of(tmp_path / name / "dataset")["number"].to_pylist() for name in ("input", "one", "two")}
    assert orders["input"] == sorted(orders["input"])
    assert sorted(orders["one"]) == sorted(orders["two"]) == orders["input"] and len({*map(tuple, orders.values())}) == 3
    first_shard = orders["one"][:10]
    assert len({number // 25 for number in first_shard}) > 1  # parts are mixed within a shard
    assert file_bytes(tmp_path / "one" / "dataset") == file_bytes(tmp_path / "again" / "dataset")
    assert verify_dataset(tmp_path / "one" / "dataset") == []


def test_shards_by_bytes(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(max_samples=10_000, max_bytes=6000), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    totals = [sum(pq.read_table(dataset / shard.index)["size"].to_pylist()) for shard in Manifest.load(dataset).shards()]
    assert max(totals) <= 6000 and len(totals) > 8 and min(totals) > 2000


def test_a_damaged_tar_is_made_again_and_foreign_files_stay(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    run(make_recipe(), tmp_path, LOCAL)
    dataset = tmp_path / "dataset"
    before = file_bytes(dataset)
    os.truncate(dataset / "shards/train-00001.tar", 1000)
    (dataset / "shards/train-00003.parquet").unlink()
    (dataset / "shards/train-00077.tar").write_bytes(b"left over")
    result = run(make_recipe(), tmp_path, LOCAL)
    assert summary(result)["files_placed"] == 2 and file_bytes(dataset) == before
    (dataset / "shards/notes.txt").write_text("mine")
    run(make_recipe(min=0.2), tmp_path, LOCAL)
    assert (dataset / "shards/notes.txt").read_text() == "mine"
    assert [problem.file for problem in verify_dataset(dataset)] == ["shards/notes.txt"]


def test_a_lost_image_tar_is_fatal_and_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path, RunOptions(executor="local", jobs=False))
    tar = sorted((tmp_path / "blobs").rglob("part-00002*.tar"))[0]
    tar.unlink()
    with pytest.raises(Fatal, match=tar.name):
        run(make_recipe(), tmp_path, LOCAL)
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    assert not list(tmp_path.rglob(".tmp-*"))


def test_recipe_mistakes_are_told_with_the_nearest_name(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"caption: no column 'txt'.*did you mean 'text'"):
        run(make_recipe(caption="txt"), tmp_path / "a", LOCAL)
    with pytest.raises(RecipeError, match=r"leave_out: no column 'scores'.*did you mean 'score'"):
        run(make_recipe(leave_out=["scores"]), tmp_path / "b", LOCAL)
    with pytest.raises(RecipeError, match="shares must be above 0 and add up to 1"):
        make_recipe(splits={"train": 0.5})
    with pytest.raises(RecipeError, match="use letters, digits and _"):
        make_recipe(splits={"a/b": 1.0})


def run_and_kill(recipe: Recipe, moments: dict[Path, int], scratch: Path) -> list[list[str] | None]:
    """Run in each folder, killed before that file operation; None where it was killed, else what it did."""
    scratch.write_text(json.dumps(recipe.resolved))
    script = Path(__file__).parent / "killed_job.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    places = [str(word) for out, nth in moments.items() for word in (nth, out)]
    done = subprocess.run([sys.executable, script, scratch, *places], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_anywhere_and_started_again(make_recipe: MakeRecipe, tmp_path: Path, file_bytes: FileBytes) -> None:
    """From a published dataset to another: some shards written, others renumbered. Killed at 10 of its file operations."""
    old, new = make_recipe(rows=100, min=0.1), make_recipe(rows=100, min=0.3)
    base = tmp_path / "base"
    run(old, base, LOCAL)
    run(new, base, RunOptions(executor="local", jobs=False))
    run(new, tmp_path / "fresh", LOCAL)
    expected, written = file_bytes(tmp_path / "fresh" / "dataset"), marks(base / "dataset")
    shutil.copytree(base, tmp_path / "whole")
    (steps,) = run_and_kill(new, {tmp_path / "whole": 10**9}, tmp_path / "recipe.json")
    assert steps is not None and any("rename /dataset/shards/train-" in step for step in steps), "no shard was renumbered"
    moments = {tmp_path / f"killed-{nth}": nth for nth in np.linspace(1, len(steps), 10).round().astype(int).tolist()}
    for out in moments:
        shutil.copytree(base, out, copy_function=os.link)
    assert run_and_kill(new, moments, tmp_path / "recipe.json") == [None] * 10
    for out, nth in moments.items():
        if (out / "dataset" / "manifest.json").exists():
            assert verify_dataset(out / "dataset", decode=False) == [], f"killed before {steps[nth - 1]}: the manifest lists what is not there"
        run(new, out, LOCAL)
        assert file_bytes(out / "dataset") == expected, f"killed before {steps[nth - 1]}"
        after = marks(out / "dataset")
        assert all(after[digest] == mark for digest, mark in written.items() if digest in after)
        assert not [path for path in (out / "jobs").rglob("*") if path.suffix in (".tar", ".parquet")]


def test_dataset_is_readable_by_duckdb_globs(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(), tmp_path, LOCAL)
    rows = duckdb.sql(f"SELECT count(*) FROM read_parquet('{tmp_path}/dataset/rejected/*.parquet')").fetchall()
    counts = Manifest.load(tmp_path / "dataset").counts
    assert rows == [(counts["dropped"] + counts["failed"],)]
