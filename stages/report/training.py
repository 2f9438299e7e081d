"""Trainings and evaluations of a run, and of runs that it is compared with, from the files that those jobs write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Place


@dataclass
class Training:
    """A training and the evaluations of its model, of this run or of one it is compared with."""

    run: str
    name: str
    steps: list[float]
    losses: list[float]
    result: dict[str, Any]


@dataclass
class Evaluation:
    run: str
    name: str
    results: dict[str, float]


def files_of(root: Place, name: str) -> list[Place]:
    """Files of a run by their pattern; a name without a folder is that of a file in each `pretrain/<job>/`."""
    if "/" in name:
        return sorted(root.glob(name), key=str)
    folder = root / "pretrain"
    return sorted((path for path in folder.rglob(name) if path.parent.parent == folder), key=str)


def make_trainings(roots: dict[str, Place]) -> list[Training]:
    """Trainings of run folders (label -> folder), from their logs."""
    found = []
    for label, root in roots.items():
        for log in files_of(root, "metrics.jsonl"):
            lines = [line for raw in log.read_bytes().decode("utf-8", "replace").splitlines() if (line := _line(raw))]
            result = _read_json(log.parent / "result.json")
            found.append(Training(label, log.parent.name, [line["step"] for line in lines], [line["loss"] for line in lines], result))
    return found


def _line(raw: str) -> dict[str, float] | None:
    try:
        line = json.loads(raw)
    except ValueError:  # the last line of a training that was killed
        return None
    return line if isinstance(line, dict) and all(isinstance(line.get(key), int | float) for key in ("step", "loss")) else None


def make_evaluations(roots: dict[str, Place]) -> list[Evaluation]:
    """Evaluations of run folders: numbers by name, those of nested results as 'group: name'."""
    found = []
    for label, root in roots.items():
        for path in files_of(root, "evaluate/*.json"):
            data = _read_json(path)
            flat = {key: value for key, value in data.items() if _number(value)}
            for group, inner in data.items():
                flat |= {f"{group}: {key}": value for key, value in inner.items() if _number(value)} if isinstance(inner, dict) else {}
            found.append(Evaluation(label, path.stem, flat))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Place) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
