"""Recipes of toy plug-ins, and the log of what they computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, build_recipe


def make_recipe(stages: list[Any], rows: int = 600, rows_per_part: int = 100, **top: Any) -> Recipe:
    """A recipe over the toy source."""
    given = {"kind": "numbers", "rows": rows, "rows_per_part": rows_per_part, **top.pop("input", {})}
    return build_recipe({"name": "toy", "input": given, "stages": stages, **top})


def calls(path: Path) -> Counter[str]:
    """Computed rows per 'stage id' line of a call log; the log is emptied."""
    if not path.exists():
        return Counter()
    lines = path.read_text().splitlines()
    path.unlink()
    return Counter(lines)
