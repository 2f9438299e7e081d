"""From bytes that came in to stored images: check, normalise, hash, append to the part's tar, one result per row."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal
from pipeline.stage import Row, Values
from schemas.outcome import Failure
from stages.images.fetch import Fetched
from stages.images.header import ImageError
from stages.images.normalize import ImageRules, StoredImage, normalize

STORED_COLUMNS: dict[str, pa.DataType] = {
    "raw_sha256": pa.binary(32),
    "n_bytes": pa.int64(),
    "image_sha256": pa.binary(32),
    "tar": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "format": pa.string(),
}
_INLINE_BYTES = 1 << 20  # hashing this much takes under a millisecond: not worth a thread


class Collector:
    """Turns what was fetched or read into the rows' results, decoding in threads beside the event loop.

    `describe` gives the further columns of a row that say where its bytes came from.
    """

    def __init__(self, rows: Sequence[Row], blobs: BlobWriter, rules: ImageRules, describe: Callable[[Fetched], Values]):
        self.rows, self.blobs, self.rules, self.describe = rows, blobs, rules, describe
        self.found: list[Values | Failure | None] = [None] * len(rows)

    def results(self) -> list[Values | Failure]:
        """One result per row. Raises Fatal where a row was never handed back (an error of this program)."""
        missing = [at for at, result in enumerate(self.found) if result is None]
        if missing:
            raise Fatal(f"{len(missing)} rows came back without a result, the first is row {missing[0]}")
        return [result for result in self.found if result is not None]

    async def handle(self, fetched: Fetched) -> None:
        """Store one download. The caller waits, so that images under way are bounded by the number of requests."""
        if fetched.failure is not None:
            self.found[fetched.row] = fetched.failure
            return
        if not fetched.body:  # opted out: never read
            self.found[fetched.row] = {**dict.fromkeys(STORED_COLUMNS), **self.describe(fetched)}
            return
        if self.rules.check == "header" and self.rules.resize_mode == "no" and len(fetched.body) < _INLINE_BYTES:
            made = _process(fetched.body, self.rules)
        else:
            made = await asyncio.get_running_loop().run_in_executor(_decoders(), _process, fetched.body, self.rules)
        if isinstance(made, Failure):
            origin = "" if fetched.status is None else f" (status {fetched.status}, {fetched.content_type})"
            self.found[fetched.row] = Failure(made.code, made.detail + origin)
            return
        raw_digest, image, image_digest = made
        where = self.blobs.add(self.rows[fetched.row]["sample_id"].hex(), image.format, image.data)
        self.found[fetched.row] = {**_stored_values(fetched.body, raw_digest, image, image_digest, where), **self.describe(fetched)}


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    """Threads for decoding, kept for the process: the codecs release the interpreter lock."""
    return ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def _process(body: bytes, rules: ImageRules) -> tuple[bytes, StoredImage, bytes] | Failure:
    """SHA-256 of the bytes as fetched, the image to store, and its SHA-256."""
    raw_digest = hashlib.sha256(body).digest()
    try:
        image = normalize(body, rules)
    except ImageError as error:
        return Failure(error.code, error.detail)
    return raw_digest, image, raw_digest if image.data is body else hashlib.sha256(image.data).digest()


def _stored_values(body: bytes, raw_digest: bytes, image: StoredImage, image_digest: bytes, where: tuple[str, int, int]) -> Values:
    tar, offset, size = where
    return {
        "raw_sha256": raw_digest,
        "n_bytes": len(body),
        "image_sha256": image_digest,
        "tar": tar,
        "offset": offset,
        "size": size,
        "width": image.width,
        "height": image.height,
        "original_width": image.original_width,
        "original_height": image.original_height,
        "format": image.format,
    }
