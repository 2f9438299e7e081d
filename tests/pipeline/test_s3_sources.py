"""Images that lie in object storage as input: the same rows and the same dataset as from a disk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.object_inputs import S3Inputs
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from tests.pipeline.s3_server import BUCKET, S3Server

IMG2DATASET = Path(__file__).parents[1] / "data" / "img2dataset"
LOCAL = RunOptions(executor="local")


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path) -> None:
    """Images in two folders with captions beside them; one image is broken, one caption has no image."""
    for number in range(12):
        stem = root / ("a" if number % 2 else "b") / f"{number:02d}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(picture(number) if number != 5 else b"no image")
        stem.with_suffix(".txt").write_text(f"picture number {number}")
    (root / "a" / "alone.txt").write_text("a caption without an image")


def table(root: Path) -> None:
    folder(root)
    (root / "captions.csv").write_text("file_name,caption\n" + "".join(f"{'a' if n % 2 else 'b'}/{n:02d}.png,caption {n}\n" for n in range(12)))


def tars(root: Path) -> None:
    """Two tars of samples; the second is cut."""
    root.mkdir(parents=True)
    for place in range(2):
        with tarfile.open(root / f"{place:05d}.tar", "w") as tar:
            for number in range(6):
                for name, data in ((f"{number:03d}.png", picture(10 * place + number)), (f"{number:03d}.txt", f"text {number}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    whole = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(whole[: len(whole) // 2])


def img2dataset(root: Path) -> None:
    root.mkdir(parents=True)
    for file in IMG2DATASET.rglob("webdataset/*"):
        (root / file.name).write_bytes(file.read_bytes())


def image_tables(root: Path) -> None:
    """A Parquet file of two row groups, and an Arrow stream; one image is null."""
    root.mkdir(parents=True)
    made = pa.table({"image": [picture(n) for n in range(7)] + [None], "caption": [f"text {n}" for n in range(8)]})
    pq.write_table(made, root / "a.parquet", row_group_size=5)
    with pa.OSFile(str(root / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made.slice(0, 4))


def recipe(source: dict[str, Any]) -> dict[str, Any]:
    return {"name": "near_images", "input": {**source, "rows_per_part": 5}, "stages": ["read_images"], "jobs": ["write_shards"]}


@pytest.mark.parametrize(
    "make, source, kept",
    [
        (folder, {"kind": "image_folder", "folder": "{root}"}, 11),
        (table, {"kind": "image_folder", "folder": "{root}", "table": "captions.csv"}, 11),
        (tars, {"kind": "webdataset_tars", "tars": "{root}/*.tar"}, 8),
        (image_tables, {"kind": "image_table", "table": "{root}/*"}, 11),
        (img2dataset, {"kind": "img2dataset_output", "folder": "{root}"}, 3),
    ],
)
def test_images_in_object_storage_are_read_as_those_on_a_disk(s3: S3Server, tmp_path: Path, make: Any, source: dict[str, Any], kept: int) -> None:
    root = tmp_path / "in"
    make(root)
    for file in root.rglob("*"):
        if file.is_file():
            s3.client.put_object(Bucket=BUCKET, Key=f"in/{file.relative_to(root).as_posix()}", Body=file.read_bytes())
    found = {}
    for place in (str(root), "s3://bucket/in"):
        given = {name: value.format(root=place) for name, value in source.items()}
        found[place] = run(build_recipe(recipe(given)), tmp_path / f"run{len(found)}", LOCAL).view
    assert not [r for r in s3.requests if r.method == "GET" and r.name.endswith(".png") and r.range], "an image of its own is one request"
    near, far = found.values()
    assert near.counts()["read_images"]["kept"] >= kept and far.counts() == near.counts()
    files = [{p.relative_to(view.dataset): p.read_bytes() for p in Path(str(view.dataset)).rglob("*") if p.is_file()} for view in (near, far)]
    assert files[0] == files[1]


def test_pieces_of_an_object_are_those_that_a_slice_gives(s3: S3Server) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="in/digits", Body=b"0123456789")
    for start, end in ((None, None), (2, 5), (None, 4), (7, None), (-3, None), (0, -2), (4, 4)):
        assert S3Inputs().cat_file("bucket/in/digits", start, end) == b"0123456789"[start:end], (start, end)
