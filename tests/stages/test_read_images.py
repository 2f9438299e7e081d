"""read_images in the whole machine: local files and ranges of tars become stored images, and each failure has its reason."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, RunResult, run
from pipeline.stage import Context
from schemas.outcome import Failure
from stages.images.local import GAP_BYTES, READ_BYTES, Place, plan_reads, read_places
from stages.read_images import ReadImages
from stages.source.image_folder import ImageFolder
from stages.source.webdataset_tars import WebdatasetTars
from tests.stages.source.made_tars import picture, rows_of, sample, write_tar


def run_on(out: Path, given: dict[str, Any], stages: list[Any] | None = None, rows_per_part: int = 100) -> RunResult:
    recipe = {"name": "t", "input": {"rows_per_part": rows_per_part, **given}, "stages": stages or ["read_images"]}
    return run(build_recipe(recipe), out, RunOptions(executor="local"))


def outcomes(result: RunResult, columns: tuple[str, ...] = ()) -> dict[str, Any]:
    """path -> reason ('' where kept), or the columns asked for."""
    found = {}
    for part in range(len(result.view.parts)):
        view = result.view.view(part)
        table = result.view.read(view, ["source.path", *columns], None)
        told = [view.verdict(node.index) for node in result.view.chain.nodes]
        for row, values in enumerate(table.to_pylist()):
            reason = next((verdict.reason[row].as_py() for verdict in told if verdict.status[row] in (1, 2)), "")
            found[values["source.path"]] = tuple(values[name] for name in columns) if columns else reason
    return found


def blob_bytes(result: RunResult) -> dict[str, bytes]:
    """path -> the stored bytes."""
    places = outcomes(result, ("read_images.tar", "read_images.offset", "read_images.size"))
    folder = result.view.store.blobs("read_images")
    return {path: (Path(folder) / tar).read_bytes()[offset : offset + size] for path, (tar, offset, size) in places.items() if tar}


def test_files_of_a_folder_are_stored_and_bad_ones_fail_with_their_reason(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    big = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(big, "PNG")
    files = {
        "ok.jpg": picture(1), "ok.png": picture(2, format="PNG"), "cut.jpg": picture(3, (400, 300))[:-300], "empty.jpg": b"", "page.jpg": b"<html>no</html>",
        "noise.jpg": os.urandom(50), "big.png": big.getvalue(), "turn.gif": picture(5, format="GIF"),
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    result = run_on(tmp_path / "run", {"kind": "image_folder", "folder": str(folder)}, [{"read_images": {"max_bytes": 5000}}])
    assert outcomes(result) == {
        "ok.jpg": "", "ok.png": "", "cut.jpg": "corrupt_image", "empty.jpg": "empty_body", "page.jpg": "not_an_image", "noise.jpg": "unsupported_format",
        "big.png": "too_large", "turn.gif": "",
    }  # fmt: skip
    stored = blob_bytes(result)
    assert stored["ok.jpg"] == files["ok.jpg"] and stored["ok.png"] == files["ok.png"] and stored["turn.gif"][:3] == b"\xff\xd8\xff"
    assert outcomes(result, ("raw_sha256", "width", "height"))["ok.jpg"] == (hashlib.sha256(files["ok.jpg"]).digest(), 40, 30)


def test_resizing_and_limits_are_those_of_download(tmp_path):
    for name, size in {"small.jpg": (20, 20), "wide.jpg": (300, 20), "good.jpg": (100, 80)}.items():
        (tmp_path / name).write_bytes(picture(1, size))
    stage = {"read_images": {"min_short_side": 20, "max_aspect": 3, "min_width": 50, "resize_mode": "keep_ratio_largest", "image_size": 50}}
    result = run_on(tmp_path / "run", {"kind": "image_folder", "folder": str(tmp_path), "recursive": False}, [stage])
    assert outcomes(result) == {"small.jpg": "too_small", "wide.jpg": "aspect", "good.jpg": ""}
    assert outcomes(result, ("width", "height", "original_width"))["good.jpg"] == (50, 40, 100)


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tar.zst"])
def test_members_of_tars_are_read_by_their_place(tmp_path, name):
    members = [member for n in range(30) for member in sample(f"k{n:02}", n)]
    plain = write_tar(tmp_path / "plain.tar", members).read_bytes()
    (tmp_path / "in").mkdir()
    codec = {"t.tar.gz": "gzip", "t.tar.zst": "zstd"}.get(name)
    (tmp_path / "in" / name).write_bytes(pa.compress(plain, codec=codec, asbytes=True) if codec else plain)
    result = run_on(tmp_path / "run", {"kind": "webdataset_tars", "tars": str(tmp_path / "in" / name)}, rows_per_part=7)
    assert blob_bytes(result) == {f"{name}/k{n:02}.jpg": picture(n) for n in range(30)}


def test_what_is_gone_or_cut_since_the_input_was_read_fails_its_rows(tmp_path):
    tar = write_tar(tmp_path / "t.tar", [member for n in range(4) for member in sample(f"k{n}", n)])
    (tmp_path / "a.jpg").write_bytes(picture(8))
    (tmp_path / "b.jpg").write_bytes(picture(9))
    rows = rows_of(WebdatasetTars(WebdatasetTars.Params(tars=str(tar)))) + rows_of(ImageFolder(ImageFolder.Params(folder=str(tmp_path))))
    os.truncate(tar, rows[2]["source_offset"] + 100)
    (tmp_path / "a.jpg").unlink()
    stage = ReadImages(ReadImages.Params())
    found = stage.compute(rows, Context("read_images", 0, blobs=BlobWriter(tmp_path / "blobs", 0)))
    codes = [result.code if isinstance(result, Failure) else "" for result in found]
    assert codes == ["", "", "unreadable", "unreadable", "missing_image", ""]
    assert "100 of " in found[2].detail and str(tar) in found[2].detail and "a.jpg" in found[4].detail  # type: ignore[union-attr]


def test_moved_input_is_no_other_input(tmp_path):
    for place in ("here", "there"):
        write_tar(tmp_path / place / "t.tar", [member for n in range(6) for member in sample(f"k{n}", n)])
    digests = []
    for place in ("here", "there"):
        result = run_on(tmp_path / f"run-{place}", {"kind": "webdataset_tars", "tars": str(tmp_path / place)})
        digests.append((result.view.chain.facts.fingerprint, [record.digest for _, record in sorted(result.view.records().items())]))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("kind", ["image_folder", "webdataset_tars", "image_table"])
def test_an_input_that_was_moved_stops_the_run_and_can_be_given_anew(tmp_path, kind):
    option = {"image_folder": "folder", "webdataset_tars": "tars", "image_table": "table"}[kind]
    members = [member for n in range(6) for member in sample(f"k{n}", n)]
    if kind == "image_folder":
        for name, data in members:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)
    elif kind == "image_table":
        (tmp_path / "in" / "deep").mkdir(parents=True)
        pq.write_table(pa.table({"image": [picture(n) for n in range(6)], "caption": ["a text"] * 6}), tmp_path / "in" / "deep" / "t.parquet")
    else:
        write_tar(tmp_path / "in" / "deep" / "t.tar", members)
    run_on(tmp_path / "run", {"kind": kind, option: str(tmp_path / "in")}, [{"select": {"where": "alt_text != ''"}}])
    (tmp_path / "in").rename(tmp_path / "moved")
    given = {"kind": kind, option: str(tmp_path / "moved")}
    with pytest.raises(Fatal, match=f"folder {tmp_path}/in.* is gone"):
        run_on(tmp_path / "run", given)
    shutil.rmtree(tmp_path / "run" / "values" / "source")
    result = run_on(tmp_path / "run", given)
    assert set(outcomes(result).values()) == {""} and len(blob_bytes(result)) == 6


def test_near_ranges_are_read_at_once_and_far_ones_apart():
    far = 10 * GAP_BYTES
    places = [Place(0, "b.tar", far, 9), Place(1, "a.tar", 1000, 10), Place(2, "b.tar", 0, 9), Place(3, "a.tar", 0, 500), Place(4, "c.jpg"), Place(5, "c.jpg")]
    assert [[place.row for place in task] for task in plan_reads(places)] == [[3, 1], [2], [0], [4], [5]]
    long = [Place(row, "a.tar", row * (1 << 20), 1 << 20) for row in range(20)]
    tasks = plan_reads(long)
    assert sorted(place.row for task in tasks for place in task) == list(range(20))
    assert all(len(task) << 20 <= READ_BYTES for task in tasks) and len(tasks) == 3
    assert len(plan_reads([Place(row, "a.tar.gz", row << 20, 1 << 20) for row in range(20)])) == 1


def test_each_place_gets_its_bytes_or_a_reason(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(range(256)) * 10)
    task = [Place(0, str(path), 0, 5), Place(1, str(path), 300, 4), Place(2, str(path), 2558, 10), Place(3, str(path), 10, 0)]
    found = dict(pair for piece in read_places(task, 1000) for pair in piece)
    assert found[0] == bytes(range(5)) and found[1] == bytes(range(44, 48))
    assert isinstance(found[2], Failure) and found[2].code == "unreadable" and "2 of 10 bytes" in found[2].detail
    assert isinstance(found[3], Failure) and found[3].code == "empty_body"
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("none.jpg", "missing_image"), ("pipe", "unreadable"), ("", "unreadable")):
        ((_, failure),) = [pair for piece in read_places([Place(0, str(tmp_path / name))], 1000) for pair in piece]
        assert isinstance(failure, Failure) and failure.code == code


def test_a_compressed_tar_that_was_cut_keeps_the_rows_before(tmp_path):
    data = os.urandom(100_000)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(data)[:50_000])
    task = [Place(row, str(path), row * 10_000, 1000) for row in range(10)]
    found = dict(pair for piece in read_places(task, 1 << 20) for pair in piece)
    assert set(found) == set(range(10))
    good = [row for row, got in found.items() if not isinstance(got, Failure)]
    assert good == list(range(len(good))) and 3 <= len(good) <= 5
    assert all(found[row] == data[row * 10_000 : row * 10_000 + 1000] for row in good)
    assert all(found[row].code == "unreadable" for row in range(len(good), 10))  # type: ignore[union-attr]


def test_a_remote_folder_and_remote_tars_are_read_through_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    tar = write_tar(tmp_path / "t.tar", [member for n in range(5) for member in sample(f"k{n}", n)]).read_bytes()
    for name, data in {"a.jpg": picture(7), "sub/b.jpg": picture(8), "empty.jpg": b"", "t.tar": tar, "z.tar.gz": gzip.compress(tar)}.items():
        memory.pipe(f"/read_images/{name}", data)
    try:
        folder = run_on(tmp_path / "r1", {"kind": "image_folder", "folder": "memory://read_images"})
        assert blob_bytes(folder) == {"a.jpg": picture(7), "sub/b.jpg": picture(8)} and outcomes(folder)["empty.jpg"] == "empty_body"
        tars = run_on(tmp_path / "r2", {"kind": "webdataset_tars", "tars": ["memory://read_images/t.tar", "memory://read_images/z.tar.gz"]})
        assert blob_bytes(tars) == {f"{tar}/k{n}.jpg": picture(n) for n in range(5) for tar in ("t.tar", "z.tar.gz")}
    finally:
        memory.rm("/read_images", recursive=True)
