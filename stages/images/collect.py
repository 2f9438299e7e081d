"""From bytes that came in to stored images: check, normalise, hash, append to the part's tar, one result per row."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence

import pyarrow as pa

from pipeline.blobs import BlobWriter
from pipeline.errors import Fatal
from pipeline.stage import Row, Values
from schemas.outcome import Failure, FailureCode
from stages.images.buffers import Bytes
from stages.images.decoders import DecoderLimits, Decoders, Normalized, shared_decoders
from stages.images.fetch import Fetched
from stages.images.header import ImageError
from stages.images.normalize import ImageRules, kept_by_header

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
_INLINE_BYTES = 1 << 20  # hashing this much takes under a millisecond: not worth another process


class Collector:
    """Turns what was fetched or read into the rows' results. Images are decoded in a sandbox, beside the event loop.

    `describe` gives the further columns of a row that say where its bytes came from; `workers` share this machine's cores;
    `refuses` (SHA-256 as fetched, as stored) tells images that were forgotten.
    """

    def __init__(
        self, rows: Sequence[Row], blobs: BlobWriter, rules: ImageRules, describe: Callable[[Fetched], Values],
        limits: DecoderLimits | None = None, workers: int = 1, refuses: Callable[..., bool] = lambda *digests: False,
    ):  # fmt: skip
        self.rows, self.blobs, self.rules, self.describe = rows, blobs, rules, describe
        self.found: list[Values | Failure | None] = [None] * len(rows)
        self.refuses = refuses
        self._limits, self._workers = limits or DecoderLimits(), workers
        if rules.check == "decode" or rules.resize_mode != "no":
            shared_decoders(self._limits, workers)  # started before the first bytes are there; else few images need them, or none

    @property
    def decoders(self) -> Decoders:
        """Those of this process, started now if they are not there yet."""
        return shared_decoders(self._limits, self._workers)

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
        made = self._by_header(fetched.body) or await asyncio.wrap_future(self.decoders.normalize(fetched.body, self.rules))
        if isinstance(made, Failure):
            origin = "" if fetched.status is None else f" (status {fetched.status}, {fetched.content_type})"
            self.found[fetched.row] = Failure(made.code, made.detail + origin)
            return
        if self.refuses(made.raw_sha256, made.image_sha256):
            self.found[fetched.row] = Failure(FailureCode.FORGOTTEN)
            return
        where = self.blobs.add(self.rows[fetched.row]["sample_id"].hex(), made.image.format, made.image.data, made.image_sha256)
        self.found[fetched.row] = {**_stored_values(len(fetched.body), made, where), **self.describe(fetched)}

    def _by_header(self, body: Bytes) -> Normalized | Failure | None:
        """What needs no decoder: an image that `check: header` keeps as it is, told by our own reading of its header."""
        if self.rules.check != "header" or len(body) > _INLINE_BYTES:
            return None
        try:
            image = kept_by_header(body, self.rules)
        except ImageError as error:
            return Failure(error.code, error.detail)
        if image is None:
            return None
        digest = hashlib.sha256(body).digest()
        return Normalized(image, digest, digest)


def _stored_values(raw_bytes: int, made: Normalized, where: tuple[str, int, int]) -> Values:
    tar, offset, size = where
    return {
        "raw_sha256": made.raw_sha256,
        "n_bytes": raw_bytes,
        "image_sha256": made.image_sha256,
        "tar": tar,
        "offset": offset,
        "size": size,
        "width": made.image.width,
        "height": made.image.height,
        "original_width": made.image.original_width,
        "original_height": made.image.original_height,
        "format": made.image.format,
    }
