"""near_dup: all pairs of images whose perceptual hashes are within a distance. `dedup` decides on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RecipeError
from pipeline.reason_columns import is_null, is_true
from pipeline.stage import ColumnEvidence, Evidence, Params, Stage, decides
from stages.dups.hamming import near_pairs
from stages.dups.pairs import Pairs
from stages.dups.turned import turned_pairs
from stages.dups.whole_pairs import all_pairs, fixed_bytes, living_pairs, near_column

if TYPE_CHECKING:
    import duckdb

SEARCH = {"pdq": 40, "phash": 12}
BYTES = {"pdq": 32, "phash": 8}
NEAR = pa.struct(
    [
        ("hash", pa.binary()),
        ("turned", pa.binary()),
        ("within", pa.int16()),
        ("pairs", pa.list_(pa.struct([("part", pa.int32()), ("row", pa.int32()), ("distance", pa.int16())]))),
    ]
)


class NearDupParams(Params):
    """Which of the hashes is compared, and how far."""

    by: Literal["pdq", "phash"] = decides("pdq", "the hash of image_hash that is compared")
    search_distance: int | None = decides(None, "pairs up to this many bits apart are found and stored; null: 40 of 256, 12 of 64", ge=0, le=100)
    min_quality: int = decides(50, "images with less to see (0 flat, 100 busy; PDQ's measure) are not compared: all skies look alike", ge=0, le=100)


class NearDup(Stage):
    """Finds all pairs of hashes within a distance, without misses. Drops nothing: `dedup`, put right behind it, decides.

    Images with equal hashes are one in the search. `near_evidence` holds the hash that was compared, the distance searched, and on the first row of each
    hash the pairs with later ones. A clump (hundreds of hashes nearly all near each other) is stored by its spanning forest. `dedup.max_distance` moves below
    `search_distance` without a search. Where image_hash has `mirrored` or `rotated`, two images are near when one is near a copy of the other.
    """

    name: ClassVar[str] = "near_dup"
    version: ClassVar[int] = 1
    Params = NearDupParams
    params: NearDupParams
    resolves = {"near_evidence": NEAR}

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        by = self.params.by
        return (by, f"{by}_quality", f"{by}_turned")

    @property
    def distance(self) -> int:
        """Bits up to which pairs are searched."""
        given = self.params.search_distance
        return SEARCH[self.params.by] if given is None else given

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where a distance is half of the hash or more."""
        bits = BYTES[self.params.by] * 8
        if self.distance >= bits // 2:
            raise RecipeError(f"stages.{self.instance}: search_distance {self.distance} of {bits} bits finds everything; give less than half")

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """One search over the distinct hashes; the pairs go to DuckDB in chunks."""
        con, by = evidence.con, self.params.by
        con.execute(
            f"""
            CREATE OR REPLACE TABLE near_distinct AS
            SELECT {by} AS hash, min(part::BIGINT * 4294967296 + "row") AS first, arg_min({by}_turned, part::BIGINT * 4294967296 + "row") AS turned
            FROM rows WHERE {by} IS NOT NULL AND {by}_quality >= {self.params.min_quality} GROUP BY {by}
            """
        )
        con.execute("CREATE OR REPLACE TABLE near_edges (a BIGINT, b BIGINT, distance SMALLINT)")
        firsts, chunks = self._search(con)
        for pairs in chunks:
            if len(pairs):
                ends = np.sort(np.stack([firsts[pairs.left], firsts[pairs.right]]), axis=0)
                con.register("near_found", pa.table({"a": ends[0], "b": ends[1], "distance": pairs.distance.astype(np.int16)}))
                con.execute("INSERT INTO near_edges SELECT * FROM near_found")
                con.unregister("near_found")
        pair = "{'part': CAST(b // 4294967296 AS INTEGER), 'row': CAST(b % 4294967296 AS INTEGER), 'distance': distance}"
        return con.sql(
            f"""
            SELECT r.part, r."row", {{'hash': r.{by}, 'turned': nullif(r.{by}_turned, ''::BLOB), 'within': CAST({self.distance} AS SMALLINT),
                'pairs': e.pairs}} AS near_evidence
            FROM rows r LEFT JOIN (SELECT a, list({pair} ORDER BY b) AS pairs FROM near_edges GROUP BY a) e ON e.a = r.part::BIGINT * 4294967296 + r."row"
            WHERE r.{by} IS NOT NULL AND r.{by}_quality >= {self.params.min_quality}
            """
        )

    def resolve_columns(self, evidence: ColumnEvidence) -> Mapping[str, pa.Array] | None:
        """The pairs over all rows with a hash are found once and kept; each set of living rows takes its own from them."""
        by, least = self.params.by, self.params.min_quality
        keys = (by, f"{by}_quality", f"{by}_turned")
        columns = [evidence.column(key) for key in keys]
        made = lambda: all_pairs(*columns, least, BYTES[by], self.distance)  # noqa: E731
        found = living_pairs(evidence.index(f"near.{by}.{least}.{self.distance}", keys, made), evidence.alive)
        if found is None:
            return None
        eligible = evidence.alive & is_true(pc.greater_equal(columns[1], least)) & ~is_null(columns[0])
        return {"near_evidence": near_column(columns[0], eligible, found, evidence.starts, self.distance, NEAR)}

    def _search(self, con: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, Iterator[Pairs]]:
        """Where each distinct hash stands first (part * 2^32 + row, int64 [N]), and the pairs of them."""
        width = BYTES[self.params.by]
        table = con.sql("SELECT hash, first, turned FROM near_distinct ORDER BY hash").to_arrow_table()
        hashes = fixed_bytes(table["hash"], width)
        copies = len(table["turned"][0].as_py()) // width if len(table) else 0
        if not copies:
            return table["first"].to_numpy(), near_pairs(hashes, self.distance)
        turned = fixed_bytes(table["turned"], width * copies).reshape(-1, copies, width)
        return table["first"].to_numpy(), turned_pairs(hashes, turned, self.distance)
