"""What the manifest says of a run beside its files: counts, models, and a digest of all that decides the data."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.digests import digest_of
from pipeline.run_view import RunView
from pipeline.stage import Job, params_affecting
from pipeline.store import VALUES


def counts_of(run: RunView, own: Counter[str], job: str, kept: int) -> dict[str, Any]:
    """Rows of the input, kept, dropped and failed, in all and by stage and reason. `own`: rejected by the shard writer."""
    by_stage = {stage: counts for stage, counts in run.counts().items()}
    by_stage[job] = own
    stages: dict[str, dict[str, dict[str, int]]] = {}
    for stage, counts in by_stage.items():
        told: dict[str, dict[str, int]] = {"dropped": {}, "failed": {}}
        for name, n in sorted(counts.items()):
            status, colon, reason = name.partition(":")
            if colon and n:
                told[status][reason] = n
        if told["dropped"] or told["failed"]:
            stages[stage] = told
    totals = {status: sum(n for told in stages.values() for n in told[status].values()) for status in ("dropped", "failed")}
    return {"input": sum(run.parts), "kept": kept, **totals, "stages": stages}


def images_checked(run: RunView, stage: str) -> str:
    """'decoded' when the stage that stores the images, or one that drops what it cannot decode, read each whole; else 'header'."""
    storing = run.chain.node(stage).stage
    if storing is not None and getattr(storing.params, "check", "") == "decode":
        return "decoded"
    stages = [node.stage for node in run.chain.nodes if node.stage is not None]
    return "decoded" if any(one.decodes_images and one.on_failure == "drop" for one in stages) else "header"


def models_of(run: RunView) -> dict[str, dict[str, Any]]:
    """Name in the recipe -> kind, identity of the weights, and their digest as the stages recorded it.

    Paths are left out: a dataset does not depend on where the weights lay.
    """
    models: dict[str, dict[str, Any]] = {}
    for node in run.chain.nodes:
        if node.stage is None or not node.stage.uses_model or node.stage.model_name is None:
            continue
        spec = run.chain.recipe.models[node.stage.model_name]
        model = models.setdefault(node.stage.model_name, {"kind": spec["kind"], "identity": _identity(spec)})
        if spec.get("name"):
            model["name"] = spec["name"]
        weights = str(spec.get("weights") or "")
        if weights and not Path(weights).is_absolute() and not Path(weights).exists():
            model["weights"] = weights
        digests = {record.info.get("weights") for (kind, stage, _), record in run.records().items() if kind == VALUES and stage == node.name}
        known = sorted(str(digest) for digest in digests if digest)
        if known:
            model["digest"] = ", ".join(known)
    return models


def recipe_digest(run: RunView, job: Job) -> str:
    """Digest of all that decides the data: the input's rows, the stages' parameters, the models, the shard writer's cut.

    What only tunes speed stands outside, and a file named by a parameter counts by its bytes, not by its name.
    """
    rows = [run.records()[(VALUES, "source", part)].digest for part in range(len(run.parts))]
    recipe = run.chain.recipe
    stages = []
    for node in run.chain.nodes[1:]:
        assert node.stage is not None
        chosen = {**params_affecting(node.stage.params, "compute"), **params_affecting(node.stage.params, "decide")}
        model = recipe.models[node.stage.model_name] if node.stage.uses_model and node.stage.model_name else None
        stages.append([node.name, node.stage.name, node.stage.version, _by_content(chosen), _identity(model) if model else ""])
    own = _by_content(params_affecting(job.params, "compute"))
    return digest_of("recipe", rows, recipe.seed, recipe.late, stages, [job.name, job.version, own])


def _identity(spec: dict[str, Any]) -> str:
    return str(importlib.import_module(f"stages.models.{spec['kind']}").identity(spec))


def _by_content(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    if isinstance(value, str) and value and len(value) < 4096 and "\0" not in value and Path(value).is_file():
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value
