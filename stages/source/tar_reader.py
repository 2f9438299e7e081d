"""Headers and small members of a tar in one pass, whatever state it is in. Nothing is ever extracted by name."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import pyarrow as pa

from schemas.outcome import FailureCode
from stages.images.local import READ_BYTES, compression_of, is_local

MAX_HEADER_BYTES: Final = 1 << 20  # of an extended header (long names, pax); tarfile reads it whole
_TRAILER_BYTES: Final = tarfile.RECORDSIZE
# All that tarfile and the streams below it raise for bytes that are no tar, chains of extended headers among them.
TAR_ERRORS: Final = (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, pa.ArrowException)


@dataclass(slots=True)
class Member:
    """A regular file in a tar. `data`: its first bytes where they were asked for. `problem`: why it is not whole."""

    name: str
    offset: int
    size: int
    data: bytes | None = None
    problem: str = ""


@dataclass(slots=True)
class Problem:
    """What is no usable member: a failure code and what is wrong. `broken`: the tar cannot be read beyond it."""

    name: str
    code: str
    detail: str
    broken: bool = False


class _Headers:
    """What tarfile reads from: it remembers the last block, and refuses reads that no honest header needs."""

    def __init__(self, file: Any):
        self.file = file
        self.last = b""
        self.ended = False  # a read came back short

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        self.last = self.file.read(size)
        self.ended = len(self.last) < size
        return self.last

    def seek(self, offset: int) -> int:
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()


class _Forward:
    """A decompressed stream with the seeks that reading a tar once needs: forward ones."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.at = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.at += len(data)
        return data

    def seek(self, offset: int) -> int:
        if offset < self.at:
            raise OSError(f"seek back to byte {offset} in a compressed tar")
        while self.at < offset and self.read(min(READ_BYTES, offset - self.at)):
            pass
        return self.at

    def tell(self) -> int:
        return self.at


def read_tar(path: str, size: int, wanted: Callable[[str], int]) -> Iterator[Member | Problem]:
    """Members in order, and at its place each problem. `wanted` gives how many bytes of a member are read at once.

    size: bytes of the file. A tar that is cut, damaged or lacks the mark of its end gives a last Problem with `broken`.
    """
    compression = compression_of(path)
    try:
        options = {} if is_local(path) else {"block_size": READ_BYTES}
        with fsspec.open(path, "rb", **options) as file:
            if compression is None:
                yield from _members(file, size, wanted)
            else:
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
                    yield from _members(_Forward(stream), None, wanted)
    except TAR_ERRORS as error:  # opening, and closing a stream that was cut
        yield Problem("", FailureCode.UNREADABLE, f"cannot be read: {type(error).__name__}: {error}", broken=True)


def _members(file: Any, size: int | None, wanted: Callable[[str], int]) -> Iterator[Member | Problem]:
    """A member is given out when the header after it was reached: then it is known to be whole."""
    headers = _Headers(file)
    before: Member | Problem | None = None
    tar: tarfile.TarFile | None = None
    at = 0
    try:
        tar = tarfile.TarFile(fileobj=headers, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            if before is not None:
                yield before
                before = None
            if info.size < 0 or tar.offset <= at:
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            at, tar.members = tar.offset, []
            before = _member(info, file, wanted)
        problem = _end_problem(headers, tar.offset)
        if before is not None:
            yield before
            before = None
    except TAR_ERRORS as error:
        reached = file.tell() if size is None else size
        problem = f"breaks at byte {min(reached, file.tell() if headers.ended else tar.offset if tar else 0)}: {error}"
        if isinstance(before, Member) and before.offset + before.size <= reached:
            yield before
            before = None
    if problem and isinstance(before, Member):
        before.problem = f"the tar {problem}, in the middle of member {before.name}"
    if before is not None:
        yield before
    if problem:
        yield Problem("", FailureCode.UNREADABLE, f"the tar {problem}", broken=True)


def _end_problem(headers: _Headers, offset: int) -> str:
    """Why tarfile stopped, which it tells only at the first member: '' at the mark of the end with nothing behind it."""
    block = headers.last
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends at byte {offset + len(block)} without the mark of its end: it may have been cut there"
    if block.strip(b"\0"):
        return f"breaks at byte {offset}: what stands there is no header"
    if headers.file.read(_TRAILER_BYTES).strip(b"\0"):
        return f"has further data behind the mark of its end at byte {offset}: tars that were joined must be given one by one"
    return ""


def _member(info: tarfile.TarInfo, file: Any, wanted: Callable[[str], int]) -> Member | Problem | None:
    """None for a folder. Raises what reading raises."""
    name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix("./")
    if info.isdir():
        return None
    if info.issym() or info.islnk():
        return Problem(name, FailureCode.UNSAFE_PATH, f"a link to {info.linkname!r}: links in a tar are not followed")
    if info.isdev():
        return Problem(name, FailureCode.UNSAFE_PATH, "a device or pipe, not a file")
    if info.issparse() or not info.isreg():
        return Problem(name, FailureCode.UNREADABLE, f"a member of type {info.type!r}, not a plain file")
    if name.startswith("/") or ".." in name.split("/"):
        return Problem(name, FailureCode.UNSAFE_PATH, "a name that leads out of the tar: absolute, or with '..'")
    member = Member(name, info.offset_data, info.size)
    some = wanted(name)
    if some:
        file.seek(info.offset_data)
        member.data = file.read(min(some, info.size))
    return member
