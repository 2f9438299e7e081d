"""Objectives: one plug-in per file, found by file name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from pydantic import ValidationError

from stages.pretrain.errors import TrainError
from stages.pretrain.objectives.base import Objective


def names() -> list[str]:
    """The objectives there are: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def objective_class(name: str) -> type[Objective]:
    """The Objective of `objectives/<name>.py`. Raises TrainError with the nearest name for an unknown one."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TrainError(f"unknown objective {name!r}{hint} There are: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TrainError(f"objectives/{name}.py must define exactly one Objective, it defines {len(found)}")
    return found[0]


def make_objective(name: str, params: dict[str, Any] | None = None) -> Objective:
    """The objective `name` with its parameters. Raises TrainError for an unknown name or parameter."""
    kind = objective_class(name)
    try:
        return kind(kind.Config(**(params or {})))
    except ValidationError as error:
        raise TrainError(f"objective {name!r}: {error}") from error
