"""dedup: equal bytes and near images joined into components, of which one row stays. The one decision on duplicates (RealSyn, section 3.1: union-find)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Fatal
from pipeline.reason_columns import is_true, reason_column
from pipeline.stage import ColumnEvidence, Evidence, Params, Row, Stage, decides
from schemas.outcome import Drop, Reason
from schemas.sample import TEXTS
from stages.dups.components import components, split_weak_chains
from stages.dups.keeper import ROW_KEY, KeeperBy, groups_by, keepers
from stages.dups.whole_dedup import decide_whole, has_turned, near_edges, read_hashes
from stages.dups.whole_groups import spread_of
from stages.sql_texts import has_column

if TYPE_CHECKING:
    import duckdb

MAX_DISTANCE = {32: 31, 8: 6}  # by the bytes of a hash
REASONS = {"bytes": Reason.EXACT_DUP, "near": Reason.NEAR_DUP}


class DedupParams(Params):
    """How near two images are one, and which row of a component stays."""

    max_distance: int | None = decides(None, "bits of near_dup's hash that two images of one component may differ in; null: 31 of 256, 6 of 64", ge=0)
    reach: float = decides(1.5, "a link joins two groups only where their centres are at most this many times max_distance apart", ge=1)
    keeper: KeeperBy = decides("pixels", "what a kept row has most of: pixels, then clip_score; or clip_score, then pixels")
    max_texts: int = decides(32, "most texts that a kept row has after it took over those of its duplicates", ge=1)


class Dedup(Stage):
    """Keeps one row of each component of equal or near images and gives it the texts of all.

    Rows with equal `raw_sha256` are one component; behind near_dup so are rows with equal hashes, and with hashes within `max_distance`. Links are
    taken from the nearest to the farthest; one that would join two groups whose centres lie further apart than `reach` x `max_distance` is weak and left out.
    The keeper is the row with the most pixels, then the highest clip_score, then the least sample_id. Its `texts` are those of all rows, each text
    once, best clip_score first, with the row it came from as `source`. `kind`: 'bytes' where a better row of the component has the same bytes, else 'near';
    `distance`: bits between the row's hash and its keeper's. `dup_component` is the keeper's id for all rows of a component.
    """

    name: ClassVar[str] = "dedup"
    Params = DedupParams
    params: DedupParams
    reads_resolve = ("raw_sha256", "near_evidence?", "clip_score?", "texts|text|alt_text", "width?", "height?")
    resolves = {"dup_of": pa.string(), "kind": pa.string(), "distance": pa.int16(), "dup_component": pa.string(), "texts": TEXTS}

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        keeper, distance = resolved.get("dup_of"), resolved.get("distance")
        if not keeper:
            return None
        near = resolved["kind"] == "near"
        return Drop(REASONS[resolved["kind"]], f"{keeper}, {distance} bits" if near and distance is not None else keeper)

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        kind = columns["kind"]
        return reason_column(len(kind), [(is_true(pc.equal(kind, name)), reason) for name, reason in REASONS.items()])

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Equal bytes and equal hashes are found by DuckDB; only rows that have a duplicate come into memory."""
        con = evidence.con
        # Without near_dup in the recipe the column is missing, or has no type.
        near = has_column(con, "near_evidence") and con.sql("SELECT near_evidence FROM rows LIMIT 0").types[0].id == "struct"
        groups_by(con, "raw_sha256", "dup_bytes")
        edges = [_edges(con, "dup_bytes")]
        if near:
            groups_by(con, "struct_extract(near_evidence, 'hash')", "dup_hash")
            edges += [_edges(con, "dup_hash"), self._near_edges(con)]
        left, right = (np.concatenate([some[side] for some in edges]) for side in (0, 1))
        keys, places = np.unique(np.concatenate([left, right]), return_inverse=True)
        labels = keys[components(len(keys), *np.split(places, 2))]
        con.register("dup_found", pa.table({"part": (keys >> 32).astype(np.int32), "row": (keys & 0xFFFFFFFF).astype(np.int32), "component": labels}))
        con.execute('CREATE OR REPLACE TABLE dup_groups AS SELECT part, "row", component FROM dup_found')
        con.unregister("dup_found")
        kept = keepers(con, self.params.max_texts, self.params.keeper)
        return _with_distance(con, kept, near)

    def resolve_columns(self, evidence: ColumnEvidence) -> Mapping[str, pa.Array] | None:
        """Without the texts, and without turned copies: for these the query is asked."""
        if "texts" in evidence.wanted or has_turned(evidence):
            return None
        found = read_hashes(evidence)
        near = None
        if found is not None:
            most = self._most(found.width, found.within)
            near = near_edges(found, most, self.params.reach)
        return decide_whole(evidence, found, near, self.params.keeper)

    def _most(self, width: int, within: int) -> int:
        """Bits that two images of one component may differ in. Raises Fatal where near_dup did not search as far."""
        most = MAX_DISTANCE[width] if self.params.max_distance is None else self.params.max_distance
        if most > within:
            raise Fatal(f"{self.instance}: max_distance {most} is more than the {within} bits up to which near_dup searched; raise near_dup.search_distance")
        return most

    def _near_edges(self, con: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, np.ndarray]:
        """Links between first rows of hashes that hold: (row, least row of its component)."""
        known = con.sql("SELECT octet_length(near_evidence.hash), near_evidence.within FROM rows WHERE near_evidence IS NOT NULL LIMIT 1").fetchall()
        if not known:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        [(width, within)] = known
        most = self._most(width, within)
        con.execute(
            f"""
            CREATE OR REPLACE TABLE dup_links AS
            SELECT a, p.part::BIGINT * 4294967296 + p."row" AS b, p.distance AS distance
            FROM (SELECT {ROW_KEY} AS a, unnest(near_evidence.pairs) AS p FROM rows WHERE near_evidence.pairs IS NOT NULL) WHERE p.distance <= {most}
            """
        )
        links = con.sql(f"SELECT * FROM dup_links SEMI JOIN (SELECT {ROW_KEY} AS b FROM rows) USING (b) ORDER BY a, b").to_arrow_table()
        ends = np.stack([links["a"].to_numpy(), links["b"].to_numpy()])
        keys, places = np.unique(ends, return_inverse=True)
        left, right = places.reshape(ends.shape)
        between, spread = _measures(con, keys, width)
        reach = int(most * self.params.reach)
        labels = split_weak_chains(len(keys), left, right, links["distance"].to_numpy(), reach, between, spread)
        return keys, keys[labels]


def _edges(con: duckdb.DuckDBPyConnection, table: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a table of groups, each with the first of its group (int64 row numbers), in the order of the input."""
    found = con.sql(f"SELECT {ROW_KEY} AS a, component AS b FROM {table} ORDER BY a").to_arrow_table()
    return found["a"].to_numpy(), found["b"].to_numpy()


def _measures(
    con: duckdb.DuckDBPyConnection, keys: np.ndarray, width: int
) -> tuple[Callable[[int, int], int], Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """`between` and `spread` of split_weak_chains for the hashes of some rows (int64 [N], sorted)."""
    con.register("dup_nodes", pa.table({"key": keys}))
    columns = "near_evidence.hash AS hash, near_evidence.turned AS turned"
    table = con.sql(f"SELECT {columns} FROM rows JOIN dup_nodes ON {ROW_KEY} = key ORDER BY key").to_arrow_table()
    con.unregister("dup_nodes")
    hashes, turned = table["hash"].to_pylist(), table["turned"].to_pylist()
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, width // 8).T

    def between(a: int, b: int) -> int:
        copies = [hashes[b], *([] if not turned[b] else [turned[b][at : at + width] for at in range(0, len(turned[b]), width)])]
        own = int.from_bytes(hashes[a], "big")
        return min((own ^ int.from_bytes(copy, "big")).bit_count() for copy in copies)

    def spread(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Bits that are not the same in all rows of a component; a turned pair may be near without that, so larger ones are then looked at in full."""
        if any(turned):
            return np.where(np.diff(starts, append=len(rows)) > 2, 8 * width, 0)
        return spread_of(words, rows, starts)

    return between, spread


def _with_distance(con: duckdb.DuckDBPyConnection, kept: duckdb.DuckDBPyRelation, near: bool) -> duckdb.DuckDBPyRelation:
    """The answer: with bits between the hash of each row that goes and its keeper's (the least over turned copies), null without hashes."""
    kept.create_view("dup_kept", replace=True)
    if not near:
        return con.sql('SELECT part, "row", dup_of, kind, CAST(NULL AS SMALLINT) AS distance, dup_component, texts FROM dup_kept')
    digits = "2 * octet_length(h.hash)"
    copy = f"CAST(unhex(substr(hex(k.turned), i * {digits} + 1, {digits})) AS BIT)"
    copies = f"list_transform(range(0, coalesce(octet_length(k.turned), 0) // octet_length(h.hash)), lambda i: bit_count(xor(CAST(h.hash AS BIT), {copy})))"
    bits = f"least(bit_count(xor(CAST(h.hash AS BIT), CAST(k.hash AS BIT))), list_min({copies}))"
    return con.sql(
        f"""
        WITH hashed AS (
            SELECT d.part, d."row", d.component, d.nth, r.near_evidence.hash AS hash, r.near_evidence.turned AS turned
            FROM dup_ranked d JOIN rows r ON r.part = d.part AND r."row" = d."row" WHERE r.near_evidence IS NOT NULL
        ), measured AS (
            SELECT h.part, h."row", CAST({bits} AS SMALLINT) AS distance FROM hashed h JOIN hashed k ON k.component = h.component AND k.nth = 1 WHERE h.nth > 1
        )
        SELECT part, "row", dup_of, kind, distance, dup_component, texts FROM dup_kept LEFT JOIN measured USING (part, "row")
        """
    )
