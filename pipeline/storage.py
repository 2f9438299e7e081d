"""Where a run directory lies: a folder (pathlib.Path), or a prefix in object storage (ObjectPath) with the same few methods.

All code above takes a `Place` and does not ask which it is; what differs (commits, moves, ranges) stands in `pipeline/files.py`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import fsspec

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from types import ModuleType

_READ_AHEAD = 8 << 20
_WILD = re.compile(r"[*?\[]")


def _objects() -> ModuleType:
    """The S3 client, imported when it is needed. Raises RecipeError where it is not installed."""
    from pipeline import object_store

    return object_store


@dataclass(frozen=True)
class Stat:
    st_size: int


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object or folder of a bucket. Folders are nothing but the beginning of names: none is made or removed.

    Methods are those of pathlib.Path as far as pairmill uses them; it has no __fspath__, so that code for local files refuses it.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, "/".join(piece for piece in (self.key, str(name).strip("/")) if piece))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> ObjectPath:
        return ObjectPath(self.bucket, PurePosixPath(self.key).with_suffix(suffix).as_posix())

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not in {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    def is_relative_to(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and other.bucket == self.bucket and PurePosixPath(self.key).is_relative_to(other.key)

    def absolute(self) -> ObjectPath:
        return self

    def resolve(self) -> ObjectPath:
        return self

    def exists(self) -> bool:
        try:
            _objects().head(self.bucket, self.key)
        except FileNotFoundError:
            return False
        return True

    def is_file(self) -> bool:
        return self.exists()

    def is_dir(self) -> bool:
        return next(_objects().listed(self.bucket, self.key), None) is not None

    def stat(self) -> Stat:
        return Stat(_objects().head(self.bucket, self.key))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there once an object is."""

    def read_bytes(self) -> bytes:
        return bytes(_objects().get(self.bucket, self.key))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        _objects().put(self.bucket, self.key, data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """For reading from beginning to end: fetched in pieces of 8 MB, with seek."""
        if mode != "rb":
            raise ValueError(f"{self}: mode {mode!r}; objects are opened for reading bytes, and written by a commit")
        return io.BufferedReader(_ObjectReader(self), _READ_AHEAD)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.exists():
            raise FileNotFoundError(str(self))
        _objects().delete(self.bucket, [self.key])

    def iterdir(self) -> Iterator[ObjectPath]:
        """Objects directly in this folder."""
        return self.glob("*")

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects whose names match; a `*` does not go beyond a `/`."""
        for path, _ in self.sizes(pattern):
            yield path

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        for key, _ in _objects().listed(self.bucket, self.key):
            if fnmatchcase(key.rpartition("/")[2], pattern):
                yield ObjectPath(self.bucket, key)

    def sizes(self, pattern: str) -> Iterator[tuple[ObjectPath, int]]:
        """Objects that match, with their sizes: one request per 1,000 names from where the pattern's plain beginning stands."""
        folder, _, last = pattern.rpartition("/")
        base = self / folder
        if _WILD.search(folder):
            raise ValueError(f"{pattern}: only the last part of a pattern may have a wildcard")
        wild = _WILD.search(last)
        for key, size in _objects().listed(base.bucket, base.key, last[: wild.start()] if wild else last):
            name = key[len(base.key) + 1 :] if base.key else key
            if "/" not in name and fnmatchcase(name, last):
                yield ObjectPath(self.bucket, key), size


class _ObjectReader(io.RawIOBase):
    """Reads an object by ranges."""

    def __init__(self, path: ObjectPath):
        self.path = path
        self.size = path.stat().st_size
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self.size - self.at)
        if wanted <= 0:
            return 0
        data = _objects().get_range(self.path.bucket, self.path.key, self.at, wanted)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


Place: TypeAlias = Path | ObjectPath

_S3 = re.compile(r"^s3a?:/+([^/]+)/?(.*)$")  # pathlib makes s3:/bucket of s3://bucket


def place_of(text: str | Place) -> Place:
    """The folder or prefix that a path or s3:// address names. Raises RecipeError for another kind of address."""
    if isinstance(text, ObjectPath):
        return text
    found = _S3.match(str(text))
    if found:
        bucket, key = found[1], found[2].strip("/")
        if not key:
            raise RecipeError(f"s3://{bucket}: name a folder in the bucket, for example s3://{bucket}/run1")
        return ObjectPath(bucket, key)
    if re.match(r"^[a-z][a-z0-9+.\-]+:/", str(text)) and not Path(text).exists():
        raise RecipeError(f"{text}: a run directory is a local folder or s3://BUCKET/FOLDER; no other kind of address is known")
    return Path(text)


def register_inputs() -> None:
    """Let fsspec open s3:// addresses of input tables, unless s3fs is installed, which then does."""
    if find_spec("s3fs") is None:
        fsspec.register_implementation("s3", "pipeline.object_inputs.S3Inputs", clobber=True)
