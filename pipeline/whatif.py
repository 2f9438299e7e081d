"""What a changed recipe would keep, found from stored columns alone: the chain is walked once over all rows of the run, column by column.

A row whose verdict at a stage follows from what it was before (equal parameters, equal values) keeps that verdict; the others are judged by
`decide_columns`, or row by row where a stage has none. A resolve whose rows or columns changed is asked again in memory. Rows that would have to be
measured first are undecided from there on: they count neither as kept nor as dropped, and resolves behind them are made without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.chain import Node, Ref
from pipeline.changed import Changed
from pipeline.corpus import Corpus
from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.part import decide_each, is_done, own_columns, valid_rows
from pipeline.reason_columns import as_numbers, codes_of
from pipeline.resolve import is_resolved
from pipeline.resolve_whole import CorpusView, resolve_whole
from pipeline.run_view import RunView
from pipeline.stage import Stage
from pipeline.store import RESOLVED, VALUES, VERDICTS
from pipeline.view import mappings
from schemas.outcome import Drop, Outcome, Status

WHOLE = 10  # all rows are judged where more than one in so many has to be
KEPT = -1  # place in the chain where a kept row left: nowhere


@dataclass
class Fate:
    """Where each row leaves: `left` is the index of the node (int8 [N], KEPT for none), `reason` the place of its reason in `names` (int16 [N])."""

    left: np.ndarray
    reason: np.ndarray


@dataclass
class Missing:
    """Rows that a stage would have to measure: surely, and at most (where rows may be dropped before, or revived by a resolve)."""

    stage: str
    low: int
    high: int


@dataclass
class Found:
    """What the walk found. `undecided` bool [N]: rows whose fate needs a measurement; `judged` the nodes whose own verdicts may have changed."""

    now: Fate
    then: Fate
    names: list[str]
    undecided: np.ndarray
    missing: list[Missing] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)

    @property
    def kept_now(self) -> np.ndarray:
        return self.now.left == KEPT

    @property
    def kept_then(self) -> np.ndarray:
        return (self.then.left == KEPT) & ~self.undecided


def walk(changed: Changed, corpus: Corpus) -> Found:
    """Raises RecipeError where the run is not finished by the recipe it was last run with."""
    _check_finished(corpus)
    names: list[str] = []
    now = fate_now(corpus, names)
    return _Walk(changed, corpus, now, names).run()


def _all_stamps(corpus: Corpus) -> str:
    kinds = (VALUES, VERDICTS, RESOLVED)
    return digest_of(*(corpus.stamp(kind, node.name) for node in corpus.run.chain.nodes for kind in kinds))


def _check_finished(corpus: Corpus) -> None:
    run = corpus.run
    fingerprints = [(node.compute_fingerprint, node.decide_fingerprint, node.resolve_fingerprint) for node in run.chain.nodes]
    stamp = digest_of(_all_stamps(corpus), fingerprints)
    if not corpus.kept("run.finished", stamp, lambda: {"finished": np.array([_is_finished(run)])})["finished"][0]:
        raise RecipeError(f"{run.root}: the run is not finished by the recipe it was last run with; finish it with `pairmill run` first")


def _is_finished(run: RunView) -> bool:
    """Whether all verdicts and resolves follow from what is committed, from footers alone."""
    kinds = (VALUES, VERDICTS, RESOLVED)
    views = [run.view(part) for part in range(len(run.parts))]
    footers = run.store.records([(kind, node.name, view.part) for view in views for node in run.chain.nodes for kind in kinds])
    for view in views:
        for node in run.chain.nodes:
            for kind in kinds:
                view.know_record(kind, node, footers.get((kind, node.name, view.part)))
    nodes = run.chain.nodes[1:]
    return all(is_done(node, view) for node in nodes for view in views) and all(is_resolved(node, views) for node in nodes if node.has_resolve)


def fate_now(corpus: Corpus, names: list[str]) -> Fate:
    """Where each row left by the committed verdicts; `names` gets the reasons."""
    run = corpus.run

    def make() -> dict[str, np.ndarray]:
        left, reason = np.full(corpus.rows, KEPT, np.int8), np.full(corpus.rows, -1, np.int16)
        found: list[str] = []
        for node in run.chain.nodes:
            for part in range(len(run.parts)):
                table = run.store.read(VERDICTS, node.name, part, ["status", "reason"])
                assert table is not None
                rows = np.flatnonzero(np.isin(table["status"].to_numpy(), (int(Status.DROPPED), int(Status.FAILED))))
                if len(rows):
                    left[corpus.starts[part] + rows] = node.index
                    reason[corpus.starts[part] + rows] = codes_of(table["reason"].combine_chunks().take(pa.array(rows)), found)
        return {"left": left, "reason": reason, "names": np.array(found, object)}

    stamp = digest_of(*(corpus.stamp(VERDICTS, node.name) for node in run.chain.nodes))
    kept = corpus.kept("run.fate", stamp, make)
    names.extend(kept["names"].tolist())
    return Fate(kept["left"], kept["reason"])


class _Walk:
    """One pass over the chain. `alive`: surely reaches the next stage; `open`: is measured there; `maybe`: would be, if an undecided row is kept."""

    def __init__(self, changed: Changed, corpus: Corpus, now: Fate, names: list[str]):
        self.changed, self.corpus, self.now, self.names = changed, corpus, now, names
        self.chain, self.old = changed.chain, changed.run.chain
        rows = corpus.rows
        self.alive, self.open = np.ones(rows, bool), np.ones(rows, bool)
        self.undecided, self.maybe = np.zeros(rows, bool), np.zeros(rows, bool)
        self.then = Fate(np.full(rows, KEPT, np.int8), np.full(rows, -1, np.int16))
        self.found = Found(now, self.then, names, self.undecided)

    def run(self) -> Found:
        self._leave(self.chain.nodes[0], self.now.left == 0, self.now.reason)
        self.open &= self.alive
        for node in self.chain.nodes[1:]:
            self._step(node)
        return self.found

    def _step(self, node: Node) -> None:
        stage, corpus = node.stage, self.corpus
        assert stage is not None
        value = np.ones(corpus.rows, bool)
        if node.has_compute:
            value = self._measured(node)
        if node.has_resolve:
            self._resolve(node, self.alive & value)
        if stage.has_decide:
            self._decide(node, stage)
        if not self.chain.recipe.late:
            self.open, self.maybe = self.alive.copy(), self.undecided.copy()

    def _leave(self, node: Node, rows: np.ndarray, reasons: np.ndarray) -> None:
        """Rows (bool [N]) leave at a node."""
        self.then.left = np.where(rows, np.int8(node.index), self.then.left)
        self.then.reason = np.where(rows, reasons, self.then.reason)
        self.alive &= ~rows

    def _before(self, node: Node) -> np.ndarray:
        """Rows that are committed as alive before a node."""
        return (self.now.left == KEPT) | (self.now.left >= node.index)

    def _measured(self, node: Node) -> np.ndarray:
        """Set rows without a valid value aside and let failed ones leave; returns the rows with a value (bool [N])."""
        corpus, stage = self.corpus, node.stage
        assert stage is not None
        valid = self._valid(node)
        if not valid.all():
            self._set_aside(node, valid)
        outcome = as_numbers(corpus.column(Ref(node.index, "outcome")))
        value = (outcome == Outcome.VALUE) & valid
        failed = (outcome == Outcome.FAILED) & valid
        if stage.on_failure == "keep" or not failed.any():
            return value
        gone = np.flatnonzero(failed & self.alive)
        reasons = np.full(corpus.rows, -1, np.int16)
        reasons[gone] = codes_of(corpus.column(Ref(node.index, "failure")).take(pa.array(gone)), self.names)
        self._leave(node, failed & self.alive, reasons)
        self.open &= ~failed
        self.undecided &= ~failed
        self.maybe &= ~failed
        return value

    def _set_aside(self, node: Node, valid: np.ndarray) -> None:
        """Rows that would be measured at a node are undecided from there on."""
        need, more = self.open & ~valid, self.maybe & ~valid
        low, high = int(np.count_nonzero(need)), int(np.count_nonzero(need | more))
        if high:
            self.found.missing.append(Missing(node.name, low, high))
        self.undecided |= need & self.alive
        self.maybe |= need
        self.open &= ~need
        self.alive &= ~need

    def _valid(self, node: Node) -> np.ndarray:
        """Rows whose stored value holds under the changed recipe (bool [N])."""
        corpus, stage = self.corpus, node.stage
        assert stage is not None
        refs = list(node.digest_reads().values())

        def make() -> dict[str, np.ndarray]:
            views = (CorpusView(self.chain, corpus, part) for part in range(len(corpus.run.parts)))
            return {"valid": np.concatenate([valid_rows(node, view)[0] for view in views])}

        decides = node.decide_fingerprint if type(stage).outdated is not Stage.outdated else ""
        name = f"valid.{digest_of(node.compute_fingerprint, decides)}"
        return corpus.index(node.index, name, [Ref(node.index, "outcome"), *refs], make)["valid"].astype(bool)

    def _moved(self, refs: Iterable[Ref | None]) -> bool:
        return any(ref in self.corpus.moved for ref in refs)

    def _resolve(self, node: Node, alive: np.ndarray) -> None:
        """Ask a resolve again where what it sees, or its parameters, changed."""
        committed = self._before(node)
        if node.has_compute:
            committed &= as_numbers(self.corpus.column(Ref(node.index, "outcome"))) == Outcome.VALUE
        same = node.resolve_fingerprint == self.old.nodes[node.index].resolve_fingerprint and not self._moved(node.reads_resolve.values())
        if same and np.array_equal(alive, committed):
            return
        self.found.resolved.append(node.name)
        self.corpus.moved |= resolve_whole(self.chain, node, self.corpus, alive)

    def _decide(self, node: Node, stage: Stage) -> None:
        old, own = self.old.nodes[node.index], [Ref(node.index, name, True) for name in node.resolves]
        rows = self.alive
        if node.decide_fingerprint == old.decide_fingerprint and not self._moved([*node.reads_decide.values(), *own]):
            known = self._before(node)
            self._leave(node, self.alive & known & (self.now.left == node.index), self.now.reason)
            rows = self.alive & ~known
        else:
            self.found.judged.append(node.index)
        if rows.any():
            reasons = self._judge(node, stage, rows)
            self._leave(node, reasons >= 0, reasons)

    def _judge(self, node: Node, stage: Stage, rows: np.ndarray) -> np.ndarray:
        """Reason of each row (int16 [N], -1 where it is kept or is none of `rows`, bool [N])."""
        whole = WHOLE * np.count_nonzero(rows) > self.corpus.rows  # then looking at every row is cheaper than gathering some
        places = None if whole else np.flatnonzero(rows)
        told = stage.decide_columns(Judged(node, self.corpus, None if places is None else pa.array(places))) if stage.has_decide_columns else None
        if told is None:
            return self._judge_each(node, stage, np.flatnonzero(rows))
        codes = codes_of(told, self.names)
        if places is None:
            return np.where(rows, codes, np.int16(-1))
        reasons = np.full(self.corpus.rows, -1, np.int16)
        reasons[places] = codes
        return reasons

    def _judge_each(self, node: Node, stage: Stage, places: np.ndarray) -> np.ndarray:
        reasons = np.full(self.corpus.rows, -1, np.int16)
        for some in by_part(self.corpus, places):
            drops = drops_of(node, stage, self.corpus, some)
            reasons[some] = codes_of(pa.array([None if drop is None else str(drop.reason) for drop in drops], pa.string()), self.names)
        return reasons


def by_part(corpus: Corpus, places: np.ndarray) -> Iterator[np.ndarray]:
    """Rising places in the run, those of one part at a time."""
    edges = np.searchsorted(places, corpus.starts)
    for start, stop in zip(edges, edges[1:], strict=False):
        if stop > start:
            yield places[start:stop]


def decide_refs(node: Node) -> dict[str, Ref | None]:
    """What a node's `decide` sees, own values and resolved columns included."""
    own = {name: Ref(node.index, name) for name in own_columns(node)}
    return {**node.reads_decide, **own, **{name: Ref(node.index, name, True) for name in node.resolves}}


def drops_of(node: Node, stage: Stage, corpus: Corpus, places: np.ndarray) -> list[Drop | None]:
    """`decide` of some rows of one part, from its part files (lists and structs of all rows would be many)."""
    part = int(np.searchsorted(corpus.starts, places[0], "right")) - 1
    view, rows = CorpusView(corpus.run.chain, corpus, part), places - corpus.starts[part]
    values = mappings(view.table({**node.reads_decide, **{name: Ref(node.index, name) for name in own_columns(node)}}, rows))
    resolved = mappings(view.table({name: Ref(node.index, name, True) for name in node.resolves}, rows)) if node.resolves else [{}] * len(rows)
    return decide_each(stage, view, rows, values, resolved)


class Judged(dict[str, pa.Array]):
    """Columns that `decide_columns` asks for by `[name]`, read when they are asked; `index` None: of all rows."""

    def __init__(self, node: Node, corpus: Corpus, index: pa.Array | None):
        super().__init__()
        self.refs, self.corpus, self.index = decide_refs(node), corpus, index

    def __missing__(self, key: str) -> pa.Array:
        ref = self.refs[key]
        if ref is None:
            column = pa.nulls(self.corpus.rows if self.index is None else len(self.index))
        else:
            column = self.corpus.column(ref)
            column = column if self.index is None else column.take(self.index)
        self[key] = column
        return column
