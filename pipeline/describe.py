"""What plug-ins there are, and everything about one: parameters and what changing them costs, columns, drop reasons."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import typing
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pipeline import registry
from pipeline.console import plain, plain_table, print_fact
from pipeline.errors import RecipeError
from pipeline.reasons import shown
from pipeline.stage import Stage, Vector
from schemas.outcome import FailureCode, Reason

AFFECTS = {
    "compute": "compute: a change computes the stage's rows again",
    "decide": "decide: a change only judges again, from stored values",
    "nothing": "nothing: a change alters speed or patience, never a value",
}
MODELS = "stages.models"


def all_plugins() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line of meaning, of sources, stages, jobs and kinds of models."""
    found = {f"{kind}s": {name: first_line(registry.find(kind, name)) for name in registry.names(kind)} for kind in registry.KINDS}
    found["models"] = {name: first_line(module) for name, module in _model_modules().items()}
    return found


def _model_modules() -> dict[str, Any]:
    found = {}
    for name, path in sorted(registry.built_in_modules(MODELS).items()):
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:  # a helper of a kind whose library is not installed; kinds themselves import theirs when they load
            continue
        if hasattr(module, "load") and hasattr(module, "identity"):
            found[name] = module
    return found


def first_line(thing: Any) -> str:
    """First sentence of a docstring on one line; of a class without one, that of its module."""
    text = " ".join(_docstring(thing).split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)`])\. (?=[A-Z])", text)[0].rstrip(".") or "(no description)"


def paragraphs(text: str) -> str:
    """Lines that belong together joined, so that they fold to the terminal's width; indented ones stay as they are."""
    joined = (block if re.search(r"^\s", block, re.M) else " ".join(block.split()) for block in text.split("\n\n"))
    return "\n\n".join(joined)


def _docstring(thing: Any) -> str:
    text = vars(thing).get("__doc__") or ""
    if not text and isinstance(thing, type):
        text = sys.modules[thing.__module__].__doc__ or ""
    return inspect.cleandoc(text)


def describe(name: str) -> dict[str, Any]:
    """All about the plug-in of this name as plain values. Raises RecipeError with the nearest name where there is none."""
    known: list[str] = []
    for kind in registry.KINDS:
        known += registry.names(kind)
        if name in registry.names(kind):
            return _describe_class(kind, registry.find(kind, name))
    models = _model_modules()
    if name in models:
        return {"kind": "model", "name": name, "about": _docstring(models[name]), "parameters": []}
    raise RecipeError(f"no source, stage, job or model kind {name!r}{registry.nearest(name, [*known, *models])}; `pairmill stages` lists all")


def _describe_class(kind: str, cls: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind, "name": cls.name, "version": cls.version, "about": _docstring(cls), "parameters": parameters(cls.Params)}
    if kind != "stage":
        return found
    try:
        stage = cls(cls.Params())
    except ValidationError:
        stage = None
    for fact in ("reads", "reads_decide", "reads_resolve"):
        found[fact] = _fact(cls, stage, fact)
    for fact in ("writes", "resolves"):
        columns = _fact(cls, stage, fact)
        found[fact] = {key: _type_name(value) for key, value in columns.items()} if isinstance(columns, dict) else columns
    found["on_failure"] = cls.on_failure
    found["model"] = bool(cls.model_method)
    found |= named_outcomes(cls)
    return found


def _fact(cls: type, stage: Stage | None, fact: str) -> Any:
    value = getattr(cls if stage is None else stage, fact)
    if isinstance(value, property):
        return "depends on its parameters"
    return dict(value) if hasattr(value, "items") else list(value)


def _type_name(kind: Any) -> str:
    if isinstance(kind, Vector):
        return f"vector of {kind.dtype}"
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(field.name for field in kind) + "}"
    return str(kind)


def named_outcomes(cls: type) -> dict[str, list[str]]:
    """Drop reasons and failure codes that a stage's file, that of a base class, or one it takes functions from, names (as
    Reason.X, FailureCode.X or the plain word)."""
    module = sys.modules[cls.__module__]
    used = {*(base.__module__ for base in cls.__mro__[:-1]), *(value.__module__ for value in vars(module).values() if inspect.isfunction(value))}
    text = "\n".join(inspect.getsource(sys.modules[name]) for name in sorted(used) if name.partition(".")[0] not in ("pipeline", "schemas"))
    drops = [str(reason) for reason in Reason if re.search(rf"\bReason\.{reason.name}\b|Drop\(\s*[\"']{reason}[\"']", text)]
    failures = [str(code) for code in FailureCode if re.search(rf"\bFailureCode\.{code.name}\b|Failure\(\s*[\"']{code}[\"']", text)]
    return {"drops": drops, "fails": failures}


def parameters(params: type[BaseModel], prefix: str = "", affects: str = "") -> list[dict[str, Any]]:
    """One entry per parameter; those of a nested mapping follow it with a dotted name."""
    found: list[dict[str, Any]] = []
    for name, field in params.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        kind = affects or str(extra.get("affects", "compute"))
        inner = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else None
        entry: dict[str, Any] = {"name": f"{prefix}{name}", "type": _annotation(field.annotation), "description": field.description or "", "affects": kind}
        entry["required"] = field.is_required()
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            entry["default"] = default.model_dump(mode="json") if isinstance(default, BaseModel) else None if default is PydanticUndefined else default
        found.append(entry)
        if inner is not None:
            found += parameters(inner, f"{prefix}{name}.", kind)
    return found


def _annotation(kind: Any) -> str:
    """'int', 'str or null', 'one of text, corpus', 'list of str'."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if type(None) in arguments:
        return " or ".join([*(_annotation(argument) for argument in arguments if argument is not type(None)), "null"])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_annotation(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "mapping"
    if arguments and origin is not None and origin is not typing.Annotated:
        return " or ".join(_annotation(argument) for argument in arguments)
    if isinstance(kind, type):
        return "mapping" if issubclass(kind, BaseModel) else kind.__name__
    return str(kind)


def print_all(found: dict[str, dict[str, str]], console: Console) -> None:
    """The answer of `pairmill stages`."""
    table = plain_table("kind", "name", "what it does", wide="what it does")
    for kind, plugins in found.items():
        for place, (name, line) in enumerate(plugins.items()):
            table.add_row(kind if place == 0 else "", name, line)
    console.print(table)
    console.print("\n`pairmill stages NAME` tells all about one.")


def print_one(found: dict[str, Any], console: Console) -> None:
    """The answer of `pairmill stages NAME`."""
    console.print(f"{found['kind']} {found['name']}", style="bold")
    console.print(plain(paragraphs(found["about"]) or "(no description)"))
    if found["kind"] == "stage":
        console.print("\nColumns", style="bold")
        reads = {"reads": found["reads"], "to judge, also": found["reads_decide"], "over all rows": found["reads_resolve"]}
        for title, columns in reads.items():
            if columns:
                print_fact(console, f"{title}:", columns if isinstance(columns, str) else ", ".join(columns))
        for title, columns in {"adds": found["writes"], "adds from all rows": found["resolves"]}.items():
            if columns:
                told = columns if isinstance(columns, str) else ", ".join(f"{key} ({kind})" for key, kind in columns.items())
                print_fact(console, f"{title}:", told)
        for title, names in {"drops a row as": found["drops"], "fails a row as": found["fails"]}.items():
            if names:
                print_fact(console, f"{title}:", ", ".join(names))
        if found["on_failure"] == "keep":
            console.print("a row that fails is kept, with null columns")
    if not found["parameters"]:
        console.print("\nNo parameters." if found["kind"] != "model" else "")
        return
    console.print("\nParameters", style="bold")
    for entry in found["parameters"]:
        default = "required" if entry["required"] else f"default {shown(entry['default'])}"
        console.print(Text.assemble((entry["name"], "bold"), f"  {entry['type']}, {default}  [{entry['affects']}]"))
        if entry["description"]:
            console.print(Padding(plain(entry["description"]), (0, 0, 0, 4)))
    if found["kind"] == "stage":
        console.print()
        for kind in dict.fromkeys(entry["affects"] for entry in found["parameters"]):
            console.print(f"[{kind}] {AFFECTS[kind].partition(': ')[2]}")
