"""download: fetch every URL, check and normalise what comes, store the bytes, and give each failure its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.stage import Context, Row, Values, tunes
from schemas.outcome import Drop, Failure, Reason
from stages.images.collect import STORED_COLUMNS
from stages.images.fetch import USER_AGENT, Fetched, FetchOptions, fetch_all
from stages.storing import StoringParams, StoringStage


class DownloadParams(StoringParams):
    """How URLs are fetched, beside what every stage that stores images takes."""

    concurrency: int = tunes(64, "requests under way at a time, per part", ge=1)
    per_host: int = tunes(16, "requests under way at a time to one host, per part", ge=1)
    timeout_s: float = tunes(10.0, "seconds for one try: name lookup, redirects, headers and body", gt=0)
    retries: int = tunes(1, "further tries after a failure that may pass (timeout, reset, connect, 5xx, 429)", ge=0)
    max_redirects: int = Field(5, description="redirects followed, each one checked", ge=0)
    user_agent: str = Field(USER_AGENT, description="User-Agent header")
    allow_private: bool = Field(False, description="also fetch from private, loopback and link-local addresses")
    honor_opt_out: bool = Field(
        True, description="leave images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex: never stored"
    )


class Download(StoringStage):
    """Fetch, check and store images; fails rows with the reason, drops opted-out and wrongly sized ones."""

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    Params = DownloadParams
    params: DownloadParams
    reads = ("url", "sample_id")
    writes = {**STORED_COLUMNS, "http_status": pa.int16(), "content_type": pa.string(), "opted_out": pa.string()}
    seconds_per_row = 0.01

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Fetch all rows of a part; bytes go to `ctx.blobs` in the order of completion."""
        collector = self.collector(rows, ctx, fetch_values)
        options = FetchOptions(
            concurrency=self.params.concurrency, per_host=self.params.per_host, timeout_s=self.params.timeout_s,
            max_bytes=self.params.max_bytes, max_redirects=self.params.max_redirects, retries=self.params.retries,
            user_agent=self.params.user_agent, allow_private=self.params.allow_private,
            refuse_opted_out=self.params.honor_opt_out,
        )  # fmt: skip
        asyncio.run(fetch_all([row["url"] for row in rows], options, collector.handle))
        return collector.results()

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Drops opted_out rows that were not stored, and too_small and aspect by the size as fetched."""
        if row["opted_out"] is not None and self.params.honor_opt_out:
            return Drop(Reason.OPTED_OUT, f"X-Robots-Tag: {row['opted_out']}")
        return self.judge_size(row["original_width"], row["original_height"])


def fetch_values(fetched: Fetched) -> Values:
    """The columns that say how an image was fetched."""
    return {"http_status": fetched.status, "content_type": fetched.content_type, "opted_out": fetched.opted_out}
