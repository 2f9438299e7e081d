"""Tar bytes: equal to tarfile's, whatever the sizes; damaged sources are refused."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.blobs import tar_header
from pipeline.errors import Fatal
from stages.shards.tars import BlobReader, TarWriter


def reference_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("name", ["a.jpg", f"{'f' * 32}.json", "x" * 100, "folder/with some/blanks ~.png", f"{'d' * 80}/{'n' * 60}.txt", "q?.txt"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 160_000, 8**11 - 1, 8**11])
def test_header_is_that_of_tarfile(name: str, size: int) -> None:
    if size >= 8**11:  # more than the format's octal field holds: both refuse
        with pytest.raises(ValueError):
            reference_header(name, size)
        with pytest.raises(ValueError):
            tar_header(name, size)
    else:
        assert tar_header(name, size) == reference_header(name, size)


def test_tar_is_byte_identical_to_one_that_tarfile_writes(tmp_path: Path) -> None:
    rng = random.Random(3)
    sizes = [1, 511, 512, 513, (1 << 20) - 512, 1 << 20, (1 << 20) + 1, 3_500_000, 70_000, 100]
    blob = rng.randbytes(sum(sizes))
    (tmp_path / "blob.tar").write_bytes(blob)
    reader = BlobReader(tmp_path)
    writer = TarWriter(tmp_path / "out.tar", reader)
    expected, start, offsets = io.BytesIO(), 0, []
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, size in enumerate(sizes):
            data, text, record = blob[start : start + size], f"tekst {number} å".encode(), b"{}" * number
            digest = hashlib.sha256(data).digest()
            offsets.append((writer.add(f"key{number}", "jpg", ("blob.tar", start, size), digest, text, record), size))
            for name, content in ((f"key{number}.jpg", data), (f"key{number}.txt", text), (f"key{number}.json", record)):
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o444
                tar.addfile(info, io.BytesIO(content))
            start += size
    written, digest = writer.close()
    reader.close()
    made = (tmp_path / "out.tar").read_bytes()
    # tarfile fills up to a record of 10,240 bytes with zeros, the writer ends after the two zero blocks
    assert expected.getvalue().startswith(made) and not expected.getvalue()[len(made) :].strip(b"\0")
    assert (written, digest) == (len(made), hashlib.sha256(made).hexdigest())
    assert b"".join(made[offset : offset + size] for offset, size in offsets) == blob


def test_bytes_other_than_those_stored_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blob.tar").write_bytes(b"abcdef")
    writer = TarWriter(tmp_path / "out.tar", BlobReader(tmp_path))
    writer.add("k1", "jpg", ("blob.tar", 0, 6), hashlib.sha256(b"abcdeX").digest(), b"", b"")
    with pytest.raises(Fatal, match="blob.tar at byte 0 .sample k1.*not the bytes that were stored"):
        writer.close()
    writer.release()


def test_cut_and_missing_tars_are_named(tmp_path: Path) -> None:
    (tmp_path / "blob.tar").write_bytes(b"abcdef")
    writer = TarWriter(tmp_path / "out.tar", BlobReader(tmp_path))
    with pytest.raises(Fatal, match="blob.tar: 2 of 9 bytes at 4 .sample k1.*cut"):
        writer.add("k1", "jpg", ("blob.tar", 4, 9), b"", b"", b"")
    with pytest.raises(Fatal, match="gone.tar: this tar of stored images is gone"):
        writer.add("k1", "jpg", ("gone.tar", 0, 1), b"", b"", b"")
    writer.release()
