"""Models of a recipe's `models:` table: identity, loading once per process, and the handle that stages call."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from pipeline import registry
from pipeline.digests import canonical_json
from pipeline.errors import RecipeError

MACHINE_KEYS = frozenset({"replicas", "gpu_share", "placement", "device", "threads", "num_cpus", "cache_dir"})


def kind_module(spec: dict[str, Any]) -> ModuleType:
    """The module of a model's kind. Beside `identity`, `load` and METHOD (what its models are asked, a stage's `model_method`) it may have MACHINE_KEYS
    (options that make no answer), ONLY_STAGES (names of the stages that may ask it, where not all may), SHARED (one engine serves all workers), USES_GPU,
    and `concurrency(spec)`: so many calls at a time, each with one request. Raises RecipeError."""
    available = registry.built_in_modules("stages.models")
    if spec["kind"] not in available:
        raise RecipeError(f"models: unknown kind {spec['kind']!r}{registry.nearest(spec['kind'], available)}")
    module = importlib.import_module(f"stages.models.{spec['kind']}")
    if not hasattr(module, "load"):
        raise RecipeError(f"models: {spec['kind']!r} is no kind of model; `pairmill stages` lists them")
    return module


def check_method(spec: dict[str, Any], method: str, stage: str, where: str) -> None:
    """Raises RecipeError, which begins with `where`, for a model of a kind that cannot be asked this, or not by this stage."""
    module = kind_module(spec)
    if module.METHOD == method and _may_ask(module, stage):
        return
    kinds = [importlib.import_module(one) for one in registry.built_in_modules("stages.models").values()]
    able = sorted(one.__name__.rpartition(".")[2] for one in kinds if getattr(one, "METHOD", None) == method and _may_ask(one, stage))
    does = f"answers {module.METHOD!r}, and this stage asks for {method!r}" if module.METHOD != method else f"is for {' and '.join(module.ONLY_STAGES)} only"
    raise RecipeError(f"{where} is of kind {spec['kind']}, which {does}: name a model of kind {' or '.join(able)}")


def _may_ask(module: ModuleType, stage: str) -> bool:
    return stage in getattr(module, "ONLY_STAGES", (stage,))


def model_identity(spec: dict[str, Any]) -> str:
    """What of a model makes its answers: kind, name, weights (digest of a local file, tag of a hub's), precision.

    Cheap: loads no weights. Raises RecipeError where the kind is unknown or a named local file is missing.
    """
    module = kind_module(spec)
    machine = MACHINE_KEYS | getattr(module, "MACHINE_KEYS", frozenset())
    plain = {key: value for key, value in spec.items() if key not in machine and key != "weights"}
    return canonical_json([plain, module.identity(spec)])


def concurrency(spec: dict[str, Any]) -> int:
    """Calls that a model takes at a time; 1 for one that works through batches."""
    module = kind_module(spec)
    return int(module.concurrency(spec)) if hasattr(module, "concurrency") else 1


class ModelHandle(Protocol):
    """What a stage's task uses: asynchronous calls, so that the next batch is prepared while the model works."""

    digest: str
    concurrency: int

    def describe(self) -> dict[str, Any]:
        """Facts that `prepare` needs, such as the image size."""
        ...

    def submit(self, method: str, request: Any) -> Future[Any]:
        """Start one call; the future's result is the answer, or raises what the model raised."""
        ...

    def send(self, method: str, requests: list[Any], alone: bool = False) -> Future[list[Any]]:
        """Start a call with several requests, whose answers are a list; `alone`: while the model does nothing else.

        Raises EngineDied where the model's engine or process ended meanwhile.
        """
        ...

    def seconds(self) -> float:
        """Seconds the model spent in calls of this handle so far; of calls side by side, those in which it was busy."""
        ...


class Gate:
    """Lets calls through side by side, and one at a time where it is to be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting = 0  # those who want to be alone: nobody new goes in

    @contextmanager
    def passed(self, alone: bool) -> Iterator[None]:
        with self._changed:
            if alone:
                self._waiting += 1
                self._changed.wait_for(lambda: self._inside == 0)
                self._inside = -1
                self._waiting -= 1
            else:
                self._changed.wait_for(lambda: self._inside >= 0 and not self._waiting)
                self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside = 0 if alone else self._inside - 1
                self._changed.notify_all()


class Busy:
    """Seconds during which at least one call was under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._since = 0.0
        self.seconds = 0.0

    def begin(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._since = time.perf_counter()
            self._calls += 1

    def end(self, *_: Any) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self.seconds += time.perf_counter() - self._since


class LocalModel:
    """The model object in this process, called from as many threads as it takes calls at a time."""

    def __init__(self, model: Any, concurrency: int = 1):
        self.model = model
        self.digest = str(model.digest)
        self.concurrency = concurrency
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="pairmill-model")
        self._gate = Gate()
        self._busy = Busy()

    def describe(self) -> dict[str, Any]:
        return dict(self.model.describe())

    def submit(self, method: str, request: Any) -> Future[Any]:
        return self._threads.submit(self._call, method, request, False)

    def send(self, method: str, requests: list[Any], alone: bool = False) -> Future[list[Any]]:
        return self._threads.submit(self._call, method, requests, alone)

    def _call(self, method: str, request: Any, alone: bool) -> Any:
        with self._gate.passed(alone):
            self._busy.begin()
            try:
                return getattr(self.model, method)(request)
            finally:
                self._busy.end()

    def seconds(self) -> float:
        return self._busy.seconds


_loaded: dict[str, LocalModel] = {}
_loading = threading.Lock()


def local_model(spec: dict[str, Any]) -> LocalModel:
    """The model of a spec, loaded once per process."""
    key = canonical_json(spec)
    with _loading:
        if key not in _loaded:
            _loaded[key] = LocalModel(registry.load_model(spec), concurrency(spec))
    return _loaded[key]
