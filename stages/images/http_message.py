"""HTTP/1.1 answers as they come in: head, framing of the body (RFC 9112, sections 4 to 7), chunks, unpacking."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from multidict import CIMultiDict

from stages.images.buffers import BUFFER_BYTES, Buffers, Bytes

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?")
_SPACE = " \t\r"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_COPIED_BYTES = 1 << 15  # a body that is not longer has memory of its own, which costs less than a buffer
_MAX_CHUNK_LINE = 4096
_PACKED = frozenset({"gzip", "x-gzip", "deflate"})


class BadResponse(ValueError):
    """What the server sent is no valid HTTP/1 answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers. Header values: bytes that are no UTF-8 are replaced."""

    status: int
    reason: str
    headers: CIMultiDict[str]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `cut`: the body has more bytes than were wanted; it is then empty, or (unpacked) its beginning.

    A body that is a memoryview belongs to a buffer of the client, see Buffers.give_back.
    """

    head: Head
    body: Bytes = b""
    cut: bool = False


Wants = Callable[[Head], int]


def parse_head(data: bytes) -> Head:
    """Status line and header lines, without the empty line. Raises BadResponse."""
    lines = data.decode("utf-8", "replace").split("\n")
    found = _STATUS_LINE.fullmatch(lines[0])
    if found is None:
        raise BadResponse(f"not HTTP/1: {lines[0][:60]!r}")
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t") and fields:  # obsolete folding
            fields[-1] = (fields[-1][0], f"{fields[-1][1]} {line.strip(_SPACE)}")
        elif not colon or _NAME.fullmatch(name) is None:
            raise BadResponse(f"not a header line: {line[:60]!r}")
        else:
            fields.append((name, value.strip(_SPACE)))
    headers: CIMultiDict[str] = CIMultiDict(fields)
    options = {option.strip().lower() for option in ",".join(headers.getall("Connection", ())).split(",")}
    keep_alive = "close" not in options and (found[1] == "1" or "keep-alive" in options)
    return Head(int(found[2]), found[3] or "", headers, keep_alive)


def content_length(headers: CIMultiDict[str]) -> int | None:
    """The Content-Length; None where there is none. Raises BadResponse where it is no number, or several differ."""
    values = {value.strip() for field in headers.getall("Content-Length", ()) for value in field.split(",")}
    if not values:
        return None
    text = values.pop()
    if values or not text.isascii() or not text.isdigit():
        raise BadResponse(f"Content-Length: {headers['Content-Length'][:60]!r}")
    return int(text[:20])


class Body:
    """Takes in the body of one answer, at most `limit` bytes. One of known length is received where it stays, in one of `buffers`."""

    def __init__(self, head: Head, limit: int, buffers: Buffers):
        self.head, self.limit, self.buffers = head, limit, buffers
        self.cut = self.whole = False
        self.filled = 0
        self._at_once: memoryview | None = None  # a body that came with its head
        self.chunks: _Chunks | None = None
        self.length = self._framing()
        self.unwanted = limit <= 0 and self.length != 0
        if self.unwanted or (self.length is not None and self.length > limit):
            self.cut = self.whole = True
        self.data = bytearray()

    def _framing(self) -> int | None:
        """Length of the body; None where chunks or the end of the connection tell it."""
        if self.head.status in (204, 304):
            return 0
        codings = [coding.strip().lower() for coding in ",".join(self.head.headers.getall("Transfer-Encoding", ())).split(",") if coding.strip()]
        if codings:
            if codings[-1] == "chunked":
                if len(codings) > 1:
                    raise BadResponse(f"Transfer-Encoding: {', '.join(codings)[:60]}")
                self.chunks = _Chunks()
            return None
        return content_length(self.head.headers)

    @property
    def reusable(self) -> bool:
        """The connection may serve another request: the body has ended, and not with the connection, and nothing follows it."""
        if self.cut or not self.head.keep_alive:
            return False
        if self.chunks is not None:
            return self.chunks.done and not self.chunks.extra
        return self.length is not None and self.filled == self.length

    def space(self) -> memoryview | None:
        """Where the next bytes belong, one more than the body needs so that what follows it is seen; None for any place."""
        if self.length is None:
            return None
        if self.filled == len(self.data):
            self._grow()
        return memoryview(self.data)[self.filled : self.length + 1]

    def _grow(self) -> None:
        """More room, doubling: a server that announces much and sends little must not cost memory."""
        assert self.length is not None
        have = len(self.data)
        if not have:
            self.data = self.buffers.take()
        else:
            self.data.extend(bytes(min(have, max(BUFFER_BYTES, self.length + 1) - have)))

    def received(self, n: int, scratch: memoryview) -> bool:
        """`n` bytes came, into `space()` or `scratch`. True when the body is whole."""
        if self.length is None:
            return self.take(scratch[:n])
        self.filled += n
        return self.filled >= self.length

    def take(self, data: memoryview) -> bool:
        """Bytes that came elsewhere. True when the body is whole. Raises BadResponse."""
        if self.whole:
            return True
        if self.length is not None:
            if not self.filled and len(data) >= self.length:
                self._at_once = self.buffers.keep(data[: self.length]) if self.length > _COPIED_BYTES else data[: self.length]
                self.filled = len(data)
                return True
            while len(self.data) < self.filled + len(data):
                self._grow()
            self.data[self.filled : self.filled + len(data)] = data
            self.filled += len(data)
            return self.filled >= self.length
        if self.chunks is not None:
            ended = self.chunks.feed(bytes(data), self.data)
        else:
            self.data += data
            ended = False
        self.cut = len(self.data) > self.limit
        return ended or self.cut

    def ended(self) -> None:
        """The connection ended. Raises EOFError where the body had not."""
        if self.length is not None:
            raise EOFError(f"{self.filled} of {self.length} bytes came")
        if self.chunks is not None:
            raise EOFError("the connection ended within a chunked body")

    def answer(self) -> Answer:
        """Raises BadResponse or EOFError where a packed body does not unpack."""
        if self.unwanted:
            return Answer(self.head)
        size = self.limit if self.cut else len(self.data) if self.length is None else self.length
        body: Bytes = memoryview(self.data)[:size] if self._at_once is None else self._at_once
        if size <= _COPIED_BYTES:
            body = bytes(body)
        coding = self.head.headers.get("Content-Encoding", "").strip().lower()
        if not body or self.cut or coding in ("", "identity"):
            return Answer(self.head, body, self.cut)
        if coding not in _PACKED:
            raise BadResponse(f"Content-Encoding: {coding[:60]}, which was not asked for")
        unpacked = _unpack(body, self.limit, coding)
        return Answer(self.head, unpacked[: self.limit], len(unpacked) > self.limit)


def _unpack(body: Bytes, limit: int, coding: str) -> bytes:
    """At most `limit` + 1 bytes of what was packed with gzip or deflate (with or without zlib's frame)."""
    for bits in (47, -15):  # gzip or zlib by its head; bare deflate, which some servers send
        unpacker = zlib.decompressobj(bits)
        try:
            found = unpacker.decompress(body, limit + 1)
        except zlib.error as error:
            problem = error
            continue
        if len(found) <= limit and not unpacker.eof:
            raise EOFError(f"the {coding} stream ends early")
        return found
    raise BadResponse(f"Content-Encoding {coding}: {problem}")


class _Chunks:
    """A chunked body, piece by piece."""

    def __init__(self) -> None:
        self.done = self.extra = False
        self._left = 0  # bytes of the present chunk that are to come
        self._expect = "size"  # or 'end' of a chunk, or 'trailer'
        self._line = b""

    def feed(self, data: bytes, out: bytearray) -> bool:
        """Append what is body to `out`. True when the last chunk and its trailers have come. Raises BadResponse."""
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                out += piece
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end + 1] if end >= 0 else data[at:]
            if len(self._line) > _MAX_CHUNK_LINE:
                raise BadResponse("a chunk's line is too long")
            if end < 0:
                return False
            at = end + 1
            line, self._line = self._line.strip(), b""
            self._take_line(line)
        self.extra = self.done and at < len(data)
        return self.done

    def _take_line(self, line: bytes) -> None:
        if self._expect == "end":
            if line:
                raise BadResponse("a chunk is longer than it says")
            self._expect = "size"
        elif self._expect == "trailer":
            self.done = not line
        else:
            size = line.partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
                raise BadResponse(f"not a chunk's size: {line[:40]!r}")
            self._left = int(size, 16)
            self._expect = "end" if self._left else "trailer"
