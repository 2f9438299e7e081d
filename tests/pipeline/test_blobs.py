"""Tars of stored images: what is written in pieces, and handed to the disk on the way, is there whole."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.blobs import BlobWriter


def test_a_long_tar_of_views_and_bytes_is_whole_and_named_by_its_bytes(tmp_path: Path) -> None:
    bodies = [os.urandom(size) for size in (1, 511, 512, 513, 3_000_000, 9_000_000, 700_000, 8 << 20)]
    names = []
    for kind, folder in ((bytes, tmp_path / "a"), (memoryview, tmp_path / "b")):
        writer = BlobWriter(folder, 7)
        places = [writer.add(f"{at:032x}", "jpg", kind(body), hashlib.sha256(body).digest() if at % 2 else None) for at, body in enumerate(bodies)]
        (name,) = writer.finish().values()
        names.append(name)
        raw = (folder / name).read_bytes()
        assert [raw[offset : offset + size] for _, offset, size in places] == bodies
        with tarfile.open(folder / name) as tar:
            assert [(member.name, tar.extractfile(member).read()) for member in tar] == [(f"{at:032x}.jpg", body) for at, body in enumerate(bodies)]  # type: ignore[union-attr]
    assert names[0] == names[1] and names[0].startswith("part-00007.")


def test_a_write_that_stops_short_goes_on_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda file, pieces: whole(file, [b"".join(pieces)[: 1 + len(b"".join(pieces)) // 3]]))
    writer = BlobWriter(tmp_path, 0)
    bodies = [os.urandom(size) for size in (10, 5_000, 70_000)]
    for at, body in enumerate(bodies):
        writer.add(str(at), "png", body)
    (name,) = writer.finish().values()
    with tarfile.open(tmp_path / name) as tar:
        assert [tar.extractfile(member).read() for member in tar] == bodies  # type: ignore[union-attr]
