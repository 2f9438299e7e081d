"""perplexity: how predictable a text is to a language model; drops texts outside a window (RealSyn, arXiv 2502.12513, sentence filtration).

Low: stock sentences that a model knows by heart. High: keyword lists and garbled text. RealSyn keeps 30 to 200 by GPT2-large, the mean of three
annotators' limits [paper]; the window belongs to one model, and is to be set anew for another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import stage as machine
from pipeline.errors import Fatal
from pipeline.stage import Context, Row, Stage, Values, decides
from schemas.outcome import Drop, Failure, Reason
from stages.chat_rows import best_text


class PerplexityParams(machine.Params):
    """The language model, and the window."""

    model: str = Field("lm", description="name of a model of kind causal_lm in the recipe's models table")
    min: float | None = decides(30.0, "least perplexity (perplexity); belongs to the model, RealSyn's with GPT2-large; null: no limit", ge=1)
    max: float | None = decides(200.0, "highest perplexity (perplexity), as `min`; null: no limit", ge=1)

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so no row could stay")
        return self


class Perplexity(Stage):
    """Measures the best text of a row (the first of its texts) and drops the row outside the window. Without a text it is dropped too."""

    name: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    Params = PerplexityParams
    params: PerplexityParams
    reads = ("texts|text|alt_text",)
    writes = {"perplexity": pa.float32(), "perplexity_tokens": pa.int32()}
    batch_size = 256
    model_method = "perplexity"
    seconds_per_row = 0.05

    def prepare(self, rows: Sequence[Row], ctx: Context) -> list[str]:
        """The best text of each row that has one."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        return [text for row in rows if (text := best_text(row)) is not None]

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """Perplexity and the tokens it is the mean of; nulls without a text."""
        measured = iter(answer)
        results: list[Values | Failure] = []
        for row in rows:
            found, tokens = (None, None) if best_text(row) is None else next(measured)
            results.append({"perplexity": found, "perplexity_tokens": tokens})
        return results

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """`perplexity` outside the window, or where there is none."""
        found, low, high = row["perplexity"], self.params.min, self.params.max
        if found is None:
            return Drop(Reason.PERPLEXITY, "no text, or one of a single token")
        if low is not None and found < low:
            return Drop(Reason.PERPLEXITY, f"{found:.1f} < {low:g}")
        if high is not None and found > high:
            return Drop(Reason.PERPLEXITY, f"{found:.1f} > {high:g}")
        return None
