"""Models in Ray actors: one actor per replica, and the handle through which a worker's tasks call them."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from pipeline import models, registry
from pipeline.errors import EngineDied, Fatal, RecipeError

NAMESPACE = "pairmill"
MOST_RESTART_S = 1800.0  # an actor that loads a large model anew
TRIES = 4  # of a call whose actor dies (killed, or its node gone): Ray makes it again once it has started the actor anew
AGAIN = {"max_task_retries": TRIES - 1}


@ray.remote(max_restarts=-1)
class ModelActor:
    """One replica of a model."""

    def __init__(self, spec: dict[str, Any], paths: list[str]):
        for path in paths:
            registry.import_file(path)
        self.model = registry.load_model(spec)
        self.gate = models.Gate()

    def facts(self) -> tuple[str, dict[str, Any]]:
        return str(self.model.digest), dict(self.model.describe())

    def call(self, method: str, request: Any, alone: bool = False) -> tuple[Any, float]:
        with self.gate.passed(alone):
            started = time.perf_counter()
            return getattr(self.model, method)(request), time.perf_counter() - started

    def pid(self) -> int:
        return os.getpid()


def start_actors(name: str, spec: dict[str, Any], token: str) -> tuple[list[str], list[Any]]:
    """Names and handles of a model's replicas. A model that takes several calls at a time gets as many threads."""
    replicas = [f"{token}-{name}-{replica}" for replica in range(int(spec.get("replicas", 1)))]
    options = {"num_gpus": _gpus(spec), "num_cpus": float(spec.get("num_cpus", 0)), "namespace": NAMESPACE}
    options["max_concurrency"] = models.concurrency(spec) + 1  # one more, so that facts are told while all others work
    if models.concurrency(spec) == 1:
        options["max_concurrency"] = 1
    made = [ModelActor.options(name=actor, **options).remote(spec, registry.imported_files) for actor in replicas]  # type: ignore[attr-defined]
    return replicas, made


def _gpus(spec: dict[str, Any]) -> float:
    if not ray.cluster_resources().get("GPU") or not getattr(models.kind_module(spec), "USES_GPU", True):
        return 0.0
    return float(spec.get("gpu_share", spec.get("tensor_parallel_size", 1)))


def needs_actor(spec: dict[str, Any]) -> bool:
    """Models go into actors of their own where there is a GPU, where one engine serves all workers, or where the recipe says so; else, on
    CPUs, each worker holds its own, which saves sending decoded images through the object store."""
    placement = spec.get("placement", "auto")
    if placement not in ("auto", "task", "actor"):
        raise RecipeError(f"models: placement must be auto, task or actor, found {placement!r}")
    if placement == "auto":
        on_gpu = bool(ray.cluster_resources().get("GPU")) and spec.get("device", "auto") != "cpu"
        return on_gpu or getattr(models.kind_module(spec), "SHARED", False)
    return placement == "actor"


def _facts_of(actor: Any) -> tuple[str, dict[str, Any]]:
    """What an actor tells of itself; waits while Ray starts it anew, which is longer than Ray tries by itself: an engine takes minutes.

    Raises Fatal where it cannot be started again."""
    until = time.monotonic() + MOST_RESTART_S
    while True:
        try:
            told: Any = ray.get(actor.facts.options(**AGAIN).remote())
            return told
        except RayActorError as error:
            if isinstance(error, ActorUnavailableError) and time.monotonic() < until:
                time.sleep(0.5)
                continue
            raise Fatal(f"a model's process died and cannot be started again: {_first_line(error)}; no row was failed for it") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


class RayModel:
    """Handle of a model that lives in named actors; each call goes to the replica with the fewest open calls of this process."""

    digest: str
    concurrency: int
    _facts: dict[str, Any]

    def __init__(self, names: list[str], concurrency: int = 1):
        self.actors: list[Any] = [ray.get_actor(name, NAMESPACE) for name in names]
        self.concurrency = concurrency * len(names)
        self._seconds = 0.0
        self._open: list[list[Any]] = [[] for _ in names]
        # So many requests of this process are on their way; what waits behind them stays out of the object store.
        self._threads: ThreadPoolExecutor = ThreadPoolExecutor(self.concurrency, thread_name_prefix="pairmill-ask")
        self._under_way: list[int] = [0] * len(names)
        self._choosing: threading.Lock = threading.Lock()
        self._busy: models.Busy = models.Busy()
        self.digest, self._facts = _facts_of(self.actors[0])

    def describe(self) -> dict[str, Any]:
        return self._facts

    def submit(self, method: str, request: Any) -> Future[Any]:
        for place, calls in enumerate(self._open):
            if calls:
                self._open[place] = ray.wait(calls, num_returns=len(calls), timeout=0)[1]
        place = min(range(len(self.actors)), key=lambda i: (len(self._open[i]), (i + os.getpid()) % len(self.actors)))
        call = _ActorCall(self, place, method, request)
        self._open[place].append(call.reference)
        return call

    def send(self, method: str, requests: list[Any], alone: bool = False) -> Future[list[Any]]:
        return self._threads.submit(self._ask, method, requests, alone)

    def _ask(self, method: str, requests: list[Any], alone: bool) -> list[Any]:
        with self._choosing:
            place = min(range(len(self.actors)), key=lambda i: (self._under_way[i], (i + os.getpid()) % len(self.actors)))
            self._under_way[place] += 1
        self._busy.begin()
        try:
            return ray.get(self.actors[place].call.remote(method, requests, alone))[0]
        except RayActorError as error:
            _facts_of(self.actors[place])  # back again: before, every call to it ends at once, as if it had died of it
            raise EngineDied(f"the actor of the model ended: {_first_line(error)}") from error
        finally:
            self._busy.end()
            with self._choosing:
                self._under_way[place] -= 1

    def seconds(self) -> float:
        return self._seconds + self._busy.seconds


class _ActorCall(Future[Any]):
    """A Ray call behind the Future interface that stages' tasks use; made again where it met the actor while Ray started that anew."""

    def __init__(self, model: RayModel, place: int, method: str, request: Any):
        super().__init__()
        self.model, self.place = model, place
        self.asked = (method, request)
        self.reference: Any = self._make()

    def _make(self) -> Any:
        return self.model.actors[self.place].call.options(**AGAIN).remote(*self.asked)

    def result(self, timeout: float | None = None) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                answer, seconds = ray.get(self.reference, timeout=timeout)
            except GetTimeoutError:
                raise TimeoutError(f"the model gave no answer within {timeout:g} s") from None
            except RayActorError as error:
                if isinstance(error, ActorUnavailableError) and attempt < TRIES:
                    _facts_of(self.model.actors[self.place])
                    self.reference = self._make()
                    continue
                raise Fatal(
                    f"a model's process died {TRIES} times under one call, or cannot be started again ({_first_line(error)}); no row was failed for it. "
                    "Ray's logs have its last words, for example memory that ran out; mend that and run the same command again"
                ) from error
            self.model._seconds += seconds
            return answer
        raise AssertionError("the last attempt returns or raises")
