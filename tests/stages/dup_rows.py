"""Plug-ins for tests of duplicates: rows whose bytes, hash and embedding are planted, as download, image_hash and clip_score would store them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.stage import Params, Source, Stage, Vector
from schemas.sample import TEXTS, make_text, sample_id

WIDTH = 24
KINDS = ("alone", "bytes", "near", "semantic")  # row 4n is the picture, 4n + 1 to 4n + 3 its copies of each kind; every fifth picture has none


def planted(number: int) -> dict:
    """What is stored of row `number`. Copies of one picture: equal bytes; 3 bits off and another embedding; cosine 0.96 and another hash."""
    group, kind = divmod(number, 4)
    kind = 0 if group % 5 == 4 else kind
    own, base = np.random.default_rng([1, number]), np.random.default_rng([0, number if kind == 0 else 4 * group])
    vector, hash_, raw = base.standard_normal(WIDTH), int(base.integers(0, 2**63)), base.bytes(32)
    vector /= np.linalg.norm(vector)
    if kind in (2, 3):
        raw = own.bytes(32)
        other = own.standard_normal(WIDTH)
        other -= (other @ vector) * vector
        other /= np.linalg.norm(other)
        vector, hash_ = (other, hash_ ^ 0b111) if kind == 2 else (0.96 * vector + 0.28 * other, int(own.integers(0, 2**63)))
    return {
        "raw_sha256": raw, "phash": hash_.to_bytes(8, "big"), "phash_quality": 80, "phash_turned": b"", "image_emb": vector.astype(np.float16),
        "width": 100 - kind, "height": 100, "texts": [make_text(f"text {number}", source=f"{number}")],
    }  # fmt: skip


class Numbers(Source):
    """Rows 0 to `rows` - 1."""

    name = "numbers_of_dups"

    class Params(Params):
        rows: int

    def fingerprint(self) -> str:
        return digest_of(self.name, self.params.rows)

    def extra_columns(self) -> dict[str, pa.DataType]:
        return {"number": pa.int64()}

    def batches(self) -> Iterator[pa.RecordBatch]:
        numbers = range(self.params.rows)
        urls = [f"u{n}" for n in numbers]
        yield pa.record_batch(
            {
                "sample_id": pa.array([sample_id(self.name, url, "") for url in urls], pa.binary(16)), "url": urls, "alt_text": urls,
                "alt_text_cut": [False] * len(urls), "number": pa.array(numbers, pa.int64()), "failure": pa.nulls(len(urls), pa.string()),
                "failure_detail": pa.nulls(len(urls), pa.string()),
            }
        )  # fmt: skip


class Planted(Stage):
    """Writes what `planted` says."""

    name = "planted_dups"
    reads = ("number",)
    writes = {
        "raw_sha256": pa.binary(32), "phash": pa.binary(), "phash_quality": pa.int16(), "phash_turned": pa.binary(), "image_emb": Vector("float16"),
        "width": pa.int32(), "height": pa.int32(), "texts": TEXTS,
    }  # fmt: skip

    def compute(self, rows, ctx):
        return [planted(row["number"]) for row in rows]


