"""regions: boxes of what a caption names, by CLOC's recipe VESL (Chen et al. 2024, arXiv 2410.02746, section on pseudo-labels).

Noun phrases of a caption (stages/text/phrases.py, at most 20) are the queries of an open-vocabulary detector; boxes above 0.1 are kept, each
with its most confident phrase. The caption is the first step of VESL: another instance, named by `of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.errors import Fatal
from pipeline.stage import Context, Params, Row, Stage, Values, tunes
from schemas.outcome import Failure, FailureCode
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.models.detection import Detection, checked_box
from stages.text.phrases import MAX_PHRASES, noun_phrases

REGION = pa.struct([("box", pa.list_(pa.float32())), ("phrase", pa.string()), ("score", pa.float32())])
"""box: left, top, right, bottom as shares of the image's width and height, 0 to 1."""


class RegionsParams(Params):
    """The defaults are CLOC's: at most 20 queries, boxes above 0.1."""

    model: str = Field("detector", description="name of a model of kind owlv2 or crop_detector in the recipe's models table")
    of: str = Field("text", description="what is asked for: 'text' is the row's best text, else the name of a caption stage", min_length=1)
    max_phrases: int = Field(MAX_PHRASES, description="noun phrases of the text that are asked for: its first ones", ge=1, le=MAX_PHRASES)
    min_score: float = Field(0.1, description="boxes are kept whose score is above it", ge=0, lt=1)
    max_boxes: int = Field(100, description="boxes of a row that are kept: its best ones", ge=1)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class Regions(Stage):
    """Finds the noun phrases of a caption in its image. A row without a text has no regions; one whose image fails is kept without."""

    name: ClassVar[str] = "regions"
    version: ClassVar[int] = 1
    Params = RegionsParams
    params: RegionsParams
    writes = {"regions": pa.list_(REGION), "region_phrases": pa.list_(pa.string())}
    on_failure = "keep"
    batch_size = 16
    model_method = "detect"
    seconds_per_row = 1.0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The image and the text that is asked for."""
        return ("image", self._text)

    @property
    def _text(self) -> str:
        return "text|alt_text" if self.params.of == "text" else f"{self.params.of}.text"

    def prepare(self, rows: Sequence[Row], ctx: Context) -> dict[str, Any]:
        """Images (uint8 [H, W, 3], decoded and scaled to the detector's pixel cap in the sandbox) and phrases of the rows that can be asked."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        max_pixels = int(ctx.model.describe()["max_pixels"])
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        queries = [noun_phrases(row[self._text.split("|")[0]] or "", self.params.max_phrases) for row in rows]
        waiting = [decoders.fit(row["image"].read(), max_pixels) if row["image"] is not None else None for row in rows]
        failures: dict[int, Failure] = {}
        images, phrases = [], []
        for at, future in enumerate(waiting):
            pixels = future.result() if future is not None else Failure(FailureCode.BAD_ROW, "the row has no stored image")
            if isinstance(pixels, Failure):
                failures[at] = pixels
            else:
                images.append(pixels)
                phrases.append(queries[at])
        return {"images": images, "phrases": phrases, "queries": queries, "failures": failures}

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """The checked boxes of each row, best first, and the phrases that were asked for."""
        failures: Mapping[int, Failure] = answer["failures"]
        found = iter(answer["detections"])
        return [failures.get(at) or self._values(next(found), answer["queries"][at]) for at in range(len(rows))]

    def _values(self, detections: Sequence[Detection], queries: list[str]) -> Values:
        """Boxes above `min_score`, clipped to the image, with a phrase that was asked for. Raises Fatal for a detector that invents phrases."""
        regions = []
        for detection in sorted(detections, key=lambda one: -one.score):
            if detection.phrase not in queries:
                raise Fatal(f"{self.instance}: the detector answered {detection.phrase!r}, which was not asked for: a mistake of model {self.params.model!r}")
            box = checked_box([round(edge, 4) for edge in detection.box])
            if box is not None and detection.score > self.params.min_score:
                regions.append({"box": list(box), "phrase": detection.phrase, "score": round(detection.score, 4)})
        return {"regions": regions[: self.params.max_boxes], "region_phrases": queries}
