"""`plan --probe N`: the stages run on the first N rows in a folder of their own, and what that took is scaled to the whole run.

The probe works in one process (the plain loop), whatever the run will use, with every model started before, and a few rows sent through: what starts
once in a run (decoders, tokenizers, a tagger) is 20 s of a slow machine, and would be taken for the pace of rows. Its folder is removed afterwards.
With --out the estimate is kept in run.json, so that the report can set it beside what the run then took; it decides nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import models
from pipeline.chain import Chain
from pipeline.environment import code_version
from pipeline.errors import Fatal, RecipeError
from pipeline.lock import RunLock
from pipeline.plan import Plan, StagePlan
from pipeline.preflight import take_lock
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, RunResult, run
from pipeline.scratch import scratch_folder
from pipeline.storage import place_of
from pipeline.store import Store
from schemas.record import RunRecord

MILLION = 1_000_000
WARM_ROWS = 8


@dataclass
class StageEstimate:
    """One stage: what the probe measured on `measured` rows, and what follows for the `rows` that the run is expected to compute.

    seconds: of one worker; model_seconds: of one engine, while requests were under way. Tokens are those of prompts and answers per second of the
    model; None where there are none. engine_hours_per_million: hours of one engine for a million images, for stages that ask a model about each.
    """

    stage: str
    measured: int
    rows_per_s: float | None
    rows: int
    seconds: float | None
    model_seconds: float | None = None
    prompt_tokens_per_s: float | None = None
    answer_tokens_per_s: float | None = None
    tokens_per_row: tuple[float, float] | None = None
    engine_hours_per_million: float | None = None
    price_per_million: float | None = None


@dataclass
class Probe:
    """What a probe found; `to_dict` gives plain JSON values."""

    asked: int
    rows: int
    price_per_hour: float | None
    stages: list[StageEstimate] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_probe(recipe: Recipe, plan: Plan, rows: int, price_per_hour: float | None = None, tell: Callable[[str], None] = lambda text: None) -> Probe:
    """Run the stages of `recipe` on the first `rows` rows. Raises what `run` raises. price_per_hour: of one engine's machine, in any currency."""
    made = _first_rows(recipe, rows)
    for name in dict.fromkeys(stage.model_name for stage in made.stages if stage.uses_model and stage.model_name):
        tell(f"probe: starting model {name}")
        models.local_model(made.models[name])
    tell(f"probe: running the first {rows:,} rows in a temporary folder")
    with scratch_folder("probe") as folder:
        with suppress(RecipeError, Fatal):  # what so few rows do not allow (such as words to balance by) says nothing of the recipe
            run(_first_rows(recipe, min(rows, WARM_ROWS)), folder / "warm", RunOptions(executor="local", jobs=False))
        result = run(made, folder / "run", RunOptions(executor="local", jobs=False))
    seen = sum(result.view.parts)
    stages = {stage.instance: stage for stage in made.stages}
    found = [_estimate(line, result, seen, plan.rows, stages[line.name].asks_each, price_per_hour) for line in plan.stages]
    return Probe(rows, seen, price_per_hour, found)


def _first_rows(recipe: Recipe, rows: int) -> Recipe:
    """The stages of a recipe on its first rows, in one part."""
    small = copy.deepcopy(recipe.resolved)
    small["input"] |= {"limit": rows if recipe.limit is None else min(rows, recipe.limit), "rows_per_part": rows}
    small["jobs"] = []
    return build_recipe(small)


def _estimate(line: StagePlan, result: RunResult, seen: int, total: int, asks: bool, price: float | None) -> StageEstimate:
    tally, name = result.tally, line.name
    measured, seconds, busy = tally.computed.get(name, 0), tally.seconds.get(name, 0.0), tally.model_seconds.get(name, 0.0)
    rows = line.rows[0] if line.rows[0] == line.rows[1] else min(max(round(measured / seen * total), line.rows[0]), line.rows[1])
    if not measured or not seconds:
        return StageEstimate(name, measured, None, rows, None if rows else 0.0)
    found = StageEstimate(name, measured, round(measured / seconds, 2), rows, round(rows * seconds / measured, 1))
    if busy:
        found.model_seconds = round(rows * busy / measured, 1)
    asked, answered = tally.tokens.get(name, (0, 0))
    if asks and busy:
        found.engine_hours_per_million = round(MILLION * busy / measured / 3600, 2)
        found.price_per_million = None if price is None else round(MILLION * busy / measured / 3600 * price, 2)
        found.tokens_per_row = (round(asked / measured, 1), round(answered / measured, 1))
        found.prompt_tokens_per_s, found.answer_tokens_per_s = round(asked / busy, 1), round(answered / busy, 1)
    return found


def keep_probe(recipe: Recipe, out: str | Path, probe: Probe) -> None:
    """Leave the estimate in run.json of a run that is there or is to come. Raises RecipeError where a run works in the folder."""
    chain, root = Chain(recipe), place_of(out)
    lock = RunLock(root)
    take_lock(lock)
    try:
        store = Store(root, lock.token)
        record = store.read_run() or RunRecord(store.token, code_version(), recipe.resolved, chain.nodes[0].compute_fingerprint)
        if record.source_fingerprint != chain.nodes[0].compute_fingerprint:
            raise RecipeError(f"{root}: this folder holds a run of another input; the estimate is not kept there")
        record.probe = probe.to_dict()
        store.write_run(record)
    finally:
        lock.release()
