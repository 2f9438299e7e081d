"""A stage's answers as columns: checked against its declaration, and joined from pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chain import Node
from pipeline.errors import Fatal
from pipeline.stage import Vector
from pipeline.store import to_storage
from schemas.outcome import Failure


@dataclass
class Computed:
    """Columns [n] and failures [n] (None where there is a value) of the rows that were computed, in their order; tokens: of prompts and answers."""

    columns: dict[str, pa.Array]
    failures: list[Failure | None]
    calls: int = 0
    tokens: tuple[int, int] = (0, 0)
    model_seconds: float = 0.0


def pack(node: Node, answers: list[Any], expected: int) -> Computed:
    """Check a stage's answers against its declaration and turn them into columns."""
    if not isinstance(answers, list) or len(answers) != expected:
        found = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
        raise Fatal(f"{node.name}: compute must return a list of {expected} Values or Failures, returned {found}")
    names = list(node.writes)
    failures: list[Failure | None] = [None] * expected
    if set(map(type, answers)) != {dict}:
        answers = _without_failures(node, answers, failures)
    try:
        columns = {name: to_storage([answer[name] for answer in answers], kind) for name, kind in node.writes.items()}
    except KeyError as error:
        raise Fatal(f"{node.name}: compute must give every declared column; {error} is missing") from error
    if sum(map(len, answers)) != expected * len(names):
        extra = sorted({key for answer in answers for key in answer} - set(names))
        raise Fatal(f"{node.name}: compute must give exactly the declared columns; differs in {', '.join(extra)}")
    return Computed(columns, failures)


def _without_failures(node: Node, answers: list[Any], failures: list[Failure | None]) -> list[Any]:
    """Answers with null columns in the place of failures, which are put into `failures`."""
    absent = dict.fromkeys(node.writes)
    for place, answer in enumerate(answers):
        if isinstance(answer, Failure):
            failures[place] = answer
    return [absent if failure else answer for answer, failure in zip(answers, failures, strict=True)]


def all_failed(node: Node, failure: Failure, rows: int) -> Computed:
    columns = {name: to_storage([None] * rows, kind) for name, kind in node.writes.items()}
    return Computed(columns, [failure] * rows)


def join(node: Node, done: list[tuple[np.ndarray, Computed]]) -> Computed:
    """What was computed of some rows, as one, in the order of the rows."""
    order = np.concatenate([batch for batch, _ in done]) if done else np.empty(0, np.int64)
    back = pa.array(np.argsort(order, kind="stable"))
    columns = {
        name: _concat([computed.columns[name] for _, computed in done], kind).take(back)
        for name, kind in node.writes.items()
    }
    failures = [failure for _, computed in done for failure in computed.failures]
    if any(failures):
        failures = [failures[place] for place in back.to_pylist()]
    return Computed(columns, failures)


def _concat(arrays: list[pa.Array], kind: Any) -> pa.Array:
    if not arrays:
        return to_storage([], kind)
    if isinstance(kind, Vector):
        width = max(array.type.byte_width for array in arrays)
        arrays = [pa.nulls(len(a), pa.binary(width)) if a.type.byte_width != width else a for a in arrays]
    return pa.concat_arrays(arrays)
