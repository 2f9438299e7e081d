"""Plug-ins for tests of the report: rows with texts, URLs and carried columns as given, images, and a score with a limit."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.digests import digest_of
from pipeline.stage import Params, Source, Stage, decides
from schemas.outcome import Drop, Failure
from schemas.sample import TEXTS, make_text, sample_id


class GivenRows(Source):
    """Rows of a JSON file: [{url, alt_text, score, note}, ...]; `note` becomes a carried column of the name `column`."""

    name = "given_rows"

    class Params(Params):
        file: str
        column: str = "note"

    def rows(self) -> list[dict]:
        return json.loads(Path(self.params.file).read_text())

    def fingerprint(self) -> str:
        return digest_of("given_rows", self.rows(), self.params.column)

    def extra_columns(self) -> dict[str, pa.DataType]:
        return {"given": pa.float64(), self.params.column: pa.string()}

    def batches(self) -> Iterator[pa.RecordBatch]:
        rows = self.rows()
        yield pa.record_batch(
            {
                "sample_id": pa.array([sample_id("given", f"{i} {row['url']}", row["alt_text"] or "") for i, row in enumerate(rows)], pa.binary(16)),
                "url": pa.array([row["url"] for row in rows], pa.string()),
                "alt_text": pa.array([row["alt_text"] for row in rows], pa.string()),
                "alt_text_cut": [False] * len(rows),
                "given": pa.array([row.get("score") for row in rows], pa.float64()),
                self.params.column: pa.array([row.get("note") for row in rows], pa.string()),
                "failure": pa.nulls(len(rows), pa.string()),
                "failure_detail": pa.nulls(len(rows), pa.string()),
            }
        )


class Paint(Stage):
    """Stores a picture per row; a URL that ends in 'broken' stores bytes that are none, one in 'gone' fails."""

    name = "paint"
    reads = ("sample_id", "url")
    writes = {"image_sha256": pa.binary(32), "tar": pa.string(), "offset": pa.int64(), "size": pa.int64(), "format": pa.string()}
    writes_blobs = True
    batch_size = None

    def compute(self, rows, ctx):
        out = []
        for row in rows:
            if (row["url"] or "gone").endswith("gone"):
                out.append(Failure("http_4xx", f"web.example said 404 for {row['url']}"))
                continue
            pixels = np.random.default_rng(row["sample_id"][0]).integers(0, 256, (12, 300, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG")
            data = b"no image" if row["url"].endswith("broken") else stream.getvalue()
            tar, offset, size = ctx.blobs.add(row["sample_id"].hex(), "jpg", data)
            out.append({"tar": tar, "offset": offset, "size": size, "image_sha256": hashlib.sha256(data).digest(), "format": "jpg"})
        return out


class Grade(Stage):
    """grade = the row's given score as float32; drops below `min`, with the row's text in the detail. Writes a caption beside the text."""

    name = "grade"
    reads = ("sample_id", "given", "alt_text", "corrupted?")
    writes = {"grade": pa.float32(), "texts": TEXTS}

    class Params(Params):
        min: float = decides(0.5, "least grade kept")

    def compute(self, rows, ctx):
        out = []
        for row in rows:
            text, identifier = row["alt_text"] or "", row["sample_id"].hex()
            score = None if row["given"] is None else row["given"] - (0.25 if row["corrupted"] else 0)
            texts = [make_text("caption of " + text, "captioner", identifier, "painter-1"), make_text(text, source=identifier, clip_score=score)]
            out.append({"grade": score, "texts": texts})
        return out

    reads_decide = ("alt_text",)

    def decide(self, row, resolved):
        if row["grade"] is not None and row["grade"] < np.float32(self.params.min):
            return Drop("low_clip" if row["grade"] >= 0.1 else row["alt_text"][:200], f"{row['grade']:.4f} < {self.params.min} for {row['alt_text']}")
        return None
