"""One part as the stages see it: columns, hashes, masks and verdicts, read once and kept while a task works on the part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.digests import combine_hashes, digest_of, hash_column
from pipeline.errors import Fatal
from pipeline.stage import Vector
from pipeline.store import BOOKKEEPING, RESOLVED, VALUES, VERDICTS, Store
from schemas.columns import LOCATION_COLUMNS
from schemas.outcome import Outcome, Status
from schemas.record import PartRecord


@dataclass
class Verdict:
    """Verdicts of a node for one part. `open`: later stages measure the row (kept, or dropped in a late recipe)."""

    status: np.ndarray  # int8 [N]
    reason: pa.Array  # string [N]
    detail: pa.Array  # string [N]
    open: np.ndarray  # bool [N]

    @property
    def alive(self) -> np.ndarray:
        return self.status == Status.KEPT

    def to_table(self) -> pa.Table:
        return pa.table({"status": pa.array(self.status), "reason": self.reason, "detail": self.detail, "open": pa.array(self.open)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Verdict:
        table = table.combine_chunks()
        return cls(
            table["status"].to_numpy().copy(), table["reason"].combine_chunks(), table["detail"].combine_chunks(), table["open"].to_numpy().copy()
        )

    def digest(self) -> str:
        return digest_of(self.status, hash_column(self.reason), hash_column(self.detail), self.open)

    @classmethod
    def all_kept(cls, rows: int) -> Verdict:
        return cls(np.zeros(rows, np.int8), pa.nulls(rows, pa.string()), pa.nulls(rows, pa.string()), np.ones(rows, bool))


def flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def mappings(table: pa.Table, names: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a table as dictionaries; several times as fast as `to_pylist` on small tables."""
    names = table.column_names if names is None else names
    columns = [table[name].to_pylist() for name in names]
    if len(names) == 1:
        name = names[0]
        return [{name: value} for value in columns[0]]
    return [dict(zip(names, values, strict=False)) for values in zip(*columns, strict=True)] if names else [{} for _ in range(table.num_rows)]


class PartView:
    """Columns and verdicts of one part. What is computed in this task is put in, so that later stages need no disk."""

    needs_input = True  # a missing part of the input is an error, not a column of nulls

    def __init__(self, chain: Chain, store: Store, part: int, rows: int):
        self.chain = chain
        self.store = store
        self.part = part
        self.rows = rows
        self._columns: dict[Ref, pa.Array] = {}
        self._hashes: dict[Ref, np.ndarray] = {}
        # Row mappings of the stage before, by the columns read and the rows: the next stage often reads the same.
        self.last_rows: tuple[tuple[tuple[tuple[str, Ref | None], ...], bytes] | None, list[Any]] = (None, [])
        self._verdicts: dict[int, Verdict] = {}
        self._records: dict[tuple[str, int], PartRecord | None] = {}

    def fresh(self) -> PartView:
        """The same part without the columns read so far."""
        return PartView(self.chain, self.store, self.part, self.rows)

    def store_of(self, ref: Ref) -> Store:
        """Where a column is read from (a forecast keeps what a resolve would return apart from the run)."""
        return self.store

    def record(self, kind: str, node: Node) -> PartRecord | None:
        key = (kind, node.index)
        if key not in self._records:
            self._records[key] = self.store.record(kind, node.name, self.part)
        return self._records[key]

    def put_record(self, node: Node, record: PartRecord) -> None:
        self._records[(record.kind, node.index)] = record

    def know_record(self, kind: str, node: Node, record: PartRecord | None) -> None:
        """A footer that was read with others; None: the file is known not to be there."""
        self._records[(kind, node.index)] = record

    def forget_values(self, node: Node) -> None:
        if self.last_rows[0] is not None and any(ref is not None and ref.node == node.index for _, ref in self.last_rows[0][0]):
            self.last_rows = (None, [])
        for ref in [ref for ref in self._columns if ref.node == node.index and not ref.resolved]:
            del self._columns[ref]
            self._hashes.pop(ref, None)

    def put_values(self, node: Node, columns: dict[str, pa.Array]) -> None:
        self.forget_values(node)
        for name, column in columns.items():
            self._columns[Ref(node.index, name)] = column

    def column(self, ref: Ref) -> pa.Array:
        """A column as stored, without masks; a column whose file is not there is all null."""
        if ref not in self._columns:
            self._load(ref)
        return self._columns[ref]

    def _load(self, ref: Ref) -> None:
        node = self.chain.nodes[ref.node]
        kind = self.chain.type_of(ref) if ref.column not in BOOKKEEPING else None
        if isinstance(kind, Vector):
            self._columns[ref] = self._load_vector(node, ref.column)
            return
        folder = RESOLVED if ref.resolved else VALUES
        # All plain columns of a stage at once: part files are small and opening them is the dear part.
        table = self.store_of(ref).read(folder, node.name, self.part)
        if table is None:
            if ref.node == 0 and self.needs_input:
                path = self.store.path(VALUES, node.name, self.part)
                raise Fatal(f"{path} is missing: without it the rows of this part are unknown; run the recipe again")
            self._columns[ref] = pa.nulls(self.rows, kind)
            return
        for name in table.column_names:
            self._columns.setdefault(Ref(ref.node, name, ref.resolved), flat(table[name]))
        if ref not in self._columns:
            self._columns[ref] = pa.nulls(self.rows, kind)

    def _load_vector(self, node: Node, name: str) -> pa.Array:
        record = self.record(VALUES, node)
        if record is None or "vectors" not in record.side_files:
            return pa.nulls(self.rows, pa.binary(0))
        table = self.store.read_side(node.name, record.side_files["vectors"], [name])
        return flat(table[name]) if name in table.column_names else pa.nulls(self.rows, pa.binary(0))

    def hashes(self, ref: Ref) -> np.ndarray:
        """Hash of each value of a column: uint64 [N]."""
        if ref not in self._hashes:
            self._hashes[ref] = hash_column(self.column(ref))
        return self._hashes[ref]

    def input_digests(self, node: Node) -> np.ndarray:
        """Digest of each row's inputs of a node: uint64 [N]."""
        refs = [ref for _, ref in sorted(node.digest_reads().items())]
        return combine_hashes([self.hashes(ref) for ref in refs], self.rows)

    def outcome(self, node: Node) -> np.ndarray:
        """Outcome of each row at a node, int8 [N]; all ABSENT where it has not run."""
        column = self.column(Ref(node.index, "outcome"))
        return column.to_numpy() if column.null_count == 0 else np.zeros(self.rows, np.int8)

    def values_digest(self, node: Node) -> str:
        """Digest of a node's values over canonical column values, location columns apart."""
        names = [*BOOKKEEPING, *(name for name in sorted(node.writes) if name not in LOCATION_COLUMNS)]
        return digest_of(*(piece for name in names for piece in (name, self.hashes(Ref(node.index, name)))))

    def verdict(self, index: int) -> Verdict:
        """Verdicts of node `index` as committed."""
        if index not in self._verdicts:
            table = self.store.read(VERDICTS, self.chain.nodes[index].name, self.part)
            if table is None:
                path = self.store.path(VERDICTS, self.chain.nodes[index].name, self.part)
                raise Fatal(f"{path} is missing: the run is not finished, or the file was removed; run the recipe again")
            self._verdicts[index] = Verdict.from_table(table)
        return self._verdicts[index]

    def put_verdict(self, index: int, verdict: Verdict) -> None:
        self._verdicts[index] = verdict

    def before(self, node: Node) -> Verdict:
        """Verdicts that decide which rows reach a node."""
        return self.verdict(node.index - 1) if node.index else Verdict.all_kept(self.rows)

    def present(self, node: Node) -> np.ndarray:
        """Rows whose columns of a node may be read: they reached it and have a value there (bool [N])."""
        mask = self.before(node).open.copy()
        if node.has_compute:
            mask &= self.outcome(node) == Outcome.VALUE
        return mask

    def masked(self, ref: Ref) -> pa.Array:
        """A column in which rows that were dead at its stage are null, whatever an older, looser run left there.

        What the source read stays readable: a row that failed there is still told by its id and URL."""
        column = self.column(ref)
        if ref.node == 0:
            return column
        mask = self.present(self.chain.nodes[ref.node])
        if mask.all():
            return column
        return column.take(pa.array(np.arange(self.rows), mask=~mask))

    def table(self, refs: dict[str, Ref | None], rows: np.ndarray, masked: bool = False) -> pa.Table:
        """Some columns at some rows (int64 indices), keys as names; a None ref gives nulls."""
        index = pa.array(rows)
        columns = {}
        for key, ref in refs.items():
            column = pa.nulls(self.rows) if ref is None else self.masked(ref) if masked else self.column(ref)
            columns[key] = column.take(index)
        return pa.table(columns) if columns else pa.table({"_": pa.nulls(len(rows))})
