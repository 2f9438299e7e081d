"""Reading images that are at hand: whole files, ranges of tars, cells of Parquet files, on disk or through fsspec."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode, cap_detail

READ_BYTES = 8 << 20  # ranges of one file that lie near each other are read at once, up to this much
GAP_BYTES = 128 << 10  # bytes between two ranges that are cheaper read than asked for anew
COMPRESSIONS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_MACHINE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})

Found = list[tuple[int, bytes | Failure]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's image lies. No offset: it is the whole file. In a compressed file the offset is that of the plain bytes;
    in a Parquet file it is the number of the row, and the image stands in the one binary column.
    """

    row: int
    file: str
    offset: int | None = None
    size: int | None = None


def is_local(path: str) -> bool:
    return "://" not in path


def compression_of(path: str) -> str | None:
    """Compression of a file by its name, as pyarrow calls it."""
    return next((kind for suffix, kind in COMPRESSIONS.items() if path.lower().endswith(suffix)), None)


def _in_order_only(path: str) -> bool:
    """Files that are read through from their start, so that all places in one are one task."""
    return compression_of(path) is not None or is_parquet(path)


def is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def plan_reads(places: Sequence[Place]) -> list[list[Place]]:
    """Places grouped by what is read at once, files in order: a whole file, near ranges, all of a compressed file."""
    tasks: list[list[Place]] = []
    for place in sorted(places, key=lambda place: (place.file, place.offset or 0, place.row)):
        if tasks and place.offset is not None and _joins(tasks[-1], place):
            tasks[-1].append(place)
        else:
            tasks.append([place])
    return tasks


def _joins(task: list[Place], place: Place) -> bool:
    first, last = task[0], task[-1]
    if last.file != place.file or first.offset is None or last.offset is None or place.offset is None:
        return False
    if _in_order_only(place.file):
        return True
    return place.offset - (last.offset + (last.size or 0)) <= GAP_BYTES and place.offset + (place.size or 0) - first.offset <= READ_BYTES


def read_places(task: list[Place], max_bytes: int) -> Iterator[Found]:
    """Bytes of the places of one task, or why there are none; in one piece unless the file is compressed.

    Raises Fatal where this machine is at fault (open files).
    """
    path = task[0].file
    wanted, found = [], []
    for place in task:
        failure = _size_failure(place.size, max_bytes)
        if failure is None:
            wanted.append(place)
        else:
            found.append((place.row, failure))
    if found:
        yield found
    done: set[int] = set()
    try:
        for piece in _read(path, wanted, max_bytes):
            done.update(row for row, _ in piece)
            yield piece
    except (OSError, EOFError, pa.ArrowException) as error:
        failure = failure_of_file(error, path)
        yield [(place.row, failure) for place in wanted if place.row not in done]


def _read(path: str, places: list[Place], max_bytes: int) -> Iterator[Found]:
    if not places:
        return
    if places[0].offset is None:
        yield [(places[0].row, _whole_file(path, max_bytes))]
    elif is_parquet(path):
        yield from _from_parquet(path, places, max_bytes)
    elif compression_of(path):
        yield from _from_stream(path, places)
    else:
        yield _ranges(path, places)


def _whole_file(path: str, max_bytes: int) -> bytes | Failure:
    if not is_local(path):
        filesystem, inner = fsspec.core.url_to_fs(path)
        failure = _size_failure(filesystem.size(inner), max_bytes)
        return failure or filesystem.cat_file(inner)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
    with open(descriptor, "rb", buffering=0) as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return Failure(FailureCode.UNREADABLE, cap_detail(f"{path}: is not a file"))
        failure = _size_failure(facts.st_size, max_bytes)
        if failure is not None:
            return failure
        data = file.read(max_bytes + 1)  # it may have grown since
        return _size_failure(len(data), max_bytes) or data


def _ranges(path: str, places: list[Place]) -> Found:
    start = places[0].offset or 0
    end = max((place.offset or 0) + (place.size or 0) for place in places)
    if is_local(path):
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), end - start, start)
    else:
        filesystem, inner = fsspec.core.url_to_fs(path)
        data = filesystem.cat_file(inner, start=start, end=end)
    return [(place.row, _cut(data, place, (place.offset or 0) - start)) for place in places]


def _from_stream(path: str, places: list[Place]) -> Iterator[Found]:
    """Ranges of a compressed file, read through once from its start."""
    at = 0
    with fsspec.open(path, "rb") as file, pa.CompressedInputStream(pa.PythonFile(file, "r"), compression_of(path) or "") as stream:
        for place in places:
            offset, size = place.offset or 0, place.size or 0
            while at < offset:
                skipped = len(stream.read(min(READ_BYTES, offset - at)))
                if not skipped:
                    break
                at += skipped
            data = stream.read(size) if at == offset else b""
            at += len(data)
            yield [(place.row, _cut(data, place, 0))]


def _from_parquet(path: str, places: list[Place], max_bytes: int) -> Iterator[Found]:
    """Cells of the binary column; of a remote file only the row groups that hold some are read."""
    with fsspec.open(path, "rb") as opened, pq.ParquetFile(opened) as file:
        column = next((field.name for field in file.schema_arrow if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)), None)
        if column is None:
            raise pa.ArrowInvalid("no binary column")
        waiting, start = deque(places), 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if waiting and (waiting[0].offset or 0) < end:
                cells = file.read_row_group(group, columns=[column], use_threads=False)[column]
                while waiting and (waiting[0].offset or 0) < end:
                    place = waiting.popleft()
                    data = cells[(place.offset or 0) - start].as_py() or b""
                    yield [(place.row, _size_failure(len(data), max_bytes) or data)]
            start = end
        if waiting:
            raise pa.ArrowInvalid(f"{start} rows, and row {waiting[0].offset} was wanted")


def _cut(data: bytes, place: Place, start: int) -> bytes | Failure:
    found = data[start : start + (place.size or 0)]
    if len(found) == place.size:
        return found
    return Failure(
        FailureCode.UNREADABLE, cap_detail(f"{place.file}: {len(found)} of {place.size} bytes at {place.offset}; the file was cut since the input was read")
    )


def _size_failure(size: int | None, max_bytes: int) -> Failure | None:
    if size == 0:
        return Failure(FailureCode.EMPTY_BODY, "the file is empty")
    if size is not None and size > max_bytes:
        return Failure(FailureCode.TOO_LARGE, f"{size} bytes, more than max_bytes {max_bytes}")
    return None


def failure_of_file(error: BaseException, path: str) -> Failure:
    """The failure that an error while reading a file of the input is. Raises Fatal for too many open files."""
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
        raise Fatal(f"{path}: {error}: raise the limit of open files (ulimit -n)") from error
    code = FailureCode.UNREADABLE
    if isinstance(error, FileNotFoundError):
        code = FailureCode.MISSING_IMAGE
    elif isinstance(error, TimeoutError):
        code = FailureCode.TIMEOUT
    elif isinstance(error, ConnectionError):
        code = FailureCode.CONNECT
    text = f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else f"{path}: {type(error).__name__}: {error}"
    return Failure(code, cap_detail(text))
