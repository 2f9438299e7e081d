"""attributes: a caption without a captioner: attributes chosen by a CLIP, and a template filled with them.

UniPT (LUPerson-T): of a required category the likeliest phrase, of an optional one only a phrase whose probability is above 0.9; then a
template drawn at random. FaceCaption-15M: labels above 0.85, a caption only with more than five of them; it asks for `consent: true`. What is
taken from the papers and what is our own stands in the schemes (stages/attribute_schemes/*.yaml).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Row, Values
from schemas.outcome import Failure
from stages import attribute_schemes
from stages.attribute_schemes import Chosen, Scheme
from stages.clip_rows import ClipParams, ClipStage

ATTRIBUTE = pa.struct([("category", pa.string()), ("phrase", pa.string()), ("score", pa.float32())])


class AttributesParams(ClipParams):
    """`scheme` chooses categories, prompt, gates and templates."""

    scheme: str = Field("person", description="person (UniPT), face (FaceCaption, needs consent), or the path of a scheme of your own (YAML)")
    threshold: float | None = Field(None, description="an optional phrase is taken whose probability is above it; null: the scheme's", ge=0, lt=1)
    min_labels: int | None = Field(None, description="fewest attributes of a caption; null: the scheme's", ge=1)
    consent: bool = Field(False, description="you have the right to process these faces (biometric data); the face scheme does not run without it")


class Attributes(ClipStage):
    """Writes a caption from templates and the attributes that CLIP finds; needs no language model and, with stored embeddings, no image.

    Adds `attributes` and, where enough were chosen, `text`, read as <instance>.text.
    """

    name: ClassVar[str] = "attributes"
    version: ClassVar[int] = 1
    Params = AttributesParams
    params: AttributesParams
    writes = {"attributes": pa.list_(ATTRIBUTE), "text": pa.string()}
    bare_names = False

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError for a scheme that cannot be read, and for one about faces without consent."""
        if self._scheme.needs_consent and not self.params.consent:
            raise RecipeError(
                f"stages.{self.instance}: scheme {self.params.scheme!r} describes faces, which are biometric data: it runs only with `consent: true`, "
                "by which you say that you have the right to process them; leave the stage out otherwise"
            )

    def compute_facts(self) -> Any:
        """The whole scheme: a changed file makes captions anew."""
        scheme = self._scheme
        return [scheme.prompt, scheme.threshold, scheme.min_labels, scheme.templates, [category.model_dump() for category in scheme.categories]]

    @property
    def _scheme(self) -> Scheme:
        return attribute_schemes.load(self.params.scheme, f"stages.{self.instance}.scheme")

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """Chosen attributes and the sentence of each row."""
        scheme, scale = self._scheme, float(self._facts(ctx)["logit_scale"])
        texts = self.phrases([text for category in scheme.categories for text in scheme.texts(category)], ctx)
        results: list[Values | Failure] = []
        for row, views in zip(rows, self.embeddings_of(answer), strict=True):
            results.append(views if isinstance(views, Failure) else self._values(row, scale * (texts.astype(np.float64) @ views[0]), ctx))
        return results

    def _values(self, row: Row, logits: np.ndarray, ctx: Context) -> Values:
        scheme, params = self._scheme, self.params
        chosen = choose(scheme, logits, scheme.threshold if params.threshold is None else params.threshold)
        enough = len(chosen) >= (scheme.min_labels if params.min_labels is None else params.min_labels)
        draw = int.from_bytes(hashlib.sha256(f"{ctx.seed} {self.instance} ".encode() + row["sample_id"]).digest()[:8], "little")
        return {
            "attributes": [{"category": one.category, "phrase": one.phrase, "score": one.score} for one in chosen],
            "text": scheme.sentence(chosen, draw) if enough else None,
        }


def choose(scheme: Scheme, logits: np.ndarray, threshold: float) -> list[Chosen]:
    """Attributes from the logits (temperature applied) of all candidates, category after category, in the order of `Scheme.texts`.

    Probabilities are a softmax within the category, rounded to 1e-4 before they are compared with the threshold.
    """
    chosen, start = [], 0
    for category in scheme.categories:
        count = len(category.candidates)
        own = logits[start : start + count]
        start += count
        shares = np.exp(own - own.max())
        shares = np.round(shares / shares.sum(), 4)
        best = int(np.argmax(shares[: len(category.phrases)] if category.required else shares))
        if best < len(category.phrases) and (category.required or shares[best] > threshold):
            chosen.append(Chosen(category.name, category.phrases[best], float(shares[best])))
    return chosen
