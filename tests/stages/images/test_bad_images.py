"""Damaged and awkward files, served over HTTP among good photos, through the download stage: every file has its outcome."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.blobs import BlobWriter
from pipeline.stage import Context
from schemas.outcome import Failure
from stages.download import Download
from stages.images.decode import DEFAULT_PIXEL_LIMIT

KEPT, CORRUPT, UNSUPPORTED, LIMIT = "kept", "corrupt_image", "unsupported_format", "pixel_limit"

# What the index says of a file and what becomes of it here, where the two differ.
DEVIATIONS = {
    # Called ok: the index has what a second call of Pillow's load() gives, which is silent about the damage that the first one reports.
    "go_fuzz/png/corpus/00dcf3b74a9553b55b7541ad87e4a9e74ceb945c-1": (CORRUPT, "the data ends in row 9 of 32, the rest would be black"),
    "go_fuzz/png/corpus/034f375ccbb5853b7e42f32841a926f18c3bf735-3": (CORRUPT, "7 of 94 bytes of image data, all would be black"),
    "go_fuzz/png/corpus/52222c98852e1fb04392209c3690d1fdff20b0a2-2": (CORRUPT, "7 of 94 bytes of image data, all would be black"),
    # Called decode_error: Pillow decodes the first frame without a complaint.
    "go_fuzz/tiff/corpus/4bbf83bc566f75140382c30e287cc0743ff49a79-2": (KEPT, "the first frame is whole; the error is of a later directory"),
    "pillow/Tests/images/psd-oob-write-overflow.psd": (KEPT, "the composite picture is whole; the error is of a layer"),
    # Truncated: of two pictures in the file the first one, which is the primary, is whole.
    "pillow_heif/tests/images/heif_truncated/truncated.heic": (KEPT, "the byte that lacks belongs to the second picture"),
}  # fmt: skip
# Signatures of formats that are read here. A file without any is no image; one that begins so and cannot be read is damaged.
SIGNATURES = (
    b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"\0\0\1\0", b"\0\0\2\0",
    b"8BPS", b"DDS ", b"SIMPLE  =", b"DanM", b"P7 332",
)  # fmt: skip
SOUND_HEIF = (
    "pillow/Tests/images/avif/hopper.heif", "pillow_heif/tests/images/heif/", "pillow_heif/tests/images/heif_other/",
)  # fmt: skip
# The signature itself is damaged, the name says what was meant.
DAMAGED_SIGNATURES = ("pngsuite/png/x", "pillow/Tests/images/pngtest_bad.png.bin", "pillow/Tests/images/fli_oob/")


def is_begun(name: str, data: bytes) -> bool:
    """True for the beginning of an image of a format that is read here."""
    if data.startswith(SIGNATURES) or data[4:8] == b"ftyp" or data[:4] == b"RIFF" or data[1:4] == b"PNG":
        return True
    return name.startswith(DAMAGED_SIGNATURES) and not name.endswith(("notes", "reproducing"))


def expected(entry: dict[str, Any], data: bytes) -> str:
    """The outcome by the index alone (what plain Pillow makes of the file)."""
    outcome, error = entry["outcome"], entry.get("error", "")
    claimed = entry.get("width", 0) * entry.get("height", 0)
    if claimed > DEFAULT_PIXEL_LIMIT or (outcome == "open_error" and "DecompressionBomb" in error):
        return LIMIT  # the pixels that a header claims are counted before anything is decoded
    if outcome in ("ok", "warn"):
        return KEPT  # with later_frame_broken too
    if not data:
        return "empty_body"
    if outcome == "decode_error":
        # Pillow knows these by name only: drawings (EPS, WMF) and data containers (BUFR, GRIB, HDF5)
        return UNSUPPORTED if "cannot find loader" in error or "Ghostscript" in error else CORRUPT
    if entry["file"].startswith(SOUND_HEIF):
        return KEPT
    return CORRUPT if is_begun(entry["file"], data) else UNSUPPORTED


def serve_and_download(folder: Path, web: Any, bodies: dict[str, bytes]) -> dict[str, Any]:
    """Path -> values or Failure, of all bodies served as they are."""
    web.answers.update({path: web.http(body) for path, body in bodies.items()})
    stage = Download(Download.Params(allow_private=True, retries=0, timeout_s=30, max_bytes=64 << 20))
    rows = [{"url": web.url(path), "sample_id": at.to_bytes(16, "big")} for at, path in enumerate(bodies)]
    blobs = BlobWriter(folder, 0)
    results = stage.compute(rows, Context("download", 0, blobs=blobs))
    blobs.finish()
    return dict(zip(bodies, results, strict=True))


def outcome_of(result: Any) -> str:
    return str(result.code) if isinstance(result, Failure) else KEPT


def read_back(folder: Path) -> Counter[tuple[int, int]]:
    """Sizes of all stored images, each one decoded by Pillow: what is stored must be readable by others."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:  # type: ignore[union-attr]
                    assert np.asarray(image.convert("RGB")).shape == (image.height, image.width, 3)
                    assert image.format in ("JPEG", "PNG", "WEBP", "MPO")
                    sizes[image.size] += 1
    return sizes


@pytest.mark.parametrize("n_good", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_file_has_its_outcome(tmp_path: Path, web: Any, photos: list[Path], n_good: int) -> None:
    root = Path(os.environ["PAIRMILL_TEST_DATA"], "bad_images")
    entries = [json.loads(line) for line in (root / "index.jsonl").read_text().splitlines()]
    assert len(entries) == 705
    bad = [(root / entry["file"]).read_bytes() for entry in entries]
    good = [path.read_bytes() for path in photos]
    bodies: dict[str, bytes] = {}
    for at in range(n_good):
        bodies[f"/good/{at}"] = good[at % len(good)]
        for number in range(at * len(bad) // n_good, (at + 1) * len(bad) // n_good):
            bodies[f"/bad/{number}"] = bad[number]
    assert len(bodies) == n_good + 705
    results = serve_and_download(tmp_path, web, bodies)
    assert {path: result for path, result in results.items() if path.startswith("/good/") and isinstance(result, Failure)} == {}
    wrong = {}
    for number, (entry, data) in enumerate(zip(entries, bad, strict=True)):
        found = outcome_of(results[f"/bad/{number}"])
        wanted, _ = DEVIATIONS.get(entry["file"], (expected(entry, data), ""))
        if found != wanted and not (found == "not_an_image" and wanted == UNSUPPORTED):
            wrong[entry["file"]] = f"{entry['outcome']}: {found}, expected {wanted}: {getattr(results[f'/bad/{number}'], 'detail', '')[:100]}"
    assert wrong == {}
    assert len(DEVIATIONS) <= 15
    assert all(expected(entry, data) != DEVIATIONS[entry["file"]][0] for entry, data in zip(entries, bad, strict=True) if entry["file"] in DEVIATIONS)
    stored = [result for result in results.values() if not isinstance(result, Failure)]
    assert sum(read_back(tmp_path).values()) == len(stored)
