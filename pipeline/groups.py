"""Groups: consecutive steps of one part that run as one task, cut at barriers and where the resources change."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

from pipeline.budget import Runs
from pipeline.chain import Chain, Node
from pipeline.environment import Environment, Isolation
from pipeline.part import StepResult, is_done, run_part
from pipeline.together import may_follow, run_together
from pipeline.view import PartView


@dataclass(frozen=True, slots=True)
class Step:
    """Part of the work at one node: measuring, judging, or both (a resolve stands between the two)."""

    node: int
    measure: bool
    judge: bool


@dataclass(frozen=True)
class Group:
    """Steps that run as one task. `barrier` is the node whose resolve must be done for all parts before."""

    index: int
    steps: tuple[Step, ...]
    barrier: int | None = None
    model: str | None = None


@dataclass
class GroupTask:
    """One group on one part, as it travels to a worker."""

    group: int
    part: int
    rows: int
    isolation: Isolation | None = None
    attempt: int = 0
    recent: dict[str, Runs] = field(default_factory=dict)


def make_groups(chain: Chain) -> list[Group]:
    """Split the chain's steps into groups. Grouping changes how work is sent out, never a byte of what is written."""
    groups: list[Group] = []
    steps: list[Step] = []
    barrier: int | None = None
    key: tuple[str, str | None] | None = None

    def close() -> None:
        nonlocal steps, barrier, key
        if steps:
            groups.append(Group(len(groups), tuple(steps), barrier, key[1] if key else None))
        steps, barrier, key = [], None, None

    for node in chain.nodes[1:]:
        if node.has_compute or not node.has_resolve:
            wanted = _resources(node)
            if steps and key not in (None, wanted):
                close()
            key = wanted
            steps.append(Step(node.index, node.has_compute, not node.has_resolve))
        if node.has_resolve:
            close()
            barrier = node.index
            steps.append(Step(node.index, False, True))
    close()
    return groups


def _resources(node: Node) -> tuple[str, str | None]:
    stage = node.stage
    assert stage is not None
    return stage.resources, stage.model_name if stage.uses_model else None


def group_done(group: Group, view: PartView) -> bool:
    """True when nothing of a group is left to do for a part, judged from footers alone."""
    return all(is_done(view.chain.nodes[step.node], view) for step in group.steps)


def run_group(env: Environment, group: Group, task: GroupTask) -> list[StepResult]:
    """Run the steps of a group on one part in order; each stage commits its own files."""
    env.isolation, env.recent = task.isolation, task.recent
    view = PartView(env.chain, env.store, task.part, task.rows)
    # Row mappings are many and never cyclic: cycle collection over them costs more than the machine itself does.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return [result for steps in _runs(env, group, view) for result in _run_steps(env, steps, view)]
    finally:
        if collecting:
            gc.enable()


def _runs(env: Environment, group: Group, view: PartView) -> list[list[Step]]:
    """The steps of a group, those together through which batches may pass one after the other."""
    runs: list[list[Step]] = []
    for step in group.steps:
        nodes = [env.chain.nodes[other.node] for other in runs[-1]] if runs else []
        alone = env.isolation is not None or not (step.measure and step.judge)
        if nodes and not alone and may_follow(env.chain.nodes[step.node], nodes, env, view):
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _run_steps(env: Environment, steps: list[Step], view: PartView) -> list[StepResult]:
    nodes = [env.chain.nodes[step.node] for step in steps]
    if len(steps) == 1 or all(is_done(node, view) for node in nodes):
        return [run_part(node, view, env, step.measure, step.judge) for node, step in zip(nodes, steps, strict=True)]
    return run_together(nodes, view, env)
