"""YAML recipe -> validated plug-ins. Unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import registry
from pipeline.console import some
from pipeline.errors import Budget, RecipeError
from pipeline.models import check_method
from pipeline.secrets import HIDDEN
from pipeline.stage import Job, Source, Stage
from pipeline.storage import place_of, register_inputs
from schemas.record import RunRecord

TOP_KEYS = ("name", "description", "input", "seed", "decide", "models", "stages", "jobs", "budgets", "world")
MOST_PROBLEMS = 2  # of one mapping, in one message
INPUT_KEYS = ("kind", "rows_per_part", "limit", "sample")


@dataclass
class Recipe:
    """A validated recipe. `resolved` is the full dictionary (all defaults filled in) that run.json keeps."""

    name: str
    source: Source
    stages: list[Stage]
    jobs: list[Job]
    models: dict[str, dict[str, Any]]
    rows_per_part: int = 10_000
    limit: int | None = None
    sample: float | None = None
    seed: int = 0
    late: bool = False
    budgets: dict[str, Budget] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files("pipeline") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """The raw dictionary of a recipe: a path to a .yaml file, the name of one that comes with pairmill, or the run.json of a run, whose recipe it holds."""
    if name_or_path.rpartition("/")[2] == "run.json":
        return _recipe_of_run(name_or_path)
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise RecipeError(f"recipe {name_or_path}: no such file")
        text = path.read_text()
    elif name_or_path in recipe_names():
        text = (resources.files("pipeline") / "recipes" / f"{name_or_path}.yaml").read_text()
    else:
        known = recipe_names()
        raise RecipeError(f"no recipe {name_or_path!r}{registry.nearest(name_or_path, known)}; built in: {', '.join(known)}; or give a path to a .yaml file")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name_or_path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {name_or_path}: the top level must be a mapping with the keys {', '.join(TOP_KEYS)}")
    return data


def _recipe_of_run(path: str) -> dict[str, Any]:
    try:
        return RunRecord.from_json(place_of(path).read_text()).recipe
    except FileNotFoundError:
        raise RecipeError(f"recipe {path}: no such file") from None
    except (ValueError, TypeError) as error:
        raise RecipeError(f"recipe {path}: is no run.json that can be read ({error})") from error


def _hidden_in(value: Any, place: str = "") -> str:
    """Where a secret stood that was masked; '' for nowhere."""
    if isinstance(value, str):
        return place if HIDDEN in value else ""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, entry in inner if (found := _hidden_in(entry, f"{place}.{key}".lstrip(".")))), "")


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> None:
    """--set a.b=value, in place. The first word is a top-level key or the name of a stage or job."""
    for item in overrides:
        path, separator, raw = item.partition("=")
        if not separator or not path:
            raise RecipeError(f"--set {item}: write it as key=value, for example --set download.timeout_s=5")
        try:
            value = yaml.safe_load(raw) if raw else None
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {item}: the value is not valid YAML: {error}") from error
        keys = path.split(".")
        if keys[0] in ("stages", "jobs") and len(keys) > 1:  # messages name `stages.clip_score.min`: what they say may be typed
            keys = keys[1:]
        target = _target(data, keys, item)
        target[keys[-1]] = value


def _target(data: dict[str, Any], keys: list[str], item: str) -> dict[str, Any]:
    if keys[0] in TOP_KEYS and keys[0] not in ("stages", "jobs"):
        target: Any = data
        inner = keys[:-1]
    else:
        entries = {**_entries(data, "stages"), **_entries(data, "jobs")}
        if keys[0] not in entries:
            choices = [*entries, *(key for key in TOP_KEYS if key not in ("stages", "jobs"))]
            raise RecipeError(f"--set {item}: this recipe has no {keys[0]!r}{registry.nearest(keys[0], choices)}; it has {some(choices)}")
        if len(keys) == 1:
            raise RecipeError(f"--set {item}: name a parameter, as in {keys[0]}.PARAMETER=value")
        target, inner = entries[keys[0]], keys[1:-1]
    for key in inner:
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise RecipeError(f"--set {item}: {key} is not a mapping")
    return target


def _entries(data: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """Instance name -> its parameter mapping, rewriting short forms in place so that they can be changed."""
    items = data.get(section) or []
    if not isinstance(items, list):
        raise RecipeError(f"{section}: must be a list of names or of one-key mappings")
    found: dict[str, dict[str, Any]] = {}
    for place, entry in enumerate(items):
        if isinstance(entry, str):
            entry = items[place] = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            raise RecipeError(f"{section}[{place}]: must be a name or a mapping with one key (the name), found {entry!r}")
        (instance, params), = entry.items()
        if params is None:
            params = entry[instance] = {}
        if not isinstance(params, dict):
            raise RecipeError(f"{section}[{place}].{instance}: parameters must be a mapping, found {params!r}")
        if instance in found:
            raise RecipeError(f"{section}: {instance!r} stands twice; give one another name and say `use: {instance}`")
        found[instance] = params
    return found


def build_params(cls: Any, raw: dict[str, Any], where: str) -> Any:
    """Validate parameters; every problem names its place, and unknown keys get the nearest valid one."""
    try:
        return cls.Params(**raw)
    except ValidationError as error:
        known = list(cls.Params.model_fields)
        lines = []
        for problem in _one_per_key(error.errors(), cls):
            key = ".".join(str(part) for part in problem["loc"])
            if "." in key and problem["type"] in ("extra_forbidden", "missing"):
                inner, _, name = key.rpartition(".")
                lines.append(f"{where}.{inner}: " + (f"unknown key {name!r}" if problem["type"] == "extra_forbidden" else f"{name!r} is required"))
            elif problem["type"] == "extra_forbidden":
                near = registry.nearest(key, known)
                lines.append(f"{where}: unknown key {key!r}{near}" + ("" if near else f"; valid: {some(known, 80) or 'none'}"))
            elif problem["type"] == "missing":
                lines.append(f"{where}.{key}: is required: {cls.Params.model_fields[key].description or ''}".rstrip(": "))
            else:
                place = f"{where}.{key} (found {_cut(repr(problem.get('input')))})" if key else where
                lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
        more = [f"and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
        advice = [f"what it takes: pairmill stages {cls.name}"] if getattr(cls, "name", "") and where != "input" else []
        raise RecipeError("\n".join([*lines[:MOST_PROBLEMS], "; ".join([*more, *advice])]).rstrip()) from error
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _cut(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _one_per_key(problems: list[Any], cls: Any) -> list[Any]:
    """A value that fits no type of a union is told once, and null where a value must stand as a missing key."""
    found: dict[Any, Any] = {}
    for problem in problems:
        place = problem["loc"]
        field = cls.Params.model_fields.get(place[0]) if place else None
        if field is not None and field.is_required() and problem.get("input") is None:
            problem = {**problem, "loc": place[:1], "type": "missing"}
        elif field is not None and len(place) == 2 and isinstance(field.annotation, types.UnionType) and problem["type"] not in ("extra_forbidden", "missing"):
            problem = {**problem, "loc": place[:1]}
        found.setdefault((problem["loc"], problem["type"] == "extra_forbidden"), problem)
    return list(found.values())


def _build_all(data: dict[str, Any], section: str, kind: str) -> list[Any]:
    built = []
    for instance, raw in _entries(data, section).items():
        raw = dict(raw)
        cls = registry.find(kind, str(raw.pop("use", instance)))
        if "." in instance:
            raise RecipeError(f"{section}.{instance}: a name must not contain a dot")
        built.append(cls(build_params(cls, raw, f"{section}.{instance}"), instance))
    return built


def load_recipe(
    name_or_path: str, overrides: list[str] | None = None, limit: int | None = None, sample: float | None = None
) -> Recipe:
    """Read, override and validate a recipe. Raises RecipeError that names the key and what to do."""
    data = read_recipe(name_or_path)
    apply_overrides(data, overrides or [])
    if name_or_path.rpartition("/")[2] == "run.json" and (hidden := _hidden_in(data)):
        raise RecipeError(f"recipe {name_or_path}: the secret in {hidden} is not kept there; give the recipe itself, or the value with --set")
    if limit is not None:
        data.setdefault("input", {})["limit"] = limit
    if sample is not None:
        data.setdefault("input", {})["sample"] = sample
    return build_recipe(data)


def build_recipe(data: dict[str, Any]) -> Recipe:
    """Validate a recipe dictionary and build its plug-ins."""
    for key in data:
        if key not in TOP_KEYS:
            raise RecipeError(f"recipe: unknown key {key!r}{registry.nearest(str(key), TOP_KEYS)}; valid: {', '.join(TOP_KEYS)}")
    raw_input = dict(data.get("input") or {})
    if "kind" not in raw_input:
        raise RecipeError("input.kind: is required, for example url_table")
    machine = {key: raw_input.pop(key) for key in INPUT_KEYS if key in raw_input}
    register_inputs()
    source_cls = registry.find("source", str(machine["kind"]))
    source = source_cls(build_params(source_cls, raw_input, "input"))
    stages = _build_all(data, "stages", "stage")
    jobs = _build_all(data, "jobs", "job")
    models = _models(data, [*stages, *jobs])
    if data.get("decide", "early") not in ("early", "late"):
        raise RecipeError(f"decide: must be early or late, found {data['decide']!r}")
    recipe = Recipe(
        name=str(data.get("name", "unnamed")),
        source=source,
        stages=stages,
        jobs=jobs,
        models=models,
        rows_per_part=_positive_int(machine.get("rows_per_part", 10_000), "input.rows_per_part"),
        limit=None if machine.get("limit") is None else _positive_int(machine["limit"], "input.limit"),
        sample=_fraction(machine.get("sample")),
        seed=int(data.get("seed", 0)),
        late=data.get("decide") == "late",
        budgets=_budgets(data, stages),
    )
    recipe.resolved = _resolved(recipe, machine)
    return recipe


def _positive_int(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{where}: must be a whole number of at least 1, found {value!r}")
    return value


def _fraction(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise RecipeError(f"input.sample: must be a fraction above 0 and at most 1, found {value!r}")
    return float(value)


def _models(data: dict[str, Any], users: list[Any]) -> dict[str, dict[str, Any]]:
    models = data.get("models") or {}
    for name, spec in models.items():
        if not isinstance(spec, dict) or "kind" not in spec:
            raise RecipeError(f"models.{name}: must be a mapping with `kind`, for example {{kind: open_clip, name: ViT-B-32, weights: laion2b_s34b_b79k}}")
    for user in users:
        wanted = getattr(user.params, "model", None)
        if getattr(user, "uses_model", False) and wanted not in models:
            hint = registry.nearest(str(wanted), models)
            raise RecipeError(f"stages.{user.instance}.model: no model {wanted!r}{hint}; the recipe's models: {', '.join(models) or 'none'}")
        if getattr(user, "model_method", ""):
            check_method(models[wanted], user.model_method, user.name, f"stages.{user.instance}.model: {wanted!r}")
    return {name: dict(spec) for name, spec in models.items()}


def _budgets(data: dict[str, Any], stages: list[Stage]) -> dict[str, Budget]:
    budgets = {stage.instance: stage.budget for stage in stages}
    for name, raw in (data.get("budgets") or {}).items():
        if name not in budgets:
            raise RecipeError(f"budgets.{name}: this recipe has no such stage{registry.nearest(str(name), budgets)}")
        try:
            budgets[name] = Budget(**{**budgets[name].__dict__, **raw})
        except TypeError as error:
            raise RecipeError(f"budgets.{name}: {error}; valid: {', '.join(Budget.__dataclass_fields__)}") from error
    return budgets


def _resolved(recipe: Recipe, machine: dict[str, Any]) -> dict[str, Any]:
    def section(plugins: list[Any]) -> list[dict[str, Any]]:
        return [{p.instance: {"use": p.name, **p.params.model_dump(mode="json")}} for p in plugins]

    return {
        "name": recipe.name,
        "input": {
            "kind": recipe.source.name,
            "rows_per_part": recipe.rows_per_part,
            "limit": recipe.limit,
            "sample": recipe.sample,
            **recipe.source.params.model_dump(mode="json"),
        },
        "seed": recipe.seed,
        "decide": "late" if recipe.late else "early",
        "models": recipe.models,
        "stages": section(recipe.stages),
        "jobs": section(recipe.jobs),
        "budgets": {name: dict(budget.__dict__) for name, budget in recipe.budgets.items()},
    }
