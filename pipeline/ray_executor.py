"""Tasks on Ray: plain tasks for group work, named actors for models that must be shared. The only module that imports Ray."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, RayActorError, RayError, WorkerCrashedError

from pipeline import models, registry
from pipeline.chain import Chain, InputFacts
from pipeline.environment import Environment
from pipeline.errors import BudgetExceeded, Fatal, RecipeError, as_fatal
from pipeline.executor import Crash, Done
from pipeline.files import TEMPORARY
from pipeline.groups import Group, GroupTask, make_groups, run_group
from pipeline.recipe import build_recipe
from pipeline.retry import Retry
from pipeline.run_view import RunView
from pipeline.storage import Place
from pipeline.store import Store

NAMESPACE = "pairmill"
OBJECT_STORE_BYTES = 256 << 20  # results are footers; images never pass through the object store of a local run


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
        env.model_for = lambda name: RayModel(spec.actors[name]) if name in spec.actors else models.local_model(chain.recipe.models[name])
        _environment = (spec.token, env, make_groups(chain))
    return _environment[1], _environment[2]


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


@ray.remote(max_restarts=-1)
class ModelActor:
    """One replica of a model."""

    def __init__(self, spec: dict[str, Any]):
        self.model = registry.load_model(spec)

    def facts(self) -> tuple[str, dict[str, Any]]:
        return str(self.model.digest), dict(self.model.describe())

    def call(self, method: str, request: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        return getattr(self.model, method)(request), time.perf_counter() - started


class RayModel:
    """Handle of a model that lives in named actors; each call goes to the replica with the fewest open calls of this process."""

    def __init__(self, names: list[str]):
        self.actors = [ray.get_actor(name, NAMESPACE) for name in names]
        self._open: list[list[Any]] = [[] for _ in names]
        self.digest: str
        self._facts: dict[str, Any]
        self.digest, self._facts = ray.get(self.actors[0].facts.remote())
        self._seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        return self._facts

    def submit(self, method: str, request: Any) -> Future[Any]:
        for place, calls in enumerate(self._open):
            if calls:
                self._open[place] = ray.wait(calls, num_returns=len(calls), timeout=0)[1]
        place = min(range(len(self.actors)), key=lambda i: (len(self._open[i]), (i + os.getpid()) % len(self.actors)))
        reference: Any = self.actors[place].call.remote(method, request)
        self._open[place].append(reference)
        return _ActorFuture(reference, self)

    def seconds(self) -> float:
        return self._seconds


class _ActorFuture(Future[Any]):
    """A Ray call behind the Future interface that stages' tasks use."""

    def __init__(self, reference: Any, model: RayModel):
        super().__init__()
        self.reference = reference
        self.model = model

    def result(self, timeout: float | None = None) -> Any:
        try:
            answer, seconds = ray.get(self.reference, timeout=timeout)
        except GetTimeoutError:
            raise TimeoutError(f"the model gave no answer within {timeout:g} s") from None
        self.model._seconds += seconds
        return answer


class RayExecutor:
    """Keeps a bounded number of tasks in flight on a Ray cluster (one started here, or that of `address`)."""

    name = "ray"

    def __init__(self, chain: Chain, store: Store, groups: list[Group], workers: int, address: str | None, retry: Retry):
        self.chain = chain
        self.store = store
        self.parts: list[int] = []
        start_ray(workers, address)
        self.workers = workers if address is None else min(workers, int(ray.cluster_resources().get("CPU", workers)))
        self.capacity = self.workers + max(1, self.workers // 4)  # one more than runs, so that no worker waits for the driver
        self._actors: list[Any] = []
        actors = {name: self._start_actors(name, spec, store.token) for name, spec in chain.recipe.models.items() if needs_actor(spec)}
        recipe, plugins = chain.recipe.resolved, registry.imported_files
        self.spec = WorkerSpec(store.token, str(store.root.resolve()), recipe, chain.facts, plugins, retry, self.workers, live_nodes(), actors)
        self.spec_ref = ray.put(self.spec)
        self._running: dict[Any, GroupTask] = {}

    def _start_actors(self, name: str, spec: dict[str, Any], token: str) -> list[str]:
        gpus = float(spec.get("gpu_share", 1 if ray.cluster_resources().get("GPU") else 0))
        names = [f"{token}-{name}-{replica}" for replica in range(int(spec.get("replicas", 1)))]
        options = {"num_gpus": gpus, "num_cpus": float(spec.get("num_cpus", 0)), "namespace": NAMESPACE}
        self._actors += [ModelActor.options(name=actor, **options).remote(spec) for actor in names]  # type: ignore[attr-defined]
        return names

    def submit(self, task: GroupTask) -> None:
        self._running[_work.remote(self.spec_ref, task)] = task

    def wait(self) -> list[Done]:
        ready, _ = ray.wait(list(self._running), num_returns=1)
        more, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._collect(reference, self._running.pop(reference)) for reference in {*ready, *more}]

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
                yield ray.get(waiting.pop(0))
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                raise Fatal(f"{self.chain.recipe.jobs[job].instance}: {type(cause).__name__}: {cause}") from error
            if later:
                waiting.append(_work_job.remote(self.spec_ref, job, run.parts, later.pop(0)))

    def close(self) -> None:
        for actor in self._actors:
            try:
                ray.kill(actor)
            except RayActorError:
                continue
        ray.shutdown()


def live_nodes() -> int:
    """Machines of the cluster that can run tasks."""
    return max(1, sum(bool(node["Alive"]) and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))


def needs_actor(spec: dict[str, Any]) -> bool:
    """Models go into actors of their own where there is a GPU (or the recipe says so); on CPUs each worker holds its own,
    which saves sending decoded images through the object store."""
    placement = spec.get("placement", "auto")
    if placement not in ("auto", "task", "actor"):
        raise RecipeError(f"models: placement must be auto, task or actor, found {placement!r}")
    if placement == "auto":
        return bool(ray.cluster_resources().get("GPU")) and spec.get("device", "auto") != "cpu"
    return placement == "actor"


def start_ray(workers: int, address: str | None) -> None:
    """Connect to the cluster at `address`, or start Ray on this machine with `workers` CPUs. Raises Fatal."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": NAMESPACE}
    variables = _worker_variables()
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": variables}, **quiet)
        else:
            # By inheritance, not by a runtime environment: for that Ray would throw away the workers that it starts at once, and start others.
            with _environment_of(variables):
                ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        place = f"at {address}" if address else "on this machine"
        raise Fatal(f"Ray could not be reached {place}: {error}; check `ray status`, or run with --executor local") from error


def _worker_variables() -> dict[str, str]:
    """Workers find the packages where the driver found them, also when pairmill runs from a source tree; stages set their threads themselves."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@contextmanager
def _environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Processes started within the block have these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
