"""Plug-ins of the CLIP benchmark: rows of photos, and a stage that stores their bytes as `download` would."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg

from pipeline.digests import digest_of
from pipeline.stage import Params as BaseParams
from pipeline.stage import Source, Stage

WORDS = "a red brown small dog cat house tree runs sits under over near green field two people with hats in the city".split()


@cache
def photos(folder: str) -> list[bytes]:
    """The JPEGs below a folder, or made ones of 640 x 480 pixels where it is ''."""
    if folder:
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))]
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 255, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(32)]
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90) for pixels in coarse]


class PhotoRows(Source):
    """`rows` rows with a text of ten words each."""

    name = "photo_rows"

    class Params(BaseParams):
        rows: int

    def fingerprint(self) -> str:
        return digest_of("photo_rows", self.params.rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        rng, n = np.random.default_rng(1), self.params.rows
        yield pa.record_batch(
            {
                "sample_id": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
                "url": [str(i) for i in range(n)],
                "alt_text": [" ".join(rng.choice(WORDS, 10)) for _ in range(n)],
                "alt_text_cut": pa.array(np.zeros(n, bool)),
                "failure": pa.nulls(n, pa.string()),
                "failure_detail": pa.nulls(n, pa.string()),
            }
        )


class StorePhotos(Stage):
    """Stores photo number `url` (modulo the photos there are)."""

    name = "store_photos"
    reads = ("sample_id", "url")
    writes = {"tar": pa.string(), "offset": pa.int64(), "size": pa.int64(), "image_sha256": pa.binary(32)}
    writes_blobs = True

    class Params(BaseParams):
        folder: str = ""

    def compute(self, rows, ctx):
        found, out = photos(self.params.folder), []
        for row in rows:
            data = found[int(row["url"]) % len(found)]
            tar, offset, size = ctx.blobs.add(row["sample_id"].hex(), "jpg", data)
            out.append({"tar": tar, "offset": offset, "size": size, "image_sha256": hashlib.sha256(data).digest()})
        return out
