"""Trainings and evaluations of a run, and of runs that it is compared with, from the files that those jobs write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def make_trainings(roots: dict[str, Path]) -> list[Training]:
    """Trainings of run folders (label -> folder), from their logs."""
    found = []
    for label, root in roots.items():
        for log in sorted(root.glob("pretrain/*/metrics.jsonl")):
            lines = [line for raw in log.read_text(encoding="utf-8", errors="replace").splitlines() if (line := _line(raw))]
            result = _read_json(log.parent / "result.json")
            found.append(Training(label, log.parent.name, [line["step"] for line in lines], [line["loss"] for line in lines], result))
    return found


def _line(raw: str) -> dict[str, float] | None:
    try:
        line = json.loads(raw)
    except ValueError:  # the last line of a training that was killed
        return None
    return line if isinstance(line, dict) and all(isinstance(line.get(key), int | float) for key in ("step", "loss")) else None


def make_evaluations(roots: dict[str, Path]) -> list[Evaluation]:
    """Evaluations of run folders: numbers by name, those of nested results as 'group: name'."""
    found = []
    for label, root in roots.items():
        for path in sorted(root.glob("evaluate/*.json")):
            data = _read_json(path)
            flat = {key: value for key, value in data.items() if _number(value)}
            for group, inner in data.items():
                flat |= {f"{group}: {key}": value for key, value in inner.items() if _number(value)} if isinstance(inner, dict) else {}
            found.append(Evaluation(label, path.stem, flat))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
