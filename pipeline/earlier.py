"""What an earlier barrier would save and cost: a stage that compares all rows and drops some, put before the model instead of behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.chain import IMAGE, Chain, Node
from pipeline.console import number
from pipeline.store import VALUES, VERDICTS
from schemas.record import PartRecord

Footers = Mapping[tuple[str, int], PartRecord | None]  # (kind, index of the node)


@dataclass(frozen=True)
class Move:
    """`moved` (the stage that drops last) could stand before `model`, the first model stage that it stands behind. `lost`: columns that it, or a stage that
    moves with it, would do without."""

    model: Node
    moved: list[Node]
    lost: list[str]


def moves(chain: Chain) -> list[Move]:
    """One for each stage that compares all rows, may drop some, stands behind a model, and reads nothing that only a model makes."""
    found = []
    if chain.recipe.late:  # dropped rows are measured all the same
        return []
    for node in chain.nodes[1:]:
        model = next((one for one in chain.nodes[1 : node.index] if one.stage is not None and one.stage.uses_model), None)
        if model is None or not node.has_resolve or node.has_compute or node.stage is None or not node.stage.has_decide:
            continue
        moved = _movable(chain, model, node)
        if node in moved:
            used = [one for one in moved if one is node or any(ref is not None and ref.node == one.index for ref in node.reads_resolve.values())]
            found.append(Move(model, used, _lost(chain, model, used)))
    return found


def _movable(chain: Chain, model: Node, last: Node) -> list[Node]:
    """Stages behind the model, up to `last`, that only compare rows and whose columns there are before the model, or are made by others of them."""
    found: list[Node] = []
    for node in chain.nodes[model.index + 1 : last.index + 1]:
        if node.stage is None or node.has_compute or not node.has_resolve:
            continue
        made = {column for one in found for column in one.resolves}
        needed = [spec.split("|") for spec in node.stage.reads_resolve if not spec.endswith("?") and spec != IMAGE]
        if all(any(name in made or chain._find(name, model.index) is not None for name in names) for names in needed):
            found.append(node)
    return found


def _lost(chain: Chain, model: Node, moved: list[Node]) -> list[str]:
    """Columns that the moved stages read and that there are neither before the model nor from others of them."""
    lost: dict[str, None] = {}
    for node in moved:
        for spec in node.stage.reads_resolve if node.stage is not None else ():
            names = [name.rstrip("?") for name in spec.split("|")]
            ref = node.reads_resolve.get(names[0])
            made = ref is None or any(ref.node == other.index for other in moved)
            if not made and all(chain._find(name, model.index) is None for name in names):
                lost[names[0]] = None
    return list(lost)


def notes(chain: Chain, footers: Sequence[Footers], most: dict[str, int]) -> list[str]:
    """Sentences for the plan. footers: of each committed part; most: rows that each stage measures at most in a new run."""
    return [_told(chain, footers, move, most) for move in moves(chain)]


def _told(chain: Chain, footers: Sequence[Footers], move: Move, most: dict[str, int]) -> str:
    last, model = move.moved[-1], move.model
    dropped = sum(record.counts.get("dropped", 0) for part in footers if (record := part.get((VERDICTS, last.index))) is not None)
    asked = [node for node in chain.nodes[model.index : last.index] if node.stage is not None and node.stage.uses_model]
    before = [node for node in chain.nodes[1 : model.index] if node.has_compute]
    measured, seconds, rate = _work(footers, [model])
    names = ", ".join(node.name for node in move.moved)
    if measured:
        share = sum(_work(footers, [node])[2] for node in asked) * dropped
        saves = f"{dropped:,} of the {measured:,} rows that {model.name} measured here, which {last.name} drops (some {round(share, 1):,} model-seconds)"
        overlap = min(_work(footers, before)[1], seconds)
        waits = f", an overlap of up to {number(round(overlap))} s of work by the rates of this run"
    else:
        saves = f"{model.name} of the rows that {last.name} drops, of up to {most.get(model.name, 0):,}; a finished run, or one of a sample, tells how many"
        waits = ""
    costs = f"{model.name} begins only when {', '.join(node.name for node in before) or 'the input'} went over all parts{waits}"
    lost = f"; {last.name} chooses without {', '.join(move.lost)}" if move.lost else ""
    return f"an earlier barrier, {names} before {model.name}: saves {saves}; costs: {costs}{lost}, and rows go with a kept row that {model.name} may drop"


def _work(footers: Sequence[Footers], nodes: Sequence[Node]) -> tuple[int, float, float]:
    """(rows, seconds, seconds of the model or else of the stage for a row) that footers of some stages tell."""
    told = [record.info for node in nodes for part in footers if (record := part.get((VALUES, node.index))) is not None and record.info.get("computed")]
    rows, seconds = sum(info["computed"] for info in told), sum(info.get("seconds", 0.0) for info in told)
    return rows, seconds, sum(info.get("model_seconds", info.get("seconds", 0.0)) for info in told) / rows if rows else 0.0
