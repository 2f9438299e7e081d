"""download: fetch every URL, check and normalise what comes, store the bytes, and give each failure its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import Fatal
from pipeline.stage import Context, Params, Row, Stage, Values, decides, tunes
from schemas.outcome import Drop, Failure, Reason
from stages.images.collect import STORED_COLUMNS, Collector
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.fetch import USER_AGENT, Fetched, FetchOptions, fetch_all
from stages.images.normalize import EncodeFormat, ImageRules, ResizeMode
from stages.presets import image_rules

LIMITS = ("min_short_side", "min_width", "min_height", "max_aspect", "min_aspect")


class DownloadParams(Params):
    """Where a preset and a field both name a limit of the image size, the field holds."""

    concurrency: int = tunes(64, "requests under way at a time, per part", ge=1)
    per_host: int = tunes(16, "requests under way at a time to one host, per part", ge=1)
    timeout_s: float = tunes(10.0, "seconds for one try: name lookup, redirects, headers and body", gt=0)
    retries: int = tunes(1, "further tries after a failure that may pass (timeout, reset, connect, 5xx, 429)", ge=0)
    max_bytes: int = Field(32 << 20, description="longest body in bytes; a longer one is too_large", ge=1)
    max_redirects: int = Field(5, description="redirects followed, each one checked", ge=0)
    user_agent: str = Field(USER_AGENT, description="User-Agent header")
    allow_private: bool = Field(False, description="also fetch from private, loopback and link-local addresses")
    honor_opt_out: bool = Field(
        True, description="leave images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex: never stored"
    )
    check: Literal["decode", "header"] = Field(
        "decode", description="decode: every stored image has been decoded whole; header: only its header was read"
    )
    pixel_limit: int = Field(DEFAULT_PIXEL_LIMIT, description="most pixels by the header, before decoding", ge=1)
    resize_mode: ResizeMode = Field("no", description="img2dataset's mode: no, border, keep_ratio, keep_ratio_largest, center_crop")
    image_size: int = Field(256, description="side in pixels that resize_mode brings an image to", ge=1)
    only_if_bigger: bool = Field(False, description="resize only images that are bigger than image_size")
    encode_format: EncodeFormat = Field("jpg", description="format of images that must be encoded anew")
    encode_quality: int = Field(95, description="1 to 100 for jpg and webp, compression level 0 to 9 for png", ge=0, le=100)
    preset: str | None = decides(None, "limits below as a published dataset has them: filip, wukong, wit, realsyn, ...")
    min_short_side: int | None = decides(None, "fewest pixels of the shorter side, as fetched", ge=1)
    min_width: int | None = decides(None, "fewest pixels of the width, as fetched", ge=1)
    min_height: int | None = decides(None, "fewest pixels of the height, as fetched", ge=1)
    max_aspect: float | None = decides(None, "longer side over shorter side at most", ge=1)
    min_aspect: float | None = decides(None, "width over height at least", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, raw: Any) -> Any:
        """A preset fills in the limits that the recipe does not name (null, too, names one: no limit)."""
        if isinstance(raw, Mapping) and raw.get("preset"):
            return {**image_rules(str(raw["preset"])), **raw}
        return raw

    @model_validator(mode="after")
    def _check_quality(self) -> Self:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality: a png takes a compression level of 0 to 9, not {self.encode_quality}")
        return self


class Download(Stage):
    """Fetch, check and store images; fails rows with the reason, drops opted-out and wrongly sized ones."""

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    Params = DownloadParams
    params: DownloadParams
    reads = ("url", "sample_id")
    writes = {**STORED_COLUMNS, "http_status": pa.int16(), "content_type": pa.string(), "opted_out": pa.string()}
    batch_size = None  # the whole part: requests stay in flight from its first row to its last
    writes_blobs = True
    seconds_per_row = 0.01

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Fetch all rows of a part; bytes go to `ctx.blobs` in the order of completion."""
        if ctx.blobs is None:
            raise Fatal(f"{self.instance}: no place to store images in; this stage must be run by the pipeline")
        collector = Collector(rows, ctx.blobs, self._image_rules(), fetch_values)
        options = FetchOptions(
            concurrency=self.params.concurrency, per_host=self.params.per_host, timeout_s=self.params.timeout_s,
            max_bytes=self.params.max_bytes, max_redirects=self.params.max_redirects, retries=self.params.retries,
            user_agent=self.params.user_agent, allow_private=self.params.allow_private,
            refuse_opted_out=self.params.honor_opt_out,
        )  # fmt: skip

        async def handle(fetched: Fetched) -> None:
            await collector.handle(fetched)
            ctx.report(fetched.row, collector.found[fetched.row] or {})  # a broken network must stop the run before the part's end

        asyncio.run(fetch_all([row["url"] for row in rows], options, handle))
        return collector.results()

    def _image_rules(self) -> ImageRules:
        chosen = self.params
        return ImageRules(
            resize_mode=chosen.resize_mode, image_size=chosen.image_size, only_if_bigger=chosen.only_if_bigger,
            encode_format=chosen.encode_format, encode_quality=chosen.encode_quality, check=chosen.check,
            pixel_limit=chosen.pixel_limit,
        )  # fmt: skip

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Drops opted_out rows that were not stored, and too_small and aspect by the size as fetched."""
        if row["opted_out"] is not None and self.params.honor_opt_out:
            return Drop(Reason.OPTED_OUT, f"X-Robots-Tag: {row['opted_out']}")
        return self._judge_size(row["original_width"], row["original_height"])

    @property
    def limits(self) -> dict[str, int | float | None]:
        """Limits of the image size that hold."""
        return {name: getattr(self.params, name) for name in LIMITS}

    def _judge_size(self, width: int, height: int) -> Drop | None:
        short, limits = min(width, height), self.limits
        for name, pixels in (("min_short_side", short), ("min_width", width), ("min_height", height)):
            limit = limits[name]
            if limit is not None and pixels < limit:
                return Drop(Reason.TOO_SMALL, f"{width} x {height} pixels, {name} {limit}")
        most, least = limits["max_aspect"], limits["min_aspect"]
        if most is not None and max(width, height) > most * short:
            return Drop(Reason.ASPECT, f"{width} x {height} pixels, max_aspect {most:g}")
        if least is not None and width < least * height:
            return Drop(Reason.ASPECT, f"{width} x {height} pixels, min_aspect {least:g}")
        return None


def fetch_values(fetched: Fetched) -> Values:
    """The columns that say how an image was fetched."""
    return {"http_status": fetched.status, "content_type": fetched.content_type, "opted_out": fetched.opted_out}
