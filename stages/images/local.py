"""Reading images that are at hand: whole files, ranges of tars, cells of tables, on disk or through fsspec."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.images.table_cells import image_columns, is_table, opened, split_cell

READ_BYTES = 8 << 20  # ranges of one file that lie near each other are read at once, up to this much
GAP_BYTES = 128 << 10  # bytes between two ranges that are cheaper read than asked for anew
COMPRESSIONS = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_MACHINE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})

Found = list[tuple[int, bytes | Failure]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's image lies. No offset: it is the whole file. In a compressed file the offset is that of the plain bytes;
    in a table it is the number of the row, and `file` names the column too (stages/images/table_cells.py).
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
    return compression_of(path) is not None or is_table(path)


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
    """Bytes of the places of one task, or why there are none; in one piece unless the file is compressed or a table.

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
    elif is_table(path):
        yield from _from_table(path, places, max_bytes)
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


def _from_table(place: str, places: list[Place], max_bytes: int) -> Iterator[Found]:
    """Cells of a table; without a column in the place they stand in the first one that holds images."""
    path, column = split_cell(place)
    with opened(path) as table:
        named = [column] if column else image_columns(table.schema)
        if not named or named[0] not in table.schema.names:
            raise pa.ArrowInvalid(f"no column {column!r}" if column else "no binary column")
        rows = {at: found.row for found in places if (at := found.offset) is not None}
        left = set(rows)
        for piece in table.cells(named[0], sorted(rows)):
            if isinstance(piece, Exception):
                continue  # a damaged row group: its rows are told below
            left.difference_update(at for at, _ in piece)
            yield [(rows[at], _of_cell(path, named[0], at, value, max_bytes)) for at, value in piece]
        if left:
            failure = Failure(FailureCode.UNREADABLE, f"{_name(path)}: the row group that holds column {named[0]!r} of this row is damaged")
            yield [(rows[at], failure) for at in sorted(left)]


def _of_cell(path: str, column: str, row: int, value: Any, max_bytes: int) -> bytes | Failure:
    """Bytes of a cell; of one that has but a path, those of the file beside the table."""
    data, beside = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None and beside:
        return _beside(path, beside, max_bytes)
    if data is None:
        return Failure(FailureCode.MISSING_IMAGE, cap_detail(f"{_name(path)}: column {column!r} of row {row} is null"))
    return _size_failure(len(data), max_bytes) or data


def _beside(table: str, name: str, max_bytes: int) -> bytes | Failure:
    """A file that a table names instead of holding its bytes: in the table's folder, or below it."""
    folder = table.rpartition("/")[0]
    full = name if name.startswith("/") and is_local(table) else f"{folder}/{name}"
    root, real = (os.path.realpath(folder), os.path.realpath(full)) if is_local(table) else (folder, full)
    if not real.startswith(root.rstrip("/") + "/") or ".." in name.split("/"):
        return Failure(FailureCode.UNSAFE_PATH, cap_detail(f"{_name(table)}: the cell has no bytes, and its path {name!r} leads out of the table's folder"))
    try:
        return _whole_file(full, max_bytes)
    except OSError as error:
        failure = failure_of_file(error, name)
        return Failure(failure.code, cap_detail(f"{_name(table)}: the cell has no bytes, and of the file that it names: {failure.detail}"))


def _name(path: str) -> str:
    """A file's name, for details that are published: these depend on no place."""
    return path.rpartition("/")[2]


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
