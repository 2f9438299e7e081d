"""best_caption: of several captions of an image the best by a rule: CLIP similarity, as MacCap (Qiu et al. 2024) ranks its draws, or trust.

Candidates are stages with a column `text`: captioners and prompts side by side, or one prompt drawn several times at a temperature
(a caption's seed follows from its stage's name).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import Fatal
from pipeline.registry import nearest
from pipeline.stage import Context, Params, Row, Stage, Values
from schemas.outcome import Failure
from stages.stored_embeddings import stored_cosine


class BestCaptionParams(Params):
    """`of` names the candidates; with equal scores the one named first is taken."""

    of: tuple[str, ...] = Field(description="names of the caption stages to choose from, such as [caption_short, caption_long]", min_length=2)
    by: Literal["clip", "trust"] = Field("clip", description="clip: cosine with the stored image embedding; trust: that of the checks")
    model: str | None = Field(None, description="with `by: clip`: the CLIP of the clip_score stage before")
    checks: dict[str, str] = Field({}, description="with `by: trust`: the caption_check stage of each candidate, such as {caption_short: check_short}")

    @model_validator(mode="after")
    def _has_what_it_ranks_by(self) -> BestCaptionParams:
        if self.by == "clip" and self.model is None:
            raise ValueError("`by: clip` needs `model`, the CLIP of the clip_score stage before")
        missing = [of for of in self.of if of not in self.checks] if self.by == "trust" else []
        if missing:
            raise ValueError(f"`checks` has no caption_check for {missing[0]!r}; `by: trust` needs one for each candidate")
        unknown = [of for of in self.checks if of not in self.of]
        if unknown:
            raise ValueError(f"checks: {unknown[0]!r} is not among `of`{nearest(unknown[0], self.of)}")
        return self


class BestCaption(Stage):
    """Takes the best of several captions of a row by a rule; a row without any candidate is kept without one."""

    name: ClassVar[str] = "best_caption"
    version: ClassVar[int] = 1
    Params = BestCaptionParams
    params: BestCaptionParams
    writes = {
        "text": pa.string(),
        "of": pa.string(),
        "score": pa.float32(),
        "scores": pa.list_(pa.float32()),
    }
    on_failure = "keep"
    bare_names = False
    seconds_per_row = 5e-3

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The candidates, and what they are ranked by."""
        texts = [f"{of}.text" for of in self.params.of]
        return (*texts, "image_emb") if self.params.by == "clip" else (*texts, *(f"{self.params.checks[of]}.trust" for of in self.params.of))

    @property
    def model_method(self) -> str:  # type: ignore[override]
        return "embed" if self.params.by == "clip" else ""

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """By trust: no model is asked."""
        return [self._chosen(row, [row[f"{self.params.checks[of]}.trust"] for of in self.params.of]) for row in rows]

    def prepare(self, rows: Sequence[Row], ctx: Context) -> dict[str, Any]:
        """All candidates as texts for the CLIP (no images)."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        size = int(ctx.model.describe()["image_size"])
        return {"images": np.empty((0, size, size, 3), np.uint8), "texts": [text for row in rows for text in self._texts(row) if text]}

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """By CLIP: the cosine of each candidate's embedding [D] with the image's."""
        embedded = iter(answer["text"])
        results: list[Values | Failure] = []
        for row in rows:
            found = [next(embedded) if text else None for text in self._texts(row)]
            where = f"{self.instance}: model {self.params.model!r}"
            results.append(self._chosen(row, [None if one is None else stored_cosine(row["image_emb"], one, where) for one in found]))
        return results

    def _texts(self, row: Row) -> list[str]:
        return [(row[f"{of}.text"] or "").strip() for of in self.params.of]

    def _chosen(self, row: Row, scores: Sequence[float | None]) -> Values:
        """The candidate of the highest score; `scores` in the order of `of`, null for one that is missing."""
        texts = self._texts(row)
        ranked = [(score, -at) for at, (text, score) in enumerate(zip(texts, scores, strict=True)) if text and score is not None]
        if not ranked:
            return {"text": None, "of": None, "score": None, "scores": list(scores)}
        score, place = max(ranked)
        return {"text": texts[-place], "of": self.params.of[-place], "score": score, "scores": list(scores)}
