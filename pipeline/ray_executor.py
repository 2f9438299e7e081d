"""Tasks on Ray: plain tasks for group work; the models' actors are in `ray_models`, start and end in `ray_session`; no other module imports Ray."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayActorError, RayError, WorkerCrashedError

from pipeline import models, registry
from pipeline.chain import Chain, InputFacts
from pipeline.environment import Environment
from pipeline.errors import BudgetExceeded, Fatal, RecipeError, as_fatal
from pipeline.executor import Crash, Done, default_workers
from pipeline.files import TEMPORARY
from pipeline.groups import Group, GroupTask, make_groups, run_group
from pipeline.ray_models import RayModel, needs_actor, start_actors
from pipeline.ray_session import Servers, end_ray, start_ray
from pipeline.recipe import build_recipe
from pipeline.retry import Retry
from pipeline.run_view import RunView
from pipeline.stop import undisturbed
from pipeline.storage import Place
from pipeline.store import Store

RECOUNT_S = 10.0
LOOK_UP_S = 1.0  # how often it is made sure that Ray itself lives


@dataclass(frozen=True)
class WorkerSpec:
    """All a worker process needs to build its Environment."""

    token: str
    root: str
    recipe: dict[str, Any]
    facts: InputFacts
    plugins: list[str]
    retry: Retry
    workers: int
    nodes: int = 1
    actors: dict[str, list[str]] = field(default_factory=dict)  # model -> names of its actors


_environment: tuple[str, Environment, list[Group]] | None = None


def _in_worker(spec: WorkerSpec) -> tuple[Environment, list[Group]]:
    """The Environment of this worker process, built once per run."""
    global _environment
    if _environment is None or _environment[0] != spec.token:
        for plugin in spec.plugins:
            registry.import_file(plugin)
        chain = Chain(build_recipe(spec.recipe), spec.facts)
        env = Environment(chain, Store(spec.root, spec.token), spec.retry, workers=spec.workers, nodes=spec.nodes)
        env.model_for = lambda name: _model_of(name, spec, chain)
        _environment = (spec.token, env, make_groups(chain))
    return _environment[1], _environment[2]


_handles: dict[tuple[str, str], RayModel] = {}


def _model_of(name: str, spec: WorkerSpec, chain: Chain) -> Any:
    """The handle of a model in this worker process: of its actors, or of the model in this process."""
    model = chain.recipe.models[name]
    if name not in spec.actors:
        return models.local_model(model)
    key = (spec.token, name)
    if key not in _handles:
        _handles[key] = RayModel(spec.actors[name], models.concurrency(model))
    return _handles[key]


def note_place(root: Place, token: str, task: GroupTask) -> Place:
    """Where a worker leaves word of the rows it computes: first on its own machine, which costs nothing; once a worker has died under the
    task, in the run directory, where the driver finds it whichever node it ran on. The next start removes what is left there."""
    if task.attempt:
        return root / f"{TEMPORARY}note-{token}-{task.group}-{task.part}.json"
    return Path(tempfile.gettempdir()) / f"pairmill-{token}" / f"{task.group}-{task.part}.json"


@ray.remote(max_retries=0)
def _work(spec: WorkerSpec, task: GroupTask) -> Done:
    env, groups = _in_worker(spec)
    env.notes = note_place(env.store.root, spec.token, task)
    env.notes.parent.mkdir(exist_ok=True)
    try:
        return Done(task, run_group(env, groups[task.group], task))
    except BudgetExceeded as error:
        return Done(task, error=error)
    except (Fatal, RecipeError) as error:
        return Done(task, error=Fatal(str(error)))
    except OSError as error:
        return Done(task, error=as_fatal(error, f"part {task.part}"))
    finally:
        env.notes.unlink(missing_ok=True)


@ray.remote(max_retries=2)
def _work_job(spec: WorkerSpec, job: int, parts: list[int], task: Any) -> Any:
    env, _ = _in_worker(spec)
    run = RunView(env.chain, env.store, parts)
    return env.chain.recipe.jobs[job].run_task(run, task)


class RayExecutor:
    """Keeps a bounded number of tasks in flight on a Ray cluster (one started here, or that of `address`)."""

    name = "ray"

    def __init__(self, chain: Chain, store: Store, groups: list[Group], workers: int, address: str | None, retry: Retry):
        self.chain = chain
        self.store = store
        self.parts: list[int] = []
        self.wanted = workers
        self._actors: list[Any] = []
        self._running: dict[Any, GroupTask] = {}
        start_ray(workers or default_workers(), address)
        try:
            self._prepare(retry)
        except BaseException:
            with undisturbed():
                self.close()
            raise

    def _prepare(self, retry: Retry) -> None:
        """Count the workers, start the models' actors, and hand over what all tasks need."""
        self._servers, self._looked = Servers(), time.monotonic()
        self.workers = self._count_workers()
        actors: dict[str, list[str]] = {}
        for name, spec in self.chain.recipe.models.items():
            if needs_actor(spec):
                actors[name], made = start_actors(name, spec, self.store.token)
                self._actors += made
        recipe, plugins, root = self.chain.recipe.resolved, registry.imported_files, str(self.store.root.resolve())
        self.spec = WorkerSpec(self.store.token, root, recipe, self.chain.facts, plugins, retry, self.workers, live_nodes(), actors)
        self.spec_ref = ray.put(self.spec)

    def _count_workers(self) -> int:
        """Tasks that run at a time: one per processor of the cluster, no more than asked for."""
        there = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._counted = time.monotonic()
        return min(self.wanted or there, there)

    @property
    def capacity(self) -> int:
        """A quarter more tasks than run at a time, so that no worker waits for the driver. Nodes may come and go."""
        if time.monotonic() - self._counted > RECOUNT_S:
            self.workers = self._count_workers()
        return self.workers + max(1, self.workers // 4)

    def submit(self, task: GroupTask) -> None:
        self._running[_work.remote(self.spec_ref, task)] = task

    def wait(self) -> list[Done]:
        ready = self._first(list(self._running))
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._collect(reference, self._running.pop(reference)) for reference in {*ready, *more}]

    def _first(self, references: list[Any]) -> list[Any]:
        """Those of `references` that are done, as soon as there is one. Raises Fatal where Ray itself is gone."""
        while True:
            ready = ray.wait(references, num_returns=1, timeout=LOOK_UP_S)[0]
            if time.monotonic() - self._looked > LOOK_UP_S:
                self._servers.check()
                self._looked = time.monotonic()
            if ready:
                return ready

    def _collect(self, reference: Any, task: GroupTask) -> Done:
        try:
            return ray.get(reference)
        except NodeDiedError as error:
            return Done(task, crash=Crash(str(error).splitlines()[0], blameless=True))
        except WorkerCrashedError:
            return Done(task, crash=self._crash_of(task))
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            return Done(task, error=Fatal(f"part {task.part}: {type(cause).__name__}: {cause}"))

    def _crash_of(self, task: GroupTask) -> Crash:
        message = "its worker process died (killed, or crashed in native code)"
        try:
            note = json.loads(note_place(self.store.root, self.spec.token, task).read_text())
        except (FileNotFoundError, ValueError):
            return Crash(message)
        return Crash(message, note["node"], note["rows"])

    def run_job(self, job: int, run: RunView, tasks: list[Any]) -> Iterator[Any]:
        waiting = [_work_job.remote(self.spec_ref, job, run.parts, task) for task in tasks[: self.capacity]]
        later = tasks[self.capacity :]
        while waiting:
            try:
                self._first(waiting[:1])
                yield ray.get(waiting.pop(0))
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                raise Fatal(f"{self.chain.recipe.jobs[job].instance}: {type(cause).__name__}: {cause}") from error
            if later:
                waiting.append(_work_job.remote(self.spec_ref, job, run.parts, later.pop(0)))

    def release_models(self) -> None:
        for actor in self._actors:
            try:
                ray.kill(actor)
            except RayActorError:
                continue
        self._actors = []

    def close(self) -> None:
        """End what runs. After this no task begins: none is sent, and one on another machine that lives a moment longer finds the lock gone.

        (`ray.cancel` is of no use here: Ray 2.60 aborts the whole process when a task ends while it is cancelled.)"""
        self._running = {}
        self.release_models()
        end_ray()


def live_nodes() -> int:
    """Machines of the cluster that can run tasks."""
    return max(1, sum(bool(node["Alive"]) and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))
