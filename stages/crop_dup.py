"""crop_dup: which pairs of near_dup and semantic_dup show one picture, cropped, framed or written on. `dedup` decides on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Evidence, Params, Stage, decides
from stages.dups.components import distinct
from stages.dups.links import NO_LINKS, has_evidence, links_of
from stages.images.registration import CHUNK, THUMB_BYTES, laid_over
from stages.vectors.blocks import blocks
from stages.vectors.kmeans import in_order

if TYPE_CHECKING:
    import duckdb

PAIR = pa.struct([("part", pa.int32()), ("row", pa.int32()), ("match", pa.float32()), ("difference", pa.float32())])
CROP = pa.struct([("within", pa.float32()), ("pairs", pa.list_(PAIR))])


class CropDupParams(Params):
    """Which pairs are laid over each other, and what is kept of them."""

    max_distance: int | None = decides(None, "pairs of near_dup up to so many bits apart are looked at; null: all that it found", ge=0)
    min_cosine: float | None = decides(None, "pairs of semantic_dup with at least this cosine are looked at; null: all that it found", le=1)
    search_difference: float = decides(20.0, "pairs whose thumbnails nowhere differ by more grey levels are stored with how well they match", ge=0, le=1000)


class CropDup(Stage):
    """Lays the thumbnails of the pairs that near_dup and semantic_dup found over each other. Drops nothing: `dedup`, put right behind it, decides.

    Each pair of rows gets a match of -1 to 1, how well one picture fits a window of the other, but for a band or a frame that a text or a border may have
    spoilt, and a difference in grey levels, that of the small block that differs most (`stages.images.registration.laid_over`). Of pairs that near_dup found
    one picture may bear a line of text that the other has not; pairs of semantic_dup alone must agree everywhere.
    `crop_evidence` holds the difference searched and the pairs with later rows that differ by no more. `dedup.min_match` moves freely, and
    `dedup.max_difference` and `hash_difference` below `search_difference`, without a thumbnail.
    """

    name: ClassVar[str] = "crop_dup"
    version: ClassVar[int] = 2  # the difference
    Params = CropDupParams
    params: CropDupParams
    reads_resolve = ("thumbnail", "near_evidence?", "semantic_evidence?")
    names_rows = ("near_evidence", "semantic_evidence")
    resolves = {"crop_evidence": CROP}

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError where there are no thumbnails, or no stage finds the pairs to look at."""
        if "thumbnail" not in available:
            raise RecipeError(f"stages.{self.instance}: it compares thumbnails; set image_hash: {{thumbnail: true}}")
        if not {"near_evidence", "semantic_evidence"} & set(available):
            raise RecipeError(f"stages.{self.instance}: it looks at pairs that near_dup or semantic_dup found; put one of them before it")

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Thumbnails of rows in a pair go to a file of their own; the pairs are measured in chunks, in their order."""
        con = evidence.con
        con.execute("CREATE OR REPLACE TABLE crop_edges (a BIGINT, b BIGINT, match FLOAT, difference FLOAT)")
        pairs, hashed = self._candidates(con)
        with tempfile.TemporaryDirectory(prefix="pairmill-crop-", dir=evidence.scratch) as folder:
            keys, thumbs = _thumbnails(evidence, distinct(pairs.ravel()), Path(folder))
            seen = np.isin(pairs, keys).all(1)
            for some, match, difference in in_order(_chunks(pairs[seen], hashed[seen]), lambda chunk: _measured(*chunk, keys, thumbs)):
                good = difference <= np.float32(self.params.search_difference)
                con.register("crop_found", pa.table({"a": some[good, 0], "b": some[good, 1], "match": match[good], "difference": difference[good]}))
                con.execute("INSERT INTO crop_edges SELECT * FROM crop_found")
                con.unregister("crop_found")
        place = "'part': CAST(b // 4294967296 AS INTEGER), 'row': CAST(b % 4294967296 AS INTEGER)"
        pair = f"{{{place}, 'match': match, 'difference': difference}}"
        return con.sql(
            f"""
            SELECT r.part, r."row", {{'within': CAST({self.params.search_difference} AS FLOAT), 'pairs': e.pairs}} AS crop_evidence
            FROM rows r LEFT JOIN (SELECT a, list({pair} ORDER BY b) AS pairs FROM crop_edges GROUP BY a) e ON e.a = r.part::BIGINT * 4294967296 + r."row"
            """
        )

    def _candidates(self, con: duckdb.DuckDBPyConnection) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of rows to look at (part * 2^32 + row, int64 [N, 2]), each once, in their order, and which of them near_dup found (bool [N])."""
        limits: list[tuple[str, Any, str]] = [
            ("near_evidence", self.params.max_distance, "p.distance <= {}"), ("semantic_evidence", self.params.min_cosine, "round(p.cosine, 4) >= {}"),
        ]  # fmt: skip
        near, semantic = (
            links_of(con, column, "0", "true" if limit is None else holds.format(limit)) if has_evidence(con, column) else NO_LINKS
            for column, limit, holds in limits
        )
        ends = np.concatenate([np.stack([links.left, links.right], axis=1) for links in (near, semantic)])
        pairs, first = np.unique(np.sort(ends, axis=1), axis=0, return_index=True)
        return pairs, first < len(near)


def _thumbnails(evidence: Evidence, linked: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the linked rows that have a thumbnail (sorted int64 [M]) and their thumbnails (uint8 [M, THUMB_BYTES], a file)."""
    found: list[np.ndarray] = []
    path = folder / "thumbs.u8"
    with path.open("wb") as file:
        for block in blocks(evidence.vectors("thumbnail")):
            mine = np.isin(block.keys, linked, assume_unique=True)
            found.append(block.keys[mine])
            file.write(block.vectors[mine].tobytes())
    keys = np.concatenate(found) if found else np.empty(0, np.int64)
    return keys, np.memmap(path, np.uint8, "r", shape=(len(keys), THUMB_BYTES)) if len(keys) else np.empty((0, THUMB_BYTES), np.uint8)


def _chunks(pairs: np.ndarray, hashed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from ((pairs[start : start + CHUNK], hashed[start : start + CHUNK]) for start in range(0, len(pairs), CHUNK))


def _measured(pairs: np.ndarray, hashed: np.ndarray, keys: np.ndarray, thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs with match and difference: rounded to 4 and 2 digits, as cosines are."""
    one, other = (thumbs[np.searchsorted(keys, pairs[:, side])] for side in (0, 1))
    match, difference = laid_over(one, other, hashed)
    return pairs, np.round(match, 4), np.round(difference, 2)
