"""Image bytes of a part: plain webdataset tars whose names contain the digest of their bytes and that are never replaced."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import Fatal
from pipeline.files import as_write_error, commit_file, read_range, start_writing_out, temporary_name, write_all, writing
from pipeline.storage import Place

MAX_TAR_BYTES = 1 << 30
_WRITE_OUT_BYTES = 8 << 20  # so much is handed to the disk at a time
BLOCK = 512
REMOVED = "removed"  # in place of a tar's name: the image was removed, the row's other values stay


_NAME_BYTES, _SIZE_AT, _SUM_AT = 100, 124, 148
_MAX_OCTAL_SIZE = 8**11


def tar_header(name: str, size: int) -> bytes:
    """USTAR header of a regular file with fixed mode, owner and time, so that equal content gives equal bytes.

    Filled in by hand, twelve times as fast as tarfile, which makes what does not fit: long names and sizes of 8 GiB.
    """
    raw = name.encode("ascii", "replace")
    if len(raw) > _NAME_BYTES or size >= _MAX_OCTAL_SIZE or len(raw) != len(name) or b"?" in raw:
        return _tarfile_header(name, size)
    octal = b"%011o" % size
    total = _EMPTY_SUM + sum(raw) + sum(octal) - _ZEROS
    return b"".join((raw, bytes(_NAME_BYTES - len(raw)), _BEFORE_SIZE, octal, _BEFORE_SUM, b"%06o" % total, _AFTER_SUM))


def _tarfile_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    info.mtime = 0
    return info.tobuf(tarfile.USTAR_FORMAT)


_EMPTY = _tarfile_header("", 0)
_BEFORE_SIZE, _BEFORE_SUM, _AFTER_SUM = _EMPTY[_NAME_BYTES:_SIZE_AT], _EMPTY[_SIZE_AT + 11 : _SUM_AT], _EMPTY[_SUM_AT + 6 :]
_EMPTY_SUM, _ZEROS = int(_EMPTY[_SUM_AT : _SUM_AT + 6], 8), 11 * ord("0")


def padding(size: int) -> bytes:
    return b"\0" * (-size % BLOCK)


TAR_END = b"\0" * (2 * BLOCK)


class BlobWriter:
    """Appends members to temporary tars; `finish` commits them under names that contain their digests.

    The digest is taken over the headers and the members' SHA-256, which stages know already: no byte is hashed twice.
    A tar bound for object storage is written to a local folder first: its name is known only at its end.
    Raises Fatal naming the disk where it is full.
    """

    def __init__(self, folder: Place, part: int, guard: Callable[[], None] | None = None, max_bytes: int = MAX_TAR_BYTES):
        self.folder = folder
        self.part = part
        self.guard = guard
        self.max_bytes = max_bytes
        self._file: int | None = None  # descriptor of the tar that is being written
        self._written = self._handed_on = 0
        self._done: list[tuple[str, Path, str]] = []
        self._count = 0
        self._writer_out: ThreadPoolExecutor | None = None  # a disk that is behind holds up this thread, not the requests under way

    def add(self, key: str, extension: str, data: bytes | memoryview, sha256: bytes | None = None) -> tuple[str, int, int]:
        """Append one member; `sha256` is that of `data`, where it is known.

        Returns (token of the tar, offset of the data, size); run_part replaces the token by the name.
        """
        if self._file is not None and self._written + len(data) > self.max_bytes:
            self._close_current()
        if self._file is None:
            self._start()
        header = tar_header(f"{key}.{extension}", len(data))
        offset = self._written + len(header)
        self._write(header, data, padding(len(data)))
        self._digest.update(header)
        self._digest.update(sha256 or hashlib.sha256(data).digest())
        return self._token, offset, len(data)

    def _start(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._token = f"#{self._count}"
        self._count += 1
        self._path = temporary_name(self.folder / f"part-{self.part:05d}-{self._count}.tar")
        with writing(self._path):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._digest = hashlib.sha256()
        self._written = self._handed_on = 0

    def _write(self, *pieces: bytes | memoryview) -> None:
        """Append pieces in one call, without a copy on the way. The disk begins to write at once what `fsync` will wait for."""
        assert self._file is not None
        size = sum(map(len, pieces))
        try:
            if os.writev(self._file, pieces) != size:  # the disk is nearly full, or a signal came: go on with what is left
                os.lseek(self._file, self._written, os.SEEK_SET)
                write_all(self._file, b"".join(pieces))
            self._written += size
            if self._written - self._handed_on >= _WRITE_OUT_BYTES:
                self._writer_out = self._writer_out or ThreadPoolExecutor(1, thread_name_prefix="tar-out")
                self._writer_out.submit(start_writing_out, self._file, self._handed_on, self._written - self._handed_on)
                self._handed_on = self._written
        except OSError as error:
            raise as_write_error(error, self._path) from error

    def _close_current(self) -> None:
        self._write(TAR_END)
        assert self._file is not None
        self._end_writer_out()
        with writing(self._path):
            os.fsync(self._file)
            os.close(self._file)
        self._done.append((self._token, self._path, self._digest.hexdigest()[:16]))
        self._file = None

    def _end_writer_out(self) -> None:
        """Before the tar is closed: its descriptor may then be another file's."""
        if self._writer_out is not None:
            self._writer_out.shutdown(cancel_futures=True)
            self._writer_out = None

    def finish(self) -> dict[str, str]:
        """Close and commit every tar. Returns token -> file name."""
        if self._file is not None:
            self._close_current()
        names = {}
        for token, path, digest in self._done:
            name = f"part-{self.part:05d}.{digest}.tar"
            commit_file(path, self.folder / name, self.guard)
            names[token] = name
        self._done.clear()
        return names

    def abort(self) -> None:
        """Remove what was not committed."""
        self._end_writer_out()
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
        for _, path, _ in self._done:
            path.unlink(missing_ok=True)
        self._done.clear()


def gone(path: Place) -> Fatal:
    """What to say where a tar `<run>/blobs/<stage>/<name>` is not there."""
    run = path.parent.parent.parent
    if path.name == REMOVED:
        return Fatal(
            f"{run}: this recipe needs images of {path.parent.name} that `pairmill gc --dead-rows` removed; "
            f"run `pairmill gc {run} --fetch-again`, then the same command again: it fetches them anew"
        )
    return Fatal(f"{path}: this tar of stored images is gone; restore it, or run again in a new folder")


class ImageRef:
    """The stored image of a row: reads its bytes from the blob tar when asked."""

    __slots__ = ("path", "offset", "size")

    def __init__(self, path: Place, offset: int, size: int):
        self.path = path
        self.offset = offset
        self.size = size

    @property
    def place(self) -> tuple[str, int, int]:
        """Where the bytes lie; equal for equal images of a stage."""
        return str(self.path), self.offset, self.size

    def read(self) -> bytes:
        """The bytes as stored. Raises Fatal naming the tar when it is gone or too short: that is no fault of the row."""
        try:
            data = read_range(self.path, self.offset, self.size)
        except FileNotFoundError:
            raise gone(self.path) from None
        if len(data) != self.size:
            raise Fatal(f"{self.path}: {len(data)} of {self.size} bytes at {self.offset}: the tar was cut after it was committed; run `pairmill verify`")
        return data
