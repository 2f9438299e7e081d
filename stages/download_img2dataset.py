"""download_img2dataset: as `download`, with img2dataset's own downloader doing the fetching."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.stage import Context, Row, Values, tunes
from schemas.outcome import Drop, Failure, FailureCode, Reason, cap_detail
from stages.download import Download, fetch_values
from stages.images import event_loop
from stages.images.collect import Collector
from stages.images.fetch import Fetched
from stages.images.img2dataset_engine import SUCCESS, EngineOptions, EngineRow, check_installed, fetch_with_img2dataset, reason_of
from stages.storing import StoringParams, StoringStage


class DownloadImg2datasetParams(StoringParams):
    """How img2dataset is called, beside what every stage that stores images takes."""

    processes: int = tunes(1, "its processes_count, per part", ge=1)
    threads: int = tunes(64, "its thread_count", ge=1)
    timeout_s: int = tunes(10, "its timeout: seconds for the connection and for each read (not for the whole, as in `download`)", ge=1)
    retries: int = tunes(0, "its retries, after any failure", ge=0)
    part_timeout_s: float = tunes(3600.0, "seconds for a part; rows that it has not come to then fail as timeout", gt=0)
    user_agent_token: str | None = Field(None, description="its user_agent_token, named in the User-Agent header")
    honor_opt_out: bool = Field(True, description="leave images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex: never stored")
    allow_private: bool = Field(
        False, description="must be true: img2dataset connects to every address that a URL or redirect names, private ones too, and reads file:// URLs"
    )

    @model_validator(mode="after")
    def _check_addresses(self) -> Self:
        if not self.allow_private:
            raise ValueError(
                "allow_private: img2dataset does not refuse private, loopback and link-local addresses; say allow_private: true if that is no risk here, "
                "or use `download`"
            )
        return self


class DownloadImg2dataset(StoringStage):
    """Fetch with img2dataset, then check and store images; the columns, reasons and rules are those of `download`.

    It writes no HTTP status and no content type, so these columns are null; the code comes from its message, which stays as
    detail. Needs the extra pairmill[img2dataset].
    """

    name: ClassVar[str] = "download_img2dataset"
    version: ClassVar[int] = 1
    Params = DownloadImg2datasetParams
    params: DownloadImg2datasetParams
    reads = ("url", "sample_id")
    writes = Download.writes
    seconds_per_row = 0.01

    def setup(self, ctx: Context) -> None:
        check_installed()

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Fetch all rows of a part in a process of its own; bytes go to `ctx.blobs` in the order it wrote them."""
        collector = self.collector(rows, ctx, fetch_values)
        event_loop.run(self._collect(rows, collector))
        return collector.results()

    async def _collect(self, rows: Sequence[Row], collector: Collector) -> None:
        chosen = self.params
        options = EngineOptions(
            chosen.processes, chosen.threads, chosen.timeout_s, chosen.retries, chosen.user_agent_token, chosen.honor_opt_out, chosen.part_timeout_s
        )
        waiting = {at for at, row in enumerate(rows) if (row["url"] or "").strip()}
        for at in sorted(set(range(len(rows))) - waiting):
            await collector.handle(Fetched(at, failure=Failure(FailureCode.BAD_ROW, "url is empty")))
        with tempfile.TemporaryDirectory(prefix="pairmill-img2dataset-") as folder:
            urls = [(at, rows[at]["url"].strip()) for at in sorted(waiting)]
            for found in fetch_with_img2dataset(urls, Path(folder), options) if urls else ():
                if found.row in waiting:
                    waiting.remove(found.row)
                    await collector.handle(self._fetched(found, rows[found.row]["url"]))
        for at in sorted(waiting):
            await collector.handle(Fetched(at, failure=Failure(FailureCode.TIMEOUT, "img2dataset gave no answer for this row")))

    def _fetched(self, found: EngineRow, url: str) -> Fetched:
        if found.status != SUCCESS:
            code = reason_of(found.status, found.message)
            if code == Reason.OPTED_OUT:
                return Fetched(found.row, url, opted_out=cap_detail(found.message))
            return Fetched(found.row, url, failure=Failure(code, cap_detail(found.message)))
        if not found.body:
            return Fetched(found.row, url, failure=Failure(FailureCode.EMPTY_BODY, "the body is empty"))
        if len(found.body) > self.params.max_bytes:
            return Fetched(found.row, url, failure=Failure(FailureCode.TOO_LARGE, f"{len(found.body)} bytes, more than max_bytes {self.params.max_bytes}"))
        return Fetched(found.row, url, body=found.body)

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Drops opted_out rows, and too_small and aspect by the size as fetched."""
        if row["opted_out"] is not None:
            return Drop(Reason.OPTED_OUT, row["opted_out"])
        return self.judge_size(row["original_width"], row["original_height"])
