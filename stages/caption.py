"""caption: a new text for each image, by a multimodal language model; the alt-text stays as it is.

Formats after 'Revisit Large-Scale Image-Caption Data' (arXiv 2410.02740): short (SSC, 10 to 15 tokens), descriptive (DSC, 40 to 60), dense (DSC+, over
100), fused (AFC: alt-text and image in one). Its prompts are not published; lengths as second-hand summaries give them. Several captions of
an image are several instances of this stage, as DreamLIP (arXiv 2403.17007) has them.
"""

from __future__ import annotations

import functools
import hashlib
import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Row, Values
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.chat_rows import TEXT, ChatParams, ChatStage, best_text, load_prompt, seed_of
from stages.models.protocols import ChatAnswer, Sampling
from stages.prompts import Prompt

CLIP_WINDOW = 75  # tokens of a text that CLIP sees: 77 less start and end
# Format -> its prompt and the most tokens of an answer, with room for a model that writes more than it was asked for.
FORMATS: Mapping[str, tuple[str, int]] = {
    "short": ("caption_short", 48),
    "descriptive": ("caption_descriptive", 128),
    "dense": ("caption_dense", 400),
    "fused": ("caption_fused", 160),
}
_REFUSALS = re.compile(r"\W*(i(['’]m| am) (sorry|unable|not able)|sorry[,.]|i can(no|['’])t\b|as an ai\b|as a language model\b)", re.IGNORECASE)


class CaptionParams(ChatParams):
    """`format` chooses prompt and length; `prompt` or `prompt_text` put another prompt in its place."""

    format: Literal["short", "descriptive", "dense", "fused"] = Field("short", description="what is asked for; fused joins alt-text and image")
    prompt: str | None = Field(None, description="name of another prompt that comes with pairmill, such as caption_long (stages/prompts)")
    prompt_text: str | None = Field(None, description="your own prompt; fields in braces such as {alt_text} are filled in", min_length=1, max_length=20_000)
    fields: dict[str, str] = Field(
        {}, description="column of each field of the prompt, such as {caption: caption_short.text, tags: tags.tags}; alt_text is the best text unless named"
    )
    max_tokens: int | None = Field(None, description="most tokens of an answer; a longer one fails as truncated; null: 48, 128, 400 or 160 by format", ge=1)
    min_tokens: int = Field(
        0, description="fewest tokens of an answer, not for kind http unless vLLM serves; as many as max_tokens: a fixed length, which is no truncation", ge=0
    )
    temperature: float = Field(0.0, description="0 takes the likeliest words; above, answers are drawn with a seed that is recorded", ge=0)
    top_p: float = Field(1.0, description="share of probability that draws are made from", gt=0, le=1)


class Caption(ChatStage):
    """Writes a new caption for each image; the alt-text stays, and a row whose caption fails is kept without one.

    Columns are read as <instance>.text and so on.
    """

    name: ClassVar[str] = "caption"
    version: ClassVar[int] = 1
    Params = CaptionParams
    params: CaptionParams
    writes = {
        "text": pa.string(),
        "model": pa.string(),
        "prompt": pa.string(),
        "n_tokens": pa.int32(),
        "cut_by_clip_window": pa.bool_(),
        "finish_reason": pa.string(),
        "seed": pa.uint32(),
    }
    on_failure = "keep"
    bare_names = False

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The image, the row's id, and a column for each field of the prompt."""
        return ("image", "sample_id", *dict.fromkeys(self._columns().values()))

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError where two prompts are named, a field of the prompt has no column, or no answer is long enough and short enough."""
        if self.params.min_tokens > self._most_tokens:
            raise RecipeError(f"stages.{self.instance}.min_tokens: {self.params.min_tokens} is more than the most tokens of an answer, {self._most_tokens}")
        if self.params.prompt and self.params.prompt_text:
            raise RecipeError(f"stages.{self.instance}: give `prompt` or `prompt_text`, not both")
        for field in self.params.fields:
            if field not in self._prompt.fields:
                raise RecipeError(f"stages.{self.instance}.fields: prompt {self._prompt.name!r} has no field {field!r}; it has: {self._field_names()}")

    @property
    def prompts_used(self) -> list[Prompt]:
        return [self._prompt]

    @functools.cached_property
    def _prompt(self) -> Prompt:
        where = f"stages.{self.instance}"
        if self.params.prompt_text is None:
            return load_prompt(self.params.prompt or FORMATS[self.params.format][0], f"{where}.prompt")
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.params.prompt_text) if name is not None]
        except ValueError as error:
            raise RecipeError(f"{where}.prompt_text: {error}; write a brace that is meant as such twice") from error
        if not all(name.isidentifier() for name in fields):
            raise RecipeError(f"{where}.prompt_text: a field is a name in braces such as {{alt_text}}; write a brace that is meant as such twice")
        marked = re.sub(r"(?<!\{)\{(\w+)\}(?!\})", r"<text> {\1} </text>", self.params.prompt_text)
        digest = hashlib.sha256(self.params.prompt_text.encode()).hexdigest()[:12]
        return Prompt(f"custom-{digest}", 1, load_prompt("caption_short", where).system, marked)

    @property
    def _most_tokens(self) -> int:
        return self.params.max_tokens or FORMATS[self.params.format][1]

    def _field_names(self) -> str:
        return ", ".join(self._prompt.fields) or "none"

    def _columns(self) -> dict[str, str]:
        """Column that fills each field of the prompt."""
        named = {"alt_text": TEXT, **self.params.fields}
        missing = [field for field in self._prompt.fields if field not in named]
        if missing:
            raise RecipeError(f"stages.{self.instance}.fields: the prompt's field {missing[0]!r} needs a column, such as {{{missing[0]}: caption_short.text}}")
        return {field: named[field] for field in self._prompt.fields}

    def sampling(self, row: Row, ctx: Context) -> Sampling:
        most, fewest = self._most_tokens, self.params.min_tokens
        if self.params.temperature == 0:
            return Sampling(most, min_tokens=fewest)
        return Sampling(most, self.params.temperature, self.params.top_p, seed_of(row, self.instance, ctx.seed), min_tokens=fewest)

    def prompt_fields(self, row: Row) -> dict[str, str] | None:
        columns = self._columns()
        return {field: (best_text(row) or "") if column == TEXT else _as_text(row[column.split("|")[0].rstrip("?")]) for field, column in columns.items()}

    def values(self, row: Row, answers: list[ChatAnswer], ctx: Context) -> Values | Failure:
        """refusal, truncated or bad_answer (nothing written) fail, with the text."""
        answer = answers[0]
        text = " ".join(answer.text.split())
        if answer.finish_reason == "refused" or _REFUSALS.match(text):
            return Failure(FailureCode.REFUSAL, cap_detail(text))
        if answer.finish_reason == "length" and self.params.min_tokens < self._most_tokens:
            return Failure(FailureCode.TRUNCATED, cap_detail(f"after {answer.n_tokens} tokens: {text}"))
        if not any(character.isalnum() for character in text):
            return Failure(FailureCode.BAD_ANSWER, f"{answer.text!r} has no word")
        assert ctx.model is not None
        n_tokens = clip_tokens(text)
        return {
            "text": text,
            "model": ctx.model.describe()["name"],
            "prompt": f"{self._prompt.name}@{self._prompt.version}",
            "n_tokens": n_tokens,
            "cut_by_clip_window": n_tokens > CLIP_WINDOW,
            "finish_reason": answer.finish_reason,
            "seed": self.sampling(row, ctx).seed,
        }


def _as_text(value: Any) -> str:
    """A column's value as text in a prompt: lists with commas between, structs by their `text` or `name`."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    if isinstance(value, dict):
        return str(value.get("text") or value.get("name") or "")
    return str(value)


def clip_tokens(text: str) -> int:
    """Tokens of a text by CLIP's byte-pair vocabulary, without start and end token."""
    return len(_clip_tokenizer().encode(text))


@functools.cache
def _clip_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
