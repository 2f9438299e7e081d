"""img2dataset's own downloader as an engine: the same columns, bytes and reasons as `download`, against the same real server."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal
from pipeline.stage import Context
from schemas.outcome import Failure
from stages.download import Download
from stages.download_img2dataset import DownloadImg2dataset
from stages.images.collect import STORED_COLUMNS
from stages.images.img2dataset_engine import check_installed

INSTALLED = importlib.util.find_spec("img2dataset") is not None


def run_stage(stage: Any, folder: Path, urls: list[str | None]) -> tuple[list[str], list[Any]]:
    """Reason of each row ('' where there is a value), and the results."""
    rows = [{"url": url, "sample_id": at.to_bytes(16, "big")} for at, url in enumerate(urls)]
    results = stage.compute(rows, Context(stage.name, 0, blobs=BlobWriter(folder, 0)))
    drops = [None if isinstance(result, Failure) or result["width"] is None and result["opted_out"] is None else stage.decide(result, {}) for result in results]
    return [result.code if isinstance(result, Failure) else drop.reason if drop else "" for result, drop in zip(results, drops, strict=True)], results


def test_it_must_be_allowed_to_reach_private_addresses() -> None:
    with pytest.raises(ValidationError, match="does not refuse private"):
        DownloadImg2dataset.Params()


@pytest.mark.skipif(INSTALLED, reason="img2dataset is installed")
def test_without_img2dataset_the_error_says_how_to_install_it() -> None:
    with pytest.raises(Fatal, match=r"pairmill\[img2dataset\]"):
        check_installed()


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="img2dataset is not installed (extra img2dataset)")
def test_columns_bytes_and_reasons_are_those_of_download(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    data = [jpeg(300 + n, 200, seed=n) for n in range(3)]
    web.answers |= {f"/{n}": web.http(body, content_type="image/jpeg") for n, body in enumerate(data)}
    web.answers |= {
        "/404": web.http(status="404 Not Found"), "/500": web.http(status="500 No"), "/429": web.http(status="429 Slow"), "/html": web.http(b"<html>x</html>"),
        "/out": web.http(data[0], x_robots_tag="noai"), "/short": web.http(data[0][:50], content_length="900"), "/empty": web.http(b""),
        "/cut": web.http(data[1][:-500]), "/loop": web.http(status="302 Found", location="/loop"),
    }  # fmt: skip
    names = ["/0", "/404", "/1", "/500", "/429", "/html", "/out", "/short", "/empty", "/cut", "/loop", "/2"]
    urls = [web.url(name) for name in names] + ["http://none.invalid/x.jpg", "", None, "http://127.0.0.1:1/x.jpg"]
    theirs, their_results = run_stage(DownloadImg2dataset(DownloadImg2dataset.Params(allow_private=True, threads=4, timeout_s=5)), tmp_path / "i", urls)
    ours, our_results = run_stage(Download(Download.Params(allow_private=True, retries=0, timeout_s=5)), tmp_path / "o", urls)
    assert theirs == ours
    assert [theirs[at] for at in (0, 1, 3, 4, 5, 6, 12, 13)] == ["", "http_4xx", "http_5xx", "rate_limited", "not_an_image", "opted_out", "dns", "bad_row"]
    for their, our in zip(their_results, our_results, strict=True):
        if not isinstance(our, Failure) and our["width"]:
            assert list(their) == list(our)
            same = [name for name in STORED_COLUMNS if name not in ("tar", "offset")]
            assert {name: their[name] for name in same} == {name: our[name] for name in same}
            assert their["http_status"] is None


@pytest.mark.skipif(not INSTALLED, reason="img2dataset is not installed (extra img2dataset)")
def test_what_it_has_not_come_to_in_time_fails_as_timeout(tmp_path: Path, web: Any) -> None:
    stage = DownloadImg2dataset(DownloadImg2dataset.Params(allow_private=True, part_timeout_s=0.3))
    codes, _ = run_stage(stage, tmp_path, [web.url("/never")])
    assert codes == ["timeout"]
