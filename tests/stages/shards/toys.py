"""Plug-ins for tests of the shard writer: rows with small real images, stored as the download stores them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.digests import digest_of
from pipeline.stage import Evidence, Params, Source, Stage, Vector, decides, tunes
from schemas.outcome import Drop, Failure
from schemas.sample import TEXTS, make_text, sample_id

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def image_bytes(number: int, extension: str) -> bytes:
    """A small noisy image that depends on its number alone."""
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 5, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, FORMATS[extension])
    return out.getvalue()


class Pictures(Source):
    """`rows` rows; row i of `repeated` is its predecessor once more (same id). Carries columns whose names clash, and `fold` in turn from `folds`."""

    name = "pictures"

    class Params(Params):
        rows: int
        repeated: tuple[int, ...] = ()
        folds: tuple[str | None, ...] = ()
        place: str = tunes("", "where the input lies; changes no row")

    def fingerprint(self) -> str:
        return digest_of("pictures", self.params.rows, self.params.repeated, self.params.folds)

    def extra_columns(self) -> dict[str, pa.DataType]:
        fold = {"fold": pa.string()} if self.params.folds else {}
        return {"number": pa.int64(), "licence": pa.string(), "status": pa.int16(), "similarity": pa.float32(), **fold}

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.params.rows, 50):
            places = range(start, min(start + 50, self.params.rows))
            numbers = [i - 1 if i in self.params.repeated else i for i in places]
            urls, texts = [f"u{n}" for n in numbers], [f"bilde nr. {n} – «æøå»" for n in numbers]
            failures = ["bad_row" if n % 41 == 40 else None for n in numbers]
            yield pa.record_batch(
                {
                    "sample_id": pa.array([sample_id("pictures", u, t) for u, t in zip(urls, texts, strict=True)], pa.binary(16)),
                    "url": urls,
                    "alt_text": texts,
                    "alt_text_cut": [False] * len(numbers),
                    "number": pa.array(numbers, pa.int64()),
                    "licence": [None if n % 3 == 0 else "CC0" for n in numbers],
                    "status": pa.array([200] * len(numbers), pa.int16()),
                    "similarity": pa.array([float("nan") if n % 50 == 7 else 0.3 for n in numbers], pa.float32()),
                    **({"fold": pa.array([self.params.folds[n % len(self.params.folds)] for n in numbers], pa.string())} if self.params.folds else {}),
                    "failure": pa.array(failures, pa.string()),
                    "failure_detail": pa.array(["planted" if f else None for f in failures], pa.string()),
                }
            )


class StoreImages(Stage):
    """Stores an image per row: number % 7 fails, `same` numbers have the image of their predecessor."""

    name = "store_images"
    reads = ("number", "sample_id")
    writes = {
        "image_sha256": pa.binary(32), "tar": pa.string(), "offset": pa.int64(), "size": pa.int64(),
        "width": pa.int32(), "height": pa.int32(), "format": pa.string(),
    }  # fmt: skip
    writes_blobs = True
    batch_size = None

    class Params(Params):
        same: tuple[int, ...] = ()
        check: str = "decode"
        backwards: bool = tunes(False, "store in another order, as a network would")

    def compute(self, rows, ctx):
        results = [self._store(row, ctx) for row in (reversed(rows) if self.params.backwards else rows)]
        return results[::-1] if self.params.backwards else results

    def _store(self, row, ctx):
        number = row["number"]
        if number % 7 == 6:
            return Failure("http_4xx", f"status 404 for u{number}")
        if number in self.params.same:
            number -= 1
        extension = ("jpg", "png", "webp")[number % 3]
        data = image_bytes(number, extension)
        tar, offset, size = ctx.blobs.add(row["sample_id"].hex(), extension, data)
        return {
            "image_sha256": hashlib.sha256(data).digest(), "tar": tar, "offset": offset, "size": size,
            "width": 16, "height": 12 + number % 5, "format": extension,
        }  # fmt: skip


class BestLast(Stage):
    """Ranks the texts the other way round, as a model might that likes the bad ones."""

    name = "best_last"
    reads = ("texts",)
    writes = {"text": pa.string(), "texts": TEXTS}

    def compute(self, rows, ctx):
        return [{"texts": row["texts"][::-1], "text": row["texts"][-1]["text"]} for row in rows]


class Rate(Stage):
    """score = number mod 100 / 100 as float32, an embedding, texts; drops scores under `min`."""

    name = "rate"
    reads = ("number", "alt_text")
    writes = {"score": pa.float32(), "image_emb": Vector("float16"), "text": pa.string(), "texts": TEXTS}

    class Params(Params):
        min: float = decides(0.0, "least score kept")

    def compute(self, rows, ctx):
        out = []
        for row in rows:
            score = row["number"] % 100 / 100
            text = row["alt_text"].upper()
            texts = [make_text(text, source="x", clip_score=score), make_text("another", kind="caption")]
            out.append({"score": score, "image_emb": np.arange(8) + row["number"] % 10, "text": text, "texts": texts})
        return out

    def decide(self, row, resolved):
        return Drop("low_clip", f"{row['score']:.2f} < {self.params.min}") if row["score"] < self.params.min - 1e-6 else None


class PairUp(Stage):
    """Duplicate components: numbers that are equal after division by `width`."""

    name = "pair_up"
    reads_resolve = ("number",)
    resolves = {"dup_component": pa.string()}

    class Params(Params):
        width: int = decides(2, "numbers per component")
        loose: tuple[int, ...] = decides((), "numbers without a component")

    def resolve(self, evidence: Evidence):
        loose = ",".join(str(n) for n in (*self.params.loose, -1))
        return evidence.con.sql(
            f"SELECT part, row, CASE WHEN number IN ({loose}) THEN NULL ELSE 'c' || (number // {self.params.width}) END AS dup_component "
            "FROM rows ORDER BY part, row"
        )
