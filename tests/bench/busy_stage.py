"""Plug-ins of the orchestration benchmark: a source of counted rows and a stage that keeps one core busy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.stage import Params as BaseParams
from pipeline.stage import Source, Stage


class Counter(Source):
    """Rows with a counted id, a URL of 60 characters and a text of 40."""

    name = "counter"

    class Params(BaseParams):
        rows: int

    def fingerprint(self) -> str:
        return digest_of("counter", self.params.rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.params.rows, 10_000):
            n = np.arange(start, min(start + 10_000, self.params.rows))
            yield pa.record_batch(
                {
                    "sample_id": pa.array([int(i).to_bytes(16, "big") for i in n], pa.binary(16)),
                    "url": [f"https://images.example.org/photos/2026/11/22/{i:012d}.jpg" for i in n],
                    "alt_text": [f"a photograph of thing number {i:010d}" for i in n],
                    "alt_text_cut": pa.array(np.zeros(len(n), bool)),
                    "failure": pa.nulls(len(n), pa.string()),
                    "failure_detail": pa.nulls(len(n), pa.string()),
                }
            )


class Busy(Stage):
    """Keeps a core busy for `ms` over the part and gives each row a number; every tenth part of the rows is judged, all kept."""

    name = "busy"
    reads = ("alt_text",)
    writes = {"number": pa.int64()}
    batch_size = None

    class Params(BaseParams):
        ms: float

    def compute(self, rows, ctx):
        started = time.perf_counter()
        values = [{"number": len(row["alt_text"])} for row in rows]
        while time.perf_counter() - started < self.params.ms / 1000:
            pass
        folder = os.environ["PAIRMILL_BENCH_BUSY"]
        (Path(folder) / f"{self.instance}-{ctx.part}").write_text(str(time.perf_counter() - started))
        return values

    def decide(self, row, resolved):
        return None
