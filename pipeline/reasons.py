"""Why a run would compute or judge anew, in words: the recipe that run.json keeps against the one at hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.chain import Chain, Node
from pipeline.stage import params_affecting

MISSING = "not set"
CHANGED = "changed "


@dataclass
class StageChange:
    """What differs for one stage between two recipes: 'key changed old -> new' (compute), 'key old -> new' (decide)."""

    new: bool = False
    compute: list[str] = field(default_factory=list)
    decide: list[str] = field(default_factory=list)
    binding: list[str] = field(default_factory=list)


def section_of(recipe: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """Instance -> parameters (with `use`) of a resolved recipe's stages or jobs."""
    return {name: params for entry in recipe.get(section) or [] for name, params in entry.items()}


def stage_change(node: Node, chain: Chain, old: dict[str, Any], old_chain: Chain | None) -> StageChange:
    """What changed for a stage since the recipe `old` (as run.json has it; its chain where it can still be built)."""
    stage = node.stage
    assert stage is not None
    before = section_of(old, "stages").get(node.name)
    if before is None:
        return StageChange(new=True)
    change = StageChange()
    if before.get("use") != stage.name:
        change.compute.append(f"use changed {shown(before.get('use'))} -> {shown(stage.name)}")
    change.compute += differences(before, params_affecting(stage.params, "compute"), word=CHANGED)
    change.decide += differences(before, params_affecting(stage.params, "decide"))
    if old.get("seed", 0) != chain.recipe.seed:
        change.compute.append(f"seed changed {old.get('seed')} -> {chain.recipe.seed}")
    if stage.uses_model and stage.model_name:
        was, now = (old.get("models") or {}).get(stage.model_name, {}), chain.recipe.models[stage.model_name]
        change.compute += [f"model {stage.model_name}: {text}" for text in differences(was, now, both=True, word=CHANGED)]
    if old_chain is not None:
        change.binding = _bindings(node, chain, old_chain)
    return change


def _bindings(node: Node, chain: Chain, old_chain: Chain) -> list[str]:
    other = next((n for n in old_chain.nodes if n.name == node.name), None)
    if other is None:
        return []
    now = {key: None if ref is None else chain.full_name(ref) for key, ref in node.reads.items()}
    was = {key: None if ref is None else old_chain.full_name(ref) for key, ref in other.reads.items()}
    return [f"{key} is now {now[key] or 'missing'} (was {was.get(key) or 'missing'})" for key in now if now[key] != was.get(key)]


def differences(was: Any, now: Any, path: str = "", both: bool = False, word: str = "") -> list[str]:
    """Leaves of `now` that differ from `was`, as 'a.b old -> new', with `word` before the values; keys that only `was`
    has count where `both`."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*now, *(key for key in was if both and key not in now)]
        inner = (differences(was.get(key, MISSING), now.get(key, MISSING), f"{path}.{key}".strip("."), both, word) for key in keys)
        return [text for texts in inner for text in texts]
    return [] if was == now else [f"{path} {word}{shown(was)} -> {shown(now)}"]


def shown(value: Any) -> str:
    """A value in a sentence: at most 40 characters."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def compute_reasons(why: Counter[str], change: StageChange, changes: dict[str, StageChange]) -> list[str]:
    """Sentences for the causes of a forecast (pipeline.forecast._causes), the one with most rows first."""
    return [_sentence(cause, rows, change, changes) for cause, rows in sorted(why.items(), key=lambda item: (-item[1], item[0]))]


def _sentence(cause: str, rows: int, change: StageChange, changes: dict[str, StageChange]) -> str:
    kind, _, stage = cause.partition(":")
    if kind == "missing":
        return "new stage" if change.new else f"{_rows(rows)} not computed yet"
    if kind == "settings":
        return _settings(change)
    if kind == "retry":
        return f"{_rows(rows)} failed for a reason that may pass: tried again"
    if kind == "inputs":
        return f"{_rows(rows)} with changed inputs"
    if kind == "inputs?":
        return f"at most {_rows(rows)} whose inputs are computed anew"
    if stage and stage in changes and changes[stage].decide:
        return f"{_rows(rows)} revived by looser {', '.join(f'{stage}.{text}' for text in changes[stage].decide)}"
    if stage:
        return f"{_rows(rows)} no longer held back by {stage}"
    return f"{_rows(rows)} not computed yet"


def _settings(change: StageChange) -> str:
    if change.compute:
        return f"parameter{'' if len(change.compute) == 1 else 's'} {'; '.join(change.compute)} (compute)"
    if change.binding:
        return f"reads other columns: {'; '.join(change.binding)}"
    return "stage version or weights changed, or an earlier run with other settings was not finished"


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def verdict_reason(change: StageChange, resolve: str) -> str:
    """Why verdicts are written anew where nothing is computed."""
    if change.decide:
        return f"only the verdict changes: {'; '.join(change.decide)}"
    if resolve == "may run":
        return "its verdict may change: its resolve runs over all parts again if rows or values before it change"
    if resolve:
        return "only the verdict changes: its resolve runs over all parts again"
    return "only the verdict changes: other rows reach it"
