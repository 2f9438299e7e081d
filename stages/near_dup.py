"""near_dup: perceptual hashes of every image, and all pairs of them within a distance. `dedup` decides on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Evidence, Params, Row, Stage, Values, decides, tunes
from schemas.outcome import Failure, FailureCode
from stages.dups.hamming import Pairs, near_pairs
from stages.dups.turned import turned_pairs
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.images.hashes import has_pdq

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
    """Which hashes are computed, and which of them is compared how far."""

    pdq: bool = Field(True, description="compute PDQ (256 bits; the package pdqhash) beside the 64-bit pHash")
    mirrored: bool = Field(False, description="also hash the left-right mirror image, so that mirrored copies are found")
    rotated: bool = Field(False, description="also hash the image turned by 90, 180 and 270 degrees (with mirrored: all eight copies)")
    pixel_limit: int = Field(DEFAULT_PIXEL_LIMIT, description="most pixels by the header, before decoding", ge=1)
    by: Literal["pdq", "phash"] = decides("pdq", "the hash that is compared")
    search_distance: int | None = decides(None, "pairs up to this many bits apart are found and stored; null: 40 of 256, 12 of 64", ge=0, le=100)
    min_quality: int = decides(50, "images with less to see (0 flat, 100 busy; PDQ's measure) are not compared: all skies look alike", ge=0, le=100)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class NearDup(Stage):
    """Hashes every image, and finds all pairs of hashes within a distance, without misses. Drops nothing: `dedup`, put right behind it, decides.

    Images with equal hashes are one in the search. `near_evidence` holds the hash that was compared, the distance searched, and on the first row of each
    hash the pairs with later ones. A clump (hundreds of hashes nearly all near each other) is stored by its spanning forest. `dedup.max_distance` moves below
    `search_distance` without a search.
    """

    name: ClassVar[str] = "near_dup"
    version: ClassVar[int] = 1
    Params = NearDupParams
    params: NearDupParams
    reads = ("image",)
    resolves = {"near_evidence": NEAR}
    batch_size = 64
    decodes_images = True
    seconds_per_row = 0.015

    @property
    def writes(self) -> Mapping[str, ColumnType]:  # type: ignore[override]
        columns: dict[str, ColumnType] = {"phash": pa.binary(), "phash_quality": pa.int16(), "phash_turned": pa.binary()}
        return columns | ({"pdq": pa.binary(), "pdq_quality": pa.int16(), "pdq_turned": pa.binary()} if self.params.pdq else {})

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
        """Raises RecipeError where PDQ is wanted and cannot be computed, or a distance is more than half of the hash."""
        if self.params.pdq and not has_pdq():
            raise RecipeError(f"stages.{self.instance}: PDQ needs the package pdqhash (pip install 'pairmill[pdq]'); or set pdq: false and by: phash")
        if self.params.by == "pdq" and not self.params.pdq:
            raise RecipeError(f"stages.{self.instance}: by: pdq with pdq: false; set by: phash")
        if self.distance >= BYTES[self.params.by] * 4:
            bits = BYTES[self.params.by] * 8
            raise RecipeError(f"stages.{self.instance}: search_distance {self.distance} of {bits} bits finds everything; give less than half")

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Decode and hash in the sandbox."""
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        wanted = {"pdq": self.params.pdq, "mirrored": self.params.mirrored, "rotated": self.params.rotated, "pixel_limit": self.params.pixel_limit}
        futures = [decoders.hashes(row["image"].read(), **wanted) if row["image"] is not None else None for row in rows]
        missing = Failure(FailureCode.BAD_ROW, "the row has no stored image")
        return [future.result() if future is not None else missing for future in futures]

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

    def _search(self, con: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, Iterator[Pairs]]:
        """Where each distinct hash stands first (part * 2^32 + row, int64 [N]), and the pairs of them."""
        width = BYTES[self.params.by]
        table = con.sql("SELECT hash, first, turned FROM near_distinct ORDER BY hash").to_arrow_table()
        hashes = fixed_bytes(table["hash"], width)
        if not self.params.mirrored and not self.params.rotated:
            return table["first"].to_numpy(), near_pairs(hashes, self.distance)
        copies = 7 if self.params.mirrored and self.params.rotated else 1 if self.params.mirrored else 3
        turned = fixed_bytes(table["turned"], width * copies).reshape(-1, copies, width)
        return table["first"].to_numpy(), turned_pairs(hashes, turned, self.distance)


def fixed_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A binary column without nulls, each value `width` bytes, as uint8 [N, width]."""
    whole = column.cast(pa.binary(width)).combine_chunks()
    arrays = whole.chunks if isinstance(whole, pa.ChunkedArray) else [whole]
    pieces = [np.frombuffer(one.buffers()[1], np.uint8)[one.offset * width : (one.offset + len(one)) * width] for one in arrays if len(one)]
    return np.concatenate(pieces or [np.empty(0, np.uint8)]).reshape(-1, width)
