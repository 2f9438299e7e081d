"""write_index: a finished run leaves an index of what it kept, for the next crawl to be tested against."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from pipeline.run_view import RunView
from pipeline.stage import Job, Params
from stages.index.files import SUFFIX, write_index
from stages.index.from_run import index_of_run


class WriteIndexParams(Params):
    """What the index is called, and what it holds beside hashes."""

    name: str = Field(description="name of the index; rows of later runs that it has already are told as <name>/<sample_id>", pattern=r"^[\w.-]+$")
    dropped: bool = Field(False, description="also rows that rules dropped, so that the next crawl does not fetch them again")
    embeddings: bool = Field(False, description="also the image embeddings that clip_score stored")
    texts: bool = Field(False, description="also the texts, normalised")


class WriteIndex(Job):
    """Writes `index/<name>.index.parquet` in the run directory: hashes of URL, bytes and pixels of every kept row, from stored columns alone."""

    name: ClassVar[str] = "write_index"
    version: ClassVar[int] = 1
    Params = WriteIndexParams
    params: WriteIndexParams

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        given = self.params
        made = index_of_run(run, given.name, given.dropped, given.embeddings, given.texts)
        path = run.root / "index" / f"{given.name}{SUFFIX}"
        write_index(made, path, run.store.guard)
        return {"index": str(path), "items": made.table.num_rows, "digest": made.facts.digest}
