"""How rows are cut into groups, splits and shards. Everything here is a function of ids, digests and parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.digests import hash_column, seeded_fraction
from pipeline.errors import RecipeError
from pipeline.files import scratch_in
from pipeline.run_view import RunView
from stages.shards.columns import Layout
from stages.shards.rows import PartReader

MOST_SPLITS = 100  # of a column; more of them are no splits


@dataclass
class Exceptions:
    """Rows whose place in the dataset does not follow from the row alone.

    duplicates: (part, row) of kept rows whose sample_id an earlier kept row has. labels: (part, row) -> what its split
    is drawn from, where that is another row's component or image; where a column names the splits, the split itself.
    """

    duplicates: list[tuple[int, int]] = field(default_factory=list)
    labels: list[tuple[int, int, str]] = field(default_factory=list)

    def of(self, parts: tuple[int, ...]) -> Exceptions:
        inside = frozenset(parts)
        return Exceptions([d for d in self.duplicates if d[0] in inside], [x for x in self.labels if x[0] in inside])

    def to_json(self) -> dict[str, Any]:
        return {"duplicates": self.duplicates, "labels": self.labels}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Exceptions:
        return cls([(p, r) for p, r in data["duplicates"]], [(p, r, x) for p, r, x in data["labels"]])


def cut_groups(parts: int, per_group: int, seed: int | None) -> list[tuple[int, ...]]:
    """Parts of each group: consecutive ones, or (with a seed) those that a seeded permutation brings together."""
    order = np.arange(parts)
    if seed is not None:
        order = np.argsort(seeded_fraction(np.arange(parts, dtype=np.uint64), seed, "parts"), kind="stable")
    return [tuple(order[start : start + per_group].tolist()) for start in range(0, parts, per_group)]


def find_exceptions(run: RunView, layout: Layout, with_labels: bool) -> Exceptions:
    """One pass over the kept rows' ids (and components, where splits need them), out of core in DuckDB."""
    scratch = scratch_in(run.root / "jobs")
    with duckdb.connect(config={"temp_directory": str(scratch / ".tmp-duckdb"), "threads": 2, "preserve_insertion_order": False}) as con:
        con.register("incoming", pa.RecordBatchReader.from_batches(_KEPT, _kept_rows(run, layout)))
        con.execute("CREATE TABLE kept AS SELECT * FROM incoming")
        duplicates = con.execute(
            "SELECT part, row FROM kept WHERE sample_id IN (SELECT sample_id FROM kept GROUP BY sample_id HAVING count(*) > 1) "
            "QUALIFY row_number() OVER (PARTITION BY sample_id ORDER BY part, row) > 1 ORDER BY part, row"
        ).fetchall()
        if layout.split:
            check_names(con, layout.split)
            _join_labels(con)
            return Exceptions(duplicates, _shared_splits(con))
        if not (with_labels and layout.component):
            return Exceptions(duplicates)
        _join_labels(con)
        return Exceptions(duplicates, con.execute("SELECT part, row, label FROM labels WHERE label <> own ORDER BY part, row").fetchall())


_KEPT = pa.schema(
    [("part", pa.int32()), ("row", pa.int32()), ("sample_id", pa.binary()), ("image", pa.binary()), ("component", pa.string()), ("split", pa.string())]
)


def _kept_rows(run: RunView, layout: Layout) -> Iterator[pa.RecordBatch]:
    columns = {"sample_id": "source.sample_id", "image": f"{layout.images}.image_sha256"}
    columns |= {name: full for name, full in (("component", layout.component), ("split", layout.split)) if full}
    reader = PartReader(run)
    for part in range(len(run.parts)):
        rows = np.flatnonzero(reader.view(part).verdict(len(run.chain.nodes) - 1).alive)
        table = reader.read(columns, part, rows).append_column("row", pa.array(rows, pa.int32()))
        table = table.append_column("part", pa.array(np.full(len(rows), part), pa.int32()))
        for name in ("component", "split"):
            if name not in columns:
                table = table.append_column(name, pa.nulls(len(rows), pa.string()))
        yield from table.select(_KEPT.names).cast(_KEPT).to_batches()


def _join_labels(con: duckdb.DuckDBPyConnection) -> None:
    """Table `labels`: rows of one component or with one image have one label, the least of all that hang together."""
    own = "coalesce(component, lower(hex(image)))"
    con.execute(f"CREATE TABLE labels AS SELECT part, row, image, component, split, {own} AS own, {own} AS label FROM kept WHERE image IS NOT NULL")
    while True:
        con.execute(
            "CREATE OR REPLACE TABLE next AS WITH by_image AS ("
            "SELECT * REPLACE (min(label) OVER (PARTITION BY image) AS label), label AS before FROM labels) "
            "SELECT * REPLACE (CASE WHEN component IS NULL THEN label ELSE min(label) OVER (PARTITION BY component) END AS label) FROM by_image"
        )
        (changed,) = con.execute("SELECT count(*) FROM next WHERE label <> before").fetchone() or (0,)
        con.execute("CREATE OR REPLACE TABLE labels AS SELECT * EXCLUDE (before) FROM next")
        if not changed:
            return


def _shared_splits(con: duckdb.DuckDBPyConnection) -> list[tuple[int, int, str]]:
    """Rows that hang together with an earlier kept one, which the column puts into another split: they follow the first."""
    return con.execute(
        "SELECT part, row, first FROM (SELECT part, row, split, first(split) OVER (PARTITION BY label ORDER BY part, row) AS first FROM labels) "
        "WHERE split <> first ORDER BY part, row"
    ).fetchall()


def check_names(con: duckdb.DuckDBPyConnection, column: str) -> None:
    """Raises RecipeError where a kept row with an image has no split, or one that is no name, or there are too many of them."""
    shipped = "FROM kept WHERE image IS NOT NULL"
    found = [name for (name,) in con.execute(f"SELECT DISTINCT split {shipped} ORDER BY split LIMIT {MOST_SPLITS + 2}").fetchall()]
    where = f"write_shards.split_column: column {column!r}"
    if None in found:
        count, first = con.execute(f"SELECT count(*), first(lower(hex(sample_id)) ORDER BY part, row) {shipped} AND split IS NULL").fetchone() or (0, "")
        raise RecipeError(f"{where} is null in {count} kept rows, the first with the key {first}: drop them with `select`, or use `splits`")
    if len(found) > MOST_SPLITS:
        raise RecipeError(f"{where} has more than {MOST_SPLITS} values, such as {found[0]!r} and {found[1]!r}: it does not name splits")
    bad = next((name for name in found if not is_split_name(name)), None)
    if bad is not None:
        raise RecipeError(f"{where} has the value {bad!r}, which becomes part of file names; use letters, digits and _")


def is_split_name(name: str) -> bool:
    return name.isascii() and name.replace("_", "").isalnum()


@dataclass
class GroupRows:
    """The rows of a group that go into shards, in the order of the dataset; int64 [N] each, `split` an index into the splits."""

    part: np.ndarray
    row: np.ndarray
    size: np.ndarray
    split: np.ndarray


def splits_of(labels: pa.Array, splits: dict[str, float], seed: int) -> np.ndarray:
    """Index of the split of each row, drawn from its label: int64 [N]."""
    edges = np.cumsum(list(splits.values()))[:-1]
    return np.searchsorted(edges, seeded_fraction(hash_column(labels), seed, "split"), side="right")


def splits_named(labels: pa.Array) -> tuple[list[str], np.ndarray]:
    """The splits that a column names, by name, and the index of each row's: int64 [N]."""
    found = labels.to_pylist()
    names = sorted(set(found))
    places = {name: at for at, name in enumerate(names)}
    return names, np.array([places[name] for name in found], np.int64)


def labels_of(label: pa.Array | None, image_sha256: pa.Array, given: dict[int, str], rows: np.ndarray) -> pa.Array:
    """What each row's split follows from: the split or duplicate component that it names, else its image's digest; `given` (by row) wins."""
    own = pa.array([value.hex() for value in image_sha256.to_pylist()], pa.string())
    labels = own if label is None else pc.coalesce(label.cast(pa.string()), own)
    if not given:
        return labels
    return pa.array([given.get(row, label) for row, label in zip(rows.tolist(), labels.to_pylist(), strict=True)], pa.string())


def in_order(rows: GroupRows, sample_ids: pa.Array, seed: int | None) -> GroupRows:
    """Input order, or shuffled by a seeded hash of the sample_id."""
    if seed is None:
        return rows
    order = np.argsort(seeded_fraction(hash_column(sample_ids), seed, "order"), kind="stable")
    return GroupRows(rows.part[order], rows.row[order], rows.size[order], rows.split[order])


def cut_shards(sizes: np.ndarray, max_samples: int, max_bytes: int) -> list[tuple[int, int]]:
    """Even cuts [start, stop) of samples with image `sizes` (int64 [N]) into the fewest shards within both bounds.

    Counts differ by one at most. An image larger than max_bytes fits nowhere: it goes with the others and does not count.
    """
    n = len(sizes)
    if n == 0:
        return []
    total = np.concatenate([[0], np.cumsum(np.where(sizes > max_bytes, 0, sizes))])
    shards = max(-(-n // max_samples), -(-int(total[-1]) // max_bytes), 1)
    while True:
        edges = np.arange(shards + 1) * n // shards
        if shards >= n or np.diff(total[edges]).max() <= max_bytes:
            return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        shards += 1
