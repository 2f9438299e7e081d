"""Corpus-wide steps: gather the evidence of all parts into DuckDB, ask the stage, commit what it returns part by part."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.digests import digest_of, hash_column
from pipeline.errors import Fatal
from pipeline.stage import Evidence, Vector
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from pipeline.view import PartView
from schemas.outcome import Outcome
from schemas.record import PartRecord
from schemas.sample import SAMPLE_ID

MEMORY_LIMIT = "2GB"
RESULT_ROWS = 65_536


def resolve_inputs(node: Node, views: Sequence[PartView]) -> str:
    """Digest of all evidence and alive masks a resolve depends on, from footers alone."""
    pieces: list[object] = [node.resolve_fingerprint]
    for view in views:
        before = view.record(VERDICTS, view.chain.nodes[node.index - 1])
        pieces.append(before.digest if before else "")
        for key, ref in sorted(node.reads_resolve.items()):
            if ref is None:
                continue
            record = view.record(RESOLVED if ref.resolved else VALUES, view.chain.nodes[ref.node])
            pieces.append([key, record.digest if record else ""])
    return digest_of(*pieces)


def is_resolved(node: Node, views: Sequence[PartView]) -> bool:
    """True when every part has a resolved file made from the present evidence."""
    inputs = resolve_inputs(node, views)
    return all((record := view.record(RESOLVED, node)) is not None and record.inputs == inputs for view in views)


def run_resolve(node: Node, views: Sequence[PartView], store: Store) -> list[PartRecord]:
    """Run a stage's `resolve` over all parts; returns the records of the committed files. Raises Fatal."""
    inputs = resolve_inputs(node, views)
    scratch = Path(tempfile.mkdtemp(prefix="pairmill-resolve-"))
    try:
        with duckdb.connect(str(scratch / "evidence.duckdb")) as con:
            con.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{scratch}'; SET preserve_insertion_order=false")
            alive = _gather(con, node, views)
            stage = node.stage
            assert stage is not None
            evidence = Evidence(con, sum(view.rows for view in views), alive, views[0].chain.recipe.seed if views else 0)
            relation = stage.resolve(evidence)
            columns = ", ".join(f'"{name}"' for name in ("part", "row", *node.resolves))
            answer = relation.select(columns).order("part, row").to_arrow_reader(RESULT_ROWS)
            return _commit(node, views, store, answer, inputs)
    except duckdb.Error as error:
        raise Fatal(f"{node.name}: its resolve failed: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _evidence_schema(chain: Chain, node: Node) -> pa.Schema:
    fields = [pa.field("part", pa.int32()), pa.field("row", pa.int32()), pa.field("sample_id", SAMPLE_ID)]
    for key, ref in node.reads_resolve.items():
        kind = pa.null() if ref is None else chain.type_of(ref)
        if isinstance(kind, Vector):
            raise Fatal(f"{node.name}: resolve reads {key!r}, a vector column; read vectors from their files instead")
        if key != "sample_id":
            fields.append(pa.field(key, kind))
    return pa.schema(fields)


def _gather(con: duckdb.DuckDBPyConnection, node: Node, views: Sequence[PartView]) -> int:
    """Fill the table `rows` with the evidence of the rows alive at the node; returns their number."""
    if not views:
        raise Fatal(f"{node.name}: the run has no parts")
    schema = _evidence_schema(views[0].chain, node)
    counted = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal counted
        for view in views:
            fresh = view.fresh()  # its columns are let go after this part
            rows = np.flatnonzero(_alive_with_value(node, fresh))
            counted += len(rows)
            table = fresh.table({"sample_id": Ref(0, "sample_id"), **node.reads_resolve}, rows)
            table = table.add_column(0, "row", pa.array(rows.astype(np.int32)))
            table = table.add_column(0, "part", pa.array(np.full(len(rows), view.part, np.int32)))
            yield from table.select(schema.names).cast(schema).to_batches()

    con.register("incoming", pa.RecordBatchReader.from_batches(schema, batches()))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    con.unregister("incoming")
    return counted


def _alive_with_value(node: Node, view: PartView) -> np.ndarray:
    mask = view.before(node).alive
    if node.has_compute:
        mask = mask & (view.outcome(node) == Outcome.VALUE)
    return mask


def _commit(node: Node, views: Sequence[PartView], store: Store, answer: pa.RecordBatchReader, inputs: str) -> list[PartRecord]:
    """Split the ordered answer by part and commit one file per part, rows without an answer null."""
    slices = _by_part(node, answer)
    pending = next(slices, None)
    records = []
    for view in views:
        table = None
        if pending is not None and pending[0] == view.part:
            table, pending = pending[1], next(slices, None)
        columns = _spread(node, view, table)
        record = PartRecord(RESOLVED, node.name, view.part, view.rows, node.resolve_fingerprint, inputs)
        record.digest = digest_of(*(piece for name in node.resolves for piece in (name, hash_column(columns[name]))))
        record.counts = {"rows": 0 if table is None else table.num_rows}
        store.commit(pa.table(columns), record)
        records.append(record)
    if pending is not None:
        raise Fatal(f"{node.name}: resolve returned part {pending[0]}, which the run does not have (or returned parts out of order)")
    return records


def _by_part(node: Node, answer: pa.RecordBatchReader) -> Iterator[tuple[int, pa.Table]]:
    """Consecutive runs of one part of an answer ordered by part."""
    current: int | None = None
    pieces: list[pa.Table] = []
    for batch in answer:
        table = pa.Table.from_batches([batch])
        parts = table["part"].to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
        for start, stop in zip(edges, edges[1:], strict=False):
            if start == stop:
                continue
            if int(parts[start]) != current:
                if current is not None:
                    yield current, pa.concat_tables(pieces)
                current, pieces = int(parts[start]), []
            pieces.append(table.slice(start, stop - start))
    if current is not None:
        yield current, pa.concat_tables(pieces)


def _spread(node: Node, view: PartView, table: pa.Table | None) -> dict[str, pa.Array]:
    """Answers of some rows as columns of the whole part."""
    if table is None:
        return {name: pa.nulls(view.rows, kind) for name, kind in node.resolves.items()}
    rows = table["row"].to_numpy()
    if len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= view.rows:
        raise Fatal(f"{node.name}: resolve must return each row of part {view.part} at most once and none beyond it")
    index = np.full(view.rows, -1, np.int64)
    index[rows] = np.arange(len(rows))
    places = pa.array(index, mask=index < 0)
    return {name: table[name].cast(kind).combine_chunks().take(places) for name, kind in node.resolves.items()}
