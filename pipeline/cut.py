"""Cuts the input into parts once; part ids never depend on workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chain import Chain
from pipeline.digests import hash_column, seeded_fraction
from pipeline.environment import Environment
from pipeline.errors import RecipeError
from pipeline.forgotten import Forgotten
from pipeline.part import judge
from pipeline.store import VALUES, VERDICTS
from pipeline.view import PartView, flat
from schemas.outcome import Outcome
from schemas.record import PartRecord


def cut_input(env: Environment, on_rows: Callable[[int], None] = lambda rows: None) -> list[int]:
    """Commit the source's values and verdicts part by part; returns the row count of each part.

    Parts that are already committed from the same input stay untouched. Raises RecipeError where the input has no rows.
    """
    counts: list[int] = []
    total = 0
    forgotten = Forgotten.of_run(env.store.root)
    for table in input_parts(env.chain):
        part, rows = len(counts), table.num_rows
        node = env.chain.nodes[0]
        record = env.store.record(VALUES, node.name, part)
        verdict = env.store.record(VERDICTS, node.name, part)
        if record is None or verdict is None or record.fingerprint != node.compute_fingerprint or record.rows != rows:
            commit_part(env, part, forgotten.blinded(table))
        counts.append(rows)
        total += rows
        on_rows(total)
    if not counts:
        raise no_rows(env.chain)
    return counts


def no_rows(chain: Chain) -> RecipeError:
    """What is told of an input without rows."""
    given = chain.recipe.resolved["input"]
    named = next((f"{key} {given[key]}" for key in ("table", "tars", "folder") if given.get(key)), f"the source {given.get('kind')}")
    return RecipeError(f"input: {named} has no rows (or --limit and --sample left none)")


def commit_part(env: Environment, part: int, table: pa.Table) -> None:
    """Commit values and verdicts of a part of the input: columns of the source, failure and failure_detail."""
    node = env.chain.nodes[0]
    rows = table.num_rows
    failed = table["failure"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    columns = {
        "outcome": pa.array(np.where(failed, int(Outcome.FAILED), int(Outcome.VALUE)).astype(np.int8)),
        "failure": flat(table["failure"]),
        "failure_detail": flat(table["failure_detail"]),
        "input_digest": pa.array(np.zeros(rows, np.uint64)),
        **{name: flat(table[name]) for name in node.writes},
    }
    view = PartView(env.chain, env.store, part, rows)
    view.put_values(node, columns)
    record = PartRecord(VALUES, node.name, part, rows, node.compute_fingerprint, digest=view.values_digest(node))
    record.counts = {"value": int((~failed).sum()), "failed": int(failed.sum())}
    env.store.commit(pa.table(columns), record)
    verdict = judge(node, view, env)
    judged = PartRecord(VERDICTS, node.name, part, rows, node.compute_fingerprint, "source", verdict.digest(), record.digest)
    judged.counts = {"kept": int((~failed).sum()), "failed": int(failed.sum())}
    judged.counts |= {f"failed:{code}": int(n) for code, n in _counts(columns["failure"])}
    env.store.commit(verdict.to_table(), judged)


def _counts(column: pa.Array) -> list[tuple[str, int]]:
    return [(pair["values"], pair["counts"]) for pair in pc.value_counts(column.drop_null()).to_pylist()]


def input_parts(chain: Chain) -> Iterator[pa.Table]:
    """Tables of rows_per_part rows each (the last may be shorter), after --sample and --limit."""
    recipe = chain.recipe
    schema = pa.schema([*((name, kind) for name, kind in chain.nodes[0].writes.items()), ("failure", pa.string()), ("failure_detail", pa.string())])
    waiting: list[pa.Table] = []
    held = taken = 0
    for batch in recipe.source.batches():
        table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        if recipe.sample is not None:
            keep = seeded_fraction(hash_column(table["sample_id"]), recipe.seed, "sample") < recipe.sample
            table = table.filter(pa.array(keep))
        if recipe.limit is not None:
            table = table.slice(0, recipe.limit - taken)
        taken += table.num_rows
        waiting.append(table)
        held += table.num_rows
        while held >= recipe.rows_per_part:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, recipe.rows_per_part).combine_chunks()
            waiting = [joined.slice(recipe.rows_per_part).combine_chunks()]
            held = waiting[0].num_rows
        if recipe.limit is not None and taken >= recipe.limit:
            break
    if held:
        yield pa.concat_tables(waiting).combine_chunks()
