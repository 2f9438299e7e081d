"""concept_prefix: the concepts most like an image before its text (NEVLP, Tao et al. 2024: concept enrichment of captions).

NEVLP takes the top-k of a list of object names by image-text similarity and prepends them to the text as a prompt; its k and its prompt are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.stage import Context, Params, Row, Stage, Values
from schemas.outcome import Failure


class ConceptPrefixParams(Params):
    """Which concepts, and how they are put."""

    of: str = Field("tags", description="name of the tags stage; with `multi_crop: false` its order is that of the similarity with the whole image")
    top: int = Field(3, description="concepts that are taken: the first ones", ge=1)
    min_score: float = Field(0.0, description="least score of a concept, as the tags stage gives it", ge=0, le=1)
    template: str = Field("{concepts}. {text}", description="what is made of both", pattern=r"\{concepts\}.*\{text\}|\{text\}.*\{concepts\}")
    join: str = Field(", ", description="what stands between two concepts")


class ConceptPrefix(Stage):
    """Writes a text that begins with the concepts most like the image. The text before stays as it is: `concept_prefix.text` is a further one, to be chosen
    by `write_shards.caption: concept_prefix.text|text`. `prefix` holds the concepts alone. A row without concepts or without a text has neither.
    """

    name: ClassVar[str] = "concept_prefix"
    version: ClassVar[int] = 1
    Params = ConceptPrefixParams
    params: ConceptPrefixParams
    writes = {"text": pa.string(), "prefix": pa.string()}
    bare_names = False
    on_failure = "keep"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tags and the text that they are put before."""
        return (f"{self.params.of}.tags", "text|alt_text")

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        return [self._joined(row[f"{self.params.of}.tags"] or (), row["text"]) for row in rows]

    def _joined(self, tags: Sequence[dict[str, Any]], text: str | None) -> Values:
        names = [tag["name"] for tag in tags if tag["score"] >= self.params.min_score][: self.params.top]
        if not names or not text:
            return {"text": None, "prefix": None}
        prefix = self.params.join.join(names)
        # Neither is a template itself: a text from outside may have braces.
        left, middle, right = _parts(self.params.template)
        first, second = (prefix, text) if self.params.template.index("{concepts}") < self.params.template.index("{text}") else (text, prefix)
        return {"text": f"{left}{first}{middle}{second}{right}", "prefix": prefix}


def _parts(template: str) -> tuple[str, str, str]:
    """What stands before, between and behind the two places."""
    left, middle, right = template.replace("{concepts}", "\0").replace("{text}", "\0").split("\0")
    return left, middle, right
