"""Which (group, part) to run next: deepest first, barriers resolved once all parts have arrived."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.budget import BudgetWindow
from pipeline.chain import Chain, Node
from pipeline.environment import Isolation
from pipeline.errors import BudgetExceeded, Fatal
from pipeline.executor import Crash, Done, Executor
from pipeline.groups import Group, GroupTask, group_done
from pipeline.part import StepResult, asked_again
from pipeline.resolve import is_resolved, run_resolve
from pipeline.retry import Retry
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from pipeline.view import PartView
from schemas.record import PartRecord

MAX_UNEXPLAINED_CRASHES = 3
STEPS_PER_SUSPECT_BATCH = 8


@dataclass
class Tally:
    """What a run has done so far."""

    computed: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    model_seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)  # of prompts and of answers
    parts_run: int = 0
    resolves: list[str] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        self.computed[result.stage] = self.computed.get(result.stage, 0) + result.computed
        self.calls[result.stage] = self.calls.get(result.stage, 0) + result.calls
        self.seconds[result.stage] = self.seconds.get(result.stage, 0.0) + result.seconds
        before = self.tokens.get(result.stage, (0, 0))
        self.tokens[result.stage] = (before[0] + result.tokens[0], before[1] + result.tokens[1])
        self.model_seconds[result.stage] = self.model_seconds.get(result.stage, 0.0) + result.model_seconds


class Schedule:
    """Drives all parts through all groups. It keeps footers, never columns."""

    def __init__(
        self,
        chain: Chain,
        store: Store,
        parts: list[int],
        groups: list[Group],
        retry: Retry | None = None,
        notify: Callable[[str, object], None] = lambda kind, what: None,
    ):
        self.chain = chain
        self.store = store
        self.groups = groups
        self.retry = retry or Retry()
        self.notify = notify
        self.views = [PartView(chain, store, part, rows) for part, rows in enumerate(parts)]
        self.position = [0] * len(parts)  # next group of each part
        self.running: set[int] = set()
        self.resolved: set[int] = set()
        self.tally = Tally()
        # Across parts only the share counts: the details, by which failures are told to be identical, stay in the parts.
        budgets = {node.name: replace(chain.recipe.budgets[node.name], max_identical=sys.maxsize) for node in chain.nodes[1:]}
        self.windows = {name: BudgetWindow(name, budget) for name, budget in budgets.items()}
        self.put_off: set[int] = set()  # parts of which only failures are tried again: new rows first, they tell whether the cause is mended
        self.isolation: dict[tuple[int, int], Isolation] = {}
        self.crashes: dict[tuple[int, int], int] = {}
        self.retried: set[tuple[str, int]] = set()
        self._unchecked: set[int] = set(range(len(parts)))
        self._ready: list[tuple[bool, int, int]] = []  # heap of the ranks of parts that wait for a task
        self.load_records()

    def load_records(self) -> None:
        """Read all footers with many threads; a file that is missing is known to be missing."""
        kinds = (VALUES, VERDICTS, RESOLVED)
        keys = [(kind, node.name, view.part) for view in self.views for node in self.chain.nodes for kind in kinds]
        found = self.store.records(keys)
        for view in self.views:
            for node in self.chain.nodes:
                for kind in kinds:
                    view._records[(kind, node.index)] = found.get((kind, node.name, view.part))

    def run(self, executor: Executor) -> None:
        """Bring every part to the end of the chain. Raises Fatal; what was committed until then stays."""
        while True:
            self._advance()
            while len(self.running) < executor.capacity and (task := self._next_task()) is not None:
                self.running.add(task.part)
                self.notify("start", task)
                executor.submit(task)
            if not self.running:
                if all(place == len(self.groups) for place in self.position):
                    self.store.sync()
                    return
                raise Fatal("no task can run though work is left; this is a fault of pairmill, please report the recipe")
            for done in executor.wait():
                self._take(done)

    def _advance(self) -> None:
        """Move every idle part past groups that are done, and open barriers that all parts have reached."""
        while True:
            for part in sorted(self._unchecked):
                self._skip_done(self.views[part])
            self._unchecked.clear()
            closed = self._first_closed
            if closed == len(self.groups) or self.running or min(self.position) < closed:
                return
            self._resolve(self.chain.nodes[self.groups[closed].barrier])  # type: ignore[index]
            self._unchecked.update(range(len(self.views)))

    def _skip_done(self, view: PartView) -> None:
        while self.position[view.part] < self._first_closed:
            group = self.groups[self.position[view.part]]
            done = group_done(group, view)
            if not done or self._retry_wanted(group, view):
                (self.put_off.add if done else self.put_off.discard)(view.part)
                heapq.heappush(self._ready, self._rank(view.part))
                return
            self.position[view.part] += 1
            self.notify("skip", (group, view))

    def _rank(self, part: int) -> tuple[bool, int, int]:
        """Order of parts: new rows before failures that are tried again, then the deepest, then the first of the input."""
        return part in self.put_off, -self.position[part], part

    def _deepest_ready(self) -> PartView | None:
        """The first part by rank that waits for a task. The heap may hold a part that has moved on since, or twice: that is seen here.

        Looking through all parts for each task would take time that grows with the square of their number.
        """
        limit = self._first_closed
        while self._ready:
            rank = heapq.heappop(self._ready)
            part = rank[2]
            if part not in self.running and rank == self._rank(part) and self.position[part] < limit:
                return self.views[part]
        return None

    @property
    def _first_closed(self) -> int:
        """Index of the first group that waits for a resolve; the number of groups when none does."""
        return next((g.index for g in self.groups if g.barrier is not None and g.barrier not in self.resolved), len(self.groups))

    def _retry_wanted(self, group: Group, view: PartView) -> bool:
        nodes = (self.chain.nodes[step.node] for step in group.steps)
        return any(
            (node.name, view.part) not in self.retried and asked_again(node, view, self.retry.codes(node.name, view.part)) for node in nodes
        )

    def _resolve(self, node: Node) -> None:
        if not is_resolved(node, self.views):
            self.notify("resolve", node)
            for view, record in zip(self.views, run_resolve(node, self.views, self.store), strict=True):
                view.put_record(node, record)
            self.tally.resolves.append(node.name)
            self.notify("resolved", node)
        self.resolved.add(node.index)

    def _next_task(self) -> GroupTask | None:
        best = self._deepest_ready()
        if best is None:
            return None
        place = self.position[best.part]
        attempt = self.crashes.get((place, best.part), 0)
        names = (self.chain.nodes[step.node].name for step in self.groups[place].steps if step.measure)
        recent = {name: list(self.windows[name].runs) for name in names}
        return GroupTask(place, best.part, best.rows, self.isolation.get((place, best.part)), attempt, recent)

    def _take(self, done: Done) -> None:
        task = done.task
        self.running.discard(task.part)
        self._unchecked.add(task.part)
        if done.error is not None:
            raise done.error
        if done.crash is not None:
            self._after_crash(task, done.crash)
            return
        view = self.views[task.part]
        for result in done.results or []:
            node = self.chain.node(result.stage)
            for record in (result.values, result.verdict):
                if isinstance(record, PartRecord):
                    view.put_record(node, record)
            self.tally.add(result)
            self.retried.add((result.stage, task.part))
            self._count_failures(result)
        self.tally.parts_run += 1
        self.position[task.part] = task.group + 1
        self.notify("done", done)

    def _count_failures(self, result: StepResult) -> None:
        """Tasks under way at one time do not see each other's rows: what they broke together stops the run here."""
        window = self.windows[result.stage]
        for code, rows in result.outcomes:
            window.add(code, rows=rows)
        if any(code for code, _ in result.outcomes):
            try:
                window.check()
            except BudgetExceeded as error:
                error.began, error.reach = time.time(), window.seen
                raise

    def _after_crash(self, task: GroupTask, crash: Crash) -> None:
        """Run the part again in smaller steps; a row that alone kills a worker twice is at fault."""
        key = (task.group, task.part)
        self.notify("crash", (task, crash))
        if crash.blameless:
            return
        self.crashes[key] = self.crashes.get(key, 0) + 1
        old = self.isolation.get(key)
        if not crash.rows:
            if self.crashes[key] >= MAX_UNEXPLAINED_CRASHES:
                raise Fatal(f"part {task.part}: its worker died {self.crashes[key]} times outside any row's computation: {crash.message}")
            return
        guilty = dict(old.guilty) if old and old.node == crash.node else {}
        alone = len(crash.rows) == 1
        if alone and old is not None and old.step == 1:
            guilty[crash.rows[0]] = f"the worker died while it computed this row alone: {crash.message}"
        step = 1 if alone else max(1, len(crash.rows) // STEPS_PER_SUSPECT_BATCH)
        suspects = frozenset(crash.rows) | (old.suspects if alone and old else frozenset())
        self.isolation[key] = Isolation(crash.node, suspects, step, guilty)
