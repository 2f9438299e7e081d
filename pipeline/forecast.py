"""What a run would compute, found without running it: verdicts are made in memory from stored values.

The forecast walks the same groups as the schedule. For each row it knows whether it surely, possibly or never reaches a
stage: where all that a verdict needs is stored, `judge` is asked; where a stage upstream must compute first, the row
may go either way. Nothing is written into the run directory; what a resolve would return goes to a scratch folder.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.environment import Environment
from pipeline.groups import make_groups
from pipeline.part import asked_again, is_done, judge, needed_rows, verdict_inputs
from pipeline.resolve import is_resolved, run_resolve
from pipeline.retry import Retry
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from pipeline.view import PartView, Verdict
from schemas.outcome import Outcome, Status
from schemas.record import PartRecord

UNKNOWN = "?"  # stands for a digest that only the run can know; equal to no digest


@dataclass
class Masks:
    """Rows that surely and possibly are alive after a stage, and that the next stage surely and possibly measures (bool [N])."""

    sure: np.ndarray
    may: np.ndarray
    sure_open: np.ndarray
    may_open: np.ndarray

    @property
    def exact(self) -> bool:
        return bool((self.sure == self.may).all() and (self.sure_open == self.may_open).all())


class PlanView(PartView):
    """A part as it would be after the stages walked so far. `masks` None: as the committed verdicts of node `at` say."""

    needs_input = False  # the input of a new run is not committed yet

    def __init__(self, chain: Chain, store: Store, part: int, rows: int, scratch: Store):
        super().__init__(chain, store, part, rows)
        self.scratch = scratch
        self.at = 0
        self.masks: Masks | None = None
        self.shown: Verdict | None = None
        self.unknown: dict[int, np.ndarray] = {}  # node -> rows whose values the run would make
        self.moved: set[int] = set()  # nodes whose resolve was asked in memory

    def fresh(self) -> PlanView:
        other = PlanView(self.chain, self.store, self.part, self.rows, self.scratch)
        other.at, other.masks, other.unknown, other.moved, other._records = self.at, self.masks, self.unknown, self.moved, self._records
        return other

    def store_of(self, ref: Ref) -> Store:
        return self.scratch if ref.resolved and ref.node in self.moved else self.store

    def current(self) -> Masks:
        """What is known of the rows after the stages walked so far."""
        if self.masks is None:
            verdict = self.verdict(self.at)
            self.masks = Masks(verdict.alive, verdict.alive, verdict.open, verdict.open)
        return self.masks

    def before(self, node: Node) -> Verdict:
        """The verdicts that reach a node: those put on show, else the rows that possibly do."""
        if self.shown is not None:
            return self.shown
        masks = self.current()
        return self.verdict_of(masks.may, masks.may_open)

    def verdict_of(self, alive: np.ndarray, opened: np.ndarray) -> Verdict:
        status = np.where(alive, int(Status.KEPT), int(Status.SKIPPED)).astype(np.int8)
        return Verdict(status, pa.nulls(self.rows, pa.string()), pa.nulls(self.rows, pa.string()), opened)


@dataclass
class NodeForecast:
    """What a run would do at one stage. `low` and `high` bound the rows computed; equal where the number is exact."""

    low: int = 0
    high: int = 0
    calls_low: int = 0
    calls_high: int = 0
    kept_low: int = 0
    kept_high: int = 0
    verdict_parts: int = 0  # parts whose verdicts would be written anew
    resolve: str = ""  # 'runs', 'may run' or ''
    why: Counter[str] = field(default_factory=Counter)  # cause -> rows, see _causes

    @property
    def exact(self) -> bool:
        return self.low == self.high


class Forecast:
    """Walks a chain over the committed parts of a run directory (or over none, for a new one).

    views: one per part, with the footers loaded. retry: failures that a run would try again, unasked.
    """

    def __init__(self, chain: Chain, views: list[PlanView], retry: Retry | None = None):
        self.chain = chain
        self.views = views
        self.retry = retry or Retry()
        self.env = Environment(chain, views[0].store) if views else None
        self.found = {node.index: NodeForecast() for node in chain.nodes[1:]}
        self.unresolved: set[int] = set()  # nodes whose resolve would return what only the run can know

    def walk(self) -> dict[int, NodeForecast]:
        """Node index -> what a run would do there."""
        for group in make_groups(self.chain):
            if group.barrier is not None:
                self._resolve(self.chain.nodes[group.barrier])
            for place, view in enumerate(self.views):
                for step in group.steps:
                    node = self.chain.nodes[step.node]
                    if step.measure:
                        self._measure(node, view)
                    if step.judge:
                        self._judge(node, view)
                self.views[place] = view.fresh()
        return self.found

    def _measure(self, node: Node, view: PlanView) -> None:
        codes = self.retry.codes(node.name, view.part)
        if is_done(node, view) and not asked_again(node, view, codes):
            return
        masks, record, found = view.current(), view.record(VALUES, node), self.found[node.index]
        unsure = self._unknown_rows(node.digest_reads().values(), view)
        possible = valid = np.zeros(view.rows, bool)  # rows whose stored value is possibly valid, and valid
        if record is not None and record.fingerprint == node.compute_fingerprint:
            view.shown = view.verdict_of(masks.may, masks.may_open)
            _, valid, _ = needed_rows(node, view, codes)
            view.shown = None
            possible = np.where(unsure, view.outcome(node) != Outcome.ABSENT, valid)
            valid = valid & ~unsure
        low, high = masks.sure_open & ~possible, masks.may_open & ~valid
        if not high.any():
            return
        found.low += int(low.sum())
        found.high += int(high.sum())
        size = node.stage.batch_size if node.stage is not None else None
        found.calls_low += _calls(int(low.sum()), size)
        found.calls_high += _calls(int(high.sum()), size)
        found.why.update(_causes(node, view, high, record, possible, codes))
        view.unknown[node.index] = np.broadcast_to(np.True_, view.rows) if high.sum() == masks.may_open.sum() else high
        view.put_record(node, _unknown_record(VALUES, node, view))

    def _judge(self, node: Node, view: PlanView) -> None:
        found, before = self.found[node.index], view.record(VERDICTS, node)
        if is_done(node, view) and node.index not in view.unknown:
            assert before is not None
            view.at, view.masks = node.index, None
            kept = before.counts.get("kept", 0)
        else:
            inputs = verdict_inputs(node, view)
            known, verdict = self._judge_known(node, view)
            exact = view.current().exact and bool(known[view.current().may].all())
            view.masks = self._after(node, view, known, verdict)
            view.at = node.index
            exact = exact and view.masks.exact and node.index not in view.unknown
            values = view.record(VALUES, node)
            record = _unknown_record(VERDICTS, node, view)
            if exact:
                record.digest, record.inputs, record.values_digest = verdict.digest(), inputs, values.digest if values else ""
            found.verdict_parts += 1
            view.put_record(node, record)
            found.kept_low += int(view.masks.sure.sum())
            found.kept_high += int(view.masks.may.sum())
            return
        found.kept_low += kept
        found.kept_high += kept

    def _judge_known(self, node: Node, view: PlanView) -> tuple[np.ndarray, Verdict]:
        """(rows whose verdict follows from what is stored, verdicts in which all other rows are skipped)."""
        masks = view.current()
        unsure = self._unknown_rows(node.reads_decide.values(), view)
        if node.index in view.unknown:
            unsure |= view.unknown[node.index]
        if node.index in self.unresolved:
            unsure[:] = True
        known = masks.sure & ~unsure
        view.shown = view.verdict_of(known, masks.sure_open)
        assert self.env is not None
        verdict = judge(node, view, self.env)
        view.shown = None
        return known, verdict

    def _after(self, node: Node, view: PlanView, known: np.ndarray, verdict: Verdict) -> Masks:
        masks, stage = view.current(), node.stage
        assert stage is not None
        may_fail = node.has_compute and stage.on_failure == "drop"
        kept = known & verdict.alive
        stays = masks.sure & ~known if not (stage.has_decide or may_fail) else np.zeros(view.rows, bool)
        sure, may = kept | stays, kept | (masks.may & ~known)
        if not self.chain.recipe.late:
            return Masks(sure, may, sure, may)
        unsure = view.unknown.get(node.index, np.zeros(view.rows, bool))
        failed = (view.outcome(node) == Outcome.FAILED) & ~unsure if may_fail else np.zeros(view.rows, bool)
        sure_open = masks.sure_open & ~failed
        return Masks(sure, may, sure_open & ~unsure if may_fail else sure_open, masks.may_open & ~failed)

    def _resolve(self, node: Node) -> None:
        if is_resolved(node, self.views):
            return
        found = self.found[node.index]
        if all(self._evidence_known(node, view) for view in self.views):
            for view, record in zip(self.views, run_resolve(node, self.views, self.views[0].scratch), strict=True):
                view.put_record(node, record)
                view.moved.add(node.index)
            found.resolve = "runs"
            return
        found.resolve = "may run" if self.views and all(view.record(RESOLVED, node) for view in self.views) else "runs"
        self.unresolved.add(node.index)
        for view in self.views:
            view.put_record(node, _unknown_record(RESOLVED, node, view))

    def _evidence_known(self, node: Node, view: PlanView) -> bool:
        masks = view.current()
        unsure = self._unknown_rows(node.reads_resolve.values(), view)
        if node.index in view.unknown:
            unsure |= view.unknown[node.index]
        return masks.exact and not (unsure & masks.may).any()

    def _unknown_rows(self, refs: Iterable[Ref | None], view: PlanView) -> np.ndarray:
        """Rows for which one of the columns would be made by the run (bool [N])."""
        unsure = np.zeros(view.rows, bool)
        for ref in refs:
            if ref is None:
                continue
            if ref.resolved:
                unsure |= ref.node in self.unresolved
            elif ref.node in view.unknown:
                unsure |= view.unknown[ref.node]
        return unsure


def _unknown_record(kind: str, node: Node, view: PlanView) -> PartRecord:
    return PartRecord(kind, node.name, view.part, view.rows, inputs=UNKNOWN, digest=UNKNOWN, values_digest=UNKNOWN)


def _calls(rows: int, batch_size: int | None) -> int:
    return math.ceil(rows / batch_size) if batch_size else int(rows > 0)


def _causes(node: Node, view: PlanView, rows: np.ndarray, record: PartRecord | None, possible: np.ndarray, codes: frozenset[str]) -> Counter[str]:
    """Why rows must be computed: 'missing' (the part has none yet), 'settings' (made under others), 'retry', 'inputs'
    (they changed), 'inputs?' (they may), 'revived:STAGE' (which dropped them before), 'revived' (by what, is not known)."""
    if record is None:
        return Counter({"missing": int(rows.sum())})
    if record.fingerprint != node.compute_fingerprint:
        return Counter({"settings": int(rows.sum())})
    outcome = view.outcome(node)
    absent = rows & (outcome == Outcome.ABSENT)
    found = Counter({"inputs?": int((rows & possible).sum())})
    again = np.zeros(view.rows, bool)
    if codes:
        failure = np.array(view.column(Ref(node.index, "failure")).to_pylist(), object)
        again = rows & ~absent & ~possible & np.isin(failure, list(codes))
        found["retry"] = int(again.sum())
    found["inputs"] = int((rows & ~absent & ~possible & ~again).sum())
    for earlier in view.chain.nodes[: node.index]:
        if not absent.any():
            break
        table = view.store.read(VERDICTS, earlier.name, view.part, ["status"])
        if table is not None:
            left = absent & np.isin(table["status"].to_numpy(), (int(Status.DROPPED), int(Status.FAILED)))
            found[f"revived:{earlier.name}"] = int(left.sum())
            absent &= ~left
    found["revived"] = int(absent.sum())
    return +found


def scratch_store() -> tuple[tempfile.TemporaryDirectory[str], Store]:
    """A folder for what resolves would return; close the first to remove it."""
    folder = tempfile.TemporaryDirectory(prefix="pairmill-plan-")
    return folder, Store(Path(folder.name))
