"""concepts: spans of noun phrases, or of a dictionary's names, in each text of a row (ConceptCLIP, Nie et al. 2025: concepts with id, score and place)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.stage import Context, Params, Row, Stage, Values
from schemas.outcome import Failure
from stages.file_digests import file_sha256
from stages.text.concepts import Dictionary, Span, noun_phrase_spans, read_dictionary
from stages.text.stored_spans import text_digest

SPAN = pa.struct([("id", pa.string()), ("score", pa.float32()), ("start_char", pa.int32()), ("end_char", pa.int32())])
CONCEPTS = pa.list_(pa.struct([("text", pa.string()), ("spans", pa.list_(SPAN))]))


class ConceptsParams(Params):
    """What is looked for."""

    dictionary: str | None = Field(None, description="text file of names, a line each: id, tab, name, or a name alone; null: every noun phrase (English)")
    min_score: float = Field(
        0.8, description="least likeness of a noun phrase and a name (ConceptCLIP's sample: 0.80); 1: the name itself alone, without a tagger", gt=0, le=1
    )
    max_texts: int = Field(16, description="texts of a row that are looked at: its first ones", ge=1)
    max_concepts: int = Field(64, description="concepts of a text that are kept: its first ones", ge=1)
    dictionary_sha256: str = Field("", description="filled in by itself: digest of the dictionary")

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        path = raw.get("dictionary")
        return {**raw, "dictionary_sha256": file_sha256(str(path), "concepts.dictionary", raw.get("dictionary_sha256")) if path else ""}


class Concepts(Stage):
    """Finds the concepts of each text: an id, how sure it is, and from which to which character. Drops nothing.

    `concepts` has an entry for each text: `text`, by which it is known (16 hex digits of its SHA-256, so that texts may be ranked anew), and `spans`. In a
    training `ShardDataset.concepts` and `stages.pretrain.concept_tokens` give the tokens of each.
    """

    name: ClassVar[str] = "concepts"
    version: ClassVar[int] = 2  # names in scripts without spaces
    Params = ConceptsParams
    params: ConceptsParams
    reads = ("texts|text|alt_text",)
    writes = {"concepts": CONCEPTS}
    on_failure = "keep"
    seconds_per_row = 1e-3

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError for a dictionary that cannot be read."""
        self._dictionary()

    def _dictionary(self) -> Dictionary | None:
        path = self.params.dictionary
        return _load(path, self.params.dictionary_sha256, self.params.min_score, f"stages.{self.instance}.dictionary") if path else None

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        dictionary = self._dictionary()
        find = dictionary.spans if dictionary else noun_phrase_spans
        found: list[Values | Failure] = []
        for row in rows:
            given = row["texts"]
            texts = [given] if isinstance(given, str) else [entry["text"] for entry in given or ()]
            some = list(dict.fromkeys(text for text in texts if text))[: self.params.max_texts]
            found.append({"concepts": [{"text": text_digest(text), "spans": _plain(find(text)[: self.params.max_concepts])} for text in some]})
        return found


def _plain(spans: Sequence[Span]) -> list[dict[str, Any]]:
    return [{"id": span.id, "score": span.score, "start_char": span.start, "end_char": span.end} for span in spans]


@lru_cache(maxsize=4)
def _load(path: str, digest: str, min_score: float, where: str) -> Dictionary:
    """`digest` is in the key so that a changed file is read again."""
    return Dictionary(read_dictionary(path, where), min_score)
