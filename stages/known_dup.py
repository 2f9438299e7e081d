"""known_dup: rows that a finished run has already, by its index: an increment of a crawl costs only what is new."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.stage import ColumnType, Context, Params, Row, Stage, Values, decides
from schemas.outcome import Drop, Failure, Reason
from stages.dups.lookup import HashTable
from stages.index.files import known_path, read_facts, read_index
from stages.near_dup import BYTES, fixed_bytes

_DISTANCE = {"pdq": 31, "phash": 6}  # those of dedup
_REASONS = {"url": Reason.SAME_URL, "bytes": Reason.EXACT_DUP, "near": Reason.NEAR_DUP}


class KnownDupParams(Params):
    """Which runs are known, and how near an image must be to one of theirs."""

    indexes: tuple[str, ...] = Field(description="names or paths of the indexes of finished runs (`pairmill index build NAME --run RUN`)")
    urls: bool = Field(True, description="drop rows whose URL is known; before `download` this saves fetching them")
    by: Literal["phash", "pdq"] = Field("phash", description="the hash of image_hash that is compared, where it stands before this stage")
    search_distance: int | None = Field(None, description="known hashes up to this many bits away are found; null: 31 of 256, 6 of 64", ge=0, le=40)
    min_quality: int = Field(50, description="images with less to see (0 flat, 100 busy) are compared by their bytes alone", ge=0, le=100)
    max_distance: int | None = decides(None, "bits up to which an image is a duplicate of a known one; null: as far as is searched", ge=0)


class KnownDup(Stage):
    """Drops rows that an earlier run kept: same URL, same bytes, or a near hash (mirrored or turned, where image_hash has these copies).

    Put it before `download` (URLs), behind it (bytes), or behind `image_hash` (near images); it may stand several times. `known_kind` is 'url', 'bytes' or
    'near', `known_item` the `<index>/<sample_id>` of the row there, `known_distance` the bits between the hashes. Each worker holds the indexes in memory.
    """

    name: ClassVar[str] = "known_dup"
    version: ClassVar[int] = 2  # mirrored and turned copies
    Params = KnownDupParams
    params: KnownDupParams
    batch_size = 4096
    writes: Mapping[str, ColumnType] = {"known_kind": pa.string(), "known_item": pa.string(), "known_distance": pa.int16()}

    @property
    def reads(self) -> Sequence[str]:  # type: ignore[override]
        return ("url", "raw_sha256?", f"{self.params.by}?", f"{self.params.by}_quality?", f"{self.params.by}_turned?")

    @property
    def distance(self) -> int:
        """Bits up to which known hashes are found."""
        given = self.params.search_distance
        return _DISTANCE[self.params.by] if given is None else given

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where an index is not there, or a distance is not searched."""
        if not self.params.indexes:
            raise RecipeError(f"stages.{self.instance}.indexes: name at least one index")
        if self.params.max_distance is not None and self.params.max_distance > self.distance:
            more = f"{self.params.max_distance} is more than the {self.distance} bits searched"
            raise RecipeError(f"stages.{self.instance}.max_distance: {more}; raise search_distance")
        self.compute_facts()

    def check_makers(self, made_by: Callable[[str], tuple[Stage | None, str]]) -> None:
        """Raises RecipeError where the hashes of an index cannot be compared with those of this recipe."""
        maker, by = made_by(self.params.by)[0], self.params.by
        if maker is None and made_by("phash")[0] is not None:
            raise RecipeError(f"stages.{self.instance}.by: image_hash makes no {by} here, so no image would be compared; set image_hash.{by}=true or by: phash")
        for facts in (read_facts(known_path(name)) for name in self.params.indexes) if maker is not None else ():
            where = f"stages.{self.instance}: index {facts.name}"
            if facts.counts.get("items") and not facts.counts.get(by):
                raise RecipeError(f"{where} has no {by} hashes, since its run made none; set another `by`, or put the stage before image_hash, for bytes alone")
            if facts.trimmed is not None and facts.trimmed != getattr(maker.params, "trimmed", facts.trimmed):
                raise RecipeError(f"{where} has hashes made with image_hash.trimmed={str(facts.trimmed).lower()}, and here it is set otherwise: set the same")

    def compute_facts(self) -> Any:
        """The contents of the indexes, whatever their paths."""
        return [[facts.name, facts.digest] for facts in (read_facts(known_path(name)) for name in self.params.indexes)]

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        known, by = known_items(self.params.indexes, self.params.by, self.distance, self.params.min_quality), self.params.by
        found: list[tuple[str, int, int | None] | None] = [None] * len(rows)
        if self.params.urls:
            urls = [hashlib.sha256(row["url"].encode("utf-8", "surrogatepass")).digest() if row["url"] else None for row in rows]
            found = [("url", at, None) if at is not None else None for at in known.urls.find(urls)]
        bytes_at = known.bytes.find([row["raw_sha256"] for row in rows])
        found = [one or (("bytes", at, None) if at is not None else None) for one, at in zip(found, bytes_at, strict=True)]
        usable = [
            at for at, row in enumerate(rows)
            if found[at] is None and row[by] is not None and (row[f"{by}_quality"] or 0) >= self.params.min_quality
        ]  # fmt: skip
        copies = [[rows[at][by], *_pieces(rows[at][f"{by}_turned"], BYTES[by])] for at in usable]
        owners = [at for at, some in zip(usable, copies, strict=True) for _ in some]
        for at, (place, bits) in zip(owners, known.nearest([one for some in copies for one in some]), strict=True):
            if place is not None and (found[at] is None or (bits, place) < (found[at][2], found[at][1])):  # type: ignore[index, operator]
                found[at] = ("near", place, bits)
        return [
            {"known_kind": one[0], "known_item": known.item(one[1]), "known_distance": one[2]} if one else dict.fromkeys(self.writes)
            for one in found
        ]  # fmt: skip

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        kind, most = row["known_kind"], self.params.max_distance
        if kind is None or (kind == "near" and most is not None and row["known_distance"] > most):
            return None
        bits = f", {row['known_distance']} bits" if kind == "near" else ""
        return Drop(_REASONS[kind], f"known: {row['known_item']}{bits}")


def _pieces(turned: bytes | None, width: int) -> list[bytes]:
    """The hashes of an image's mirrored and turned copies, where image_hash made them."""
    return [turned[at : at + width] for at in range(0, len(turned), width)] if turned else []


class DigestTable:
    """SHA-256 digests, by their first 16 bytes, in 24 bytes each."""

    def __init__(self, digests: np.ndarray, places: np.ndarray):
        """digests: uint8 [N, 32]; places: int64 [N], what is answered for each."""
        words = np.ascontiguousarray(digests[:, :16]).view(np.uint64).reshape(-1, 2)
        order = np.lexsort((places, words[:, 1], words[:, 0]))
        self.words, self.places = words[order], places[order]

    def find(self, digests: Sequence[bytes | None]) -> list[int | None]:
        """The least place of each digest; None where it is not there."""
        given = [at for at, digest in enumerate(digests) if digest is not None]
        found: list[int | None] = [None] * len(digests)
        asked = np.frombuffer(b"".join((digests[at] or b"")[:16] for at in given), np.uint64).reshape(-1, 2)
        starts, ends = (np.searchsorted(self.words[:, 0], asked[:, 0], side=side) for side in ("left", "right"))
        for at, start, end, second in zip(given, starts.tolist(), ends.tolist(), asked[:, 1].tolist(), strict=True):
            same = np.flatnonzero(self.words[start:end, 1] == np.uint64(second))
            if len(same):
                found[at] = int(self.places[start + same[0]])
        return found


class KnownItems:
    """The rows of several indexes, by URL, bytes and hash."""

    def __init__(self, indexes: Sequence[str], by: str, distance: int, min_quality: int):
        found = [read_index(known_path(name), ["item", "url_sha256", "raw_sha256", by, f"{by}_quality"]) for name in indexes]
        self.names = [one.facts.name for one in found]
        self.items = [one.table["item"].combine_chunks() for one in found]
        self.starts = np.cumsum([0, *(one.table.num_rows for one in found)])
        whole = pa.concat_tables([one.table for one in found])
        self.urls, self.bytes = (_digest_table(whole[column]) for column in ("url_sha256", "raw_sha256"))
        quality = whole[f"{by}_quality"].combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(whole[by].combine_chunks().is_valid().to_numpy(zero_copy_only=False) & (quality >= min_quality))
        hashes = fixed_bytes(whole[by].take(places), BYTES[by])
        values, first = np.unique(hashes, axis=0, return_index=True) if len(hashes) else (hashes, np.empty(0, np.int64))
        self.hashed = places[first]
        self.table = HashTable(values, distance)

    def nearest(self, hashes: Sequence[bytes]) -> list[tuple[int | None, int | None]]:
        """(place, bits) of the nearest known hash of each; (None, None) where none is near."""
        found: list[tuple[int | None, int | None]] = [(None, None)] * len(hashes)
        if not hashes or not len(self.hashed):
            return found
        pairs = self.table.near(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1))
        asked, first = np.unique(pairs.left, return_index=True)
        for at, pair in zip(asked.tolist(), first.tolist(), strict=True):
            found[at] = int(self.hashed[pairs.right[pair]]), int(pairs.distance[pair])
        return found

    def item(self, place: int) -> str:
        """`<index>/<item>`."""
        nth = int(np.searchsorted(self.starts, place, side="right")) - 1
        return f"{self.names[nth]}/{self.items[nth][place - int(self.starts[nth])].as_py()}"


def _digest_table(column: pa.ChunkedArray) -> DigestTable:
    places = np.flatnonzero(column.combine_chunks().is_valid().to_numpy(zero_copy_only=False))
    return DigestTable(fixed_bytes(column.take(places), 32), places)


@functools.lru_cache(maxsize=2)
def known_items(indexes: tuple[str, ...], by: str, distance: int, min_quality: int) -> KnownItems:
    """The indexes of a recipe, loaded once per process."""
    return KnownItems(indexes, by, distance, min_quality)
