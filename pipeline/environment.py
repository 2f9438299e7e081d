"""What a process needs to work on parts: chain, store, stage objects, models, budgets. Built once per process."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from pipeline import models
from pipeline.blobs import BlobWriter
from pipeline.budget import Runs
from pipeline.chain import Chain, Node
from pipeline.errors import Budget
from pipeline.forgotten import Forgotten
from pipeline.retry import Retry
from pipeline.stage import Context, Stage
from pipeline.storage import Place
from pipeline.store import Store


def code_version() -> str:
    """Version of the installed package, or of the source tree it runs from."""
    try:
        return metadata.version("pairmill")
    except metadata.PackageNotFoundError:
        return "source"


@dataclass(frozen=True)
class Isolation:
    """What is known of rows whose computation killed their worker: suspects go in small steps, the guilty one not at all."""

    node: int
    suspects: frozenset[int] = frozenset()
    step: int = 0
    guilty: dict[int, str] = field(default_factory=dict)


@dataclass
class Environment:
    """Shared state of one process of a run. `model_for` finds the handle of a model by its name in the recipe."""

    chain: Chain
    store: Store
    retry: Retry = field(default_factory=Retry)
    recent: dict[str, Runs] = field(default_factory=dict)  # stage -> outcomes of the run's last rows, as of this task's start
    isolation: Isolation | None = None
    notes: Place | None = None
    workers: int = 1
    nodes: int = 1
    model_for: Callable[[str], Any] | None = None
    _ready: set[int] = field(default_factory=set)
    _forgotten: Forgotten | None = None

    def __post_init__(self) -> None:
        self.info = {"version": code_version(), "python": platform.python_version()}

    def stage(self, node: Node) -> Stage:
        assert node.stage is not None, f"{node.name} is the source"
        return node.stage

    def budget(self, node: Node) -> Budget:
        return self.chain.recipe.budgets.get(node.name, Budget())

    def context(self, node: Node, part: int) -> Context:
        """Context of a stage for one part; calls the stage's `setup` the first time in this process."""
        stage = self.stage(node)
        context = Context(node.name, part, self.chain.recipe.seed, self.workers, self.store.token, self.nodes)
        if stage.writes_blobs:
            if self._forgotten is None:
                self._forgotten = Forgotten.of_run(self.store.root)
            context.refuses = self._forgotten.refuses_bytes
            context.blobs = BlobWriter(self.store.blobs(node.name), part, self.store.guard)
        if stage.uses_model and stage.model_name:
            context.model = self._model(stage.model_name)
        if node.index not in self._ready:
            stage.setup(context)
            self._ready.add(node.index)
        return context

    def _model(self, name: str) -> Any:
        if self.model_for is not None:
            return self.model_for(name)
        return models.local_model(self.chain.recipe.models[name])

    def note(self, node: Node, part: int, rows: list[int]) -> None:
        """Leave word of the rows about to be computed, so that the driver knows them if this process dies."""
        if self.notes is not None:
            self.notes.write_text(json.dumps({"node": node.index, "part": part, "rows": rows}))
