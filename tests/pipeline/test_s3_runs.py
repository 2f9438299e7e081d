"""Whole runs in object storage: a real download from a server on loopback, kills in mid-run, and Ray, against one on a disk."""

from __future__ import annotations

import http.server
import io
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import object_store
from pipeline.errors import Fatal
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from tests.pipeline.drivers import driver
from tests.pipeline.helpers import make_recipe
from tests.pipeline.s3_server import BUCKET, Request, S3Server

TOYS = Path(__file__).with_name("toys.py")
LOCAL = RunOptions(executor="local")
ROWS = 90


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A web server on loopback: /<n>.png is a picture, every seventh is not there."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            number = int(self.path.strip("/").removesuffix(".png"))
            body = b"" if number % 7 == 3 else picture(number)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def table(web: str) -> bytes:
    """The input: URLs with texts, as Parquet."""
    out = io.BytesIO()
    columns = {"url": [f"{web}/{n}.png" for n in range(ROWS)], "alt_text": [f"picture number {n} of a series" for n in range(ROWS)]}
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def recipe(place: str) -> dict[str, Any]:
    return {
        "name": "small",
        "input": {"kind": "url_table", "table": place, "rows_per_part": 20},
        "stages": [
            {"download": {"allow_private": True, "retries": 0}},
            {"digest_image": {}},
        ],
        "jobs": [{"write_shards": {"max_samples": 15, "parts_per_group": 2}}],
    }


def dataset_on_disk(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root / "dataset").as_posix(): path.read_bytes() for path in (root / "dataset").rglob("*") if path.is_file()}


@pytest.fixture
def wanted(tmp_path: Path, web: str) -> dict[str, bytes]:
    """The dataset of an unbroken run on a disk."""
    (tmp_path / "urls.parquet").write_bytes(table(web))
    result = run(build_recipe(recipe(str(tmp_path / "urls.parquet"))), tmp_path / "near", LOCAL)
    assert result.view.counts()["download"]["failed:http_4xx"] == 13
    return dataset_on_disk(tmp_path / "near")


@pytest.fixture
def far_table(s3: S3Server, web: str) -> str:
    """The input in object storage."""
    s3.client.put_object(Bucket=BUCKET, Key="in/urls.parquet", Body=table(web))
    return "s3://bucket/in/urls.parquet"


def test_input_images_and_dataset_in_object_storage(s3: S3Server, far_table: str, wanted: dict[str, bytes]) -> None:
    run(build_recipe(recipe(far_table)), s3.place("run"), LOCAL)
    assert s3.files("run/dataset") == wanted


@pytest.mark.slow
def test_killed_again_and_again_it_gives_the_same_dataset(s3: S3Server, far_table: str, wanted: dict[str, bytes]) -> None:
    """SIGKILL of the driver as it asks for its nth write: while it cuts, computes, stores images, writes shards and moves them."""
    for ending in ("values/source/part-00002.parquet", ".tar", "values/digest_image/part-00003.parquet", "dataset/shards/train-00001.tar"):
        with driver(TOYS, recipe(far_table), s3.place("run")) as process:

            def kill(request: Request, process: Any = process, ending: str = ending) -> bool:
                if request.method == "PUT" and request.path.endswith(ending):
                    process.send_signal(signal.SIGKILL)
                    return True
                return False

            s3.fail = kill
            assert process.wait(60) == -signal.SIGKILL, process.communicate()[1]
        s3.fail = lambda request: False
        assert "dataset/manifest.json" not in s3.files("run")
    final = run(build_recipe(recipe(far_table)), s3.place("run"), LOCAL)
    assert s3.files("run/dataset") == wanted
    assert final.tally.computed.get("download", 0) == 0, "what was committed before the kills is not fetched again"


def test_ray_workers_write_the_same_dataset_to_object_storage(s3: S3Server, far_table: str, wanted: dict[str, bytes]) -> None:
    run(build_recipe(recipe(far_table)), s3.place("run"), RunOptions(executor="ray", workers=2))
    assert s3.files("run/dataset") == wanted


def test_a_store_that_is_away_stops_the_run_and_no_row_is_blamed(
    s3: S3Server, far_table: str, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 1})
    object_store._store.cache_clear()
    s3.fail = lambda request: request.method == "GET" and "/blobs/" in request.path
    with pytest.raises(Fatal, match="the object store gave no good answer"):
        run(build_recipe(recipe(far_table)), s3.place("run"), LOCAL)
    s3.fail = lambda request: False
    run(build_recipe(recipe(far_table)), s3.place("run"), LOCAL)
    assert s3.files("run/dataset") == wanted
    object_store._store.cache_clear()


def test_a_row_that_kills_workers_of_another_machine_is_found(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver does not see the workers' temporary folder, as on a cluster: their word is in the run directory after the first death."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    poisoned = make_recipe([{"poison": {"text": "text 30", "how": "kill"}}], rows=60, rows_per_part=60)
    result = run(poisoned, s3.place("run"), RunOptions(executor="ray", workers=1))
    assert result.view.counts()["poison"] == {"kept": 59, "failed": 1, "failed:worker_died": 1}
    assert any("run/.tmp-note-" in r.path for r in s3.requests if r.method == "PUT")
