"""Which columns of a run are numbers that a report draws, and where the recipe's thresholds lie in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.stage import Stage, Vector, params_affecting
from schemas.columns import CORE_BY_NAME, LOCATION_COLUMNS
from schemas.outcome import Reason
from stages.expression_parser import Node as Expr
from stages.mllm_score import MllmScore
from stages.report.words import MEANINGS
from stages.select import Select

_NO_QUANTITY = frozenset({*LOCATION_COLUMNS, "http_status", "cluster"})  # numbers that measure nothing
# Parameters whose column does not follow from their name: (stage, parameter) -> column.
_ELSEWHERE = {("repeated_text", "max_count"): "least_n_text"}

_REASONS = frozenset(str(reason) for reason in Reason)
_SIDES = {">=": "min", ">": "min", "<=": "max", "<": "max"}


@dataclass(frozen=True)
class Measure:
    """A column of numbers. `label` is its name where no other stage writes that name, else its full name."""

    label: str
    ref: Ref
    stage: str
    is_score: bool
    meaning: str


@dataclass(frozen=True)
class Threshold:
    """`side` 'min': values below `value` fall; 'max': values above. `stage` is the instance that drops."""

    measure: int
    stage: str
    side: str
    value: float
    parameter: str
    reasons: frozenset[str] = frozenset()  # those it can be the cause of, where the parameter's description names them

    @property
    def sign(self) -> str:
        return "≥" if self.side == "min" else "≤"


def find_measures(chain: Chain, most: int) -> list[Measure]:
    """Columns of numbers in the order of the chain, scores (floats) of stages first; at most `most`."""
    refs = [
        (Ref(node.index, column, resolved), kind)
        for node in chain.nodes
        for columns, resolved in ((node.writes, False), (node.resolves, True))
        for column, kind in columns.items()
        if not isinstance(kind, Vector) and (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and column not in _NO_QUANTITY
    ]
    names = [ref.column for ref, _ in refs]
    found = []
    for ref, kind in refs:
        stage = chain.nodes[ref.node].name
        label = ref.column if names.count(ref.column) == 1 else f"{stage}.{ref.column}"
        core = CORE_BY_NAME.get(ref.column)
        own = MEANINGS.get((str(getattr(chain.nodes[ref.node].stage, "name", "")), ref.column), "")
        meaning = "carried from the input" if not ref.node else core.meaning if core is not None else own
        found.append(Measure(label, ref, stage, pa.types.is_floating(kind) and ref.node > 0, meaning))
    return sorted(found, key=lambda measure: not measure.is_score)[:most]


def find_thresholds(chain: Chain, measures: list[Measure]) -> list[Threshold]:
    """Limits of the recipe that lie on a measure, by the names of decide parameters (see `_column_of`) and, for `select`,
    by comparisons of a column with a number that all must hold."""
    places = {measure.ref: place for place, measure in enumerate(measures)}
    found = []
    for node in chain.nodes[1:]:
        assert node.stage is not None
        named = [(parameter, side, ref, value) for parameter, side, ref, value in _parameters(node, node.stage)]
        if isinstance(node.stage, MllmScore):
            named += [(f"thresholds.{aspect}", "min", Ref(node.index, aspect), lowest) for aspect, lowest in node.stage.lowest().items()]
        if isinstance(node.stage, Select) and node.stage.expression is not None:
            named += [("where", side, node.reads_decide.get(column), value) for column, side, value in _limits(node.stage.expression.root)]
        fields = type(node.stage.params).model_fields
        for name, side, ref, value in named:
            if ref in places:
                told = re.findall(r"\(([a-z_]+)\)", (fields[name].description if name in fields else "") or "")
                found.append(Threshold(places[ref], node.name, side, value, name, frozenset(told) & _REASONS))
    return found


def _parameters(node: Node, stage: Stage) -> Iterator[tuple[str, str, Ref | None, float]]:
    for parameter, value in params_affecting(stage.params, "decide").items():
        side = next((side for side in ("min", "max") if parameter == side or parameter.startswith(f"{side}_")), None)
        if side and isinstance(value, int | float) and not isinstance(value, bool):
            yield parameter, side, _column_of(node, stage, parameter, side), float(value)


def _limits(root: Expr) -> Iterator[tuple[str, str, float]]:
    """(column, side, value) of the comparisons with a number that must all hold."""
    if root.kind == "and":
        for child in root.children:
            yield from _limits(child)
    elif root.kind in _SIDES and len(root.children) == 2:
        (left, right), side = root.children, _SIDES[root.kind]
        if right.kind == "column":
            left, right, side = right, left, "max" if side == "min" else "min"
        value = _constant(right)
        if left.kind == "column" and value is not None:
            yield str(left.value), side, value


def _constant(node: Expr) -> float | None:
    if node.kind == "negate":
        value = _constant(node.children[0])
        return None if value is None else -value
    number = node.kind == "constant" and isinstance(node.value, int | float) and not isinstance(node.value, bool)
    return float(node.value) if number else None


def _column_of(node: Node, stage: Stage, parameter: str, side: str) -> Ref | None:
    """The stage's column that a parameter limits: `min_x` limits x or n_x; a bare `min` the column named as the stage, or its
    only column of numbers."""
    columns = {**dict.fromkeys(node.writes, False), **dict.fromkeys(node.resolves, True)}
    wanted = parameter.removeprefix(side).removeprefix("_")
    names = [_ELSEWHERE.get((stage.name, parameter), ""), wanted, f"n_{wanted}", *([stage.name] if not wanted else [])]
    for name in names:
        if name in columns:
            return Ref(node.index, name, columns[name])
    if wanted:
        return None
    kinds = {**node.writes, **node.resolves}
    numbers = [name for name, kind in kinds.items() if not isinstance(kind, Vector) and (pa.types.is_floating(kind) or pa.types.is_integer(kind))]
    return Ref(node.index, numbers[0], columns[numbers[0]]) if len(numbers) == 1 else None
