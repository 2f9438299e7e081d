"""claims: cross-examines a caption: each claim it makes is asked back to a multimodal language model as a yes/no question.

The questions are made by the rules of stages/text/claims.py and put to the model in the words of the prompt `question`. The model may be the
one that wrote the caption or another one. Nothing is dropped; caption_check makes trust of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.errors import Fatal
from pipeline.registry import nearest
from pipeline.stage import Context, Row, Values
from schemas.outcome import Failure, FailureCode, cap_detail
from stages.chat_rows import ChatParams, ChatStage, load_prompt
from stages.models.protocols import ChatAnswer, ChatRequest, Sampling, image_digest
from stages.prompts import Prompt
from stages.prompts.data_text import as_data
from stages.text.claims import KINDS, Claim, claims_of

CLAIMS = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),
            ("claim", pa.string()),  # the words of the caption
            ("question", pa.string()),  # as it was asked
            ("answer", pa.string()),  # yes, no, or null where the model said neither
            ("yes", pa.float32()),  # probability of yes against no; null where not asked for
        ]
    )
)
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class ClaimsParams(ChatParams):
    """`of` names the stage whose column `text` is examined."""

    of: str = Field(description="name of the stage whose text is examined, such as caption_short; English is understood")
    kinds: tuple[str, ...] = Field(KINDS, description=f"claims that are asked: {', '.join(KINDS)}", min_length=1)
    max_claims: int = Field(24, description="claims of a caption that are asked: its first ones", ge=1)
    probability: bool = Field(False, description="judge by the probability of yes against no as first word, not by the word; column `weakest` is the lowest")
    min_yes: float = Field(0.5, description="with `probability`: a claim is confirmed from this probability on", ge=0, le=1)
    words: dict[str, str] = Field({}, description="words of captions that the model does not know and what to ask in their place, such as {hoop: ring}")

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"there is no kind of claim {kind!r}{nearest(kind, KINDS)}; there are: {', '.join(KINDS)}")
        return kinds


class Claims(ChatStage):
    """Asks a caption's claims back as yes/no questions about the image; tells the share that is confirmed.

    A row whose text makes no claim (or that has none) is asked nothing: n_claims 0, `confirmed` null.
    """

    name: ClassVar[str] = "claims"
    version: ClassVar[int] = 1
    Params = ClaimsParams
    params: ClaimsParams
    writes = {
        "claims": CLAIMS,
        "n_claims": pa.int32(),
        "n_confirmed": pa.int32(),
        "confirmed": pa.float32(),
        "weakest": pa.float32(),
    }
    on_failure = "keep"
    bare_names = False
    seconds_per_row = 0.5

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The image and the text examined."""
        return ("image", f"{self.params.of}.text")

    @property
    def prompts_used(self) -> list[Prompt]:
        return [load_prompt("question", f"stages.{self.instance}")]

    def sampling(self, row: Row, ctx: Context) -> Sampling:
        return Sampling(4, yes_no=self.params.probability)

    def prepare(self, rows: Sequence[Row], ctx: Context) -> list[ChatRequest | Failure | None]:
        """One request per claim, row after row; the image of a row without claims is not decoded."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        given: list[dict[str, str] | None] = [{} if self._claims(row) else None for row in rows]
        pixels = self._pixels(rows, given, int(ctx.model.describe()["max_pixels"]), ctx)
        (prompt,) = self.prompts_used
        requests: list[ChatRequest | Failure | None] = []
        for row, fitted in zip(rows, pixels, strict=True):
            claims = self._claims(row)
            if isinstance(fitted, Failure):
                requests += [fitted] * len(claims)
                continue
            sampling, digest = self.sampling(row, ctx), image_digest(fitted)
            for claim in claims:
                asked = as_data(self._worded(claim.question), self.params.max_text_chars)
                requests.append(ChatRequest(prompt.system, prompt.render(question=asked), fitted, digest, sampling))
        return requests

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """A row of which one request failed fails; bad_answer where the model said neither yes nor no to any claim."""
        results: list[Values | Failure] = []
        start = 0
        for row in rows:
            claims = self._claims(row)
            own = answer[start : start + len(claims)]
            start += len(claims)
            failed = next((one for one in own if isinstance(one, Failure)), None)
            results.append(failed or self._judged(claims, own))
        return results

    def _judged(self, claims: Sequence[Claim], answers: Sequence[ChatAnswer]) -> Values | Failure:
        entries = [self._entry(claim, answer) for claim, answer in zip(claims, answers, strict=True)]
        judged = [entry for entry in entries if entry["answer"] is not None]
        if entries and not judged:
            return Failure(FailureCode.BAD_ANSWER, cap_detail(f"{entries[0]['question']!r}: {answers[0].text!r} is neither yes nor no"))
        confirmed = sum(entry["answer"] == "yes" for entry in judged)
        chances = [entry["yes"] for entry in judged if entry["yes"] is not None]
        return {
            "claims": entries,
            "n_claims": len(entries),
            "n_confirmed": confirmed,
            "confirmed": round(confirmed / len(judged), 4) if judged else None,
            "weakest": min(chances) if chances else None,
        }

    def _entry(self, claim: Claim, answer: ChatAnswer) -> dict[str, Any]:
        said = parse_answer(answer.text)
        if self.params.probability and answer.yes is not None:
            said = "yes" if answer.yes >= self.params.min_yes else "no"
        return {"kind": claim.kind, "claim": claim.claim, "question": self._worded(claim.question), "answer": said, "yes": answer.yes}

    def _claims(self, row: Mapping[str, Any]) -> tuple[Claim, ...]:
        text = row[f"{self.params.of}.text"]
        return _claims_of(text, self.params.kinds, self.params.max_claims) if text else ()

    def _worded(self, question: str) -> str:
        """The question in the model's words, with 'a' or 'an' as the new word wants it."""
        if self._wording is None:
            return question
        said = self._wording.sub(lambda match: self.params.words[match[0]], question)
        return re.sub(r"\ban? (?=([a-z]))", lambda match: "an " if match[1] in "aeiou" else "a ", said)

    @cached_property
    def _wording(self) -> re.Pattern[str] | None:
        words = sorted(self.params.words, key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b") if words else None


@lru_cache(maxsize=4096)
def _claims_of(text: str, kinds: tuple[str, ...], limit: int) -> tuple[Claim, ...]:
    return tuple(claims_of(text, kinds, limit))


def parse_answer(text: str) -> str | None:
    """'yes' or 'no' where an answer begins with it, in any spelling; None for anything else."""
    match = _ANSWER.match(text)
    return match[1].lower() if match else None
