"""image_hash: perceptual hashes of every image, for near_dup and whatever else compares images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Params, Row, Stage, Values, Vector, tunes
from schemas.outcome import Failure, FailureCode
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.images.hashes import has_pdq


class ImageHashParams(Params):
    """Which hashes are computed."""

    pdq: bool = Field(True, description="compute PDQ (256 bits; the package pdqhash) beside the 64-bit pHash")
    mirrored: bool = Field(False, description="also hash the left-right mirror image, so that mirrored copies are found")
    rotated: bool = Field(False, description="also hash the image turned by 90, 180 and 270 degrees (with mirrored: all eight copies)")
    trimmed: bool = Field(False, description="hash the image without its border of one colour, so that copies with a border are found")
    thumbnail: bool = Field(False, description="also store a copy of 32 x 32 pixels (1,536 bytes), which crop_dup compares")
    pixel_limit: int = Field(DEFAULT_PIXEL_LIMIT, description="most pixels by the header, before decoding", ge=1)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class ImageHash(Stage):
    """Hashes every stored image: a 64-bit pHash and PDQ, each with how much there is to see (0 flat to 100 busy).

    Put before clip_score, so that a moved score needs no image again, and the hashing overlaps the download.
    """

    name: ClassVar[str] = "image_hash"
    version: ClassVar[int] = 1
    Params = ImageHashParams
    params: ImageHashParams
    reads = ("image",)
    batch_size = 64
    decodes_images = True
    seconds_per_row = 0.015

    @property
    def writes(self) -> Mapping[str, ColumnType]:  # type: ignore[override]
        columns: dict[str, ColumnType] = {"phash": pa.binary(), "phash_quality": pa.int16(), "phash_turned": pa.binary()}
        columns |= {"thumbnail": Vector("uint8")} if self.params.thumbnail else {}
        return columns | ({"pdq": pa.binary(), "pdq_quality": pa.int16(), "pdq_turned": pa.binary()} if self.params.pdq else {})

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where PDQ is wanted and cannot be computed."""
        if self.params.pdq and not has_pdq():
            need = "PDQ needs the package pdqhash (pip install 'pairmill[pdq]')"
            raise RecipeError(f"stages.{self.instance}: {need}; or set pdq: false, and by: phash in near_dup")

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Decode and hash in the sandbox."""
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        names = ("pdq", "mirrored", "rotated", "trimmed", "thumbnail", "pixel_limit")
        wanted = {name: getattr(self.params, name) for name in names}
        futures = [decoders.hashes(row["image"].read(), **wanted) if row["image"] is not None else None for row in rows]
        missing = Failure(FailureCode.BAD_ROW, "the row has no stored image")
        return [future.result() if future is not None else missing for future in futures]
