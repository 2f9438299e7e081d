"""run_part: the one choke point through which a stage meets a part.

It finds the rows that need a value, splits them into batches, isolates rows that break their batch, validates what
comes back, commits values, applies `decide`, commits verdicts. Nothing else turns an exception into a row's outcome.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batches import BatchRunner
from pipeline.budget import Breaker, Runs
from pipeline.chain import Node, Ref
from pipeline.digests import digest_of, hash_column
from pipeline.environment import Environment
from pipeline.errors import Fatal
from pipeline.packing import Computed
from pipeline.retry import footer_marks
from pipeline.secrets import mask
from pipeline.stage import Context, Stage, Vector
from pipeline.store import RESOLVED, VALUES, VERDICTS, empty_values, storage_field
from pipeline.view import PartView, Verdict, flat, mappings
from schemas.columns import LOCATION_COLUMNS
from schemas.outcome import Outcome, Status, cap_detail
from schemas.record import PartRecord


@dataclass
class StepResult:
    """What one step of one node on one part did, told to the driver and to people."""

    stage: str
    part: int
    values: PartRecord | None = None
    verdict: PartRecord | None = None
    computed: int = 0
    calls: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
    tokens: tuple[int, int] = (0, 0)  # of prompts and of answers, where the model writes text
    outcomes: Runs = field(default_factory=list)  # of the rows that the budget counted, in order


def verdict_inputs(node: Node, view: PartView) -> str:
    """Digest of all that a verdict (and the validity of the values under it) depends on; from footers alone."""
    pieces: list[Any] = [node.compute_fingerprint if node.has_compute else "", node.decide_fingerprint]
    before = view.record(VERDICTS, view.chain.nodes[node.index - 1])
    pieces.append(before.digest if before else "")
    for key, ref in sorted({**node.reads, **node.reads_decide}.items()):
        if ref is not None:
            owner = view.chain.nodes[ref.node]
            record = view.record(RESOLVED if ref.resolved else VALUES, owner)
            pieces.append([key, record.digest if record else ""])
    if node.has_resolve:
        record = view.record(RESOLVED, node)
        pieces.append(record.digest if record else "")
    return digest_of(*pieces)


def is_done(node: Node, view: PartView) -> bool:
    """True when the committed verdicts of a node follow from what is committed before it."""
    verdict = view.record(VERDICTS, node)
    if verdict is None or verdict.inputs != verdict_inputs(node, view):
        return False
    if not node.has_compute:
        return True
    values = view.record(VALUES, node)
    return values is not None and values.digest == verdict.values_digest


def asked_again(node: Node, view: PartView, codes: frozenset[str]) -> bool:
    """True when the node has stored failures with one of `codes` in this part: a retry must compute those rows."""
    values = view.record(VALUES, node)
    return values is not None and any(values.counts.get(f"failed:{code}") for code in codes)


def needed_rows(node: Node, view: PartView, retry: frozenset[str] = frozenset()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows that need computing, rows whose stored value is valid, input digest of each row).

    A value is valid if it was made under the node's compute fingerprint from the row's present inputs; a stored failure
    too, unless its code is in `retry`. Needed = reaches the node and is not valid.
    """
    valid, digests = valid_rows(node, view, retry)
    return view.before(node).open & ~valid, valid, digests


def valid_rows(node: Node, view: PartView, retry: frozenset[str] = frozenset()) -> tuple[np.ndarray, np.ndarray]:
    """(rows whose stored value is valid, input digest of each row)."""
    digests = view.input_digests(node)
    valid = np.zeros(view.rows, bool)
    record = view.record(VALUES, node)
    if record is not None and record.fingerprint == node.compute_fingerprint:
        outcome = view.outcome(node)
        stored = view.column(Ref(node.index, "input_digest")).to_numpy()
        valid = (outcome != Outcome.ABSENT) & (stored == digests)
        outdated = node.stage.outdated(lambda name: view.column(Ref(node.index, name))) if node.stage is not None else None
        if outdated is not None:
            valid &= ~outdated
        if retry:
            codes = np.array(view.column(Ref(node.index, "failure")).to_pylist(), object)
            valid &= ~((outcome == Outcome.FAILED) & np.isin(codes, list(retry)))
    return valid, digests


def run_part(node: Node, view: PartView, env: Environment, measure: bool = True, judge: bool = True) -> StepResult:
    """Bring one node of one part up to date: values if `measure`, verdicts if `judge`. Raises Fatal."""
    started = time.perf_counter()
    result = StepResult(node.name, view.part)
    if is_done(node, view) and not asked_again(node, view, env.retry.codes(node.name, view.part)):
        result.values, result.verdict = view.record(VALUES, node), view.record(VERDICTS, node)
        return result
    if measure and node.has_compute:
        _measure(node, view, env, result)
    if judge:
        judge_part(node, view, env, result)
    result.seconds = time.perf_counter() - started
    return result


def _measure(node: Node, view: PartView, env: Environment, result: StepResult) -> None:
    retry = env.retry.codes(node.name, view.part)
    need, valid, digests = needed_rows(node, view, retry)
    record = view.record(VALUES, node)
    if not need.any() and record is not None:
        result.values = record
        return
    rows = np.flatnonzero(need)
    started = time.perf_counter()
    stage = env.stage(node)
    context = env.context(node, view.part)
    tokens: dict[str, str] = {}
    breaker = Breaker(node.name, env.budget(node), env.recent.get(node.name, []), _failed_before(node, view, rows) if retry else {})
    try:
        computed = BatchRunner(node, stage, view, env, context, breaker).run(rows)
        if context.blobs is not None:
            tokens = context.blobs.finish()
    except BaseException:
        if context.blobs is not None:
            context.blobs.abort()
        raise
    result.computed, result.calls, result.model_seconds, result.tokens = len(rows), computed.calls, computed.model_seconds, computed.tokens
    result.outcomes = breaker.outcomes()
    result.seconds = time.perf_counter() - started
    columns = merge_values(node, view, valid, digests, rows, computed, tokens)
    marks = footer_marks(record, retry, breaker.marks(view.rows))
    result.values = commit_values(node, view, env, columns, result, context, marks)


def _failed_before(node: Node, view: PartView, rows: np.ndarray) -> dict[int, str]:
    """Stored failure code of each row that has one."""
    codes = view.column(Ref(node.index, "failure")).take(pa.array(rows)).to_pylist()
    return {row: code for row, code in zip(rows.tolist(), codes, strict=True) if code}


def merge_values(
    node: Node, view: PartView, valid: np.ndarray, digests: np.ndarray, rows: np.ndarray, computed: Computed, tokens: dict[str, str]
) -> dict[str, pa.Array]:
    """Columns of the new values file: old valid rows and the newly computed ones; all others absent."""
    n, total = len(rows), view.rows
    source = np.full(total, -1, np.int64)  # place in (old rows ++ new rows), -1 for absent
    source[valid] = np.flatnonzero(valid)
    source[rows] = total + np.arange(n)
    index = pa.array(source, mask=source < 0)
    failed = np.fromiter(map(bool, computed.failures), bool, n) if any(computed.failures) else np.zeros(n, bool)
    any_failed = bool(failed.any())
    details = [cap_detail(mask(f.detail)) if f else None for f in computed.failures] if any_failed else [None] * n
    new = {
        "outcome": pa.array(np.where(failed, int(Outcome.FAILED), int(Outcome.VALUE)).astype(np.int8)),
        "failure": pa.array([f.code if f else None for f in computed.failures], pa.string()) if any_failed else pa.nulls(n, pa.string()),
        "failure_detail": pa.array(details, pa.string()),
        "input_digest": pa.array(digests[rows]),
        **computed.columns,
    }
    if tokens and "tar" in new:
        new["tar"] = pa.array([tokens.get(t, t) if t is not None else None for t in new["tar"].to_pylist()], pa.string())
    absent = empty_values(total)
    columns: dict[str, pa.Array] = {}
    for name, column in new.items():
        old = view.column(Ref(node.index, name)) if valid.any() else pa.nulls(total, column.type)
        if pa.types.is_fixed_size_binary(column.type) or pa.types.is_fixed_size_binary(old.type):
            column, old = _same_width(column, old)
        merged = pa.concat_arrays([old, column]).take(index)
        if name in ("outcome", "input_digest"):
            merged = pa.array(np.where(source < 0, absent[name].to_numpy(), merged.fill_null(0).to_numpy()))
        columns[name] = merged
    return columns


def _same_width(new: pa.Array, old: pa.Array) -> tuple[pa.Array, pa.Array]:
    """A vector column without any vector has width 0; give it the other's width. Different widths cannot be one column."""
    if new.type == old.type:
        return new, old
    if new.null_count == len(new):
        return pa.nulls(len(new), old.type), old
    if old.null_count == len(old):
        return new, pa.nulls(len(old), new.type)
    raise Fatal(f"vectors of {new.type.byte_width} bytes where the stored ones have {old.type.byte_width}: the model changed; run in a new folder")


def commit_values(
    node: Node, view: PartView, env: Environment, columns: dict[str, pa.Array], result: StepResult, context: Context, marks: dict[str, Any]
) -> PartRecord:
    view.put_values(node, columns)
    record = PartRecord(VALUES, node.name, view.part, view.rows, node.compute_fingerprint, digest=view.values_digest(node))
    record.counts = value_counts(columns)
    record.info = {**env.info, "computed": result.computed, "calls": result.calls}
    record.info |= {"seconds": round(result.seconds, 3), "model_seconds": round(result.model_seconds, 3), **marks}
    if any(result.tokens):
        record.info |= {"prompt_tokens": result.tokens[0], "answer_tokens": result.tokens[1]}
    if context.model is not None:
        record.info["weights"] = context.model.digest
    filled = [name for name in node.vectors if columns[name].type.byte_width]  # a part may have no vector at all
    if filled:
        schema = pa.schema([storage_field(name, node.writes[name], columns[name]) for name in filled])
        table = pa.table([columns[name] for name in filled], schema)
        name = digest_of(*(hash_column(columns[v]) for v in filled))
        record.side_files["vectors"] = env.store.commit_vectors(node.name, view.part, table, name)
    plain = {name: column for name, column in columns.items() if name not in node.vectors}
    env.store.commit(pa.table(plain), record)
    if node.vectors:
        env.store.drop_side_files(node.name, view.part, set(record.side_files.values()))
    view.put_record(node, record)
    return record


def value_counts(columns: dict[str, pa.Array]) -> dict[str, int]:
    """Counts of a values footer: rows with a value, failed ones, and those of each code."""
    outcome = columns["outcome"].to_numpy()
    counts = {"value": int((outcome == Outcome.VALUE).sum()), "failed": int((outcome == Outcome.FAILED).sum())}
    codes = columns["failure"].drop_null().to_pylist()
    return counts | {f"failed:{code}": n for code, n in sorted(Counter(codes).items())}


def judge_part(node: Node, view: PartView, env: Environment, result: StepResult) -> None:
    inputs = verdict_inputs(node, view)
    old = view.record(VERDICTS, node)
    values = view.record(VALUES, node) if node.has_compute else None
    if old is not None and old.inputs == inputs and (values is None or values.digest == old.values_digest):
        result.verdict = old
        return
    verdict = judge(node, view, env)
    record = PartRecord(VERDICTS, node.name, view.part, view.rows, node.decide_fingerprint, inputs, verdict.digest())
    record.values_digest = values.digest if values else ""
    status = np.bincount(verdict.status, minlength=len(Status)).tolist()
    record.counts = {code.name.lower(): status[code] for code in Status if status[code]}
    left = np.flatnonzero((verdict.status == Status.DROPPED) | (verdict.status == Status.FAILED))
    reasons = verdict.reason.take(pa.array(left)).to_pylist()
    told = Counter(f"{Status(s).name.lower()}:{r}" for s, r in zip(verdict.status[left].tolist(), reasons, strict=True))
    record.counts |= dict(sorted(told.items()))
    record.info = {"open": int(verdict.open.sum())}
    env.store.commit(verdict.to_table(), record)
    view.put_verdict(node.index, verdict)
    view.put_record(node, record)
    result.verdict = record


def judge(node: Node, view: PartView, env: Environment) -> Verdict:
    """Verdicts of a node from stored columns alone: a function of values, alive mask, decide parameters and resolved."""
    before, n = view.before(node), view.rows
    status = np.full(n, int(Status.SKIPPED), np.int8)
    reasons: list[str | None] = [None] * n
    details: list[str | None] = [None] * n
    alive, opened = before.alive, before.open.copy()
    status[alive] = Status.KEPT
    if node.has_compute:
        failed = view.outcome(node) == Outcome.FAILED
        if node.stage is not None and node.stage.on_failure == "keep":
            failed[:] = False
        codes, texts = view.column(Ref(node.index, "failure")), view.column(Ref(node.index, "failure_detail"))
        for row in np.flatnonzero(failed & alive):
            status[row], reasons[row], details[row] = Status.FAILED, codes[row].as_py(), texts[row].as_py()
        opened &= ~failed
        alive = alive & ~failed
    if node.stage is not None and node.stage.has_decide:
        _apply_decide(node, view, env, np.flatnonzero(alive), status, reasons, details)
    if not env.chain.recipe.late:
        opened = status == Status.KEPT
    if not np.isin(status, (Status.DROPPED, Status.FAILED)).any():
        return Verdict(status, pa.nulls(n, pa.string()), pa.nulls(n, pa.string()), opened)
    return Verdict(status, pa.array(reasons, pa.string()), pa.array(details, pa.string()), opened)


def _apply_decide(node: Node, view: PartView, env: Environment, rows: np.ndarray, status: np.ndarray, reasons: list, details: list) -> None:
    stage = env.stage(node)
    own = {name: Ref(node.index, name) for name in own_columns(node)}
    told = _decide_columns(node, stage, view, rows)
    if told is not None:
        rows, told = rows[told.is_valid().to_numpy(zero_copy_only=False)], told.drop_null()
    values = mappings(view.table({**node.reads_decide, **own}, rows))
    resolved = mappings(view.table({name: Ref(node.index, name, True) for name in node.resolves}, rows)) if node.resolves else [{}] * len(rows)
    drops = decide_each(stage, view, rows, values, resolved)
    if told is not None and [drop and str(drop.reason) for drop in drops] != told.to_pylist():
        raise Fatal(f"{stage.instance}, part {view.part}: decide and decide_columns differ; this is a fault of the stage {stage.name}")
    if drops.count(None) == len(drops):
        return
    for row, drop in zip(rows.tolist(), drops, strict=True):
        if drop is not None:
            status[row], reasons[row], details[row] = Status.DROPPED, str(drop.reason), cap_detail(drop.detail)


def _decide_columns(node: Node, stage: Stage, view: PartView, rows: np.ndarray) -> pa.Array | None:
    """Reasons of some rows by the stage's `decide_columns`: rows that it keeps need no look one by one."""
    if not stage.has_decide_columns:
        return None
    refs = {**node.reads_decide, **{name: Ref(node.index, name) for name in own_columns(node)}}
    table = view.table(refs | {name: Ref(node.index, name, True) for name in node.resolves}, rows)
    return stage.decide_columns({name: flat(table[name]) for name in table.column_names})


def own_columns(node: Node) -> list[str]:
    """Columns of a node's own values that its `decide` sees."""
    return [name for name, kind in node.writes.items() if not isinstance(kind, Vector) and name not in LOCATION_COLUMNS]


def decide_each(stage: Stage, view: PartView, rows: np.ndarray, values: list[Any], resolved: list[Any]) -> list[Any]:
    """`decide` of each row: a Drop, or None. Raises Fatal with the sample's id where it breaks."""
    drops: list[Any] = []
    try:
        drops.extend(map(stage.decide, values, resolved))
    except Exception as error:
        row = int(rows[len(drops)])
        identifier = view.column(Ref(0, "sample_id"))[row].as_py().hex()
        raise Fatal(f"{stage.instance}.decide failed on sample {identifier} (part {view.part}, row {row}): {type(error).__name__}: {error}") from error
    return drops
