"""Where tasks run: the protocol, and the plain loop."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.environment import Environment
from pipeline.errors import Fatal
from pipeline.groups import Group, GroupTask, run_group
from pipeline.part import StepResult
from pipeline.run_view import RunView


@dataclass
class Crash:
    """A worker died under a task. `rows` are those it was computing (part of node `node`), where it left word of them.
    `blameless`: its machine went, which is no fault of the rows."""

    message: str
    node: int = -1
    rows: list[int] | None = None
    blameless: bool = False


@dataclass
class Done:
    """End of one task: its results, or what went wrong."""

    task: GroupTask
    results: list[StepResult] | None = None
    error: Fatal | None = None
    crash: Crash | None = None


def default_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Executor(Protocol):
    """Runs group tasks and jobs' tasks."""

    name: str

    @property
    def capacity(self) -> int:
        """How many tasks to keep in flight now."""
        ...

    def submit(self, task: GroupTask) -> None:
        """Start a task; it is reported once by `wait`."""
        ...

    def wait(self) -> list[Done]:
        """Block until at least one task has ended."""
        ...

    def run_job(self, job: int, run: RunView, tasks: list[Any]) -> Iterator[Any]:
        """Results of a job's tasks, in the order of the tasks."""
        ...

    def release_models(self) -> None:
        """All stages are done: end what was started for models, so that jobs have the memory."""
        ...

    def close(self) -> None: ...


class LocalExecutor:
    """A loop in this process: one task at a time, easy to step through with a debugger."""

    name = "local"
    capacity = 1

    def __init__(self, env: Environment, groups: list[Group]):
        self.env = env
        self.groups = groups
        self._queue: deque[GroupTask] = deque()

    def submit(self, task: GroupTask) -> None:
        self._queue.append(task)

    def wait(self) -> list[Done]:
        task = self._queue.popleft()
        try:
            return [Done(task, run_group(self.env, self.groups[task.group], task))]
        except Fatal as error:
            return [Done(task, error=error)]

    def run_job(self, job: int, run: RunView, tasks: list[Any]) -> Iterator[Any]:
        plugin = self.env.chain.recipe.jobs[job]
        for task in tasks:
            yield plugin.run_task(run, task)

    def release_models(self) -> None:
        """Models stay loaded in this process: a further run in it finds them there."""

    def close(self) -> None:
        self._queue.clear()
