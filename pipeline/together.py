"""Several stages that ask one model about the rows of a part: each batch passes through all of them, with `decide` in between.

So a dropped row asks nothing more, an image is decoded once for all its prompts, and these come while the engine still holds their common
prefix. What is committed is what `run_part` commits stage after stage: values are merged, judged and written by the same functions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.batches import WINDOW, BatchRunner, Started
from pipeline.budget import Breaker
from pipeline.chain import Node, Ref
from pipeline.environment import Environment
from pipeline.errors import Fatal
from pipeline.packing import Computed, join
from pipeline.part import StepResult, commit_values, decide_each, judge_part, merge_values, own_columns, valid_rows
from pipeline.retry import footer_marks
from pipeline.store import VALUES
from pipeline.view import PartView, mappings
from schemas.outcome import Outcome


def may_follow(node: Node, nodes: Sequence[Node], env: Environment, view: PartView) -> bool:
    """True where batches may go from `nodes` on to `node`: all ask the same model, none reads what another writes, none tries failures again."""
    if not all(_asks(one) and not env.retry.codes(one.name, view.part) for one in (*nodes, node)):
        return False
    own = {one.index for one in nodes}
    reads = (*node.reads.values(), *node.reads_decide.values())
    return env.stage(node).model_name == env.stage(nodes[0]).model_name and not any(ref is not None and ref.node in own for ref in reads)


def _asks(node: Node) -> bool:
    return node.stage is not None and node.stage.asks_each and node.has_compute and not node.has_resolve


@dataclass
class Lane:
    """One stage's share of the work."""

    node: Node
    runner: BatchRunner
    breaker: Breaker
    result: StepResult
    valid: np.ndarray  # bool [N]: the stored value holds
    digests: np.ndarray  # uint64 [N]
    done: list[tuple[np.ndarray, Computed]] = field(default_factory=list)

    @property
    def rows(self) -> np.ndarray:
        """Rows computed, in order (int64)."""
        return np.sort(np.concatenate([rows for rows, _ in self.done])) if self.done else np.empty(0, np.int64)


@dataclass
class Passing:
    """A batch on its way: it waits at lane `lane`; `rows` reached that lane, of which some are at the model. `shared`: see Context."""

    lane: int
    rows: np.ndarray
    started: Started | None
    shared: dict[Any, Any]


def run_together(nodes: list[Node], view: PartView, env: Environment) -> list[StepResult]:
    """Bring several nodes of one part up to date. Raises Fatal."""
    return Together(nodes, view, env).run()


class Together:
    """The passage of a part's batches through some stages."""

    def __init__(self, nodes: list[Node], view: PartView, env: Environment):
        self.view = view
        self.env = env
        before = view.before(nodes[0])
        self.open = before.open.copy()
        self.alive = before.alive.copy()
        self.lanes = [self._lane(node) for node in nodes]
        model = self.lanes[0].runner.context.model
        self.began = model.seconds() if model is not None else 0.0
        cache = self.lanes[0].runner.open_cache()
        for lane in self.lanes[1:]:
            lane.runner.open_cache(cache)
        reached = np.flatnonzero(self.open & ~np.logical_and.reduce([lane.valid for lane in self.lanes]))
        images = self.lanes[0].runner.plan_images(reached) if len(reached) else None
        for lane in self.lanes:
            lane.runner.images = images

    def _lane(self, node: Node) -> Lane:
        valid, digests = valid_rows(node, self.view)
        breaker = Breaker(node.name, self.env.budget(node), self.env.recent.get(node.name, []), {})
        runner = BatchRunner(node, self.env.stage(node), self.view, self.env, self.env.context(node, self.view.part), breaker)
        return Lane(node, runner, breaker, StepResult(node.name, self.view.part), valid, digests)

    def run(self) -> list[StepResult]:
        """Batches in order, WINDOW at a time; then each stage's files, in the order of the stages."""
        rows = np.flatnonzero(self.open)
        size = min(lane.runner.stage.batch_size or len(rows) or 1 for lane in self.lanes)
        waiting = deque(rows[start : start + size] for start in range(0, len(rows), size))
        under_way: deque[Passing] = deque()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < WINDOW:
                    under_way.append(self._enter(Passing(0, waiting.popleft(), None, {})))
                passing = under_way.popleft()
                if (following := self._leave(passing)) is not None:
                    under_way.append(following)
        finally:
            for lane in self.lanes:
                lane.runner.close_cache()
        self._share_model_seconds()
        return [self._commit(lane) for lane in self.lanes]

    def _enter(self, passing: Passing) -> Passing:
        """Send the rows that need a value at the lane to the model."""
        lane = self.lanes[passing.lane]
        started = time.perf_counter()
        needed = passing.rows[~lane.valid[passing.rows]]
        if len(needed):
            passing.started = lane.runner.begin(needed, passing.shared)
        lane.result.seconds += time.perf_counter() - started
        return passing

    def _leave(self, passing: Passing) -> Passing | None:
        """Take the batch's answers at its lane, judge them, and send what is still open to the next lane."""
        lane = self.lanes[passing.lane]
        started = time.perf_counter()
        computed = None
        if passing.started is not None:
            computed = lane.runner.end(passing.started)
            lane.done.append((passing.started.batch, computed))
        self._judge(lane, passing, computed)
        lane.result.seconds += time.perf_counter() - started
        rows = passing.rows[self.open[passing.rows]]
        if passing.lane + 1 == len(self.lanes) or not len(rows):
            return None
        return self._enter(Passing(passing.lane + 1, rows, None, passing.shared))

    def _judge(self, lane: Lane, passing: Passing, computed: Computed | None) -> None:
        """Which rows of a batch stay open and alive behind a lane: what `judge` (pipeline.part) says of the whole part."""
        node, rows = lane.node, passing.rows
        stage = self.env.stage(node)
        failed = lane.valid[rows] & (self.view.outcome(node)[rows] == Outcome.FAILED)
        if computed is not None and passing.started is not None:
            failed[np.searchsorted(rows, passing.started.batch)] = [failure is not None for failure in computed.failures]
        if stage.on_failure == "drop":
            self.open[rows[failed]] = self.alive[rows[failed]] = False
        if stage.has_decide:
            alive = rows[self.alive[rows]]
            drops = decide_each(stage, self.view, alive, self._values(lane, alive, passing, computed), [{}] * len(alive))
            self.alive[alive[[drop is not None for drop in drops]]] = False
        if not self.env.chain.recipe.late:
            self.open[rows] = self.alive[rows]

    def _values(self, lane: Lane, rows: np.ndarray, passing: Passing, computed: Computed | None) -> list[dict[str, Any]]:
        """What `decide` sees of rows, stored or just computed."""
        node, own = lane.node, own_columns(lane.node)
        table = self.view.table({**node.reads_decide, **{name: Ref(node.index, name) for name in own}}, rows)
        values = mappings(table) if table.column_names != ["_"] else [{} for _ in rows]
        if computed is not None and passing.started is not None:
            fresh = {name: computed.columns[name].to_pylist() for name in own}
            place_of = {int(row): place for place, row in enumerate(passing.started.batch)}
            for value, row in zip(values, rows.tolist(), strict=True):
                if (place := place_of.get(row)) is not None:
                    value |= {name: column[place] for name, column in fresh.items()}
        return values

    def _commit(self, lane: Lane) -> StepResult:
        node, result, view = lane.node, lane.result, self.view
        started = time.perf_counter()
        rows, record = lane.rows, view.record(VALUES, node)
        if not np.array_equal(rows, np.flatnonzero(view.before(node).open & ~lane.valid)):
            raise Fatal(f"{node.name}, part {view.part}: the rows computed are not those that reached it: a fault of pairmill")
        if len(rows) or record is None:
            computed = join(node, lane.done)
            context = lane.runner.context
            result.computed, result.calls, result.tokens = len(rows), lane.runner.calls, lane.runner.tokens
            result.outcomes = lane.breaker.outcomes()
            columns = merge_values(node, view, lane.valid, lane.digests, rows, computed, {})
            marks = footer_marks(record, frozenset(), lane.breaker.marks(view.rows))
            result.values = commit_values(node, view, self.env, columns, result, context, marks)
        else:
            result.values = record
        judge_part(node, view, self.env, result)
        result.seconds += time.perf_counter() - started
        return result

    def _share_model_seconds(self) -> None:
        """The model's busy seconds, shared among the stages that asked it as the part's own seconds are: a long answer takes more of both."""
        model = self.lanes[0].runner.context.model
        asked = [lane for lane in self.lanes if lane.runner.calls]
        whole = sum(lane.result.seconds for lane in asked)
        for lane in asked:
            lane.result.model_seconds = (model.seconds() - self.began) * lane.result.seconds / whole if model is not None and whole else 0.0
