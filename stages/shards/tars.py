"""Writes one shard's tar: image bytes are copied from the stored tars, hashing runs beside reading and writing."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.blobs import TAR_END, padding, tar_header
from pipeline.errors import Fatal
from pipeline.files import write_all
from pipeline.storage import ObjectPath, Place

_CHUNK = 1 << 20
_CHUNKS = 4  # being filled and written, being hashed, waiting
_OPEN_TARS = 64


BlobPlace = tuple[str, int, int]  # tar, offset, size


class BlobReader:
    """Opens stored tars of a folder by name; keeps the last ones open."""

    def __init__(self, folder: Path) -> None:
        self.folder: Place = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def expect(self, blobs: Sequence[BlobPlace]) -> None:
        """Images that will be read, in their order: for readers that fetch ahead."""

    def read_into(self, blob: BlobPlace, done: int, target: memoryview) -> int:
        """Fill `target` from byte `done` of an image; returns how many bytes there were (0: the tar ends). Raises Fatal where the tar is gone."""
        return os.preadv(self._descriptor(blob[0]), [target], blob[1] + done)

    def _descriptor(self, tar: str) -> int:
        if tar not in self._open:
            try:
                self._open[tar] = os.open(f"{self.folder}/{tar}", os.O_RDONLY)
            except FileNotFoundError:
                raise Fatal(f"{self.folder / tar}: this tar of stored images is gone; restore it, or run again in a new folder") from None
            if len(self._open) > _OPEN_TARS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(tar)
        return self._open[tar]

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


class ObjectBlobReader(BlobReader):
    """Stored images in object storage: neighbours are fetched together, a window ahead of what is being written."""

    def __init__(self, folder: ObjectPath) -> None:
        self.folder = folder
        self._open = OrderedDict()
        self._current: tuple[BlobPlace, bytes] | None = None

    def expect(self, blobs: Sequence[BlobPlace]) -> None:
        from pipeline.image_windows import ImageWindows

        assert isinstance(self.folder, ObjectPath)
        self._windows = ImageWindows(self.folder, blobs)

    def read_into(self, blob: BlobPlace, done: int, target: memoryview) -> int:
        if self._current is None or self._current[0] != blob:
            self._current = (blob, self._windows.image(blob).read())
        piece = self._current[1][done : done + len(target)]
        target[: len(piece)] = piece
        return len(piece)


def blob_reader(folder: Place) -> BlobReader:
    return ObjectBlobReader(folder) if isinstance(folder, ObjectPath) else BlobReader(folder)


@dataclass
class _Piece:
    """Bytes of an image within a chunk; `expected` on its last piece. Tar, offset and key are for messages."""

    start: int
    stop: int
    expected: bytes | None
    tar: str
    offset: int
    key: str


class TarWriter:
    """Appends samples to a tar. `close` ends it, fsyncs it and returns (bytes, SHA-256 in hex).

    Memory: four chunks of 1 MB, whatever the images' size. Every image is hashed on its way and compared to the digest
    under which it was stored: Fatal where they differ.
    """

    def __init__(self, path: Path, blobs: BlobReader):
        self._blobs = blobs
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._chunks = [bytearray(_CHUNK) for _ in range(_CHUNKS)]
        self._busy: list[Future[None] | None] = [None] * _CHUNKS
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard-digest")
        self._sha = hashlib.sha256()
        self._image_sha: Any = hashlib.sha256()
        self._at, self._fill, self._written = 0, 0, 0
        self._pieces: list[_Piece] = []

    def add(self, key: str, extension: str, blob: tuple[str, int, int], image_sha256: bytes, caption: bytes, record: bytes) -> int:
        """Append a sample: image (from `blob`: tar, offset, size), text and record. Returns the image's offset in this tar."""
        tar, source, size = blob
        self._append(tar_header(f"{key}.{extension}", size))
        offset = self._written + self._fill
        self._copy(tar, source, size, image_sha256, key)
        text_header, record_header = tar_header(f"{key}.txt", len(caption)), tar_header(f"{key}.json", len(record))
        self._append(b"".join((padding(size), text_header, caption, padding(len(caption)), record_header, record, padding(len(record)))))
        return offset

    def _append(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            take = min(len(data) - start, _CHUNK - self._fill)
            self._chunks[self._at][self._fill : self._fill + take] = data[start : start + take]
            self._fill += take
            start += take
            if self._fill == _CHUNK:
                self._flush()

    def _copy(self, tar: str, offset: int, size: int, expected: bytes, key: str) -> None:
        left = size
        while left:
            want = min(left, _CHUNK - self._fill)
            target = memoryview(self._chunks[self._at])[self._fill : self._fill + want]
            got = self._blobs.read_into((tar, offset, size), size - left, target)
            if got == 0:
                place = f"{self._blobs.folder / tar}: {size - left} of {size} bytes at {offset} (sample {key})"
                raise Fatal(f"{place}: the tar was cut after it was committed; restore it, or run again in a new folder")
            left -= got
            self._pieces.append(_Piece(self._fill, self._fill + got, None if left else expected, tar, offset, key))
            self._fill += got
            if self._fill == _CHUNK:
                self._flush()

    def _flush(self) -> None:
        chunk = memoryview(self._chunks[self._at])[: self._fill]
        self._busy[self._at] = self._thread.submit(self._hash, chunk, self._pieces)
        write_all(self._file, chunk)
        self._written += self._fill
        self._pieces = []
        self._at, self._fill = (self._at + 1) % _CHUNKS, 0
        waiting = self._busy[self._at]
        if waiting is not None:
            waiting.result()

    def _hash(self, chunk: memoryview, pieces: list[_Piece]) -> None:
        self._sha.update(chunk)
        for piece in pieces:
            self._image_sha.update(chunk[piece.start : piece.stop])
            if piece.expected is not None:
                if self._image_sha.digest() != piece.expected:
                    place = f"{self._blobs.folder / piece.tar} at byte {piece.offset} (sample {piece.key})"
                    raise Fatal(f"{place}: these are not the bytes that were stored, their SHA-256 differs; restore the tar, or run again in a new folder")
                self._image_sha = hashlib.sha256()

    def close(self) -> tuple[int, str]:
        self._append(TAR_END)
        self._flush()
        os.fsync(self._file)
        for busy in self._busy:
            if busy is not None:
                busy.result()
        self.release()
        return self._written, self._sha.hexdigest()

    def release(self) -> None:
        """Give back thread and descriptor, whether the tar was ended or not."""
        self._thread.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
