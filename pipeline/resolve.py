"""Corpus-wide steps: gather the evidence of all parts into DuckDB, ask the stage, commit what it returns part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.digests import digest_of, hash_column
from pipeline.errors import Fatal
from pipeline.scratch import scratch_folder
from pipeline.stage import Evidence, Vector, VectorBlock
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store, as_vectors
from pipeline.view import PartView
from schemas.outcome import Outcome
from schemas.record import PartRecord
from schemas.sample import SAMPLE_ID

MEMORY_LIMIT = "2GB"
ORDERED_ROWS = 50_000  # rows of the answer that are sorted and handed over together


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
    try:
        with scratch_folder("resolve") as scratch, duckdb.connect(str(scratch / "evidence.duckdb")) as con:
            con.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{scratch}'; SET preserve_insertion_order=false")
            con.execute("SET enable_progress_bar=false")  # it would write into what the command prints
            alive = _gather(con, node, views)
            stage = node.stage
            assert stage is not None
            total, seed = sum(view.rows for view in views), views[0].chain.recipe.seed if views else 0
            evidence = Evidence(con, total, alive, seed, lambda key: _vectors(node, views, key), scratch)
            relation = stage.resolve(evidence)
            columns = ", ".join(f'"{name}"' for name in ("part", "row", *node.resolves))
            relation.select(columns).create("answer")
            return _commit(node, views, store, _answers(con, node, views), inputs, evidence.facts)
    except duckdb.Error as error:
        raise Fatal(f"{node.name}: its resolve failed: {type(error).__name__}: {error}") from error


def _evidence_schema(chain: Chain, node: Node) -> pa.Schema:
    fields = [pa.field("part", pa.int32()), pa.field("row", pa.int32()), pa.field("sample_id", SAMPLE_ID)]
    for key, ref in node.reads_resolve.items():
        kind = pa.null() if ref is None else chain.type_of(ref)
        if key != "sample_id" and not isinstance(kind, Vector):
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
            table = fresh.table({name: Ref(0, name) if name == "sample_id" else node.reads_resolve[name] for name in schema.names[2:]}, rows)
            table = table.add_column(0, "row", pa.array(rows.astype(np.int32)))
            table = table.add_column(0, "part", pa.array(np.full(len(rows), view.part, np.int32)))
            yield from table.select(schema.names).cast(schema).to_batches()

    con.register("incoming", pa.RecordBatchReader.from_batches(schema, batches()))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    con.unregister("incoming")
    return counted


def _vectors(node: Node, views: Sequence[PartView], key: str) -> Iterator[VectorBlock]:
    """One block per part that has rows with a vector; a part's vectors are in memory at a time."""
    ref = node.reads_resolve[key]
    if ref is None:
        return
    kind = views[0].chain.type_of(ref)
    if not isinstance(kind, Vector):
        raise Fatal(f"{node.name}: {key!r} is no vector column")
    for view in views:
        fresh = view.fresh()
        column = fresh.column(ref)
        rows = np.flatnonzero(_alive_with_value(node, fresh) & ~np.asarray(column.is_null()))
        if len(rows):
            yield VectorBlock(view.part, rows.astype(np.int32), as_vectors(column.take(pa.array(rows)), kind.dtype))


def _alive_with_value(node: Node, view: PartView) -> np.ndarray:
    mask = view.before(node).alive
    if node.has_compute:
        mask = mask & (view.outcome(node) == Outcome.VALUE)
    return mask


def _answers(con: duckdb.DuckDBPyConnection, node: Node, views: Sequence[PartView]) -> Iterator[dict[int, pa.Table]]:
    """The answer by part, for some parts in a row at a time: sorting all of it at once would hold all of it."""
    con.execute("SET preserve_insertion_order=true")  # DuckDB 2.0 lets even an ordered answer come out of order without it
    found = {part for (part,) in con.sql("SELECT DISTINCT part FROM answer").fetchall()}
    if strays := found - {view.part for view in views}:
        raise Fatal(f"{node.name}: resolve returned part {min(strays)}, which the run does not have")
    for some in _together(views):
        table = con.sql(f'SELECT * FROM answer WHERE part BETWEEN {some[0].part} AND {some[-1].part} ORDER BY part, "row"').to_arrow_table()
        edges = np.searchsorted(table["part"].to_numpy(), [*(view.part for view in some), some[-1].part + 1])
        yield {view.part: table.slice(start, stop - start) for view, start, stop in zip(some, edges, edges[1:], strict=False)}


def _together(views: Sequence[PartView]) -> Iterator[list[PartView]]:
    """Consecutive parts that hold about ORDERED_ROWS rows (one part at least)."""
    some: list[PartView] = []
    for view in views:
        if some and sum(one.rows for one in some) + view.rows > ORDERED_ROWS:
            yield some
            some = []
        some.append(view)
    if some:
        yield some


def _commit(
    node: Node, views: Sequence[PartView], store: Store, answers: Iterator[dict[int, pa.Table]], inputs: str, facts: dict[str, Any]
) -> list[PartRecord]:
    """Commit one file per part, rows without an answer null; the first part's footer holds the facts."""
    records = []
    by_part = {view.part: view for view in views}
    for answer in answers:
        for part, table in answer.items():
            view = by_part[part]
            columns = _spread(node, view, table)
            record = PartRecord(RESOLVED, node.name, part, view.rows, node.resolve_fingerprint, inputs)
            record.digest = digest_of(*(piece for name in node.resolves for piece in (name, hash_column(columns[name]))))
            record.counts = {"rows": table.num_rows}
            record.info = {"facts": facts} if facts and view is views[0] else {}
            store.commit(pa.table(columns), record)
            records.append(record)
    return records


def _spread(node: Node, view: PartView, table: pa.Table) -> dict[str, pa.Array]:
    """Answers of some rows as columns of the whole part."""
    if not table.num_rows:
        return {name: pa.nulls(view.rows, kind) for name, kind in node.resolves.items()}
    rows = table["row"].to_numpy()
    if len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= view.rows:
        raise Fatal(f"{node.name}: resolve must return each row of part {view.part} at most once and none beyond it")
    index = np.full(view.rows, -1, np.int64)
    index[rows] = np.arange(len(rows))
    places = pa.array(index, mask=index < 0)
    return {name: table[name].cast(kind).combine_chunks().take(places) for name, kind in node.resolves.items()}
