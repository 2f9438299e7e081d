"""Files of a run: a file under its final name is the commit, on a disk as in object storage.

On a disk a commit is write beside, fsync, rename; in object storage it is one put, or a multipart upload whose completion is the commit.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import as_fatal
from pipeline.storage import ObjectPath, Place

TEMPORARY = ".tmp-"
_FOOTER_BYTES = 64 << 10  # holds the whole footer of nearly every part file
_SYNC_FILE_RANGE_WRITE = 2
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Guard = Callable[[], None]


def temporary_name(path: Place) -> Path:
    """A name beside `path` that no reader takes for data; left-overs of killed runs are removed at the next start.

    What goes to object storage is written to a local folder first.
    """
    if isinstance(path, ObjectPath):
        return spool_folder() / f"{TEMPORARY}{os.getpid()}-{path.name}"
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def spool_folder() -> Path:
    """Local folder of this user for files on their way to object storage."""
    folder = Path(tempfile.gettempdir()) / f"pairmill-spool-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def sync_folder(folder: Place) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    if isinstance(folder, ObjectPath):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_bytes(path: Place, data: bytes | memoryview, guard: Guard | None = None) -> None:
    """Commit `data` under `path`. `guard` is called last before the commit (it raises where the lock is lost).

    The folder is not fsynced: after a power cut the rename may be undone, and then the part is simply not committed.
    Raises Fatal that names the disk where it is full; nothing of the file stays.
    """
    if isinstance(path, ObjectPath):
        _put(path, memoryview(data).cast("B"), guard)
        return
    temporary = temporary_name(path)
    try:
        try:
            handle = open(temporary, "wb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(temporary, "wb", buffering=0)
        with handle:
            write_all(handle.fileno(), data)
            os.fsync(handle.fileno())
        if guard is not None:
            guard()
        os.rename(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise as_write_error(error, path) from error
        raise


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte: one write stops short where the disk is nearly full or the data are longer than 2 GiB."""
    written = os.write(descriptor, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def start_writing_out(descriptor: int, start: int, size: int) -> None:
    """Have the disk begin to write `size` bytes from `start`, without waiting for it: an fsync at the end then finds little left to do.

    Only a hint: what fails here, fsync reports. Nothing on systems without sync_file_range (it is Linux's).
    """
    call = _sync_file_range()
    if call is not None:
        call(descriptor, start, size, _SYNC_FILE_RANGE_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def as_write_error(error: OSError, path: Place) -> Exception:
    """A full disk as Fatal that names it; any other error with the file's name."""
    if error.filename is None:
        error.filename = str(path)
    return as_fatal(error, str(path)) if error.errno in _FULL else error


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Turns a full disk within the block into a Fatal that names file and disk."""
    try:
        yield
    except OSError as error:
        raise as_write_error(error, path) from error


def _put(path: ObjectPath, data: memoryview, guard: Guard | None) -> None:
    from pipeline import object_store

    if len(data) > object_store.SINGLE_BYTES:
        object_store.upload(path.bucket, path.key, object_store.pieces_of(data), guard or _no_guard)
        return
    if guard is not None:
        guard()
    object_store.put(path.bucket, path.key, data)


def _no_guard() -> None:
    return None


def upload_file(file: Path, path: ObjectPath, guard: Guard | None = None) -> None:
    """Copy a local file into object storage: one put, or a multipart upload."""
    from pipeline import object_store

    if file.stat().st_size > object_store.SINGLE_BYTES:
        object_store.upload(path.bucket, path.key, object_store.pieces_of_file(file), guard or _no_guard)
    else:
        _put(path, memoryview(file.read_bytes()), guard)


def commit_file(temporary: Path, path: Place, guard: Guard | None = None) -> None:
    """Give an already fsynced temporary file its final name; to object storage it is uploaded, and then removed."""
    if isinstance(path, ObjectPath):
        upload_file(temporary, path, guard)
        temporary.unlink()
        return
    if guard is not None:
        guard()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(temporary, path)
    sync_folder(path.parent)


def move(source: Place, target: Place) -> None:
    """Rename within a run directory; in object storage a server-side copy, then removal of the source.

    Raises FileNotFoundError where the source is not there (moved already).
    """
    if isinstance(source, ObjectPath) and isinstance(target, ObjectPath):
        from pipeline import object_store

        object_store.copy(source.bucket, source.key, target.key)
        object_store.delete(source.bucket, [source.key])
        return
    assert isinstance(source, Path) and isinstance(target, Path)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)


def remove_files(paths: list[Place]) -> None:
    """Remove files that may be gone already."""
    objects = [path for path in paths if isinstance(path, ObjectPath)]
    if objects:
        from pipeline import object_store

        object_store.delete(objects[0].bucket, [path.key for path in objects])
    for path in paths:
        if isinstance(path, Path):
            path.unlink(missing_ok=True)


def sizes(folder: Place, pattern: str) -> dict[str, int]:
    """Name in `folder` -> bytes, of the files that match a pattern such as 'shards/*.tar'."""
    if isinstance(folder, ObjectPath):
        return {path.relative_to(folder).as_posix(): size for path, size in folder.sizes(pattern)}
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.glob(pattern) if path.is_file()}


def read_range(path: Place, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of a file, fewer where it ends before; from object storage by one request. Raises FileNotFoundError."""
    if isinstance(path, ObjectPath):
        from pipeline import object_store

        return bytes(object_store.get_range(path.bucket, path.key, offset, size))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def read_metadata(path: Place) -> pq.FileMetaData:
    """Footer of a Parquet file; from object storage by one request for its last 64 KB. Raises FileNotFoundError, pa.ArrowInvalid."""
    if not isinstance(path, ObjectPath):
        return pq.read_metadata(path)
    from pipeline import object_store

    tail, size = object_store.get_tail(path.bucket, path.key, _FOOTER_BYTES)
    if len(tail) >= 8:
        wanted = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < wanted <= size:
            tail, size = object_store.get_tail(path.bucket, path.key, wanted)
    return pq.read_metadata(pa.BufferReader(pa.py_buffer(tail)))


def parquet_source(path: Place) -> Any:
    """What Parquet readers take: the path itself, or the bytes of an object, fetched by one request."""
    if not isinstance(path, ObjectPath):
        return path
    from pipeline import object_store

    return pa.BufferReader(pa.py_buffer(object_store.get(path.bucket, path.key)))


def remove_temporaries(root: Place) -> int:
    """Remove what killed runs left half written; returns how many files."""
    if isinstance(root, ObjectPath):
        left = list(root.glob(f"{TEMPORARY}*"))
        remove_files(list(left))
        return len(left) + _remove_spooled()
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(TEMPORARY):
                os.unlink(os.path.join(folder, name))
                removed += 1
    return removed


def _remove_spooled() -> int:
    """Remove spooled files of processes of this machine that are no more."""
    left = [path for path in spool_folder().glob(f"{TEMPORARY}*") if not os.path.exists(f"/proc/{path.name.split('-')[1]}") and os.path.isdir("/proc/self")]
    remove_files(list(left))
    return len(left)


def scratch_in(folder: Place) -> Path:
    """A local folder for a database to spill to: in `folder` where that is on a disk."""
    if isinstance(folder, ObjectPath):
        return spool_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


