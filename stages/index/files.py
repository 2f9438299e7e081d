"""One index file: a Parquet table with one line per item, and in its footer what made it and the digest of its contents."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.digests import digest_of, hash_column
from pipeline.errors import Fatal, RecipeError
from pipeline.files import Guard, commit_bytes, parquet_source, read_metadata
from pipeline.registry import nearest
from pipeline.storage import ObjectPath, Place, place_of
from stages.images import leaks

FOOTER = b"pairmill-index"
FORMAT = 1
SUFFIX = ".index.parquet"
FOLDER_VARIABLE = "PAIRMILL_INDEXES"
_PIECE = 10_000  # rows of a piece of nulls
WINDOWS_BYTES = 8 * (1 + len(leaks.windows()))

# Columns of every index; those that nothing is known for are null. Two more, `image_emb` (float16 of unit length), only where a model is named.
SCHEMA = pa.schema(
    [
        pa.field("item", pa.string(), False),
        pa.field("url_sha256", pa.binary(32)),
        pa.field("raw_sha256", pa.binary(32)),
        pa.field("phash", pa.binary(8)),
        pa.field("phash_quality", pa.int16()),
        pa.field("pdq", pa.binary(32)),
        pa.field("pdq_quality", pa.int16()),
        pa.field("windows", pa.binary(WINDOWS_BYTES)),
        pa.field("box", pa.binary(4)),
        pa.field("thumb", pa.binary(leaks.THUMB**2)),
        pa.field("texts", pa.list_(pa.string())),
    ]
)
EMBEDDING = "image_emb"


@dataclass
class IndexFacts:
    """Footer of an index. name: how rows that match tell of it. counts: items, and how many have each column. pictures: version of windows and copies.

    model: digest and name of the model of `image_emb`, and its width; empty without embeddings. digest: of all columns' values.
    trimmed: whether the hashes of a run are of images without their borders (`image_hash.trimmed`); None where it is not known.
    """

    name: str
    digest: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    pictures: int = leaks.VERSION
    model: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    trimmed: bool | None = None

    def check_model(self, identity: str, where: str) -> None:
        """Raises RecipeError, beginning with `where`, where the embeddings are of another model than that of an identity (a digest)."""
        if self.model.get("identity", identity) != identity:
            raise RecipeError(
                f"{where}: the embeddings of index {self.name} are of another model than those of this recipe, and mean nothing to them; build the index again "
                "with --model as the recipe names it, or leave embeddings out"
            )


@dataclass
class Index:
    """An index in memory: its facts and its table."""

    facts: IndexFacts
    table: pa.Table


def make_index(name: str, table: pa.Table, model: dict[str, Any] | None = None, trimmed: bool | None = None) -> Index:
    """An index of a table with columns of SCHEMA (and perhaps `image_emb`): lines in the order of items, equal lines once."""
    types = {one.name: one.type for one in SCHEMA}
    held = {name: table[name].cast(kind) for name, kind in types.items() if name in table.column_names and table[name].null_count < table.num_rows}
    held |= {EMBEDDING: table[EMBEDDING]} if EMBEDDING in table.column_names else {}
    held = {"item": pa.chunked_array([[]], pa.string())} | held
    places = _places(held)
    whole = pa.table({name: column.take(places).combine_chunks() for name, column in held.items()})
    # Wide columns that nothing is known for are not made: one piece of nulls stands for all of them.
    columns = {name: whole[name] if name in held else _nulls(len(places), kind) for name, kind in types.items()}
    whole = pa.table(columns | ({EMBEDDING: whole[EMBEDDING]} if EMBEDDING in held else {}))
    counts = {"items": whole.num_rows} | {column: n for column in whole.column_names[1:] if (n := whole.num_rows - whole[column].null_count)}
    digest = digest_of("index", *(piece for column in whole.column_names for piece in (column, hash_column(whole[column]))))
    return Index(IndexFacts(name, digest, counts, leaks.VERSION, model or {}, trimmed=trimmed), whole)


def _places(columns: dict[str, pa.ChunkedArray]) -> pa.Array:
    """The order of the lines, by item and then by the hashes of their values; of equal lines the first."""
    hashes = zip(*(hash_column(column).tolist() for column in columns.values()), strict=True)
    lines = pa.table({"item": columns["item"], "hash": pa.array([",".join(map(str, row)) for row in hashes], pa.string())})
    order = pc.sort_indices(lines, [("item", "ascending"), ("hash", "ascending")])
    lines = lines.take(order)
    again = [pc.equal(lines[name].slice(1), lines[name].slice(0, max(0, lines.num_rows - 1))) for name in ("item", "hash")]
    first = pa.concat_arrays([pa.array([True] * min(1, lines.num_rows), pa.bool_()), pc.invert(pc.and_(*again)).combine_chunks()])
    return order.filter(first)


def _nulls(rows: int, kind: pa.DataType) -> pa.ChunkedArray:
    piece = pa.nulls(min(rows, _PIECE), kind)
    return pa.chunked_array([piece] * (rows // _PIECE) + [piece.slice(0, rows % _PIECE)], kind)


def write_index(index: Index, path: Place, guard: Guard | None = None) -> None:
    """Commit an index file; equal contents give equal bytes."""
    footer = json.dumps(asdict(index.facts), sort_keys=True).encode()
    sink = pa.BufferOutputStream()
    table = index.table.replace_schema_metadata({FOOTER: footer})
    pq.write_table(table, sink, compression="zstd", row_group_size=100_000, use_dictionary=False, store_schema=True)
    commit_bytes(path, memoryview(sink.getvalue()), guard)


def read_facts(path: Place) -> IndexFacts:
    """Footer of an index file. Raises RecipeError where there is none, or where it is another kind of file."""
    try:
        raw = (read_metadata(path).metadata or {}).get(FOOTER)
        facts = IndexFacts(**json.loads(raw)) if raw else None
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such index; `pairmill index list` shows those of this user, `pairmill index build` makes one") from None
    except (pa.ArrowInvalid, TypeError, ValueError) as error:
        raise RecipeError(f"{path}: is no index of pairmill ({error})") from error
    if facts is None:
        raise RecipeError(f"{path}: is a Parquet file, but no index of pairmill; make one with `pairmill index build`")
    if facts.format != FORMAT or facts.pictures != leaks.VERSION:
        raise RecipeError(f"{path}: was made by another version of pairmill (format {facts.format}, pictures {facts.pictures}); build it again")
    return facts


def is_index(path: Place) -> bool:
    """Whether a Parquet file is an index, whatever its version."""
    try:
        return FOOTER in (read_metadata(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def read_index(path: Place, columns: list[str] | None = None) -> Index:
    """An index file, whole or some of its columns."""
    facts = read_facts(path)
    try:
        with pq.ParquetFile(parquet_source(path)) as file:
            wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            return Index(facts, file.read(columns=wanted, use_threads=False).replace_schema_metadata(None))
    except (pa.ArrowInvalid, OSError) as error:
        raise Fatal(f"{path}: cannot be read ({error}); build the index again") from error


def index_folder() -> Path:
    """Folder of the indexes that are called by a name: PAIRMILL_INDEXES, or one in the user's data folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(given) if given else data / "pairmill" / "indexes"


def index_path(name: str) -> Place:
    """Where the index NAME_OR_PATH lies: a path has a slash or ends in .parquet, anything else is a name in the user's folder."""
    if "/" in name or name.endswith(".parquet"):
        return place_of(name)
    return index_folder() / f"{name}{SUFFIX}"


def index_name(path: Place) -> str:
    """The name of an index by that of its file."""
    return path.name.removesuffix(SUFFIX).removesuffix(".parquet")


def known_path(name: str) -> Place:
    """The path of an index that must be there. Raises RecipeError with the nearest name."""
    path = index_path(name)
    if not path.is_file():
        names = [index_name(one) for one in index_folder().glob(f"*{SUFFIX}")]
        where = "" if isinstance(path, ObjectPath) or "/" in name else f" in {index_folder()}"
        raise RecipeError(f"no index {name!r}{where}{nearest(name, names)}; make it with `pairmill index build {name} ...`")
    return path
