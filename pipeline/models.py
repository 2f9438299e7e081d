"""Models of a recipe's `models:` table: identity, loading once per process, and the handle that stages call."""

from __future__ import annotations

import importlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from pipeline import registry
from pipeline.digests import canonical_json
from pipeline.errors import RecipeError

MACHINE_KEYS = frozenset({"replicas", "gpu_share", "placement", "device", "threads", "num_cpus", "cache_dir"})


def model_identity(spec: dict[str, Any]) -> str:
    """What of a model makes its answers: kind, name, weights (digest of a local file, tag of a hub's), precision.

    Cheap: loads no weights. Raises RecipeError where the kind is unknown or a named local file is missing.
    """
    available = registry.built_in_modules("stages.models")
    if spec["kind"] not in available:
        raise RecipeError(f"models: unknown kind {spec['kind']!r}{registry.nearest(spec['kind'], available)}")
    module = importlib.import_module(f"stages.models.{spec['kind']}")
    plain = {key: value for key, value in spec.items() if key not in MACHINE_KEYS and key != "weights"}
    return canonical_json([plain, module.identity(spec)])


class ModelHandle(Protocol):
    """What a stage's task uses: asynchronous calls, so that the next batch is prepared while the model works."""

    digest: str

    def describe(self) -> dict[str, Any]:
        """Facts that `prepare` needs, such as the image size."""
        ...

    def submit(self, method: str, request: Any) -> Future[Any]:
        """Start one call; the future's result is the answer, or raises what the model raised."""
        ...

    def seconds(self) -> float:
        """Seconds the model spent in calls of this handle so far."""
        ...


class LocalModel:
    """The model object in this process, called from one thread of its own."""

    def __init__(self, model: Any):
        self.model = model
        self.digest = str(model.digest)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pairmill-model")
        self._seconds = 0.0

    def describe(self) -> dict[str, Any]:
        return dict(self.model.describe())

    def submit(self, method: str, request: Any) -> Future[Any]:
        return self._thread.submit(self._call, method, request)

    def _call(self, method: str, request: Any) -> Any:
        started = time.perf_counter()
        try:
            return getattr(self.model, method)(request)
        finally:
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        return self._seconds


_loaded: dict[str, LocalModel] = {}
_loading = threading.Lock()


def local_model(spec: dict[str, Any]) -> LocalModel:
    """The model of a spec, loaded once per process."""
    key = canonical_json(spec)
    with _loading:
        if key not in _loaded:
            _loaded[key] = LocalModel(registry.load_model(spec))
    return _loaded[key]
