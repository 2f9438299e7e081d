"""What a run would do in a directory, before it starts: stages, models, barriers, rows to compute, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chain import Chain, InputFacts, Node, Ref
from pipeline.cut import input_parts, no_rows
from pipeline.earlier import notes as earlier_barriers
from pipeline.errors import RecipeError
from pipeline.forecast import Forecast, Masks, NodeForecast, PlanView, scratch_store
from pipeline.groups import Group, make_groups
from pipeline.lock import Owner, read_owner
from pipeline.reasons import StageChange, compute_reasons, stage_change, verdict_reason
from pipeline.recipe import Recipe, build_recipe
from pipeline.retry import Retry, failures_of_outages
from pipeline.run import check_directory
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from schemas.record import RunRecord


@dataclass
class StagePlan:
    """One stage of the plan. Reads and adds are facts of the recipe, the rest is what a run would do.

    rows: (least, most) rows computed, equal where the number is exact; calls alike; kept: rows alive after the stage.
    seconds, model_seconds: estimate for the most rows, from what earlier parts took; None where nothing is known.
    """

    name: str
    use: str
    reads: dict[str, str | None]
    adds: list[str]
    decides: bool
    resolves: bool
    model: str | None
    resources: str
    group: int
    rows: tuple[int, int] = (0, 0)
    calls: tuple[int, int] = (0, 0)
    kept: tuple[int, int] = (0, 0)
    verdict_parts: int = 0
    resolve: str = ""
    seconds: float | None = None
    model_seconds: float | None = None
    why: list[str] = field(default_factory=list)


@dataclass
class Barrier:
    """A resolve that needs all parts: its verdict and all work listed in `waiting` wait for it."""

    stage: str
    reads: list[str]
    waiting: list[str]


@dataclass
class Plan:
    """A whole plan; `to_dict` gives plain JSON values."""

    recipe: str
    out: str | None
    rows: int
    parts: int
    new: bool
    stages: list[StagePlan]
    groups: list[list[str]]
    barriers: list[Barrier]
    models: dict[str, dict[str, Any]]
    jobs: list[str]
    notes: list[str] = field(default_factory=list)
    probe: dict[str, Any] | None = None  # see pipeline.probe

    @property
    def nothing_to_do(self) -> bool:
        return not any(stage.rows[1] or stage.verdict_parts or stage.resolve for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    recipe: Recipe,
    out: str | Path | None,
    on_rows: Callable[[int], None] = lambda rows: None,
    retry: Mapping[str, frozenset[str]] | None = None,
    facts: InputFacts | None = None,
    outages: bool = True,
) -> Plan:
    """Find what `run` would do. Reads the run directory without its lock and writes nothing there.

    Raises RecipeError where the recipe, the input or the directory is wrong. on_rows: told the rows counted in a new input.
    retry: failure codes by stage that the run is to try again. facts: of the input, where it need not be seen. outages: count the rows that a run
    would try again after an outage.
    """
    chain = Chain(recipe, facts)
    folder, scratch = scratch_store()
    with folder:
        store = Store(out) if out is not None else scratch
        check_directory(store, chain)
        record = store.read_run() if out is not None else None
        record = record if record is not None and record.parts else None  # a folder with nothing but the estimate of a probe
        views = _committed_views(chain, store, record, scratch) if record is not None else _new_views(chain, store, scratch, on_rows)
        unasked = failures_of_outages(chain, store, record.parts, record.stops) if record is not None and outages else Retry()
        committed = [dict(view._records) for view in views]
        forecast = Forecast(chain, views, Retry(retry or {}, unasked.parts))
        found = forecast.walk()
        earlier = earlier_barriers(chain, committed, {chain.nodes[index].name: one.high for index, one in found.items()})
    plan = _static_plan(chain, out, views, record is None)
    _fill(plan, chain, found, record, views)
    plan.notes = [*_notes(store, chain, record), *earlier]
    return plan


def _committed_views(chain: Chain, store: Store, record: RunRecord, scratch: Store) -> list[PlanView]:
    views = [PlanView(chain, store, part, rows, scratch) for part, rows in enumerate(record.parts)]
    kinds = (VALUES, VERDICTS, RESOLVED)
    footers = store.records([(kind, node.name, view.part) for view in views for node in chain.nodes for kind in kinds])
    for view in views:
        view._records = {(kind, node.index): footers.get((kind, node.name, view.part)) for node in chain.nodes for kind in kinds}
    return views


def _new_views(chain: Chain, store: Store, scratch: Store, on_rows: Callable[[int], None]) -> list[PlanView]:
    """Views of parts that are not cut yet; the input is read once to count its rows and those it cannot read."""
    views = []
    total = 0
    for part, table in enumerate(input_parts(chain)):
        view = PlanView(chain, store, part, table.num_rows, scratch)
        good = table["failure"].combine_chunks().is_null().to_numpy(zero_copy_only=False)
        view.masks = Masks(good, good, good, good)
        view.unknown = {0: np.broadcast_to(np.True_, view.rows)}
        view._records = {(kind, node.index): None for node in chain.nodes for kind in (VALUES, VERDICTS, RESOLVED)}
        views.append(view)
        total += view.rows
        on_rows(total)
    if not views:
        raise no_rows(chain)
    return views


def _static_plan(chain: Chain, out: str | Path | None, views: list[PlanView], new: bool) -> Plan:
    groups = make_groups(chain)
    group_of = {step.node: group.index for group in reversed(groups) for step in group.steps}
    stages = [_stage_plan(node, chain, group_of[node.index]) for node in chain.nodes[1:]]
    recipe = chain.recipe
    return Plan(
        recipe=recipe.name,
        out=None if out is None else str(out),
        rows=sum(view.rows for view in views),
        parts=len(views),
        new=new,
        stages=stages,
        groups=[[chain.nodes[step.node].name for step in group.steps] for group in groups],
        barriers=_barriers(chain, groups),
        models={name: dict(spec) for name, spec in recipe.models.items()},
        jobs=[job.instance for job in recipe.jobs],
    )


def _stage_plan(node: Node, chain: Chain, group: int) -> StagePlan:
    stage = node.stage
    assert stage is not None

    def bound(reads: dict[str, Ref | None]) -> dict[str, str | None]:
        return {key: None if ref is None else chain.full_name(ref) for key, ref in reads.items()}

    return StagePlan(
        name=node.name,
        use=stage.name,
        reads={**bound(node.reads), **bound(node.reads_decide), **bound(node.reads_resolve)},
        adds=[*node.writes, *node.resolves],
        decides=stage.has_decide,
        resolves=node.has_resolve,
        model=stage.model_name if stage.uses_model else None,
        resources=stage.resources,
        group=group,
    )


def _barriers(chain: Chain, groups: list[Group]) -> list[Barrier]:
    barriers = []
    for group in groups:
        if group.barrier is None:
            continue
        node = chain.nodes[group.barrier]
        reads = [chain.full_name(ref) for ref in node.reads_resolve.values() if ref is not None]
        waiting = dict.fromkeys(chain.nodes[step.node].name for later in groups[group.index :] for step in later.steps)
        barriers.append(Barrier(node.name, reads, [name for name in waiting if name != node.name]))
    return barriers


def _fill(plan: Plan, chain: Chain, found: dict[int, NodeForecast], record: RunRecord | None, views: list[PlanView]) -> None:
    changes = _changes(chain, record)
    for stage, node in zip(plan.stages, chain.nodes[1:], strict=True):
        forecast, change = found[node.index], changes[node.name]
        stage.rows, stage.calls = (forecast.low, forecast.high), (forecast.calls_low, forecast.calls_high)
        stage.kept, stage.verdict_parts, stage.resolve = (forecast.kept_low, forecast.kept_high), forecast.verdict_parts, forecast.resolve
        stage.seconds = _estimate(node, views, forecast.high, "seconds")
        stage.model_seconds = _estimate(node, views, forecast.high, "model_seconds") if stage.model else None
        if record is None:
            stage.why = ["new run"]
        elif forecast.high:
            stage.why = compute_reasons(forecast.why, change, changes)
            if change.decide:
                stage.why.append(f"and the verdict changes: {'; '.join(change.decide)}")
        elif change.new and (forecast.verdict_parts or forecast.resolve):
            stage.why = ["new stage"]
        elif forecast.verdict_parts or forecast.resolve:
            stage.why = [verdict_reason(change, forecast.resolve)]
        else:
            stage.why = ["nothing to do"]


def _changes(chain: Chain, record: RunRecord | None) -> dict[str, StageChange]:
    old = record.recipe if record is not None else {}
    old_chain = None
    if record is not None:
        try:
            old_chain = Chain(build_recipe(record.recipe), chain.facts)
        except RecipeError:  # a plug-in of the earlier recipe is not at hand any more; its bindings are then not compared
            old_chain = None
    return {node.name: stage_change(node, chain, old, old_chain) for node in chain.nodes[1:]}


def _estimate(node: Node, views: list[PlanView], rows: int, key: str) -> float | None:
    """Seconds for `rows` at the rate that the footers of this stage's committed parts tell."""
    footers = [view.store.record(VALUES, node.name, view.part) for view in views[:200]] if rows else []
    told = [record.info for record in footers if record is not None and record.info.get("computed") and key in record.info]
    computed = sum(info["computed"] for info in told)
    return round(sum(info[key] for info in told) / computed * rows, 1) if computed else None


def _notes(store: Store, chain: Chain, record: RunRecord | None) -> list[str]:
    notes = []
    owner: Owner | None = read_owner(store.root / "lock")
    if owner is not None and owner.alive:
        notes.append(f"a run works in this folder now (process {owner.pid} on {owner.host}, {time.time() - owner.started:.0f} s): the numbers move")
    if record is not None:
        names = {node.name for node in chain.nodes}
        gone = [name for entry in record.recipe.get("stages", []) for name in entry if name not in names]
        if gone:
            notes.append(f"no longer in the recipe: {', '.join(gone)}; their files stay and are used again if they come back")
    return notes
