"""download: fetch every URL, check and normalise what comes, store the bytes, and give each failure its reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from pipeline.errors import RecipeError
from pipeline.stage import Context, Row, Values, decides, tunes
from schemas.outcome import Drop, Failure, Reason
from stages.images import event_loop
from stages.images.collect import STORED_COLUMNS
from stages.images.fetch import USER_AGENT, Fetched, FetchOptions, fetch_all
from stages.images.given_hashes import given_hashes, hash_problem
from stages.images.host_slots import MAX_PER_HOST, slots_of_run
from stages.images.robots import ALLOWED
from stages.images.web_client import with_environment
from stages.storing import StoringParams, StoringStage


class DownloadParams(StoringParams):
    """How URLs are fetched, beside what every stage that stores images takes."""

    concurrency: int = tunes(64, "requests under way at a time, per part", ge=1)
    per_host: int = tunes(16, "requests under way at a time to one host, over the whole run", ge=1, le=MAX_PER_HOST)
    per_host_rate: float | None = tunes(None, "requests begun per second at one host, over the whole run", gt=0)
    timeout_s: float = tunes(10.0, "seconds for one try: name lookup, redirects, headers and body", gt=0)
    retries: int = tunes(1, "further tries after a failure that may pass (timeout, reset, connect, 5xx); some more after a 429", ge=0)
    max_wait_s: float = tunes(60.0, "longest Retry-After that is waited for; rows of a host that asks for more fail", ge=0)
    give_up_host_after: int = tunes(50, "rows in a row that a host does not answer before the part asks it no more", ge=1)
    proxy: str | None = tunes(None, "URL of an HTTP proxy, for example http://user:${PROXY_PASSWORD}@proxy:3128")
    trust_env: bool = tunes(False, "take HTTP_PROXY, HTTPS_PROXY and NO_PROXY from the environment")
    max_redirects: int = Field(5, description="redirects followed, each one checked", ge=0)
    user_agent: str = Field(USER_AGENT, description="User-Agent header")
    allow_private: bool = Field(False, description="also fetch from private, loopback and link-local addresses")
    headers: dict[str, str] = Field({}, description="further headers, sent to every host; ${NAME} stands for an environment variable")
    robots: bool = Field(False, description="ask each host's robots.txt, and leave what it forbids")
    sha256_column: str | None = Field(None, description="column of the input with the SHA-256 (hex) that the fetched bytes must have")
    md5_column: str | None = Field(None, description="column of the input with the MD5 (hex) that the fetched bytes must have")
    honor_opt_out: bool = decides(True, "leave images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex: never stored")

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("http://"):
            raise ValueError("must begin with http:// (an HTTP proxy; https URLs go through it by CONNECT)")
        return value


class Download(StoringStage):
    """Fetch, check and store images; fails rows with the reason, drops opted-out and wrongly sized ones."""

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    Params = DownloadParams
    params: DownloadParams
    writes = {
        **STORED_COLUMNS, "http_status": pa.int16(), "content_type": pa.string(), "opted_out": pa.string(), "robots": pa.string(),
        "checked_at": pa.timestamp("ms", "UTC"),
    }  # fmt: skip
    seconds_per_row = 0.01

    @property
    def reads(self) -> Sequence[str]:  # type: ignore[override]
        return ("url", "sample_id", *given_hashes(self.params.sha256_column, self.params.md5_column))

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Fetch all rows of a part; bytes go to `ctx.blobs` in the order of completion."""
        collector = self.collector(rows, ctx, fetch_values)
        hashes = given_hashes(self.params.sha256_column, self.params.md5_column)

        arrived: deque[int] = deque()  # rows not yet reported, in the order in which they came

        async def handle(fetched: Fetched) -> None:
            if hashes and fetched.body:
                fetched.failure = hash_problem(fetched.body, rows[fetched.row], hashes)
            arrived.append(fetched.row)
            await collector.handle(fetched)
            # A broken network must stop the run before the part's end. A failure waits for images that came before it and
            # are still being decoded: in the order of completion quick failures would seem to be all there is.
            while arrived and (outcome := collector.found[arrived[0]]) is not None:
                ctx.report(arrived.popleft(), outcome)

        slots = slots_of_run(ctx.run, self.params.per_host, self.params.per_host_rate, ctx.nodes, -(-ctx.workers // ctx.nodes))
        event_loop.run(fetch_all([row["url"] for row in rows], self._options(), handle, slots))
        return collector.results()

    def _options(self) -> FetchOptions:
        chosen = self.params
        try:
            headers = {name: with_environment(value, f"{self.instance}.headers.{name}") for name, value in chosen.headers.items()}
            proxy = with_environment(chosen.proxy, f"{self.instance}.proxy") if chosen.proxy else None
        except ValueError as error:
            raise RecipeError(str(error)) from error
        return FetchOptions(
            concurrency=chosen.concurrency, per_host=chosen.per_host, per_host_rate=chosen.per_host_rate, timeout_s=chosen.timeout_s,
            max_bytes=chosen.max_bytes, max_redirects=chosen.max_redirects, retries=chosen.retries, max_wait_s=chosen.max_wait_s,
            give_up_host_after=chosen.give_up_host_after, user_agent=chosen.user_agent, headers=headers, proxy=proxy,
            trust_env=chosen.trust_env, allow_private=chosen.allow_private, refuse_opted_out=chosen.honor_opt_out, robots=chosen.robots,
        )  # fmt: skip

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Drops robots_refused and opted_out rows, which were not stored, and too_small and aspect by the size as fetched."""
        if row["robots"] not in (None, ALLOWED):
            return Drop(Reason.ROBOTS_REFUSED, row["robots"])
        if row["opted_out"] is not None and self.params.honor_opt_out:
            return Drop(Reason.OPTED_OUT, f"X-Robots-Tag: {row['opted_out']}")
        return self.judge_size(row["original_width"], row["original_height"])

    def outdated(self, column: Callable[[str], pa.Array]) -> np.ndarray:
        """Opted-out images that are stored and must not be, or are not and may be (bool [N])."""
        opted_out, stored = column("opted_out").is_valid(), column("image_sha256").is_valid()
        wrong = pc.and_(opted_out, stored if self.params.honor_opt_out else pc.invert(stored))
        return wrong.to_numpy(zero_copy_only=False)


def fetch_values(fetched: Fetched) -> Values:
    """The columns that say how an image was fetched."""
    return {
        "http_status": fetched.status, "content_type": fetched.content_type, "opted_out": fetched.opted_out, "robots": fetched.robots,
        "checked_at": fetched.checked_at,
    }  # fmt: skip
