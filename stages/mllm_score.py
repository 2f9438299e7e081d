"""mllm_score: four scores from 0 to 100 for image and text, by a multimodal language model.

The aspects and the reading of an answer are MLM-Filter's (Wang et al. 2024, arXiv 2403.02677), as Open-Qwen2VL (arXiv 2504.00595) uses them; thresholds
from their code. The wording of the prompts is our own, so thresholds belong to models that were trained on it or are to be calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.errors import RecipeError
from pipeline.reason_columns import as_stored, is_null, reason_column, rounded_below
from pipeline.registry import nearest
from pipeline.stage import ColumnType, Context, Row, Values, decides
from schemas.outcome import Drop, Failure, FailureCode, Reason
from stages.chat_rows import TEXT, ChatParams, ChatStage, best_text, load_prompt
from stages.models.protocols import ChatAnswer, Sampling
from stages.prompts import Prompt

ASPECTS = ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding")
Aspect = Literal["image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"]

# Lowest scores that are kept, ends included. Both from the authors' code.
THRESHOLDS: Mapping[str, Mapping[str, float]] = {
    "open_qwen2vl": {"semantic_understanding": 85},
    "mlm_filter": {"image_text_matching": 66, "object_detail_fulfillment": 20},
}


class MllmScoreParams(ChatParams):
    """Each aspect is one request per row; they share system text, image and text as prefix."""

    aspects: tuple[Aspect, ...] = Field(ASPECTS, description="aspects that are scored, a column each; those left out are null", min_length=1)
    expectation: bool = Field(
        False,
        description="score = mean of the numbers 0 to 100 weighted by their probabilities as beginning of the answer, finer than the one number answered; "
        "models that split numbers into digits (Qwen's, Llama's) are asked again for what follows the likely digits",
    )
    guided: bool = Field(False, description="let the engine answer with a number from 0 to 100 only")
    max_tokens: int = Field(4, description="tokens of an answer; the number must stand before the first line break", ge=1)
    thresholds: Literal["open_qwen2vl", "mlm_filter"] | dict[Aspect, float] = decides(
        "open_qwen2vl",
        "lowest scores that are kept, ends included: open_qwen2vl (semantic_understanding 85), mlm_filter (image_text_matching 66 and "
        "object_detail_fulfillment 20), or a mapping from aspects to numbers; {} keeps all",
    )

    @field_validator("aspects")
    @classmethod
    def _once(cls, aspects: tuple[Aspect, ...]) -> tuple[Aspect, ...]:
        if len(set(aspects)) != len(aspects):
            raise ValueError("an aspect stands twice")
        return aspects


class MllmScore(ChatStage):
    """Scores the row's best text against its image; a row without a text has no score and is dropped where a threshold is set."""

    name: ClassVar[str] = "mllm_score"
    version: ClassVar[int] = 1
    Params = MllmScoreParams
    params: MllmScoreParams
    reads = ("image", TEXT)
    writes = dict.fromkeys(ASPECTS, pa.float32())

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError where a threshold is set on an aspect that is not scored."""
        for aspect in self.lowest():
            if aspect not in self.params.aspects:
                raise RecipeError(f"stages.{self.instance}.thresholds: {aspect!r} is not scored{nearest(aspect, self.params.aspects)}; add it to `aspects`")

    @property
    def prompts_used(self) -> list[Prompt]:
        return [load_prompt(f"score_{aspect}", f"stages.{self.instance}") for aspect in self.params.aspects]

    def compute_facts(self) -> Any:
        """Means from before the numbers were followed by all their tokens are made anew (from the cached answers, where these were right)."""
        return [*super().compute_facts(), *(["numbers by their tokens"] if self.params.expectation else [])]

    def sampling(self, row: Row, ctx: Context) -> Sampling:
        choices = tuple(map(str, range(101))) if self.params.guided else ()
        return Sampling(self.params.max_tokens, numbers=self.params.expectation, choices=choices)

    def prompt_fields(self, row: Row) -> dict[str, str] | None:
        text = best_text(row)
        return None if text is None else {"alt_text": text}

    def values(self, row: Row, answers: list[ChatAnswer], ctx: Context) -> Values | Failure:
        """A column per aspect; bad_answer with the text where one answer is no number from 0 to 100, refusal where the engine refused."""
        scores: dict[str, float | None] = dict.fromkeys(ASPECTS)
        for aspect, answer in zip(self.params.aspects, answers, strict=bool(answers)):
            if answer.finish_reason == "refused":
                return Failure(FailureCode.REFUSAL, f"{aspect}: {answer.text}")
            number = parse_score(answer.text)
            if number is None:
                return Failure(FailureCode.BAD_ANSWER, f"{aspect}: {answer.text!r} is no number from 0 to 100")
            mean = expectation(answer.numbers) if self.params.expectation else None
            scores[aspect] = float(number) if mean is None else mean
        return scores

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """low_mllm with the first aspect below its threshold, or without a text."""
        for aspect, lowest in self.lowest().items():
            score = row[aspect]
            if score is None:
                return Drop(Reason.LOW_MLLM, f"{aspect}: no text")
            score = round(float(score), 2)  # stored as float32
            if score < lowest:
                return Drop(Reason.LOW_MLLM, f"{aspect} {score:g} < {lowest:g}")
        return None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        low = np.zeros(len(columns[self.params.aspects[0]]), bool)
        for aspect, lowest in self.lowest().items():
            low |= is_null(columns[aspect]) | rounded_below(as_stored(columns[aspect]), 2, lowest)
        return reason_column(len(low), [(low, Reason.LOW_MLLM)])

    def lowest(self) -> Mapping[str, float]:
        """Aspect -> score below which a row is dropped."""
        given = self.params.thresholds
        return THRESHOLDS[given] if isinstance(given, str) else {str(aspect): number for aspect, number in given.items()}


def parse_score(text: str) -> int | None:
    """The number before the first line break, commas and semicolons behind it left out (MLM-Filter's reading); None for anything else."""
    word = text.strip().partition("\n")[0].strip().rstrip(",;").strip()
    if not word.isascii() or not word.isdigit() or len(word) > 3:
        return None
    number = int(word)
    return number if number <= 100 else None


def expectation(numbers: Mapping[int, float] | None) -> float | None:
    """Mean of the numbers by their probabilities, rounded to 0.01; None where none has any. At most half a point from that over all of an answer's
    possible numbers (`LEFT_OUT` of `stages/models/numbers.py`); exact where every number is one token of an engine at hand."""
    total = sum((numbers or {}).values())
    return round(sum(number * share for number, share in (numbers or {}).items()) / total, 2) if total > 0 else None
