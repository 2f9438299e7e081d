"""The few requests that pairmill makes to S3, through obstore, with errors that say what to do.

Credentials, endpoint and region come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_ENDPOINT_URL, AWS_REGION), else from a web identity or the machine's role. obstore and not s3fs or pyarrow: it has conditional puts,
uploads whose completion this program decides, and no dependencies (https://developmentseed.org/obstore).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import Fatal, RecipeError
from pipeline.secrets import mask

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as error:  # an optional dependency
    raise RecipeError("s3:// needs the package obstore: install pairmill[s3], or name a local folder") from error

PART_BYTES = 8 << 20
SINGLE_BYTES = 16 << 20  # larger objects go up in parts
_UPLOADS = 4  # parts under way of one upload: bounds its memory
_MESSAGE = 300
CLIENT: dict[str, Any] = {"timeout": "180s", "connect_timeout": "10s"}
RETRIES: dict[str, Any] = {"max_retries": 6}


class ConditionFailed(Exception):
    """A conditional put was refused: the object is there already, or is another than was seen."""


class NoConditions(Exception):
    """The server says that it has no conditional puts."""


def endpoint() -> str:
    """The endpoint that the environment names, '' for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


def client_options() -> dict[str, Any]:
    return {**CLIENT, "allow_http": endpoint().startswith("http://")}


@functools.cache
def _store(bucket: str, _endpoint: str) -> S3Store:
    return S3Store(bucket, client_options=client_options(), retry_config=RETRIES)  # type: ignore[arg-type]


def store(bucket: str) -> S3Store:
    """Client of a bucket, one per process and endpoint; safe to use from several threads."""
    return _store(bucket, endpoint())


@contextmanager
def _told(bucket: str, key: str) -> Iterator[None]:
    """Errors of the store as ours: FileNotFoundError for what is not there, else Fatal, since no row is to blame."""
    url = f"s3://{bucket}/{key}"
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            where = endpoint() or "AWS"
            raise RecipeError(f"{url}: there is no bucket {bucket!r} at {where}; make it first, or check AWS_ENDPOINT_URL and AWS_REGION") from None
        raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise Fatal(f"{url}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy ({_short(error)})") from None
    except exceptions.BaseError as error:
        if "/latest/api/token" in str(error):  # neither the environment nor the machine's role has any
            raise Fatal(f"{url}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role gives them") from None
        advice = "check the network and AWS_ENDPOINT_URL, then run the same command again"
        raise Fatal(f"{url}: the object store gave no good answer ({_short(error)}); {advice}") from None


def _short(error: BaseException) -> str:
    text = mask(" ".join(str(error).partition("Debug source:")[0].split()))
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} ..."


def get(bucket: str, key: str) -> memoryview:
    """All bytes of an object. Raises FileNotFoundError."""
    with _told(bucket, key):
        return memoryview(obstore.get(store(bucket), key).bytes())


def get_with_version(bucket: str, key: str) -> tuple[bytes, str]:
    """Bytes and ETag of an object, from one answer."""
    with _told(bucket, key):
        answer = obstore.get(store(bucket), key)
        return bytes(answer.bytes()), str(answer.meta["e_tag"])


def get_tail(bucket: str, key: str, size: int) -> tuple[memoryview, int]:
    """The last `size` bytes of an object (all where it is shorter), and its whole size."""
    with _told(bucket, key):
        answer = obstore.get(store(bucket), key, options={"range": {"suffix": size}})
        return memoryview(answer.bytes()), answer.meta["size"]


def get_range(bucket: str, key: str, offset: int, size: int) -> memoryview:
    """Bytes [offset, offset + size), fewer where the object ends before."""
    with _told(bucket, key):
        return memoryview(obstore.get_range(store(bucket), key, start=offset, length=size))


def get_ranges(bucket: str, key: str, wanted: list[tuple[int, int]]) -> list[memoryview]:
    """Bytes [start, stop) of each range, one request per range and several at a time."""
    with _told(bucket, key):
        starts, ends = zip(*wanted, strict=True)
        return [memoryview(piece) for piece in obstore.get_ranges(store(bucket), key, starts=list(starts), ends=list(ends), coalesce=0)]


def head(bucket: str, key: str) -> int:
    """Size of an object. Raises FileNotFoundError."""
    with _told(bucket, key):
        return obstore.head(store(bucket), key)["size"]


def listed(bucket: str, folder: str, beginning: str = "") -> Iterator[tuple[str, int]]:
    """(key, size) of all objects under a folder, in order; `beginning`: only those whose name there begins so."""
    start = f"{folder}/{beginning}" if folder else beginning
    with _told(bucket, folder):
        before = start[:-1] if beginning else None  # listing begins behind this name: `start` itself may be one
        for chunk in obstore.list(store(bucket), prefix=folder or None, offset=before, chunk_size=1000):
            for entry in chunk:
                if entry["path"].startswith(start):
                    yield entry["path"], entry["size"]
                elif entry["path"] > start:
                    return


def level(bucket: str, folder: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Folders and (key, size) of the objects directly under a folder."""
    with _told(bucket, folder):
        found = obstore.list_with_delimiter(store(bucket), prefix=folder or None)
        return list(found["common_prefixes"]), [(entry["path"], entry["size"]) for entry in found["objects"]]


def put(bucket: str, key: str, data: bytes | memoryview) -> None:
    """Replace an object by one put."""
    with _told(bucket, key):
        obstore.put(store(bucket), key, data, use_multipart=False)


def put_if(bucket: str, key: str, data: bytes, seen: str | None) -> str:
    """Put where the object still has the ETag `seen` (None: where there is none). Returns the new ETag.

    Raises ConditionFailed, and NoConditions where the server says that it cannot.
    """
    with _told(bucket, key):
        try:
            return str(obstore.put(store(bucket), key, data, mode="create" if seen is None else {"e_tag": seen})["e_tag"])
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            if "NoSuchBucket" in str(error):
                raise FileNotFoundError(str(error)) from None
            raise ConditionFailed(f"s3://{bucket}/{key}") from None
        except exceptions.NotSupportedError:
            raise NoConditions(bucket) from None
        except exceptions.GenericError as error:
            if "501" in str(error) or "NotImplemented" in str(error):
                raise NoConditions(bucket) from None
            if "409" in str(error):  # another conditional put was under way
                raise ConditionFailed(f"s3://{bucket}/{key}") from None
            raise


def upload(bucket: str, key: str, pieces: Iterator[bytes | memoryview], guard: Callable[[], None]) -> None:
    """Multipart upload. `guard` is called last before its completion, which is the commit; where it raises, the upload is aborted."""

    def guarded() -> Iterator[bytes | memoryview]:
        yield from pieces
        _guards().submit(guard).result()  # in a thread of its own: a guard asks the store, and this one drives the upload

    with _told(bucket, key):
        obstore.put(store(bucket), key, guarded(), chunk_size=PART_BYTES, max_concurrency=_UPLOADS)


@functools.cache
def _guards() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="pairmill-guard")


def pieces_of(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def pieces_of_file(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PART_BYTES):
            yield piece


def copy(bucket: str, source: str, target: str) -> None:
    """Server-side copy. Raises FileNotFoundError where the source is not there."""
    with _told(bucket, source):
        obstore.copy(store(bucket), source, target)


def delete(bucket: str, keys: list[str]) -> None:
    """Remove objects; those that are not there do not matter."""
    if keys:
        with _told(bucket, keys[0]):
            obstore.delete(store(bucket), keys)
