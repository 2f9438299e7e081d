"""Plug-ins of the report benchmark: many rows with simulated scores, few of them with a real image."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.stage import Params as BaseParams
from pipeline.stage import Source, Stage, decides
from schemas.outcome import Drop, Failure
from schemas.sample import TEXTS, make_text, sample_id

CODES = ("http_4xx", "dns", "timeout", "corrupt_image", "not_an_image")


class SimulatedRows(Source):
    """`rows` rows with a text of 6 to 20 words and two carried columns."""

    name = "simulated_rows"

    class Params(BaseParams):
        rows: int

    def fingerprint(self) -> str:
        return digest_of("simulated_rows", self.params.rows)

    def extra_columns(self) -> dict[str, pa.DataType]:
        return {"number": pa.int64(), "similarity": pa.float32(), "licence": pa.string()}

    def batches(self) -> Iterator[pa.RecordBatch]:
        words = "a red brown small dog cat house tree runs sits under over near green field two people with hats in the city".split()
        for start in range(0, self.params.rows, 5000):
            numbers = np.arange(start, min(start + 5000, self.params.rows))
            rng = np.random.default_rng(start)
            texts = [" ".join(rng.choice(words, n)) for n in rng.integers(6, 21, len(numbers))]
            urls = [f"https://host{n % 997}.example/images/{n}.jpg" for n in numbers]
            yield pa.record_batch(
                {
                    "sample_id": pa.array([sample_id("sim", u, t) for u, t in zip(urls, texts, strict=True)], pa.binary(16)),
                    "url": urls,
                    "alt_text": texts,
                    "alt_text_cut": pa.array(np.zeros(len(numbers), bool)),
                    "number": numbers,
                    "similarity": pa.array(rng.normal(0.25, 0.08, len(numbers)), pa.float32()),
                    "licence": ["cc0" if n % 2 else "unknown" for n in numbers],
                    "failure": pa.nulls(len(numbers), pa.string()),
                    "failure_detail": pa.nulls(len(numbers), pa.string()),
                }
            )


class SimulatedDownload(Stage):
    """Fails one row in ten; of each part it stores `per_part` images, and the other rows take one of them each."""

    name = "simulated_download"
    reads = ("sample_id", "number")
    writes = {
        "image_sha256": pa.binary(32), "tar": pa.string(), "offset": pa.int64(), "size": pa.int64(), "width": pa.int32(), "height": pa.int32(),
    }  # fmt: skip
    writes_blobs = True
    batch_size = None

    class Params(BaseParams):
        per_part: int
        folder: str = ""

    def setup(self, ctx):
        spec = importlib.util.spec_from_file_location("photo_plugins", Path(__file__).with_name("photo_plugins.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.photos = module.photos(self.params.folder)

    def compute(self, rows, ctx):
        out, places = [], []
        for place in range(self.params.per_part):
            data = self.photos[(ctx.part * self.params.per_part + place) % len(self.photos)]
            tar, offset, size = ctx.blobs.add(f"{place:032x}", "jpg", data)
            places.append({"tar": tar, "offset": offset, "size": size, "image_sha256": hashlib.sha256(data).digest()})
        for row in rows:
            number = row["number"]
            if number % 10 == 9:
                out.append(Failure(CODES[number // 10 % len(CODES)], f"simulated for row {number}"))
                continue
            out.append({**places[number % len(places)], "width": 200 + number % 900, "height": 150 + number % 700})
        return out


class SimulatedScores(Stage):
    """Six scores and a caption beside the text; drops clip_score under `min_clip_score` and watermark over `max_watermark`."""

    name = "simulated_scores"
    reads = ("sample_id", "alt_text")
    writes = {name: pa.float32() for name in ("clip_score", "aesthetic", "watermark", "matching", "detail", "understanding")} | {"texts": TEXTS}
    batch_size = 2000

    class Params(BaseParams):
        min_clip_score: float = decides(0.28, "least score")
        max_watermark: float = decides(0.8, "most")

    def compute(self, rows, ctx):
        rng = np.random.default_rng(int.from_bytes(rows[0]["sample_id"][:8], "little"))
        scores = np.round(np.column_stack([rng.normal(0.29, 0.07, len(rows)), rng.beta(2, 2, (len(rows), 5))]), 4)
        names = list(self.writes)[:-1]
        out = []
        for row, values in zip(rows, scores.tolist(), strict=True):
            text, identifier = row["alt_text"], row["sample_id"].hex()
            texts = [make_text("a photo of " + text, "caption", identifier, "simulated"), make_text(text, source=identifier, clip_score=values[0])]
            out.append({**dict(zip(names, values, strict=True)), "texts": texts})
        return out

    def decide(self, row, resolved):
        if row["clip_score"] < self.params.min_clip_score:
            return Drop("low_clip", f"{row['clip_score']:.4f} < {self.params.min_clip_score}")
        return Drop("custom", f"watermark {row['watermark']:.2f}") if row["watermark"] > self.params.max_watermark else None
