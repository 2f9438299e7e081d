"""dedup: equal bytes, near and alike images joined into components, of which one row stays: the one decision (RealSyn, section 3.1: union-find)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.errors import Fatal, RecipeError
from pipeline.stage import ColumnEvidence, ColumnType, Evidence, OfPlaces, Params, Row, Stage, decides
from schemas.outcome import Drop, Reason
from schemas.sample import TEXTS
from stages.dups.keeper import ROW_KEY, KeeperBy, groups_by, keepers
from stages.dups.links import NO_LINKS, SEMANTIC_STEPS, Links, Measures, has_evidence, joined, links_of
from stages.dups.seen import keep_matches, matched_links, same_pictures, seen_alike
from stages.dups.whole_dedup import decide_whole, has_structs, has_turned, read_hashes

if TYPE_CHECKING:
    import duckdb

MAX_DISTANCE = {32: 31, 8: 6}  # by the bytes of a hash
MIN_COSINE = 0.95
MAX_DIFFERENCE = 9.0
REASONS = {"bytes": Reason.EXACT_DUP, "near": Reason.NEAR_DUP, "semantic": Reason.SEMANTIC_DUP}


class DedupParams(Params):
    """How near two images are one, and which row of a component stays."""

    max_distance: int | None = decides(
        None, "bits of near_dup's hash that two images of one component may differ in; null: 31 of 256, 6 of 64, or search_distance where lower", ge=0
    )
    min_cosine: float | None = decides(
        None, "least cosine of the embeddings of two images of one component; null: 0.95, or semantic_dup's search_cosine where higher", le=1
    )
    semantic_bits: int | None = decides(
        None, "bits of 64 that the pHashes of two rows with near embeddings may differ in; 24 leaves out most other pictures; null: any", ge=0, le=64
    )
    min_match: float = decides(0.9, "least match (crop_dup) of the thumbnails that joins two images by itself", ge=-1, le=1)
    max_difference: float | None = decides(
        None, "grey levels that the thumbnails of images joined by match or cosine may differ in; null: 9, or crop_dup's search_difference where lower", ge=0
    )
    hash_difference: float | None = decides(
        None, "grey levels that the thumbnails of images joined by their hashes may differ in: for plain pictures, such as 20; null: any", ge=0
    )
    reach: float = decides(1.5, "a link joins two groups only where their centres are at most this many times max_distance (or 1 - min_cosine) apart", ge=1)
    keeper: KeeperBy = decides("pixels", "what a kept row has most of: pixels, then clip_score; or clip_score, then pixels")
    join_texts: bool = decides(True, "a kept row takes over the texts of its duplicates; false: it keeps its own alone")
    max_texts: int = decides(32, "most texts that a kept row has after it took over those of its duplicates", ge=1)


class Dedup(Stage):
    """Keeps one row of each component of equal or near images and gives it the texts of all.

    Rows with equal `raw_sha256` are one component; behind near_dup so are rows with equal hashes, and with hashes within `max_distance`; behind
    semantic_dup rows whose embeddings have at least the cosine `min_cosine` (and whose pHashes are within `semantic_bits`, where that is given); behind
    crop_dup rows whose thumbnails match by at least `min_match`; there matches and cosines count only of rows whose thumbnails nowhere differ by more than
    `max_difference`, near hashes of those that differ by no more than `hash_difference`, where that is given. Links are taken from the nearest to the
    farthest, a cosine as its share of the way from 1 to `min_cosine`, a match as its share of that from 1 to `min_match`; one that would join two groups
    whose centres lie further apart than `reach` times the limit, by all measures, is weak and left out.
    The keeper is the row with the most pixels, then the highest clip_score, then the least sample_id. Its `texts` are those of all rows, each text
    once, best clip_score first, with the row it came from as `source`. `kind`: 'bytes' where a better row of the component has the same bytes, 'near'
    where bytes and hashes alone tie it to a better row, else 'semantic'. `distance`, `cosine`: between the row and its keeper. `dup_component` is the
    keeper's id for all rows of a component.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3  # the difference of thumbnails
    Params = DedupParams
    params: DedupParams
    reads_resolve = (
        "raw_sha256", "near_evidence?", "semantic_evidence?", "crop_evidence?", "phash?", "clip_score?", "texts|text|alt_text", "width?", "height?",
    )  # fmt: skip
    names_rows = ("near_evidence", "semantic_evidence", "crop_evidence")
    resolves = {
        "dup_of": pa.string(), "kind": pa.string(), "distance": pa.int16(), "cosine": pa.float32(), "match": pa.float32(), "dup_component": pa.string(),
        "texts": TEXTS,
    }  # fmt: skip

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError where hashes are wanted that no stage computes."""
        if self.params.semantic_bits is not None and "phash" not in available:
            raise RecipeError(f"stages.{self.instance}: semantic_bits compares pHashes; put image_hash before it")

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        keeper, distance = resolved.get("dup_of"), resolved.get("distance")
        if not keeper:
            return None
        kind, cosine = resolved["kind"], resolved.get("cosine")
        if kind == "semantic" and cosine is not None:
            return Drop(REASONS[kind], f"{keeper}, cosine {cosine:.4f}")
        if kind != "near":
            return Drop(REASONS[kind], keeper)
        bits = "" if distance is None else f", {distance} bits"
        match = "" if resolved.get("match") is None else f", match {resolved['match']:.4f}"
        return Drop(REASONS[kind], f"{keeper}{bits}{match}")

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        kind = columns["kind"]
        told = kind if pa.types.is_dictionary(kind.type) else kind.dictionary_encode()
        names = [None if name is None else str(REASONS[name]) for name in told.dictionary.to_pylist()]
        return pa.DictionaryArray.from_arrays(told.indices, pa.array(names, pa.string()))

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Equal bytes and equal hashes are found by DuckDB; only rows that have a duplicate come into memory."""
        con = evidence.con
        hashed, embedded = has_evidence(con, "near_evidence"), has_evidence(con, "semantic_evidence")
        groups_by(con, "raw_sha256", "dup_bytes")
        same = [_equal(con, "dup_bytes")]
        if hashed:
            groups_by(con, "struct_extract(near_evidence, 'hash')", "dup_hash")
            same.append(_equal(con, "dup_hash"))
        width, most, near = self._near_links(con) if hashed else (0, SEMANTIC_STEPS, NO_LINKS)
        scale, semantic = self._semantic_links(con, most) if embedded else (0.0, NO_LINKS)
        near, semantic, matched = self._compared(con, near, semantic, most)
        keys, label, plain = joined(same, near, semantic, int(most * self.params.reach), Measures(con, width, scale), matched)
        place = {"part": (keys >> 32).astype(np.int32), "row": (keys & 0xFFFFFFFF).astype(np.int32)}
        con.register("dup_found", pa.table({**place, "component": label, "near": plain}))
        con.execute('CREATE OR REPLACE TABLE dup_groups AS SELECT part, "row", component, near FROM dup_found')
        con.unregister("dup_found")
        return _with_distance(con, keepers(con, self.params.max_texts if self.params.join_texts else None, self.params.keeper), hashed, embedded)

    def resolve_columns(self, evidence: ColumnEvidence) -> Mapping[str, pa.Array | OfPlaces] | None:
        """Without the texts, turned copies, embeddings and matches: for these the query is asked."""
        if "texts" in evidence.wanted or has_turned(evidence) or has_structs(evidence, "semantic_evidence") or has_structs(evidence, "crop_evidence"):
            return None
        found = read_hashes(evidence)
        most = self._most(found.width, found.within) if found is not None else 0
        return decide_whole(evidence, found, most, int(most * self.params.reach), self.params.keeper)

    def _most(self, width: int, within: int) -> int:
        """Bits that two images of one component may differ in. Raises Fatal where near_dup did not search as far."""
        most = min(MAX_DISTANCE[width], within) if self.params.max_distance is None else self.params.max_distance
        if most > within:
            raise Fatal(f"{self.instance}: max_distance {most} is more than the {within} bits up to which near_dup searched; raise near_dup.search_distance")
        return most

    def _near_links(self, con: duckdb.DuckDBPyConnection) -> tuple[int, int, Links]:
        """Bytes of a hash, bits that two images of one component may differ in, and the links between first rows of hashes that hold."""
        known = con.sql("SELECT octet_length(near_evidence.hash), near_evidence.within FROM rows WHERE near_evidence IS NOT NULL LIMIT 1").fetchall()
        if not known:
            return 0, SEMANTIC_STEPS, NO_LINKS
        [(width, within)] = known
        most = self._most(width, within)
        return width, most, links_of(con, "near_evidence", "p.distance", f"p.distance <= {most}")

    def _semantic_links(self, con: duckdb.DuckDBPyConnection, most: int) -> tuple[float, Links]:
        """Bits per unit of 1 - cosine, so that the least cosine that joins counts as `most` bits, and the links that hold."""
        known = con.sql("SELECT semantic_evidence.within FROM rows WHERE semantic_evidence IS NOT NULL LIMIT 1").fetchall()
        if not known:
            return 0.0, NO_LINKS
        [(within,)] = known
        least = max(MIN_COSINE, round(within, 4)) if self.params.min_cosine is None else self.params.min_cosine
        if least < round(within, 4):
            raise Fatal(f"{self.instance}: min_cosine {least:g} is below the {within:g} down to which semantic_dup searched; lower semantic_dup.search_cosine")
        scale = max(most, 1) / max(1 - least, 1e-4)
        return scale, self._alike(con, links_of(con, "semantic_evidence", f"round((1 - p.cosine) * {scale})", f"round(p.cosine, 4) >= {least}"))

    def _compared(self, con: duckdb.DuckDBPyConnection, near: Links, semantic: Links, most: int) -> tuple[Links, Links, Links]:
        """The links of near hashes and embeddings between thumbnails that agree, and those that their match makes; without crop_dup all hold."""
        con.execute("CREATE OR REPLACE TABLE dup_matches (a BIGINT, b BIGINT, match FLOAT, difference FLOAT)")
        if not has_evidence(con, "crop_evidence"):
            return near, semantic, NO_LINKS
        known = con.sql("SELECT crop_evidence.within FROM rows WHERE crop_evidence IS NOT NULL LIMIT 1").fetchall()
        if not known:
            return near, semantic, NO_LINKS
        [(within,)] = known
        levels = min(MAX_DIFFERENCE, within) if self.params.max_difference is None else self.params.max_difference
        loose = self.params.hash_difference
        for name, limit in (("max_difference", levels), ("hash_difference", loose or 0)):
            if limit > round(within, 4):
                raise Fatal(
                    f"{self.instance}: {name} {limit:g} is more than the {within:g} grey levels up to which crop_dup kept pairs; "
                    "raise crop_dup.search_difference"
                )
        keep_matches(con)
        near = near if loose is None else same_pictures(con, near, loose)
        return near, same_pictures(con, semantic, levels), matched_links(con, self.params.min_match, levels, most)

    def _alike(self, con: duckdb.DuckDBPyConnection, links: Links) -> Links:
        return links if self.params.semantic_bits is None else seen_alike(con, links, self.params.semantic_bits)


def _equal(con: duckdb.DuckDBPyConnection, table: str) -> Links:
    """Rows of a table of groups, each with the first of its group, in the order of the input."""
    found = con.sql(f"SELECT {ROW_KEY} AS a, component AS b FROM {table} ORDER BY a").to_arrow_table()
    return Links(found["a"].to_numpy(), found["b"].to_numpy(), np.zeros(len(found), np.int64))


def _with_distance(con: duckdb.DuckDBPyConnection, kept: duckdb.DuckDBPyRelation, hashed: bool, embedded: bool) -> duckdb.DuckDBPyRelation:
    """The answer, with bits, cosine and match between each row that goes and its keeper; null where one of the two has no hash, or they were not measured."""
    con.register("dup_kept", kept)  # no view in the file: `whatif` has `rows` in memory
    bits = _bits_sql() if hashed else "CAST(NULL AS SMALLINT)"
    cosine = "CAST(round(list_cosine_similarity(h.semantic_evidence.vector, k.semantic_evidence.vector), 4) AS FLOAT)" if embedded else "CAST(NULL AS FLOAT)"
    columns = ", ".join(f"r.{name}" for name, there in (("near_evidence", hashed), ("semantic_evidence", embedded)) if there) or "NULL AS nothing"
    return con.sql(
        f"""
        WITH grouped AS (
            SELECT d.part, d."row", d.part::BIGINT * 4294967296 + d."row" AS key, d.component, d.nth, {columns}
            FROM dup_ranked d JOIN rows r ON r.part = d.part AND r."row" = d."row"
        ),
        measured AS (
            SELECT h.part, h."row", {bits} AS distance, {cosine} AS cosine, h.key AS own, k.key AS keeper
            FROM grouped h JOIN grouped k ON k.component = h.component AND k.nth = 1 WHERE h.nth > 1
        ), matched AS (
            SELECT m.part, m."row", m.distance, m.cosine, d.match FROM measured m
            LEFT JOIN dup_matches d ON d.a = least(m.own, m.keeper) AND d.b = greatest(m.own, m.keeper)
        )
        SELECT part, "row", dup_of, kind, distance, cosine, match, dup_component, texts FROM dup_kept LEFT JOIN matched USING (part, "row")
        """
    )


def _bits_sql() -> str:
    """Bits between the hashes of h and k, the least over k's turned copies; null where one has none."""
    mine, other, turned = (f"{row}.near_evidence.{name}" for row, name in (("h", "hash"), ("k", "hash"), ("k", "turned")))
    digits = f"2 * octet_length({mine})"
    copy = f"CAST(unhex(substr(hex({turned}), i * {digits} + 1, {digits})) AS BIT)"
    copies = f"list_transform(range(0, coalesce(octet_length({turned}), 0) // octet_length({mine})), lambda i: bit_count(xor(CAST({mine} AS BIT), {copy})))"
    whole = f"least(bit_count(xor(CAST({mine} AS BIT), CAST({other} AS BIT))), list_min({copies}))"
    return f"CASE WHEN {mine} IS NOT NULL AND {other} IS NOT NULL THEN CAST({whole} AS SMALLINT) END"
