"""A resolve asked in memory over whole columns: by the stage's own shorter way, by its DuckDB query over mapped columns, or part by part.

Nothing of the run directory is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.corpus import Corpus
from pipeline.errors import Fatal
from pipeline.reason_columns import as_numbers
from pipeline.resolve import MEMORY_LIMIT, run_resolve
from pipeline.scratch import scratch_folder
from pipeline.stage import ColumnEvidence, Evidence, OfPlaces, Vector
from pipeline.store import RESOLVED, Store
from pipeline.view import PartView, Verdict, flat
from schemas.outcome import Status


class CorpusView(PartView):
    """A part whose moved columns come from the corpus. `alive` (bool [N] of the whole run): the rows that a resolve sees."""

    def __init__(self, chain: Chain, corpus: Corpus, part: int, alive: np.ndarray | None = None):
        super().__init__(chain, corpus.run.store, part, corpus.run.parts[part])
        self.corpus, self.alive = corpus, alive

    def fresh(self) -> CorpusView:
        return CorpusView(self.chain, self.corpus, self.part, self.alive)

    def column(self, ref: Ref) -> pa.Array:
        if ref in self.corpus.moved:
            return self.corpus.moved_part(ref, self.part)
        return super().column(ref)

    def before(self, node: Node) -> Verdict:
        if self.alive is None:
            return super().before(node)
        start = int(self.corpus.starts[self.part])
        alive = self.alive[start : start + self.rows]
        status = np.where(alive, int(Status.KEPT), int(Status.SKIPPED)).astype(np.int8)
        return Verdict(status, pa.nulls(self.rows, pa.string()), pa.nulls(self.rows, pa.string()), alive)


def resolve_whole(chain: Chain, node: Node, corpus: Corpus, alive: np.ndarray) -> dict[Ref, pa.Array | OfPlaces]:
    """The columns that a resolve gives for the rows `alive` (bool [N]), each over all rows. Columns that nobody reads may be left out. Raises Fatal."""
    stage = node.stage
    assert stage is not None
    later = _read_later(chain, node)
    wanted = later | _own(node)
    if not wanted:
        return {}
    evidence = ColumnEvidence(
        lambda key: _column(node, corpus, key), alive, corpus.starts, chain.recipe.seed, wanted,
        lambda name, keys, make: corpus.index(node.index, name, [ref for key in keys if (ref := _ref(node, key)) is not None], make),
        lambda name, array, make: corpus.index_of(node.index, name, array, make),
    )  # fmt: skip
    found: Mapping[str, pa.Array | OfPlaces] | None = stage.resolve_columns(evidence)
    if found is None:
        vectors = any(ref is not None and isinstance(chain.type_of(ref), Vector) for ref in node.reads_resolve.values())
        found = _part_by_part(chain, node, corpus, alive, wanted) if vectors else _by_query(chain, node, corpus, alive, wanted)
    if missing := wanted - set(found):
        raise Fatal(f"{node.name}.resolve_columns gave no {', '.join(sorted(missing))}")
    return {Ref(node.index, name, True): _cast(found[name], node.resolves[name], name in later) for name in wanted}


def _read_later(chain: Chain, node: Node) -> frozenset[str]:
    """Columns of a resolve that a later stage reads."""
    return frozenset(
        ref.column
        for later in chain.nodes[node.index :]
        for ref in (*later.reads.values(), *later.reads_decide.values(), *later.reads_resolve.values())
        if ref is not None and ref.resolved and ref.node == node.index
    )


def _own(node: Node) -> frozenset[str]:
    """Columns of a resolve that the stage's own `decide` may read; where it judges by columns, no lists and structs."""
    assert node.stage is not None
    plain = node.stage.has_decide_columns
    return frozenset(name for name, kind in node.resolves.items() if node.stage.has_decide and not (plain and pa.types.is_nested(kind)))


def _ref(node: Node, key: str) -> Ref | None:
    return Ref(0, "sample_id") if key == "sample_id" else node.reads_resolve[key]


def _column(node: Node, corpus: Corpus, key: str) -> pa.Array:
    ref = _ref(node, key)
    return pa.nulls(corpus.rows) if ref is None else corpus.column(ref)


def _cast(column: pa.Array | OfPlaces, kind: pa.DataType, read_later: bool) -> pa.Array | OfPlaces:
    """The column in its declared type; a dictionary that only the stage itself reads stays one."""
    if not isinstance(column, pa.Array):
        return lambda places: _cast(column(places), kind, True)
    same = column.type == kind or (not read_later and pa.types.is_dictionary(column.type) and column.type.value_type == kind)
    return column if same else column.cast(kind)


def _by_query(chain: Chain, node: Node, corpus: Corpus, alive: np.ndarray, wanted: frozenset[str]) -> dict[str, pa.Array]:
    """The stage's `resolve` over a table in memory; only the wanted columns of its answer are made."""
    stage = node.stage
    assert stage is not None
    places = np.flatnonzero(alive)
    refs = {"sample_id": Ref(0, "sample_id"), **node.reads_resolve}
    corpus.load(ref for ref in refs.values() if ref is not None)
    index = pa.array(places)
    part = np.repeat(np.arange(len(corpus.run.parts), dtype=np.int32), corpus.run.parts)[places]
    row = (places - corpus.starts[part]).astype(np.int32)
    columns = {"part": pa.array(part), "row": pa.array(row)}
    columns |= {key: pa.nulls(len(places)) if ref is None else corpus.column(ref).take(index) for key, ref in refs.items()}
    with scratch_folder("whatif") as scratch, duckdb.connect(str(scratch / "whatif.duckdb")) as con:
        con.execute(f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{scratch}'; SET preserve_insertion_order=false")
        con.register("rows", pa.table(columns))
        try:
            relation = stage.resolve(Evidence(con, corpus.rows, len(places), chain.recipe.seed, scratch=scratch))
            answer = relation.select(", ".join(f'"{name}"' for name in ("part", "row", *sorted(wanted)))).to_arrow_table()
        except duckdb.Error as error:
            raise Fatal(f"{node.name}: its resolve failed: {type(error).__name__}: {error}") from error
    at = corpus.starts[as_numbers(flat(answer["part"]))] + as_numbers(flat(answer["row"]))
    place = np.full(corpus.rows, -1, np.int64)
    place[at] = np.arange(len(at))
    taken = pa.array(place, mask=place < 0)
    return {name: flat(answer[name].cast(node.resolves[name]).combine_chunks()).take(taken) for name in wanted}


def _part_by_part(chain: Chain, node: Node, corpus: Corpus, alive: np.ndarray, wanted: frozenset[str]) -> dict[str, pa.Array]:
    """As a run does it, its answer in a folder that is removed: for what reads vectors, which are in no cache."""
    views = [CorpusView(chain, corpus, part, alive) for part in range(len(corpus.run.parts))]
    with scratch_folder("whatif") as folder:
        scratch = Store(folder)
        run_resolve(node, views, scratch)
        tables = [scratch.read(RESOLVED, node.name, view.part, sorted(wanted)) for view in views]
    whole = pa.concat_tables([table for table in tables if table is not None])
    return {name: flat(whole[name].combine_chunks()) for name in wanted}
