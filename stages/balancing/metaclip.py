"""MetaCLIP's balancing: each text tosses a coin for each entry that it matches, and stays if one of them comes up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import RecipeError
from stages.balancing.draws import row_hash, uniform
from stages.balancing.entries import build_entries
from stages.balancing.matching import Matcher, read_entries
from stages.balancing.rule import Judging
from stages.file_digests import file_sha256
from stages.sql_texts import texts_of_row

BATCH: Final = 50_000  # texts that are matched together


class Metadata(BaseModel):
    """MetaCLIP's metadata and what of its head stays."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str | None = Field(None, description="entries: a JSON list of texts, or a text file with one a line; null: built from the run's own texts")
    build: bool | None = Field(None, description="build entries from the run's texts too; null: only where no file is given")
    min_count: int = Field(100, description="times that a word or pair of words must be seen to be an entry (MetaCLIP: 100, in Wikipedia)", ge=1)
    min_pmi: float | None = Field(8.0, description="least pointwise mutual information of a pair of words, in bits; null: no pairs")
    t: float | None = Field(20_000, description="an entry with n matches keeps each with probability min(1, t / n) (MetaCLIP: 20,000 for 400 million)", gt=0)
    size: int | None = Field(None, description="rows wanted: t is solved for it, and `t` is not read", ge=1)
    texts: str = Field("all", description="all: a row stays when one of its texts does; first: its first text alone", pattern="^(all|first)$")
    ignore_case: bool = Field(False, description="match in lower case; MetaCLIP matches as written")
    file_sha256: str = Field("", description="filled in by itself: digest of the file")

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {**raw, "file_sha256": file_sha256(str(raw["file"]), "balance.metadata.file", raw.get("file_sha256")) if raw.get("file") else ""}

    @model_validator(mode="after")
    def _one_of(self) -> Metadata:
        if self.t is None and self.size is None:
            raise ValueError("metadata needs `t` or `size`")
        if not self.file and self.build is False:
            raise ValueError("metadata needs a `file` where nothing is built")
        return self


def keep_probabilities(counts: Iterable[int], t: float) -> np.ndarray:
    """min(1, t / n) for entries matched n times, float64."""
    return np.minimum(1.0, t / np.maximum(np.asarray(list(counts), np.float64), 1e-300))


class MetadataRule:
    """A text with entries e stays iff u(text, e) < t / n(e) for one of them, that is iff the least u n is below t: one number a row, `balance_t`, from which
    any t follows, and the t for a wanted size is its order statistic. A row stays when one of its texts does, and leaves when none matches anything."""

    title = "metadata"
    reads: Sequence[str] = ("texts|text|alt_text",)

    def __init__(self, params: Metadata) -> None:
        self.params = params

    def judge(self, at: Judging) -> dict[str, Any]:
        con = at.con
        self._read_texts(at)
        matcher = Matcher(self._entries(at), self.params.ignore_case)
        self._match(at, matcher)
        # Lists have an order, so that the last bit of a product does not depend on threads.
        con.execute(
            """
            CREATE OR REPLACE TABLE balance_least AS
            WITH counts AS (SELECT entry, count(*) AS n FROM balance_matches GROUP BY entry)
            SELECT key, min(u * n) AS least, list(n ORDER BY n) AS counts, list(DISTINCT name ORDER BY name) AS entries
            FROM balance_matches JOIN counts USING (entry) JOIN balance_names USING (entry) GROUP BY key
            """
        )
        t = repr(self._solve(at) if self.params.size is not None else float(self.params.t or 0))
        con.execute(
            f"""
            CREATE OR REPLACE TABLE {at.out} AS
            SELECT r.key, coalesce(l.least < {t}, FALSE) AS kept,
                coalesce(round(1 - list_product(list_transform(l.counts, lambda n: 1 - least(1.0, {t} / n))), 9), 0) AS probability,
                CASE WHEN l.key IS NULL THEN 'no entry of the metadata matches'
                     WHEN l.least >= {t} THEN 'stays only from t = ' || printf('%.1f', l.least) || ' on' END AS detail,
                l.least AS balance_t, l.entries AS matched_entries
            FROM {at.rows} r LEFT JOIN balance_least l USING (key)
            """
        )
        con.execute(f"CREATE OR REPLACE TABLE {at.members} AS SELECT key, unnest(entries) AS name FROM balance_least")
        for table in ("balance_texts", "balance_least", "balance_matches", "balance_names"):
            con.execute(f"DROP TABLE {table}")
        return {"t": float(t), "entries": len(matcher.entries)}

    def _read_texts(self, at: Judging) -> None:
        """Table balance_texts: key, bits of the text's tosses, text; each text of a row once."""
        texts = f"list_transform({texts_of_row(at.con, 'r')}, lambda e: e.text)"
        texts = f"{texts}[1:1]" if self.params.texts == "first" else f"list_distinct({texts})"
        at.con.execute(
            f"""
            CREATE OR REPLACE TABLE balance_texts AS SELECT key, {row_hash(at.seed, "text")} AS bits, text
            FROM (SELECT key, sample_id, unnest({texts}) AS text FROM {at.rows} r) WHERE text <> ''
            """
        )

    def _entries(self, at: Judging) -> list[str]:
        params = self.params
        entries = read_entries(params.file) if params.file else []
        if params.build or not params.file:
            entries += build_entries(at.con, params.min_count, params.min_pmi, params.ignore_case)
        if not entries and (texts := at.one("SELECT count(*) FROM balance_texts")):
            told = f"no word stands {params.min_count} times in the {texts:,} texts, so that all rows would go; lower min_count, or give a file"
            raise RecipeError(f"balance.metadata: nothing to match: {told}")
        return entries

    def _match(self, at: Judging, matcher: Matcher) -> None:
        """Tables balance_matches (key, entry, u: the toss of this text for this entry) and balance_names (entry, name)."""
        con = at.con
        # Tosses go by the entry's name, so that a longer list of entries leaves those of the others as they were.
        digests = np.array([int.from_bytes(hashlib.md5(one.encode()).digest()[:8], "little") for one in matcher.entries], np.uint64)
        con.register("balance_incoming", pa.table({"entry": np.arange(len(digests), dtype=np.int32), "name": pa.array(matcher.entries, pa.string())}))
        con.execute("CREATE OR REPLACE TABLE balance_names AS SELECT * FROM balance_incoming")
        con.execute("CREATE OR REPLACE TABLE balance_matches (key BIGINT, entry INTEGER, u DOUBLE)")
        for batch in con.cursor().sql("SELECT key, bits, text FROM balance_texts").to_arrow_reader(BATCH):
            rows, entries = matcher.of_texts(batch.column(2).cast(pa.string()))
            u = uniform(batch.column(1).to_numpy()[rows], digests[entries])
            con.unregister("balance_incoming")
            con.register("balance_incoming", pa.table({"key": batch.column(0).to_numpy()[rows], "entry": entries.astype(np.int32), "u": u}))
            con.execute("INSERT INTO balance_matches SELECT * FROM balance_incoming")
        con.unregister("balance_incoming")

    def _solve(self, at: Judging) -> float:
        """The least t that keeps `size` rows: the row after them stays only from its own number on. All rows stay where there are no more than that."""
        found = at.con.execute("SELECT least FROM balance_least ORDER BY least LIMIT 1 OFFSET ?", [self.params.size]).fetchall()
        return float(found[0][0]) if found else float(at.one("SELECT coalesce(max(least), 0) + 1 FROM balance_least"))
