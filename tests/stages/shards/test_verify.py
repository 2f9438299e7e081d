"""verify_dataset: one thing is broken at a time, and exactly that is found."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.run import RunOptions, run
from stages.shards.files import file_sha256
from stages.shards.verify import verify_dataset

TAR, INDEX = "shards/train-00000.tar", "shards/train-00000.parquet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline import registry
    from pipeline.recipe import build_recipe

    registry.import_file(str(Path(__file__).parent / "toys.py"))
    folder = tmp_path_factory.mktemp("run")
    recipe = build_recipe(
        {
            "name": "pictures",
            "input": {"kind": "pictures", "rows": 100, "rows_per_part": 50},
            "stages": ["store_images", {"rate": {"min": 0.05}}],
            "jobs": [{"write_shards": {"max_samples": 20, "splits": {"train": 0.7, "val": 0.3}}}],
        }
    )
    run(recipe, folder, RunOptions(executor="local"))
    return folder / "dataset"


@pytest.fixture
def dataset(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "dataset"))


def edit_manifest(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    change(manifest)
    (dataset / "manifest.json").write_text(json.dumps(manifest))


def reseal(dataset: Path) -> None:
    """Digests and tar sizes of the manifest as the files now are, so that only the contents are wrong."""

    def change(manifest: dict[str, Any]) -> None:
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                for kind in ("tar", "index", "embeddings"):
                    shard[f"{kind}_sha256"] = file_sha256(dataset / shard[kind])
                shard["tar_bytes"] = (dataset / shard["tar"]).stat().st_size
        for entry in manifest["rejected"]:
            entry["sha256"] = file_sha256(dataset / entry["path"])
        for name in manifest["files"]:
            manifest["files"][name] = file_sha256(dataset / name)

    edit_manifest(dataset, change)


def edit_index(dataset: Path, change: Callable[[pa.Table], pa.Table], name: str = INDEX) -> None:
    pq.write_table(change(pq.read_table(dataset / name)), dataset / name)
    reseal(dataset)


def set_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), table.schema.field(column), pa.array(values, table.schema.field(column).type))


def edit_members(dataset: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> None:
    """Rewrite the tar with other members; equal sizes keep the offsets."""
    with tarfile.open(dataset / TAR) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    change(members)
    with tarfile.open(dataset / TAR, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reseal(dataset)


def found(dataset: Path, decode: bool = True) -> list[tuple[str, str, str]]:
    return [(problem.file, problem.key, problem.what) for problem in verify_dataset(dataset, decode)]


def one(dataset: Path, decode: bool = True) -> tuple[str, str, str]:
    problems = found(dataset, decode)
    assert len(problems) == 1, problems
    return problems[0]


def key_at(dataset: Path, row: int, index: str = INDEX) -> str:
    return pq.read_table(dataset / index)["key"][row].as_py()


def test_a_whole_dataset_has_no_problem(dataset: Path) -> None:
    assert found(dataset) == []
    reseal(dataset)
    assert found(dataset) == []


def test_no_manifest(dataset: Path) -> None:
    (dataset / "manifest.json").unlink()
    file, _, what = one(dataset)
    assert file == "manifest.json" and "not complete" in what


def test_damaged_and_foreign_manifest(dataset: Path) -> None:
    edit_manifest(dataset, lambda manifest: manifest.update(format=9))
    assert "format 9" in one(dataset)[2]
    edit_manifest(dataset, lambda manifest: (manifest.update(format=1), manifest.pop("rejected")))
    assert "not as pairmill writes it (KeyError: 'rejected')" in one(dataset)[2]
    (dataset / "manifest.json").write_text("{")
    assert "not JSON" in one(dataset)[2]


def test_unlisted_file(dataset: Path) -> None:
    shutil.copy(dataset / TAR, dataset / "shards/train-00099.tar")
    assert one(dataset)[:2] == ("shards/train-00099.tar", "") and "not listed" in one(dataset)[2]


@pytest.mark.parametrize("name", [TAR, "shards/train-00000.embeddings.parquet", "shards/sizes.json", "README.md"])
def test_missing_file(dataset: Path, name: str) -> None:
    (dataset / name).unlink()
    assert one(dataset) == (name, "", "listed in the manifest, but there is no such file")


def test_one_flipped_bit(dataset: Path) -> None:
    path = dataset / TAR
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # behind the end of the archive: no member is touched
    path.write_bytes(data)
    file, _, what = one(dataset)
    assert file == TAR and "SHA-256" in what


def test_offset_of_the_index(dataset: Path) -> None:
    edit_index(dataset, lambda table: set_value(table, "offset", 3, table["offset"][3].as_py() + 512))
    file, key, what = one(dataset)
    assert (file, key) == (INDEX, key_at(dataset, 3)) and "the index says" in what


def test_index_of_fewer_rows_than_the_tar(dataset: Path) -> None:
    edit_index(dataset, lambda table: table.slice(0, table.num_rows - 1))
    problems = found(dataset)
    # the embeddings, the tar and the manifest now all have one sample more than the index
    assert [p[0] for p in problems] == [INDEX, TAR, "shards/train-00000.embeddings.parquet"]
    assert "3 members that the index does not have" in problems[1][2]


def test_embeddings_of_other_rows(dataset: Path) -> None:
    name = "shards/train-00000.embeddings.parquet"
    edit_index(dataset, lambda table: table.take(pa.array([1, 0, *range(2, table.num_rows)])), name)
    assert one(dataset)[:2] == (name, "") and "keys" in one(dataset)[2]


def test_members_out_of_order(dataset: Path) -> None:
    def swap(members: list[tuple[str, bytes]]) -> None:
        members[1], members[2] = members[2], members[1]

    edit_members(dataset, swap)
    problems = found(dataset)
    assert {(file, key) for file, key, _ in problems} == {(TAR, key_at(dataset, 0))}
    assert problems[0][2].startswith(f"member {key_at(dataset, 0)}.txt is due here, found {key_at(dataset, 0)}.json")


def test_caption_of_another_sample(dataset: Path) -> None:
    def change(members: list[tuple[str, bytes]]) -> None:
        members[4] = (members[4][0], members[4][1][:-1] + b"?")

    edit_members(dataset, change)
    assert one(dataset) == (TAR, key_at(dataset, 1), f"{key_at(dataset, 1)}.txt is not the caption of the index")


def test_record_that_differs_from_the_index(dataset: Path) -> None:
    def change(members: list[tuple[str, bytes]]) -> None:
        members[5] = (members[5][0], members[5][1].replace(b'"width":16', b'"width":17'))

    edit_members(dataset, change)
    assert one(dataset) == (TAR, key_at(dataset, 1), f"{key_at(dataset, 1)}.json differs from the index in: width")


def test_record_that_is_not_json(dataset: Path) -> None:
    edit_members(dataset, lambda members: members.__setitem__(2, (members[2][0], b"!" + members[2][1][1:])))
    assert one(dataset)[:2] == (TAR, key_at(dataset, 0)) and "is not JSON" in one(dataset)[2]


def test_an_image_that_does_not_decode_and_one_that_is_another(dataset: Path) -> None:
    def spoil(members: list[tuple[str, bytes]]) -> None:
        members[0] = (members[0][0], b"\0" * len(members[0][1]))

    edit_members(dataset, spoil)
    key = key_at(dataset, 0)
    assert one(dataset, decode=False) == (TAR, key, "the image's SHA-256 is not that of the index (image_sha256)")
    told = [what for _, k, what in found(dataset) if k == key]
    assert len(told) == 2 and any(what.startswith("the image cannot be decoded") for what in told)


def test_split_disjointness_and_unique_keys(dataset: Path) -> None:
    def point(table: pa.Table) -> pa.Table:
        other = pq.read_table(dataset / "shards/val-00000.parquet")
        return set_value(table, "image_sha256", 0, other["image_sha256"][0].as_py())

    edit_index(dataset, point)
    problems = [what for _, _, what in found(dataset) if "splits" in what]
    assert problems == ["the same image stands in the splits train and val"]


def test_a_key_in_two_shards(dataset: Path) -> None:
    other = key_at(dataset, 0, "shards/val-00000.parquet")
    edit_index(dataset, lambda table: set_value(table, "key", 0, other))
    assert [what for _, key, what in found(dataset) if key == other and "stands" in what] == [
        f"the key stands 2 times: in {TAR}, shards/val-00000.tar"
    ]


def test_split_and_total_counts(dataset: Path) -> None:
    edit_manifest(dataset, lambda manifest: manifest["counts"].update(input=101))
    assert "are not the 101 of the input" in one(dataset)[2]
    edit_manifest(dataset, lambda manifest: (manifest["counts"].update(input=100), manifest["splits"]["val"].update(samples=1)))
    problems = found(dataset)
    assert problems[0][2].startswith("split val: 1 samples") and all(file == "manifest.json" for file, _, _ in problems)


def test_rejected_rows_of_another_reason(dataset: Path) -> None:
    def rename(table: pa.Table) -> pa.Table:
        reason = pc.replace_substring(table["reason"], "http_4xx", "timeout")
        return table.set_column(table.column_names.index("reason"), "reason", reason)

    edit_index(dataset, rename, "rejected/part-00001.parquet")
    problems = found(dataset)
    assert [file for file, _, _ in problems] == ["manifest.json", "manifest.json"]
    assert "store_images: 7 rejected rows are failed for http_4xx, counts says 14" in problems[0][2]
    assert "failed for timeout, counts says 0" in problems[1][2]


def test_sizes_file(dataset: Path) -> None:
    (dataset / "shards/sizes.json").write_text('{"train-00000.tar": 1}')
    reseal(dataset)
    assert one(dataset) == ("shards/sizes.json", "", "its counts are not those of the manifest")
