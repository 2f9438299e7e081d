"""What all stages that store images have in common: which images they take, how they store them, and limits of the size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import Fatal
from pipeline.stage import Context, Params, Row, Stage, Values, decides, tunes
from schemas.outcome import Drop, Reason
from stages.images.collect import Collector
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.decoders import DecoderLimits
from stages.images.fetch import Fetched
from stages.images.normalize import EncodeFormat, ImageRules, ResizeMode
from stages.presets import image_rules

LIMITS = ("min_short_side", "min_width", "min_height", "max_aspect", "min_aspect")


class StoringParams(Params):
    """Where a preset and a field both name a limit of the image size, the field holds."""

    max_bytes: int = Field(32 << 20, description="most bytes of an image as it comes; a longer one is too_large", ge=1)
    check: Literal["decode", "header"] = Field(
        "decode", description="decode: every stored image has been decoded whole; header: only its header was read"
    )
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)
    decode_timeout_s: float = tunes(20.0, "seconds for decoding one image; one that takes longer is decoder_hung", gt=0)
    decode_memory_mb: int = tunes(1536, "memory for decoding one image; one that needs more is decoder_memory", ge=64)
    pixel_limit: int = Field(DEFAULT_PIXEL_LIMIT, description="most pixels by the header, before decoding", ge=1)
    resize_mode: ResizeMode = Field("no", description="img2dataset's mode: no, border, keep_ratio, keep_ratio_largest, center_crop")
    image_size: int = Field(256, description="side in pixels that resize_mode brings an image to", ge=1)
    only_if_bigger: bool = Field(False, description="resize only images that are bigger than image_size")
    encode_format: EncodeFormat = Field("jpg", description="format of images that must be encoded anew")
    encode_quality: int = Field(95, description="1 to 100 for jpg and webp, compression level 0 to 9 for png", ge=0, le=100)
    preset: str | None = decides(None, "limits below as a published dataset has them: filip, wukong, wit, realsyn, ...")
    min_short_side: int | None = decides(None, "fewest pixels of the shorter side, as it came", ge=1)
    min_width: int | None = decides(None, "fewest pixels of the width, as it came", ge=1)
    min_height: int | None = decides(None, "fewest pixels of the height, as it came", ge=1)
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

    def image_rules(self) -> ImageRules:
        return ImageRules(
            resize_mode=self.resize_mode, image_size=self.image_size, only_if_bigger=self.only_if_bigger,
            encode_format=self.encode_format, encode_quality=self.encode_quality, check=self.check, pixel_limit=self.pixel_limit,
        )  # fmt: skip

    def decoder_limits(self) -> DecoderLimits:
        return DecoderLimits(self.decoders, self.decode_timeout_s, self.decode_memory_mb)


class StoringStage(Stage):
    """Base of the stages that store images: one call per part, since images stay under way from its first row to its last."""

    params: StoringParams
    batch_size = None
    writes_blobs = True

    @property
    def limits(self) -> dict[str, int | float | None]:
        """Limits of the image size that hold."""
        return {name: getattr(self.params, name) for name in LIMITS}

    def collector(self, rows: Sequence[Row], ctx: Context, describe: Callable[[Fetched], Values]) -> Collector:
        """What turns bodies into stored images and results; `describe` gives a row's columns beside STORED_COLUMNS."""
        if ctx.blobs is None:
            raise Fatal(f"{self.instance}: no place to store images in; this stage must be run by the pipeline")
        return Collector(rows, ctx.blobs, self.params.image_rules(), describe, self.params.decoder_limits(), ctx.workers, ctx.refuses)

    def judge_size(self, width: int, height: int) -> Drop | None:
        """too_small and aspect by the size as it came, in pixels."""
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
