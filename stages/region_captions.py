"""region_captions: a few words for what lies in each found box, by a multimodal language model that is shown the part cut out (VESL, RegionBLIP).

The boxes are those of a `regions` stage; its phrases stay as they are, so that both can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import Fatal
from pipeline.stage import Context, Row, Values
from schemas.outcome import Failure
from stages.chat_rows import ChatParams, ChatStage, load_prompt
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, image_digest
from stages.prompts import Prompt

REGION_CAPTION = pa.struct([("box", pa.list_(pa.float32())), ("phrase", pa.string()), ("caption", pa.string()), ("failure", pa.string())])
_NO_FIELDS: dict[str, str] = {}


class RegionCaptionsParams(ChatParams):
    """Each region is one request."""

    of: str = Field("regions", description="name of the regions stage whose boxes are described", min_length=1)
    max_regions: int = Field(8, description="regions of a row that are described: its best ones", ge=1)
    min_side: int = Field(16, description="a part whose shorter side has fewer pixels, after the model's pixel cap, is not asked about", ge=1)
    margin: float = Field(0.0, description="what is shown around a box, as a share of its sides", ge=0, le=1)
    max_tokens: int = Field(24, description="most tokens of a caption; a longer one is left out as truncated", ge=1)


class RegionCaptions(ChatStage):
    """Captions the part of the image in each region.

    Adds `region_captions`: box, phrase and caption of each region, in the order of the regions; a caption that fails is null with its reason.
    """

    name: ClassVar[str] = "region_captions"
    version: ClassVar[int] = 1
    Params = RegionCaptionsParams
    params: RegionCaptionsParams
    writes = {"region_captions": pa.list_(REGION_CAPTION)}
    on_failure = "keep"
    seconds_per_row = 1.0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The image and the boxes."""
        return ("image", f"{self.params.of}.regions")

    @property
    def prompts_used(self) -> list[Prompt]:
        return [load_prompt("caption_region", f"stages.{self.instance}")]

    def _regions(self, row: Row) -> list[dict[str, Any]]:
        return (row[f"{self.params.of}.regions"] or [])[: self.params.max_regions]

    def prepare(self, rows: Sequence[Row], ctx: Context) -> list[ChatRequest | Failure | None]:
        """One request per region, row after row; None for a part that is too small. The image of a row without regions is not decoded."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        given = [_NO_FIELDS if self._regions(row) else None for row in rows]
        pixels = self._pixels(rows, given, int(ctx.model.describe()["max_pixels"]), ctx)
        (prompt,) = self.prompts_used
        requests: list[ChatRequest | Failure | None] = []
        for row, image in zip(rows, pixels, strict=True):
            for region in self._regions(row):
                if isinstance(image, Failure):
                    requests.append(image)
                    continue
                part = cut_out(image, region["box"], self.params.margin)
                big = min(part.shape[:2]) >= self.params.min_side
                requests.append(ChatRequest(prompt.system, prompt.render(), part, image_digest(part), Sampling(self.params.max_tokens)) if big else None)
        return requests

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """A row fails only where its image could not be decoded."""
        results: list[Values | Failure] = []
        start = 0
        for row in rows:
            regions = self._regions(row)
            own = answer[start : start + len(regions)]
            start += len(regions)
            if regions and all(isinstance(one, Failure) for one in own):
                results.append(own[0])
                continue
            results.append({"region_captions": [_entry(region, one) for region, one in zip(regions, own, strict=True)]})
        return results


def cut_out(image: np.ndarray, box: Sequence[float], margin: float = 0.0) -> np.ndarray:
    """The part of an image [H, W, 3] within a box (left, top, right, bottom as shares), at least one pixel a side."""
    height, width = image.shape[:2]
    wide, high = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    left, top = int(max(0.0, box[0] - wide) * width), int(max(0.0, box[1] - high) * height)
    right, bottom = int(np.ceil(min(1.0, box[2] + wide) * width)), int(np.ceil(min(1.0, box[3] + high) * height))
    return np.ascontiguousarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])


def _entry(region: dict[str, Any], answer: ChatAnswer | Failure | None) -> dict[str, Any]:
    """One region with its caption, or why it has none."""
    caption, failure = None, None
    if answer is None:
        failure = "too_small"
    elif isinstance(answer, Failure):
        failure = str(answer.code)
    elif answer.finish_reason != "stop" or not any(map(str.isalnum, answer.text)):
        failure = "refusal" if answer.finish_reason == "refused" else "truncated" if answer.finish_reason == "length" else "bad_answer"
    else:
        caption = " ".join(answer.text.split())
    return {"box": region["box"], "phrase": region["phrase"], "caption": caption, "failure": failure}
