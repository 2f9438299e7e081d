"""Small plug-ins for tests of the machine: a source of numbers, stages that count their calls in a file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.stage import Evidence, Params, Source, Stage, decides, tunes
from schemas.outcome import Drop, Failure
from schemas.sample import sample_id


class Numbers(Source):
    """`rows` rows: url u<i>, alt_text and value from a seeded formula; every 17th url repeats the one before."""

    name = "numbers"

    class Params(Params):
        rows: int

    def fingerprint(self) -> str:
        return digest_of("numbers", self.params.rows)

    def extra_columns(self) -> dict[str, pa.DataType]:
        return {"value": pa.int64()}

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.params.rows, 64):
            numbers = range(start, min(start + 64, self.params.rows))
            urls = [f"u{i - 1 if i % 17 == 0 and i else i}" for i in numbers]
            texts = [f"text {i}" for i in numbers]
            yield pa.record_batch(
                {
                    "sample_id": pa.array([sample_id("numbers", u, t) for u, t in zip(urls, texts, strict=True)], pa.binary(16)),
                    "url": urls,
                    "alt_text": texts,
                    "alt_text_cut": [False] * len(numbers),
                    "value": pa.array([(i * 7919) % 1000 for i in numbers], pa.int64()),
                    "failure": pa.array(["bad_row" if i % 97 == 96 else None for i in numbers], pa.string()),
                    "failure_detail": pa.array(["planted" if i % 97 == 96 else None for i in numbers], pa.string()),
                }
            )


def log_calls(path: str | None, stage: str, ids: list[str]) -> None:
    """Append one line per computed row; O_APPEND keeps lines of several processes whole."""
    if path:
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, "".join(f"{stage} {i}\n" for i in ids).encode())
        os.close(descriptor)


class Score(Stage):
    """score = (value * factor) mod 1000; drops scores under `min`."""

    name = "score"
    reads = ("sample_id", "value")
    writes = {"score": pa.int64()}
    batch_size = 64

    class Params(Params):
        factor: int = 3
        min: int = decides(0, "least score kept")
        calls: str | None = tunes(None, "file that counts computed rows")

    def compute(self, rows, ctx):
        log_calls(self.params.calls, self.instance, [row["sample_id"].hex() for row in rows])
        return [{"score": (row["value"] * self.params.factor) % 1000} for row in rows]

    def decide(self, row, resolved):
        return Drop("below_cut", f"{row['score']} < {self.params.min}") if row["score"] < self.params.min else None


class Flaky(Stage):
    """Looks each url up in a JSON file (url -> ok | failure code): a recorded web server. Drops answers over `max`."""

    name = "flaky"
    reads = ("sample_id", "url")
    writes = {"answer": pa.int64()}
    batch_size = 32

    class Params(Params):
        book: str = tunes("", "JSON file of answers")
        max: int = decides(10**9, "largest answer kept")
        calls: str | None = tunes(None, "file that counts computed rows")

    def compute(self, rows, ctx):
        log_calls(self.params.calls, self.instance, [row["sample_id"].hex() for row in rows])
        book = json.loads(Path(self.params.book).read_text()) if self.params.book else {}
        out = []
        for row in rows:
            code = book.get(row["url"])
            out.append(Failure(code, "recorded") if code else {"answer": int(row["url"][1:]) % 100})
        return out

    def decide(self, row, resolved):
        return Drop("too_long", str(row["answer"])) if row["answer"] > self.params.max else None


class FirstUrl(Stage):
    """Resolve: keeps the first row of each url."""

    name = "first_url"
    reads_resolve = ("url",)
    resolves = {"keeper": pa.string(), "n": pa.int32()}

    def resolve(self, evidence: Evidence):
        return evidence.con.sql(
            "SELECT part, row, hex(first_value(sample_id) OVER w) AS keeper, (count(*) OVER (PARTITION BY url))::INT AS n, sample_id FROM rows "
            "WINDOW w AS (PARTITION BY url ORDER BY part, row) ORDER BY sample_id"
        ).select("part, row, lower(keeper) AS keeper, n")

    reads_decide = ("sample_id",)

    def decide(self, row, resolved):
        return None if resolved["keeper"] == row["sample_id"].hex() else Drop("same_url", resolved["keeper"])


class Poison(Stage):
    """Raises, dies or hangs at the row whose alt_text is `text`."""

    name = "poison"
    reads = ("alt_text",)
    writes = {"length": pa.int64()}
    batch_size = 64
    batch_timeout_s = 2.0

    class Params(Params):
        text: str
        how: str

    def compute(self, rows, ctx):
        for row in rows:
            if row["alt_text"] == self.params.text:
                if self.params.how == "raise":
                    raise ValueError(f"cannot measure {row['alt_text']!r}")
                if self.params.how == "kill":
                    os.kill(os.getpid(), 9)
                if self.params.how == "hang":
                    time.sleep(60)
        return [{"length": len(row["alt_text"])} for row in rows]


class Fetch(Stage):
    """A recorded web server: a JSON book says which rows (by text) fail; every other gives bytes made from the URL and
    the book's `version`, which are stored. Drops sizes over `max_bytes`."""

    name = "fetch"
    reads = ("sample_id", "url", "alt_text")
    writes = {
        "tar": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "image_sha256": pa.binary(32),
        "raw_sha256": pa.binary(32),
        "n_bytes": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
    }
    batch_size = 16
    writes_blobs = True

    class Params(Params):
        book: str = tunes("", "JSON file: url -> failure code, and version")
        max_bytes: int = decides(10**9, "largest kept")
        calls: str | None = tunes(None, "file that counts computed rows")

    def compute(self, rows, ctx):
        log_calls(self.params.calls, self.instance, [row["sample_id"].hex() for row in rows])
        book = json.loads(Path(self.params.book).read_text())
        return [self.fetch(row, book, ctx) for row in rows]

    def fetch(self, row, book, ctx):
        if row["alt_text"] in book["failing"]:
            return Failure(book["failing"][row["alt_text"]], "recorded")
        number = int(row["url"][1:])
        data = f"{row['url']} version {book['version']} ".encode() * (1 + number % 50)
        tar, offset, size = ctx.blobs.add(row["sample_id"].hex(), "jpg", data)
        digest = hashlib.sha256(data).digest()
        return {
            "tar": tar, "offset": offset, "size": size, "image_sha256": digest, "raw_sha256": digest,
            "n_bytes": size, "width": 1, "height": 1, "format": "jpg",
        }  # fmt: skip

    def decide(self, row, resolved):
        return Drop("too_long", str(row["n_bytes"])) if row["n_bytes"] > self.params.max_bytes else None


class DigestImage(Stage):
    """SHA-256 of the stored image as it is read back; raises where it is another than was stored."""

    name = "digest_image"
    reads = ("image", "image_sha256")
    writes = {"read_sha256": pa.binary(32)}
    batch_size = 16

    def compute(self, rows, ctx):
        digests = [hashlib.sha256(row["image"].read()).digest() for row in rows]
        assert digests == [row["image_sha256"] for row in rows]
        return [{"read_sha256": digest} for digest in digests]


class Slow(Stage):
    """Takes `seconds` per batch of 10 rows."""

    name = "slow"
    reads = ("value",)
    writes = {"twice": pa.int64()}
    batch_size = 10

    class Params(Params):
        seconds: float = tunes(0.0, "sleep per batch")

    def compute(self, rows, ctx):
        time.sleep(self.params.seconds)
        return [{"twice": 2 * row["value"]} for row in rows]


class Told(Stage):
    """Fails every row with a detail that names `url`."""

    name = "told"
    reads = ("value",)
    writes = {"never": pa.int64()}

    class Params(Params):
        url: str

    def compute(self, rows, ctx):
        return [Failure("http_4xx", f"redirected to {self.params.url}") for _ in rows]
