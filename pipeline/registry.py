"""Finds plug-ins by name: built in (one file each under stages/), from entry points, or from files named by --import."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.stage import Job, Source, Stage

KINDS: dict[str, tuple[str, type]] = {"source": ("stages.source", Source), "stage": ("stages", Stage), "job": ("stages", Job)}
ENTRY_POINT_GROUP = "pairmill.plugins"

_imported: dict[str, dict[str, type]] = {"source": {}, "stage": {}, "job": {}}
imported_files: list[str] = []


def nearest(name: str, choices: Any) -> str:
    """' (did you mean X?)' or '' where nothing is near; capitals make no difference."""
    known = {choice.lower(): choice for choice in reversed(list(choices))}
    close = get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def _register_from(module: Any, origin: str) -> None:
    found = False
    for value in vars(module).values():
        if not (isinstance(value, type) and value.__module__ == module.__name__):
            continue
        for kind, (_, base) in KINDS.items():
            if issubclass(value, base) and value is not base and vars(value).get("name"):
                name = str(vars(value)["name"])
                other = _imported[kind].get(name)
                if other is not None and other.__module__ != value.__module__:
                    raise RecipeError(f"{origin}: {kind} {name!r} is already defined in {other.__module__}; rename one of them")
                _imported[kind][name] = value
                found = True
    if not found:
        raise RecipeError(f"{origin}: defines no Stage, Source or Job with a name")


def import_file(path: str) -> None:
    """Load plug-ins from one Python file (--import). Raises RecipeError when it is missing or defines none."""
    file = Path(path).resolve()
    if not file.is_file():
        raise RecipeError(f"--import {path}: no such file")
    if str(file) in imported_files:
        return
    name = f"pairmill_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # files of two folders may have one name
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        del sys.modules[name]
        raise RecipeError(f"--import {path}: cannot be loaded: {type(error).__name__}: {error} (--debug shows where)") from error
    _register_from(module, f"--import {path}")
    imported_files.append(str(file))


def _entry_point(name: str, base: type) -> type | None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, base):
                return loaded
    return None


def built_in_modules(package: str) -> dict[str, str]:
    """Name -> module of what may be a built-in plug-in: <package>.<name>, or <package>.<name>.job for a larger one."""
    module = importlib.import_module(package)
    found = {}
    for info in pkgutil.iter_modules(module.__path__):
        if not info.ispkg:
            found[info.name] = f"{package}.{info.name}"
        elif importlib.util.find_spec(f"{package}.{info.name}.job") is not None:
            found[info.name] = f"{package}.{info.name}.job"
    return found


def _class_in(module_name: str, name: str, base: type) -> type | None:
    module = importlib.import_module(module_name)
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, base) and getattr(value, "name", None) == name:
            return value
    return None


def find(kind: str, name: str) -> Any:
    """The class registered under `name`; RecipeError with the nearest name where there is none."""
    package, base = KINDS[kind]
    if name in _imported[kind]:
        return _imported[kind][name]
    module = built_in_modules(package).get(name)
    if module is not None and (found := _class_in(module, name, base)) is not None:
        return found
    found = _entry_point(name, base)
    if found is None:
        raise RecipeError(f"unknown {kind} {name!r}{nearest(name, names(kind))}; `pairmill stages` lists all; a file of your own is named with --import")
    return found


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    package, base = KINDS[kind]
    built_in = [name for name, module in built_in_modules(package).items() if _class_in(module, name, base)]
    points = [point.name for point in entry_points(group=ENTRY_POINT_GROUP) if _entry_point(point.name, base)]
    return sorted({*built_in, *_imported[kind], *points})


def load_model(spec: dict[str, Any]) -> Any:
    """Build the model of a recipe's models table: `stages/models/<kind>.py` has a function load(spec)."""
    kind = spec["kind"]
    package = "stages.models"
    available = built_in_modules(package)
    if kind not in available:
        raise RecipeError(f"models: unknown kind {kind!r}{nearest(kind, available)}")
    return importlib.import_module(f"{package}.{kind}").load(spec)
