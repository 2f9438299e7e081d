"""Columns of a whole run as arrays over all its rows, mapped from files that are made once and may be deleted at any time.

The files lie in `cache/whatif/` of a run directory on a disk that can be written, else in `~/.cache/pairmill/whatif/`. A file's name holds the digest of the
names, sizes and times of the part files that it was made from, so that one of an earlier state is never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chain import Ref
from pipeline.digests import digest_of
from pipeline.errors import Fatal
from pipeline.reason_columns import as_numbers
from pipeline.run_view import RunView
from pipeline.stage import OfPlaces
from pipeline.storage import ObjectPath
from pipeline.store import RESOLVED, VALUES
from pipeline.view import flat

_THREADS = 4


class Corpus:
    """Columns by Ref, each one array of N rows; `moved` holds those that a resolve in memory made anew."""

    def __init__(self, run: RunView):
        self.run = run
        self.starts = np.concatenate([[0], np.cumsum(run.parts)]).astype(np.int64)
        self.rows = int(self.starts[-1])
        self.moved: dict[Ref, pa.Array | OfPlaces] = {}
        self.folder = cache_folder(run)
        self.made = 0  # files that were not there
        self._columns: dict[Ref, pa.Array] = {}
        self._stamps: dict[tuple[str, str], str] = {}

    def stamp(self, kind: str, stage: str) -> str:
        """Digest of what identifies the part files of a stage: names, sizes and times on a disk, footers in object storage."""
        key = (kind, stage)
        if key not in self._stamps:
            folder = self.run.root / kind / stage
            if isinstance(folder, ObjectPath):
                records = self.run.store.records((kind, stage, part) for part in range(len(self.run.parts)))
                told: list[Any] = [[part, record.digest, record.inputs] for (_, _, part), record in sorted(records.items())]
            else:
                told = sorted(_facts(folder))
            self._stamps[key] = digest_of(kind, stage, told)
        return self._stamps[key]

    def stamp_of(self, refs: Iterable[Ref]) -> str:
        """Stamp of the files of some columns."""
        nodes = self.run.chain.nodes
        return digest_of(sorted({self.stamp(RESOLVED if ref.resolved else VALUES, nodes[ref.node].name) for ref in refs}))

    def column(self, ref: Ref) -> pa.Array:
        """A column as stored, whatever rows are alive; all null where no file has it."""
        if ref in self.moved:
            found = self.moved[ref]
            if not isinstance(found, pa.Array):
                found = self.moved[ref] = found(np.arange(self.rows))
            return found
        if ref not in self._columns:
            self.load([ref])
        return self._columns[ref]

    def moved_part(self, ref: Ref, part: int) -> pa.Array:
        """A column of `moved`, of the rows of one part."""
        found, start, stop = self.moved[ref], int(self.starts[part]), int(self.starts[part + 1])
        return found.slice(start, stop - start) if isinstance(found, pa.Array) else found(np.arange(start, stop))

    def load(self, refs: Iterable[Ref]) -> None:
        """Bring columns to hand; those of one stage that are in no file yet are read together."""
        groups: dict[tuple[int, bool], list[str]] = {}
        for ref in refs:
            if ref not in self.moved and ref not in self._columns:
                name, stamp = self._name(ref), self.stamp_of([ref])
                if (table := self._open(name, stamp)) is not None:
                    self._columns[ref] = flat(table["x"])
                else:
                    groups.setdefault((ref.node, ref.resolved), []).append(ref.column)
        for (node, resolved), columns in groups.items():
            for column, array in self._read(node, resolved, columns).items():
                ref = Ref(node, column, resolved)
                self._columns[ref] = flat(self._keep(self._name(ref), self.stamp_of([ref]), pa.table({"x": array}))["x"])

    def _name(self, ref: Ref) -> str:
        return f"{self.run.chain.nodes[ref.node].name}.{'resolved.' if ref.resolved else ''}{ref.column}"

    def _read(self, node: int, resolved: bool, columns: list[str]) -> dict[str, pa.Array]:
        kind, name = RESOLVED if resolved else VALUES, self.run.chain.nodes[node].name

        def read(part: int) -> pa.Table | None:
            return self.run.store.read(kind, name, part, columns)

        with ThreadPoolExecutor(_THREADS) as pool:
            tables = list(pool.map(read, range(len(self.run.parts))))
        known = next((table for table in tables if table is not None), None)
        if known is None:
            raise Fatal(f"{self.run.root / kind / name}: has no part file, though the run is finished; run the recipe again")
        whole = pa.concat_tables([pa.table([pa.nulls(rows, field.type) for field in known.schema], known.schema) if table is None else table
            for table, rows in zip(tables, self.run.parts, strict=True)])  # fmt: skip
        return {column: _one_array(whole[column]) for column in columns}

    def kept(self, name: str, stamp: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays of any lengths that `make` gives, from a file where it has been asked before under this name and stamp."""
        table = self._open(name, stamp)
        if table is None:
            table = self._keep(name, stamp, pa.table({key: _as_list(array) for key, array in make().items()}))
        return {key: _as_array(flat(table[key]).flatten()) for key in table.column_names}

    def index(self, node: int, name: str, refs: Sequence[Ref], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """As `kept`, for arrays that follow from columns; made in memory alone where one of these has moved."""
        if any(ref in self.moved for ref in refs):
            return make()
        return self.kept(f"{self.run.chain.nodes[node].name}.index.{name}", digest_of(name, self.stamp_of(refs)), make)

    def index_of(self, node: int, name: str, array: pa.Array, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """As `index`, for what follows from an array: kept where it is the memory of a stored column or of a field of one."""
        for ref, column in list(self._columns.items()):
            fields = column.type if pa.types.is_struct(column.type) else ()
            for at, part in enumerate([column, *(column.field(place) for place in range(len(fields)))]):
                if _same_memory(part, array):
                    stamp = digest_of(name, ref.node, ref.column, ref.resolved, at, self.stamp_of([ref]))
                    return self.kept(f"{self.run.chain.nodes[node].name}.index.{name}", stamp, make)
        return make()

    def _open(self, name: str, stamp: str) -> pa.Table | None:
        path = self.folder / _file_name(name, stamp)
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except FileNotFoundError:
            return None
        except pa.ArrowInvalid:
            path.unlink(missing_ok=True)
            return None

    def _keep(self, name: str, stamp: str, table: pa.Table) -> pa.Table:
        """Write beside and rename, then map; files of this name with another stamp are removed."""
        path = self.folder / _file_name(name, stamp)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.made += 1
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in self.folder.glob(f"{name}@*.arrow"):
            if other != path:
                other.unlink(missing_ok=True)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _same_memory(one: pa.Array, other: pa.Array) -> bool:
    if one.type != other.type or one.offset != other.offset or len(one) != len(other):
        return False
    return [buffer and buffer.address for buffer in one.buffers()] == [buffer and buffer.address for buffer in other.buffers()]


def _file_name(name: str, stamp: str) -> str:
    return f"{name}@{stamp}.arrow"


def cache_folder(run: RunView) -> Path:
    """Where the columns of a run are kept."""
    root = run.root
    if isinstance(root, Path) and os.access(root, os.W_OK):
        return root / "cache" / "whatif"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pairmill" / "whatif" / digest_of(str(root.resolve()))


def _facts(folder: Path) -> list[list[Any]]:
    try:
        with os.scandir(folder) as entries:
            return [[entry.name, (stat := entry.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for entry in entries if entry.name.startswith("part-")]
    except FileNotFoundError:
        return []


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """All chunks as one array; texts and bytes beyond 2 GB with 64-bit offsets."""
    kind = column.type
    if column.nbytes > (1 << 31) - (1 << 20) and (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        column = column.cast(pa.large_string() if pa.types.is_string(kind) else pa.large_binary())
    return flat(column.combine_chunks())


def _as_array(values: pa.Array) -> np.ndarray:
    return np.array(values.to_pylist(), object) if pa.types.is_string(values.type) or pa.types.is_null(values.type) else as_numbers(values)


def _as_list(array: np.ndarray) -> pa.Array:
    values = pa.array(array.astype(np.uint8) if array.dtype == bool else array)
    return pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), values)
