"""refuse: rows that another run was made to forget stay out of this one too."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.forgotten import Forgotten
from pipeline.stage import ColumnType, Context, Params, Row, Stage, Values
from pipeline.storage import place_of
from schemas.outcome import Drop, Failure, Reason


class RefuseParams(Params):
    """Which lists are obeyed."""

    lists: tuple[str, ...] = Field(description="files `forgotten.json` that `pairmill forget` left in run directories")


class Refuse(Stage):
    """Drops rows whose URL, domain, sample_id or image bytes stand on a list of `pairmill forget`.

    Put it before `download`, so that nothing of them is fetched, and once more behind it (`{refuse_images: {use: refuse, ...}}`) where lists name images.
    """

    name: ClassVar[str] = "refuse"
    version: ClassVar[int] = 1
    Params = RefuseParams
    params: RefuseParams
    reads: Sequence[str] = ("url", "sample_id", "raw_sha256?", "image_sha256?")
    writes: Mapping[str, ColumnType] = {"refused": pa.string()}
    batch_size = 4096

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where a list is not there."""
        if not self.params.lists:
            raise RecipeError(f"stages.{self.instance}.lists: name at least one list")
        self.compute_facts()

    def compute_facts(self) -> Any:
        """The entries of the lists, whatever their paths."""
        return [hashlib.sha256(repr([one.salt, one.entries]).encode()).hexdigest() for one in map(Forgotten.read, self.params.lists)]

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        lists = _lists(self.params.lists, str(self.compute_facts()))
        return [{"refused": next((kind for one in lists if (kind := _kind(one, row))), None)} for row in rows]

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        return Drop(Reason.FORGOTTEN, row["refused"]) if row["refused"] else None


def _kind(one: Forgotten, row: Row) -> str | None:
    """What of the row is on the list."""
    if one.refuses_url(row["url"]):
        return "url"
    if one.refuses_id(row["sample_id"]):
        return "id"
    return "image" if one.refuses_bytes(row["raw_sha256"], row["image_sha256"]) else None


@functools.lru_cache(maxsize=4)
def _lists(paths: tuple[str, ...], contents: str) -> list[Forgotten]:
    """The lists, read once per process as long as they stay as they are."""
    return [Forgotten.read(place_of(path)) for path in paths]
