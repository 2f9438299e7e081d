"""The download stage against a real server: values, stored bytes, reasons, and what decide drops."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.blobs import BlobWriter
from pipeline.budget import BudgetWindow
from pipeline.errors import Budget, BudgetExceeded, Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from pipeline.stage import Context, params_affecting
from schemas.outcome import Drop, Failure
from stages.download import Download

SETTINGS = {"allow_private": True, "timeout_s": 2.0, "retries": 0}


def rows_of(urls: list[str | None]) -> list[dict[str, Any]]:
    return [{"url": url, "sample_id": at.to_bytes(16, "big")} for at, url in enumerate(urls)]


def download(folder: Path, urls: list[str | None], **params: Any) -> tuple[list[Any], dict[str, bytes]]:
    """Results per row, and the members of the committed tars by name, each read at the place that its row names."""
    stage = Download(Download.Params(**{**SETTINGS, **params}))
    blobs = BlobWriter(folder, 0)
    results = stage.compute(rows_of(urls), Context("download", 0, blobs=blobs))
    names = blobs.finish()
    members = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members.update({member.name: tar.extractfile(member).read() for member in tar})  # type: ignore[union-attr]
    for at, result in enumerate(results):
        if not isinstance(result, Failure) and result["tar"] is not None:
            raw = (folder / names[result["tar"]]).read_bytes()[result["offset"] : result["offset"] + result["size"]]
            assert raw == members[f"{at.to_bytes(16, 'big').hex()}.{result['format']}"]
    return results, members


def test_values_of_an_image_that_is_kept(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    data = jpeg(300, 200)
    web.answers["/a"] = web.http(data, content_type="image/jpeg")
    (values,), members = download(tmp_path, [web.url("/a")])
    digest = hashlib.sha256(data).digest()
    assert list(values) == list(Download.writes)
    assert members == {f"{0:032x}.jpg": data}
    assert {name: values[name] for name in values if name not in ("tar", "offset")} == {
        "http_status": 200, "content_type": "image/jpeg", "raw_sha256": digest, "n_bytes": len(data), "image_sha256": digest,
        "size": len(data), "width": 300, "height": 200, "original_width": 300, "original_height": 200, "format": "jpg",
        "opted_out": None, "robots": None, "checked_at": values["checked_at"],
    }  # fmt: skip
    assert abs(values["checked_at"] / 1000 - time.time()) < 10


def test_another_event_loop_changes_nothing(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    """Ray's workers make uvloop the default where it is installed."""
    uvloop = pytest.importorskip("uvloop")
    data = jpeg(30, 20)
    web.answers["/a"] = web.http(data, content_type="image/jpeg")
    before = asyncio.get_event_loop_policy()
    uvloop.install()
    try:
        (values,), members = download(tmp_path, [web.url("/a")], min_short_side=1)
    finally:
        asyncio.set_event_loop_policy(before)
    assert values["http_status"] == 200 and list(members.values()) == [data]


def test_values_of_an_image_that_is_changed(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(300, 200, exif=exif)
    web.answers["/a"] = web.http(data)
    (values,), members = download(tmp_path, [web.url("/a")], resize_mode="keep_ratio_largest", image_size=60, encode_format="webp")
    stored = members[f"{0:032x}.webp"]
    assert Image.open(io.BytesIO(stored)).size == (40, 60) == (values["width"], values["height"])
    assert (values["original_width"], values["original_height"], values["format"]) == (200, 300, "webp")
    assert values["raw_sha256"] == hashlib.sha256(data).digest() and values["n_bytes"] == len(data)
    assert values["image_sha256"] == hashlib.sha256(stored).digest() and values["size"] == len(stored)


def test_every_row_has_its_outcome(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    good, png = jpeg(64, 64), io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(png, "PNG")
    web.answers |= {
        "/good": web.http(good), "/png": web.http(png.getvalue()), "/html": web.http(b"<html>gone</html>", content_type="text/html"),
        "/cut": web.http(jpeg(300, 300)[:3000]), "/svg": web.http(b"<svg/>"), "/empty": web.http(b""),
        "/500": web.http(b"", "500 Oops"), "/429": web.http(b"", "429 Slow"), "/big": web.http(b"x" * 100_001),
        "/bomb": web.http(_claims_to_be_huge(good)),
    }  # fmt: skip
    wanted = {
        "/good": "ok", "/png": "ok", "/html": "not_an_image", "/cut": "corrupt_image", "/svg": "unsupported_format",
        "/empty": "empty_body", "/500": "http_5xx", "/429": "rate_limited", "/big": "too_large", "/bomb": "pixel_limit",
        "/missing": "http_4xx",
    }  # fmt: skip
    urls = [web.url(path) for path in wanted] * 3 + [None, "file:///etc/passwd", "data:image/png;base64,AAAA"]
    results, members = download(tmp_path, urls, max_bytes=100_000)
    found = [result.code if isinstance(result, Failure) else "ok" for result in results]
    assert found == [*wanted.values()] * 3 + ["bad_row", "blocked_address", "bad_row"]
    assert len(members) == 6
    assert all(result.detail for result in results if isinstance(result, Failure))
    assert "text/html" in results[2].detail and "status 404" in results[10].detail


def _claims_to_be_huge(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :]


def test_private_addresses_are_refused_by_default(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    web.answers["/a"] = web.http(jpeg())
    (result,), members = download(tmp_path, [web.url("/a")], allow_private=False)
    assert isinstance(result, Failure) and result.code == "blocked_address" and not members
    assert Download.Params().allow_private is False


def test_opted_out_images_are_recorded_and_never_stored(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    web.answers["/a"] = web.http(jpeg(), x_robots_tag="noai, noimageai")
    (values,), members = download(tmp_path, [web.url("/a")])
    assert not members and values["tar"] is None and values["image_sha256"] is None
    assert (values["opted_out"], values["http_status"]) == ("noai, noimageai", 200)
    drop = Download(Download.Params()).decide(values, {})
    assert drop == Drop("opted_out", "X-Robots-Tag: noai, noimageai")
    (kept,), members = download(tmp_path / "kept", [web.url("/a")], honor_opt_out=False)
    assert len(members) == 1 and kept["opted_out"] == "noai, noimageai"
    assert Download(Download.Params(honor_opt_out=False)).decide(kept, {}) is None


def test_what_robots_txt_forbids_is_dropped_with_the_rule_and_time(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    web.answers |= {"/robots.txt": web.http(b"User-agent: *\nDisallow: /art/"), "/art/a": web.http(jpeg()), "/b": web.http(jpeg())}
    (refused, kept), members = download(tmp_path, [web.url("/art/a"), web.url("/b")], robots=True)
    assert len(members) == 1 and kept["robots"] == "allowed" and refused["tar"] is None
    stage = Download(Download.Params(robots=True))
    assert stage.decide(kept, {}) is None
    assert stage.decide(refused, {}) == Drop("robots_refused", f"{web.url('/robots.txt')} disallows /art/a for pairmill")
    assert all(abs(values["checked_at"] / 1000 - time.time()) < 10 for values in (refused, kept))


def test_given_hashes(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    data = jpeg()
    web.answers["/a"] = web.http(data)
    right, wrong = hashlib.sha256(data), hashlib.sha256(b"other")
    stage = Download(Download.Params(**SETTINGS, sha256_column="digest", md5_column="sum"))
    assert stage.reads == ("url", "sample_id", "digest", "sum") and Download(Download.Params()).reads == ("url", "sample_id")
    md5 = hashlib.md5(data).hexdigest()
    given = [
        (right.hexdigest(), None), (right.hexdigest().upper(), md5), (right.digest(), ""), (None, md5),
        (wrong.hexdigest(), md5), (None, "0" * 32), ("no hash", None), (md5, None),
    ]  # fmt: skip
    rows = [{**row, "digest": digest, "sum": md5} for row, (digest, md5) in zip(rows_of([web.url("/a")] * len(given)), given, strict=True)]
    results = stage.compute(rows, Context("download", 0, blobs=BlobWriter(tmp_path, 0)))
    found = [result.code if isinstance(result, Failure) else "ok" for result in results]
    assert found == ["ok"] * 4 + ["hash_mismatch", "hash_mismatch", "bad_row", "bad_row"]
    assert wrong.hexdigest() in results[4].detail and right.hexdigest() in results[4].detail


def test_secrets_of_headers_stay_in_the_environment(tmp_path: Path, web: Any, jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTURES_TOKEN", "s3cret")
    web.answers["/a"] = web.http(jpeg())
    headers = {"Authorization": "Bearer ${PICTURES_TOKEN}"}
    download(tmp_path, [web.url("/a")], headers=headers)
    assert b"authorization: bearer s3cret" in web.heads["/a"].lower()
    assert "s3cret" not in str(Download.Params(headers=headers).model_dump(mode="json"))
    monkeypatch.delenv("PICTURES_TOKEN")
    with pytest.raises(RecipeError, match="download.headers.Authorization: the environment variable PICTURES_TOKEN is not set"):
        download(tmp_path, [web.url("/a")], headers=headers)


def test_an_outage_stops_the_part_before_its_end(tmp_path: Path) -> None:
    window = BudgetWindow("download", Budget(min_rows=50))

    def report(place: int, outcome: Any) -> None:
        window.add(outcome.code if isinstance(outcome, Failure) else "")
        window.check()

    stage = Download(Download.Params(**{**SETTINGS, "give_up_host_after": 10}))
    context = Context("download", 0, blobs=BlobWriter(tmp_path, 0), report=report)
    with pytest.raises(BudgetExceeded, match="100% of the first 50 rows failed, all connect"):
        stage.compute(rows_of(["http://127.0.0.1:1/a"] * 1000), context)
    assert window.seen < 200


def test_switching_opt_outs_off_and_on_fetches_their_rows_alone(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    """And a run that was switched holds what a fresh one holds."""
    for number in range(6):
        headers = {"x_robots_tag": "noai"} if number < 2 else {}
        web.answers[f"/{number}"] = web.http(jpeg(seed=number), **headers)
    table = tmp_path / "urls.csv"
    table.write_text("url,text\n" + "".join(f"{web.url(f'/{number}')},words\n" for number in range(6)))

    def go(folder: str, honor: bool) -> tuple[int, dict[str, int], list[Any]]:
        recipe = build_recipe(
            {
                "name": "opt_outs",
                "input": {"kind": "url_table", "table": str(table), "url": "url", "text": "text"},
                "stages": [{"download": {**SETTINGS, "honor_opt_out": honor}}],
            }
        )
        web.asked.clear()
        result = run(recipe, tmp_path / folder, RunOptions(executor="local"))
        view = result.view.view(0)
        seen = result.view.read(view, ["http_status", "opted_out", "image_sha256", "width"]).to_pylist()
        return sum(web.asked.values()), result.view.counts()["download"], seen

    assert go("run", True)[:2] == (6, {"kept": 4, "dropped": 2, "dropped:opted_out": 2})
    off = go("run", False)
    assert off[:2] == (2, {"kept": 6}) and off[2] == go("fresh", False)[2]
    assert go("run", False)[0] == 0
    on = go("run", True)
    assert on[0] == 2 and on[1]["dropped:opted_out"] == 2 and on[2] == go("fresh_on", True)[2]
    assert go("run", True)[0] == 0


def test_check_header_lets_damage_pass_that_decode_finds(tmp_path: Path, web: Any, jpeg: Callable[..., bytes]) -> None:
    web.answers["/a"] = web.http(jpeg(300, 300)[:3000])
    (whole,), _ = download(tmp_path / "a", [web.url("/a")])
    (header,), members = download(tmp_path / "b", [web.url("/a")], check="header")
    assert isinstance(whole, Failure) and whole.code == "corrupt_image"
    assert header["width"] == 300 and len(members) == 1


def judge(width: int, height: int, **params: Any) -> str | None:
    row = {"opted_out": None, "robots": None, "original_width": width, "original_height": height}
    drop = Download(Download.Params(**params)).decide(row, {})
    return None if drop is None else drop.reason


@pytest.mark.parametrize(
    ("params", "passes", "fails", "reason"),
    [
        ({"min_short_side": 200}, (200, 300), (199, 300), "too_small"), ({"min_short_side": 200}, (300, 200), (300, 199), "too_small"),
        ({"min_width": 200}, (200, 10), (199, 300), "too_small"), ({"min_height": 200}, (10, 200), (300, 199), "too_small"),
        ({"max_aspect": 3}, (300, 100), (301, 100), "aspect"), ({"max_aspect": 3}, (100, 300), (100, 301), "aspect"),
        ({"min_aspect": 0.5}, (100, 200), (99, 200), "aspect"),
    ],
)  # fmt: skip
def test_limits_at_their_edges(params: dict, passes: tuple[int, int], fails: tuple[int, int], reason: str) -> None:
    assert judge(*passes, **params) is None
    assert judge(*fails, **params) == reason
    assert judge(*fails) is None


def test_preset_and_what_the_recipe_names_over_it() -> None:
    assert judge(200, 600, preset="filip") is None
    assert judge(199, 600, preset="filip") == "too_small" and judge(200, 601, preset="filip") == "aspect"
    assert judge(199, 500, preset="filip", min_short_side=100) is None
    assert judge(100, 500, preset="filip", min_short_side=None, max_aspect=None, min_aspect=None) is None


def test_limits_change_no_values() -> None:
    free = (
        {}, {"min_width": 5, "preset": "filip", "max_aspect": 2}, {"concurrency": 3, "per_host": 1, "per_host_rate": 2, "timeout_s": 1, "retries": 5},
        {"proxy": "http://proxy:3128", "trust_env": True, "max_wait_s": 1, "give_up_host_after": 3}, {"honor_opt_out": False},
    )  # fmt: skip
    found = [params_affecting(Download.Params(**params), "compute") for params in free]
    assert all(params == found[0] for params in found)
    for costly in ({"resize_mode": "border"}, {"robots": True}, {"headers": {"A": "b"}}, {"sha256_column": "h"}, {"allow_private": True}):
        assert params_affecting(Download.Params(**costly), "compute") != found[0]


def test_wrong_parameters_are_refused() -> None:
    for wrong in ({"encode_format": "png", "encode_quality": 95}, {"resize_mode": "stretch"}, {"max_aspect": 0.5}, {"timeout": 3}, {"proxy": "proxy:3128"},
                  {"proxy": "socks5://proxy:1"}, {"per_host": 0}, {"per_host": 5000}, {"per_host_rate": 0}):
        with pytest.raises(ValidationError):
            Download.Params(**wrong)


def test_full_disk_stops_the_run_and_no_row_takes_the_blame(web: Any, jpeg: Callable[..., bytes]) -> None:
    class FullDisk:
        def add(self, key: str, extension: str, data: bytes, sha256: bytes | None = None) -> tuple[str, int, int]:
            raise OSError(28, "No space left on device", "blobs/part-00000.tar")

    web.answers["/a"] = web.http(jpeg())
    stage = Download(Download.Params(**SETTINGS))
    with pytest.raises(OSError, match="No space left"):
        stage.compute(rows_of([web.url("/a")] * 5), Context("download", 0, blobs=FullDisk()))  # type: ignore[arg-type]
    with pytest.raises(Fatal, match="no place to store"):
        stage.compute(rows_of([web.url("/a")]), Context("download", 0))
