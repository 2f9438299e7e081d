"""Over outputs that img2dataset 1.47.0 wrote from a server on loopback: tests/data/img2dataset, one per output_format."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import build_params
from schemas.outcome import FailureCode
from stages.images.img2dataset_engine import reason_of
from stages.images.local import Place, read_places
from stages.source.img2dataset_output import Img2datasetOutput
from tests.stages.source.made_tars import picture, rows_of

DATA = Path(__file__).parents[2] / "data" / "img2dataset"
# Last part of the URL -> reason, '' where the image was written.
EXPECTED = {
    "ok0.jpg": "", "404": "http_4xx", "410": "http_4xx", "429": "rate_limited", "500": "http_5xx", "noai": "opted_out", "html": "corrupt_image",
    "small": "too_small", "wide": "aspect", "huge": "pixel_limit", "slow": "timeout", "short": "short_body", "loop": "too_many_redirects",
    "empty": "empty_body", "reset": "reset", "ok1.jpg": "", "ok2.jpg": "", "ok3.jpg": "",
}  # fmt: skip


def source(folder: Path, **params: Any) -> Img2datasetOutput:
    return Img2datasetOutput(build_params(Img2datasetOutput, {"folder": str(folder), **params}, "input"))


def test_every_row_of_the_tables_is_a_row_with_the_mapped_reason():
    rows = rows_of(source(DATA / "webdataset"))
    assert [row["alt_text"] for row in rows] == [f"caption {n}" for n in range(24)] and [row["uid"] for row in rows] == [f"u{n}" for n in range(24)]
    found = {row["url"].rpartition("/")[2]: row["failure"] or "" for row in rows if "127.0.0.1:8765/" in row["url"] and row["url"].startswith("http:")}
    assert found == EXPECTED
    others = {row["url"]: row["failure"] for row in rows if row["url"].rpartition("/")[2] not in EXPECTED}
    assert others == {
        "http://none.invalid/a.jpg": "dns", "http://127.0.0.1:1/a.jpg": "connect", "https://127.0.0.1:8765/a.jpg": "tls", "not a url": "bad_row",
        "ftp://x/y": "dns", "": "bad_row",
    }  # fmt: skip
    assert rows[1]["failure_detail"] == "img2dataset: failed_to_download: HTTP Error 404: Not Found"
    assert rows[0]["path"] == "00000.tar/000000.jpg" and rows[1]["path"] == "00000.tar/000001"


@pytest.mark.parametrize("kind", ["webdataset", "files", "parquet"])
def test_the_images_are_found_in_each_output_format(kind):
    written = {key for file in (DATA / kind).glob("*.parquet") for key in pq.read_table(file, columns=["key"])["key"].to_pylist()}
    good = [row for row in rows_of(source(DATA / kind)) if not row["failure"]]
    assert good and {row["input_key"] for row in good} <= written
    for row in good:
        ((_, data),) = [pair for piece in read_places([Place(0, row["source_file"], row["source_offset"], row["source_size"])], 1 << 20) for pair in piece]
        assert isinstance(data, bytes) and data[:3] == b"\xff\xd8\xff" and data[-2:] == b"\xff\xd9"
        number = int(row["url"].rpartition("/ok")[2].removesuffix(".jpg"))
        assert abs(len(data) - len(picture(number))) < 400  # img2dataset encoded it anew


def test_rows_of_a_parquet_file_are_read_in_order_from_its_row_groups():
    rows = [row for row in rows_of(source(DATA / "parquet")) if not row["failure"]]
    by_file = {row["source_file"] for row in rows}
    assert len(by_file) == 2 and all(row["path"].endswith(f"{row['input_key']}.jpg") for row in rows)


def test_the_same_rows_come_in_every_output_format():
    def told(kind: str) -> list[tuple[Any, ...]]:
        return [(row["url"], row["alt_text"], row["failure"], row["uid"]) for row in rows_of(source(DATA / kind)) if row["input_key"] < "000010"]

    # 'ended by the time-out' is a matter of the moment: img2dataset ran once for each format
    assert [row[:2] for row in told("webdataset")] == [row[:2] for row in told("files")] == [row[:2] for row in told("parquet")]


def copied(tmp_path: Path, kind: str = "webdataset") -> Path:
    return Path(shutil.copytree(DATA / kind, tmp_path / kind))


def test_a_shard_that_was_not_finished_is_a_failed_row(tmp_path):
    folder = copied(tmp_path)
    (folder / "00001_stats.json").unlink()
    table = folder / "00002.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    failed = {row["path"]: row for row in rows_of(source(folder)) if row["failure"] == "unreadable"}
    assert set(failed) == {"00001.parquet", "00002.parquet"}
    assert "00001_stats.json" in failed["00001.parquet"]["failure_detail"] and "stopped" in failed["00002.parquet"]["failure_detail"]


def test_a_cut_tar_and_lost_rows_are_failed_rows(tmp_path):
    folder = copied(tmp_path)
    os.truncate(folder / "00002.tar", 700)
    stats = json.loads((folder / "00000_stats.json").read_text())
    (folder / "00000_stats.json").write_text(json.dumps({**stats, "count": 12}))
    rows = rows_of(source(folder))
    assert len(rows) == 26
    last = [row for row in rows if row["path"].startswith("00002") and row["url"] and "/ok" in row["url"]]
    assert [row["failure"] for row in last] == ["unreadable", "unreadable"] and "byte 700" in last[0]["failure_detail"]
    lost = [row for row in rows if row["path"].startswith("00000.parquet")]
    assert [row["failure"] for row in lost] == ["bad_row", "bad_row"] and "counts 12 rows" in lost[0]["failure_detail"]


def test_ids_and_fingerprint_do_not_depend_on_the_place(tmp_path):
    here, there = source(copied(tmp_path / "a")), source(copied(tmp_path / "b"))
    assert [row["sample_id"] for row in rows_of(here)] == [row["sample_id"] for row in rows_of(there)]
    assert here.fingerprint() == there.fingerprint()


def test_another_folder_is_refused_with_advice(tmp_path):
    with pytest.raises(RecipeError, match="input.folder: .* webdataset_tars"):
        source(tmp_path).fingerprint()
    folder = copied(tmp_path)
    with pytest.raises(RecipeError, match="no column 'link'"):
        rows_of(source(folder, url="link"))


def test_messages_are_mapped_to_reasons_that_exist():
    assert reason_of("failed_to_download", "<urlopen error [Errno 113] No route to host>") == "connect"
    assert reason_of("failed_to_download", "Remote end closed connection without response") == "reset"
    assert reason_of("failed_to_download", "hash mismatch") == "hash_mismatch"
    assert reason_of("failed_to_resize", "anything at all") == "corrupt_image"
    assert reason_of("failed_to_download", None) == "connect"
    counted = Counter(reason_of("failed_to_download", f"HTTP Error {status}: x") for status in (400, 404, 429, 451, 500, 502))
    assert counted == {FailureCode.HTTP_4XX: 3, FailureCode.RATE_LIMITED: 1, FailureCode.HTTP_5XX: 2}
