"""What a run is doing: a live table on a terminal, one plain line per interval elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.console import SafeConsole, duration, number, plain
from pipeline.part import StepResult
from pipeline.safe_text import one_line, safe
from pipeline.stop import undisturbed
from pipeline.store import VERDICTS
from schemas.record import PartRecord

RATE_WINDOW_S = 30.0
LONGEST_LINE = 2000
MODES = ("auto", "table", "lines", "json")


@dataclass
class StageProgress:
    """Counts of one stage so far; `rate` is rows computed per second over the last RATE_WINDOW_S."""

    name: str
    total: int
    parts: int = 0
    rows: dict[str, int] = field(default_factory=lambda: {"kept": 0, "dropped": 0, "failed": 0})
    computed: int = 0
    state: str = ""
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    started: float = 0.0

    def add(self, result: StepResult) -> None:
        if result.verdict is not None:
            self.add_verdict(result.verdict)
        if result.computed:
            now = time.monotonic()
            self.started = self.started or now - result.seconds
            self.computed += result.computed
            self.recent.append((now, result.computed))

    def add_verdict(self, record: PartRecord) -> None:
        self.parts += 1
        for key in self.rows:
            self.rows[key] += record.counts.get(key, 0)

    @property
    def seen(self) -> int:
        return sum(self.rows.values())

    @property
    def rate(self) -> float:
        now = time.monotonic()
        while self.recent and now - self.recent[0][0] > RATE_WINDOW_S:
            self.recent.popleft()
        span = min(RATE_WINDOW_S, now - self.started) if self.started else 0.0
        return sum(rows for _, rows in self.recent) / span if span > 0 else 0.0


class Progress:
    """Receives a run's events (`run(..., notify=progress)`). Use as a context manager, so that the terminal is left clean.

    mode: one of MODES; 'auto' takes the table on a terminal. interval: seconds between plain lines.
    """

    def __init__(self, mode: str = "auto", interval: float = 10.0, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        terminal = self.stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.mode = mode if mode != "auto" else "table" if terminal else "lines"
        self.interval = interval
        self.started = time.monotonic()
        self.stages: dict[str, StageProgress] = {}
        self.note = "reading the input"
        self.executor = ""
        self._steps: dict[int, list[str]] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self.mode == "table":
            console = SafeConsole(file=self.stream, highlight=False, emoji=False, markup=False)
            self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, vertical_overflow="crop")
            self._live.start()
        elif self.mode == "lines":
            self._thread = threading.Thread(target=self._beat, name="pairmill-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with undisturbed():
            self._stop.set()
            if self._thread is not None:
                self._thread.join()
            if self._live is not None:
                self._live.stop()

    def __call__(self, kind: str, what: Any) -> None:
        handler = getattr(self, f"_on_{kind}", None)
        with self._lock:
            if handler is not None:
                handler(what)

    # Events

    def _on_input(self, rows: int) -> None:
        self.note = f"reading the input: {rows:,} rows"
        self._tell_json("input", rows=rows)

    def _on_schedule(self, schedule: Any) -> None:
        parts = len(schedule.views)
        self.stages = {node.name: StageProgress(node.name, parts) for node in schedule.chain.nodes[1:]}
        self._steps = {group.index: [schedule.chain.nodes[step.node].name for step in group.steps] for group in schedule.groups}
        self.note = ""
        rows = sum(view.rows for view in schedule.views)
        self._tell(f"{rows:,} rows in {parts:,} part{'' if parts == 1 else 's'}, {len(self.stages)} stage{'' if len(self.stages) == 1 else 's'}")
        self._tell_json("schedule", rows=rows, parts=parts, stages=list(self.stages))

    def _on_retry(self, retry: Any) -> None:
        for stage, parts in sorted(Counter(stage for stage, _ in retry.parts).items()):
            place = f"{parts:,} part{'' if parts == 1 else 's'}"
            told = f"{stage}: the rate of failures rose in an earlier run; those that may pass, in {place}, are tried once more"
            self._tell(told, always=True)
            self._tell_json("retry", stage=stage, parts=parts)

    def _on_executor(self, name: str) -> None:
        self.executor = name
        self.note = "starting Ray" if name == "ray" else ""
        self._tell(f"executor {name}")
        self._tell_json("executor", executor=name)

    def _on_start(self, task: Any) -> None:
        self.note = ""
        for name in self._steps.get(task.group, []):
            self.stages[name].state = "running"
        self._tell_json("start", part=task.part, stages=self._steps.get(task.group, []))

    def _on_skip(self, what: Any) -> None:
        group, view = what
        for step in group.steps:
            record = view.record(VERDICTS, view.chain.nodes[step.node])
            if step.judge and record is not None:
                self.stages[view.chain.nodes[step.node].name].add_verdict(record)

    def _on_done(self, done: Any) -> None:
        for result in done.results or []:
            self.stages[result.stage].add(result)
            self._tell_json("done", stage=result.stage, part=result.part, computed=result.computed, calls=result.calls, seconds=round(result.seconds, 3))
            if result.verdict is not None:
                self._tell_json("verdict", stage=result.stage, part=result.part, **result.verdict.counts)

    def _on_resolve(self, node: Any) -> None:
        self.note = f"{node.name}: comparing the rows of all parts"
        self.stages[node.name].state = "resolving"
        self._tell(f"barrier {node.name}: all parts are here, comparing their rows")
        self._tell_json("resolve", stage=node.name)

    def _on_resolved(self, node: Any) -> None:
        self.note = ""
        self.stages[node.name].state = ""
        self._tell(f"barrier {node.name}: passed")
        self._tell_json("resolved", stage=node.name)

    def _on_crash(self, what: Any) -> None:
        task, crash = what
        names = ", ".join(self._steps.get(task.group, []))
        smaller = "" if crash.blameless else " in smaller steps"
        self._tell(f"part {task.part} ({names}): {one_line(crash.message, 400)}; it runs again{smaller}", always=True)
        self._tell_json("crash", part=task.part, message=crash.message)

    def _on_job(self, name: str) -> None:
        self.note = f"job {name}"
        self._tell_json("job", job=name)

    def _on_job_task(self, what: Any) -> None:
        name, done, total = what
        self.note = f"job {name}: {done:,} of {total:,}"
        self._tell_json("job_task", job=name, done=done, total=total)

    def _on_job_done(self, what: Any) -> None:
        name, _ = what
        self.note = ""
        self._tell(f"job {name}: done", always=True)
        self._tell_json("job_done", job=name)

    # Plain lines and JSON

    def _tell(self, text: str, always: bool = False) -> None:
        """A line of its own; on a live table only what must not be missed."""
        if self.mode == "lines":
            self._write(one_line(f"[{duration(time.monotonic() - self.started)}] {text}", LONGEST_LINE))
        elif self.mode == "table" and always and self._live is not None:
            self._live.console.print(plain(text))

    def _tell_json(self, event: str, **what: Any) -> None:
        if self.mode == "json":
            self._write(json.dumps({"event": event, "seconds": round(time.monotonic() - self.started, 3), **what}))

    def _write(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()

    def _beat(self) -> None:
        while not self._stop.wait(self.interval):
            with self._lock:
                self._tell(self.line())

    def line(self) -> str:
        """The state in one line: what is going on, and the stages under way."""
        active = [stage for stage in self.stages.values() if stage.state and stage.parts < stage.total]
        told = []
        for stage in active:
            counts = ", ".join(f"{rows:,} {key}" for key, rows in stage.rows.items() if rows or key == "kept")
            rate = f", {stage.rate:,.0f} rows/s" if stage.computed else ""
            told.append(f"{stage.name} {stage.parts}/{stage.total} parts: {counts}{rate}")
        finished = sum(stage.parts >= stage.total for stage in self.stages.values())
        state = self.note or (f"{finished} of {len(self.stages)} stages done" if self.stages else "working")
        return "; ".join([state, *told])

    # The live table

    def render(self) -> Table:
        """The live table for the console's present size: columns and finished stages give way where it is small."""
        with self._lock:
            console = self._live.console if self._live is not None else SafeConsole(file=self.stream)
            return self._table(console.width, console.height)

    def _table(self, width: int, height: int) -> Table:
        if not self.stages:
            return _grid(Text(safe(self._foot()), overflow="ellipsis", no_wrap=True))
        numbers = _columns_for(width)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
        longest = max([len(name) for name in self.stages] + [10])
        table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=max(8, min(longest, width - 8 * len(numbers) - 4)))
        for name in numbers:
            table.add_column(name, justify="right", no_wrap=True, min_width=7)
        stages = list(self.stages.values())
        folded = max(0, len(stages) - max(3, height - 4))
        if folded:
            done = [stage for stage in stages if stage.parts >= stage.total][:folded]
            stages = [stage for stage in stages if stage not in done]
            if done:
                table.add_row(Text(f"({len(done)} done)", style="dim"), *[""] * len(numbers))
        for stage in stages:
            table.add_row(plain(stage.name), *(self._number(stage, name) for name in numbers), style=_style(stage))
        return _grid(table, Text(safe(self._foot()), overflow="ellipsis", no_wrap=True))

    def _number(self, stage: StageProgress, name: str) -> str:
        if name == "parts":
            return f"{number(stage.parts)}/{number(stage.total)}"
        if name == "in":
            return number(stage.seen)
        if name == "computed":
            return number(stage.computed)
        if name == "rows/s":
            return f"{number(round(stage.rate))}" if stage.recent and stage.parts < stage.total else ""
        return number(stage.rows[name])

    def _foot(self) -> str:
        parts = [duration(time.monotonic() - self.started), self.executor, one_line(self.note)]
        return "  ".join(part for part in parts if part)


def _grid(*lines: Any) -> Table:
    outer = Table.grid()
    for line in lines:
        outer.add_row(line)
    return outer


def _columns_for(width: int) -> list[str]:
    if width >= 76:
        return ["parts", "in", "kept", "dropped", "failed", "computed", "rows/s"]
    return ["parts", "kept", "dropped", "failed", "rows/s"] if width >= 56 else ["parts", "kept"]


def _style(stage: StageProgress) -> str:
    if stage.parts >= stage.total:
        return "green"
    return "" if stage.state or stage.parts else "dim"
