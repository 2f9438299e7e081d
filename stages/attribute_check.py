"""attribute_check: a caption that was made from attributes must name all of them and no other (FaceCaption-15M's consistency check).

For captions that a model wrote from the attributes' sentence, and for judging a captioner by attributes (UniPT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Params, Row, Stage, Values
from schemas.outcome import Failure
from stages import attribute_schemes


class AttributeCheckParams(Params):
    """Which caption is compared with which attributes."""

    of: str = Field(description="name of the caption stage whose text is checked", min_length=1)
    attributes: str = Field("attributes", description="name of the attributes stage")
    scheme: str = Field("person", description="scheme of that stage: person, face, or the path of your own")


class AttributeCheck(Stage):
    """Checks a caption against the attributes that were found, and puts the template's sentence in its place where they disagree.

    Adds `dropped`, `added` and `text`, read as <instance>.text.
    """

    name: ClassVar[str] = "attribute_check"
    version: ClassVar[int] = 1
    Params = AttributeCheckParams
    params: AttributeCheckParams
    writes = {"consistent": pa.bool_(), "dropped": pa.list_(pa.string()), "added": pa.list_(pa.string()), "text": pa.string()}
    on_failure = "keep"
    bare_names = False

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.params.of}.text", f"{self.params.attributes}.attributes", f"{self.params.attributes}.text")

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError for a scheme that cannot be read, and where the attributes' own text would be checked."""
        attribute_schemes.load(self.params.scheme, f"stages.{self.instance}.scheme")
        if self.params.of == self.params.attributes:
            raise RecipeError(f"stages.{self.instance}.of: {self.params.of!r} is the attributes stage itself; name the stage that rewrote its text")

    def compute_facts(self) -> Any:
        """The scheme's phrases."""
        scheme = attribute_schemes.load(self.params.scheme, f"stages.{self.instance}.scheme")
        return [phrase for category in scheme.categories for phrase in category.phrases]

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """A row without attributes or without a caption has nulls and the template's sentence, if there is one."""
        scheme = attribute_schemes.load(self.params.scheme, f"stages.{self.instance}.scheme")
        results: list[Values | Failure] = []
        for row in rows:
            text, chosen, template = (row[name] for name in self.reads)
            if text is None or chosen is None:
                results.append({"consistent": None, "dropped": None, "added": None, "text": template})
                continue
            dropped, added = scheme.differences(text, [one["phrase"] for one in chosen])
            consistent = not dropped and not added
            results.append({"consistent": consistent, "dropped": dropped, "added": added, "text": text if consistent else template})
        return results
