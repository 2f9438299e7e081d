"""caption_check: how far a generated caption can be trusted: its form, its richness, how it fits image and alt-text, and one number of trust.

Length windows and assertions after Revisit (Lai et al. 2024), the three similarities after ALIP (Yang et al. 2023): S_xt image and alt-text,
S_xc image and caption, S_tc alt-text and caption. The rule of trust is our own:

    trust = form x evidence
    form      0 with a flag of FAULTS (refusal, assistant, copied_prompt, repetition, language), 0.5 where the text is cut off, else 1
    evidence  the mean of what is at hand: of the claims the probability of the weakest (the share confirmed where claims were judged by
              words), and S_xc put on 0 to 1 by `similarity_range`; 0.5 where neither is at hand, or the caption makes no claim

A caption outside its length window is flagged and no less trusted: it may well be true. Without a caption there is no trust (null).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import Fatal
from pipeline.stage import Context, Params, Row, Stage, Values, decides
from schemas.outcome import Drop, Failure, Reason
from stages import caption, prompts
from stages.stored_embeddings import stored_cosine
from stages.text.assertions import Richness, richness
from stages.text.caption_signs import COPIED_WORDS, assistant_phrase, copied_words, has_loop, is_cut_off, refusal_phrase, repeated_share, words_of
from stages.text.language import CANDIDATES, identify

# [note] Lengths in CLIP's tokens without start and end, ends included. Revisit's; it gives none for fused captions, which we hold to the
# descriptive ones' cap.
WINDOWS: Mapping[str, tuple[int, int | None]] = {"short": (10, 15), "descriptive": (40, 60), "dense": (101, None), "fused": (40, 78)}
CAP = 78  # of descriptive captions, chosen for CLIP's 77 places

FAULTS = ("refusal", "assistant", "copied_prompt", "repetition", "language")
FLAGS = ("no_caption", "too_short", "too_long", "over_cap", "cut_off", *FAULTS)
Flag = Literal["no_caption", "too_short", "too_long", "over_cap", "cut_off", "refusal", "assistant", "copied_prompt", "repetition", "language"]
_MIN_WORDS_FOR_LANGUAGE = 4  # distinct ones


class CaptionCheckParams(Params):
    """`of` names the caption checked; a CLIP `model` and a `claims` stage add evidence."""

    of: str = Field(description="name of the stage whose text is checked, such as caption_short")
    format: Literal["short", "descriptive", "dense", "fused"] = Field("short", description="window of lengths: 10 to 15, 40 to 60, over 100, 40 to 78 tokens")
    window: tuple[int, int | None] | None = Field(None, description="another window [fewest, most] of CLIP tokens, ends included; most null: no limit")
    languages: tuple[str, ...] | None = Field(("en",), description="languages a caption may be in, ISO 639-1; null: any")
    max_repeated: float = Field(0.3, description="largest share of word 4-grams that stood in the caption before", ge=0, le=1)
    prompt_text: str | None = Field(None, description="the caption's prompt where it is your own; those that come with pairmill are known")
    model: str | None = Field(None, description="the CLIP of the clip_score stage before, to compare caption with image and alt-text; null: not compared")
    similarity_range: tuple[float, float] = Field(
        (0.15, 0.35), description="S_xc that counts as 0 and as 1 in trust; belongs to one CLIP and is to be set for it"
    )
    claims: str | None = Field(None, description="name of a claims stage of the same caption; null: none")
    min_trust: float | None = decides(None, "drop rows whose caption is trusted less; null: none is dropped", ge=0, le=1)
    require: tuple[Flag, ...] = decides((), f"drop rows with one of these flags: {', '.join(FLAGS)}")

    @model_validator(mode="after")
    def _lower_ends_first(self) -> CaptionCheckParams:
        if self.window is not None and self.window[1] is not None and self.window[0] > self.window[1]:
            raise ValueError(f"window: the fewest tokens come first, found {list(self.window)}")
        if not self.similarity_range[0] < self.similarity_range[1]:
            raise ValueError(f"similarity_range: the lower similarity comes first, found {list(self.similarity_range)}")
        return self


class CaptionCheck(Stage):
    """Measures one caption per row; drops nothing unless `min_trust` or `require` say so."""

    name: ClassVar[str] = "caption_check"
    version: ClassVar[int] = 1
    Params = CaptionCheckParams
    params: CaptionCheckParams
    writes = {
        "n_tokens": pa.int32(),
        "n_sentences": pa.int32(),
        "n_assertions": pa.int32(),
        "n_nouns": pa.int32(),
        "repeated": pa.float32(),
        "lang": pa.string(),
        "phrase": pa.string(),
        "s_xt": pa.float32(),
        "s_xc": pa.float32(),
        "s_tc": pa.float32(),
        "confirmed": pa.float32(),
        "flags": pa.list_(pa.string()),
        "trust": pa.float32(),
    }
    on_failure = "keep"
    bare_names = False
    batch_size = 256
    seconds_per_row = 4e-3

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The caption with what its stage tells of it; embeddings and claims where they are asked for."""
        of, claims = self.params.of, self.params.claims
        columns = [f"{of}.text", f"{of}.n_tokens?", f"{of}.finish_reason?", f"{of}.prompt?"]
        columns += ["image_emb", "text_emb", "clip_score"] if self.params.model else []
        return (*columns, *([f"{claims}.confirmed", f"{claims}.weakest"] if claims else []))

    @property
    def model_method(self) -> str:  # type: ignore[override]
        return "embed" if self.params.model else ""

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Without a model: form, richness, claims."""
        return [self._values(row, None) for row in rows]

    def prepare(self, rows: Sequence[Row], ctx: Context) -> dict[str, Any]:
        """The captions that there are, as texts for the CLIP (no images)."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        size = int(ctx.model.describe()["image_size"])
        return {"images": np.empty((0, size, size, 3), np.uint8), "texts": [text for row in rows if (text := self._text(row))]}

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """With a model: the caption's embedding [D] beside the stored ones of image and alt-text."""
        embedded = iter(answer["text"])
        return [self._values(row, next(embedded) if self._text(row) else None) for row in rows]

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """low_trust below `min_trust` or without a caption, bad_caption for a flag of `require`."""
        flag = next((flag for flag in self.params.require if flag in (row["flags"] or ())), None)
        if flag is not None:
            return Drop(Reason.BAD_CAPTION, f"{flag}: {row['phrase']!r}" if row["phrase"] and flag in ("refusal", "assistant") else flag)
        if self.params.min_trust is None:
            return None
        trust = row["trust"]
        if trust is None:
            return Drop(Reason.LOW_TRUST, "no caption")
        trust = round(float(trust), 4)  # stored as float32
        return Drop(Reason.LOW_TRUST, f"{trust:g} < {self.params.min_trust:g}") if trust < self.params.min_trust else None

    def _text(self, row: Row) -> str:
        return (row[f"{self.params.of}.text"] or "").strip()

    def _values(self, row: Row, embedding: np.ndarray | None) -> Values:
        text = self._text(row)
        if not text:
            return {**dict.fromkeys(self.writes), "flags": ["no_caption"]}
        words = words_of(text)
        language = identify(text, CANDIDATES)[0]
        found = richness(text) if language == "en" or len(set(words)) < _MIN_WORDS_FOR_LANGUAGE else None
        n_tokens = row[f"{self.params.of}.n_tokens"]
        values: dict[str, Any] = {
            "n_tokens": caption.clip_tokens(text) if n_tokens is None else n_tokens,
            **_counts(found),
            "repeated": repeated_share(words),
            "lang": language,
            "phrase": refusal_phrase(text) or assistant_phrase(text),
            **self._similarities(row, embedding),
            "confirmed": row[f"{self.params.claims}.confirmed"] if self.params.claims else None,
        }
        flags = self._flags(row, text, words, values)
        return values | {"flags": flags, "trust": self._trust(row, values, flags)}

    def _flags(self, row: Row, text: str, words: list[str], values: Mapping[str, Any]) -> list[str]:
        """Every flag that the text has, in the order of FLAGS."""
        low, high = self.params.window or WINDOWS[self.params.format]
        n_tokens = values["n_tokens"]
        ended = row[f"{self.params.of}.finish_reason"]
        languages = self.params.languages
        tripped = {
            "too_short": n_tokens < low,
            "too_long": high is not None and n_tokens > high,
            "over_cap": self.params.format == "descriptive" and n_tokens > CAP,
            "cut_off": ended == "length" or is_cut_off(text, whole_sentences=self.params.format != "short"),
            "refusal": refusal_phrase(text) is not None,
            "assistant": assistant_phrase(text) is not None,
            "copied_prompt": any(copied_words(words, prompt) >= COPIED_WORDS for prompt in self._prompts(row)),
            "repetition": has_loop(words) or values["repeated"] > self.params.max_repeated,
            "language": languages is not None and len(set(words)) >= _MIN_WORDS_FOR_LANGUAGE and values["lang"] not in languages,
        }
        return [flag for flag in FLAGS if tripped.get(flag)]

    def _prompts(self, row: Row) -> tuple[list[str], ...]:
        if self.params.prompt_text:
            return (words_of(_without_fields(self.params.prompt_text)),)
        return _prompt_words(row[f"{self.params.of}.prompt"] or "")

    def _similarities(self, row: Row, embedding: np.ndarray | None) -> dict[str, float | None]:
        if embedding is None:
            return dict.fromkeys(("s_xt", "s_xc", "s_tc"))
        where = f"{self.instance}: model {self.params.model!r}"
        image, text = (stored_cosine(row[name], embedding, where) for name in ("image_emb", "text_emb"))
        return {"s_xt": row["clip_score"], "s_xc": image, "s_tc": text}

    def _trust(self, row: Row, values: Mapping[str, Any], flags: Sequence[str]) -> float:
        """The rule at the head of this file."""
        if any(flag in FAULTS for flag in flags):
            return 0.0
        evidence = []
        if self.params.claims:
            weakest = row[f"{self.params.claims}.weakest"]
            claims = values["confirmed"] if weakest is None else weakest
            evidence += [float(claims)] if claims is not None else []
        if values["s_xc"] is not None:
            low, high = self.params.similarity_range
            evidence.append(float(np.clip((values["s_xc"] - low) / (high - low), 0, 1)))
        form = 0.5 if "cut_off" in flags else 1.0
        return round(form * (sum(evidence) / len(evidence) if evidence else 0.5), 4)


def _counts(found: Richness | None) -> dict[str, int | None]:
    if found is None:  # the rules read English only
        return dict.fromkeys(("n_sentences", "n_assertions", "n_nouns"))
    return {"n_sentences": found.sentences, "n_assertions": found.assertions, "n_nouns": found.nouns}


@functools.lru_cache(maxsize=64)
def _prompt_words(name: str) -> tuple[list[str], ...]:
    """Words of the prompt and the system text that a caption's column `prompt` names ('caption_short@1'); () for one that is not ours."""
    if name.split("@")[0] not in prompts.names():
        return ()
    prompt = prompts.load(name.split("@")[0])
    return words_of(_without_fields(prompt.user)), words_of(prompt.system)


def _without_fields(template: str) -> str:
    return re.sub(r"\{\w*\}", " ", template)
