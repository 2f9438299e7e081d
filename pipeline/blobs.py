"""Image bytes of a part: plain webdataset tars whose names contain the digest of their bytes and that are never replaced."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pipeline.errors import Fatal
from pipeline.files import commit_file, temporary_name, writing
from pipeline.storage import Place

MAX_TAR_BYTES = 1 << 30
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
        self._open: tuple[Path, object] | None = None
        self._written = 0
        self._done: list[tuple[str, Path, str]] = []
        self._count = 0

    def add(self, key: str, extension: str, data: bytes, sha256: bytes | None = None) -> tuple[str, int, int]:
        """Append one member; `sha256` is that of `data`, where it is known.

        Returns (token of the tar, offset of the data, size); run_part replaces the token by the name.
        """
        if self._open is not None and self._written + len(data) > self.max_bytes:
            self._close_current()
        if self._open is None:
            self._start()
        handle = self._handle
        header = tar_header(f"{key}.{extension}", len(data))
        offset = self._written + len(header)
        end = padding(len(data))
        with writing(self._path):
            handle.write(header)
            handle.write(data)
            handle.write(end)
        self._digest.update(header)
        self._digest.update(sha256 or hashlib.sha256(data).digest())
        self._written += len(header) + len(data) + len(end)
        return self._token, offset, len(data)

    def _start(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._token = f"#{self._count}"
        self._count += 1
        self._path = temporary_name(self.folder / f"part-{self.part:05d}-{self._count}.tar")
        with writing(self._path):
            self._handle = open(self._path, "wb", buffering=1 << 20)
        self._open = (self._path, self._handle)
        self._digest = hashlib.sha256()
        self._written = 0

    def _close_current(self) -> None:
        with writing(self._path):
            self._handle.write(TAR_END)
            self._handle.flush()
            os.fsync(self._handle.fileno())
            self._handle.close()
        self._done.append((self._token, self._path, self._digest.hexdigest()[:16]))
        self._open = None

    def finish(self) -> dict[str, str]:
        """Close and commit every tar. Returns token -> file name."""
        if self._open is not None:
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
        if self._open is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # what is still buffered finds no room on a full disk
                self._handle.close()
            self._open = None
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
        assert isinstance(self.path, Path)
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise gone(self.path) from None
        try:
            data = os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)
        if len(data) != self.size:
            raise Fatal(f"{self.path}: {len(data)} of {self.size} bytes at {self.offset}: the tar was cut after it was committed; run `pairmill verify`")
        return data
