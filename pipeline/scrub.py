"""Values of some rows made absent in a run's tables, with their vectors and images, and those of rows that took something over from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.blobs import REMOVED
from pipeline.chain import Node
from pipeline.digests import digest_of, hash_column
from pipeline.files import remove_files
from pipeline.gc import copy_images
from pipeline.part import value_counts
from pipeline.run_view import RunView
from pipeline.storage import Place
from pipeline.store import BOOKKEEPING, VALUES, empty_values
from pipeline.view import PartView, flat


@dataclass
class Removed:
    """What a removal found and took away. `rows`: of the input; `others`: rows that had taken over something of them and are measured again."""

    rows: int = 0
    parts: int = 0
    images: int = 0
    others: int = 0
    dataset: bool = False
    touched: set[int] = field(default_factory=set)


def value_files(run: RunView, part: int) -> Iterator[Place]:
    """The values files of a part, of all stages that have one, the source's left out; those of the recipe's stages in its order, the others behind."""
    found: list[Place] = list((run.root / VALUES).rglob(f"part-{part:05d}.parquet"))
    order = {node.name: node.index for node in run.chain.nodes}
    for path in sorted(found, key=lambda path: (order.get(path.parent.name, len(order)), str(path))):
        if path.parent.name != "source":
            yield path


def scrub_part(run: RunView, part: int, own: np.ndarray, names: set[str], found: Removed) -> None:
    """Make the rows' values absent in all stages, and those of rows that hold something of them, and of what was made of these."""
    view = run.view(part)
    tainted: dict[int, np.ndarray] = {}
    nodes = {node.name: node for node in run.chain.nodes}
    for path in value_files(run, part):
        stage = path.parent.name
        table = run.store.read(VALUES, stage, part)
        if table is None:
            continue
        node = nodes.get(stage)
        others = _holding(table, names) & ~own
        for ref in node.reads.values() if node is not None else ():
            if ref is not None and ref.node in tainted:
                others |= tainted[ref.node]
        if node is not None and others.any():
            tainted[node.index] = others
        rows = (own | others) & (table["outcome"].to_numpy() != 0)
        if not rows.any():
            continue
        found.touched.add(part)
        found.others += int((others & rows).sum())
        if "tar" in table.column_names:
            found.images += sum(tar is not None and tar != REMOVED for tar in table["tar"].filter(pa.array(rows & own)).to_pylist())
        if node is None or {*table.column_names} != {*BOOKKEEPING, *(name for name in node.writes if name not in node.vectors)}:
            run.store.guard()
            remove_files([path])  # of a stage that the recipe no longer has
        else:
            _make_absent(run, view, node, table, rows)
    if own.any():
        found.touched.add(part)


def _holding(table: pa.Table, names: set[str]) -> np.ndarray:
    """Rows in which some text, however deep in lists and structs, is one of `names` (bool [N])."""
    rows = np.zeros(table.num_rows, bool)
    if names:
        wanted = pa.array(sorted(names), pa.string())
        for column in table.columns:
            for parents, texts in _texts_in(flat(column), np.arange(table.num_rows)):
                rows[parents[pc.is_in(texts, wanted).to_numpy(zero_copy_only=False)]] = True
    return rows


def _texts_in(array: pa.Array, parents: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """(row of each value, values) of every string array in a column."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield parents, array.cast(pa.string())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = pc.list_parent_indices(array).to_numpy()
        yield from _texts_in(pc.list_flatten(array), parents[inner])
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _texts_in(child, parents)


def _make_absent(run: RunView, view: PartView, node: Node, table: pa.Table, rows: np.ndarray) -> None:
    """Commit a values file without some rows; images of other rows in the same tars are copied to new ones."""
    record = run.store.record(VALUES, node.name, view.part)
    assert record is not None
    columns = {name: flat(table[name]) for name in table.column_names}
    if "tar" in columns:
        columns |= _without_images(run, node, view.part, columns, rows)
    nothing = empty_values(len(rows))
    gone = pa.array(rows)
    columns = {
        name: pc.if_else(gone, nothing[name] if name in ("outcome", "input_digest") else pa.nulls(len(rows), column.type), column)
        for name, column in columns.items()
    }
    vectors = {}
    if "vectors" in record.side_files:
        side = run.store.read_side(node.name, record.side_files["vectors"], list(node.vectors))
        vectors = {name: pc.if_else(gone, pa.nulls(len(rows), side[name].type), flat(side[name])) for name in side.column_names}
        name = digest_of(*(hash_column(vectors[column]) for column in vectors))
        record.side_files["vectors"] = run.store.commit_vectors(node.name, view.part, pa.table(list(vectors.values()), side.schema), name)
    view.put_values(node, {**{name: pa.nulls(len(rows), pa.binary(0)) for name in node.vectors}, **vectors, **columns})
    record.digest = view.values_digest(node)
    record.counts = value_counts(columns)
    run.store.commit(pa.table(columns), record)
    if node.vectors:
        run.store.drop_side_files(node.name, view.part, set(record.side_files.values()))


def _without_images(run: RunView, node: Node, part: int, columns: dict[str, pa.Array], rows: np.ndarray) -> dict[str, pa.Array]:
    """tar, offset and size of all rows after the images of `rows` went."""
    tars, offsets, sizes = (columns[name].to_pylist() for name in ("tar", "offset", "size"))
    touched = {tars[row] for row in np.flatnonzero(rows)} - {None, REMOVED}
    rest = [row for row in np.flatnonzero(~rows).tolist() if tars[row] in touched]
    if rest:
        copy_images(run, node, part, rest, tars, offsets, sizes)
    return {name: pa.array(values, columns[name].type) for name, values in (("tar", tars), ("offset", offsets))}
