"""Expressions over whole columns: what `Expression` says of each row, for the commoner part of the language.

Numbers, texts and booleans with constants, comparison, arithmetic, and, or, not, in, is null, abs, length, contains, starts_with and ends_with.
Anything else, and whole numbers beyond 2^53, raise RowByRow: then each row is asked by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reason_columns import as_numbers, is_null, is_true
from stages.expression_parser import ARITHMETIC, COMPARE, Node

_EXACT = 1 << 53  # whole numbers below it are exact as float64
_TEXT_COMPARE: Mapping[str, Callable[..., Any]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_TEXT_TESTS: Mapping[str, Callable[..., Any]] = {"contains": pc.match_substring, "starts_with": pc.starts_with, "ends_with": pc.ends_with}


class RowByRow(Exception):
    """The expression has what columns cannot do."""


@dataclass(frozen=True)
class Cells:
    """Values of N rows, or one constant. kind: number, text, boolean or null; `values` numpy (text: Arrow) or a scalar; `null` bool [N] or one."""

    kind: str
    values: Any
    null: Any


def passes(root: Node, columns: Mapping[str, pa.Array], rows: int) -> np.ndarray:
    """Rows for which the whole is true (bool [rows]); null does not pass. Raises RowByRow."""
    found = _evaluate(root, columns)
    if found.kind == "null":
        return np.zeros(rows, bool)
    if found.kind != "boolean":
        raise RowByRow
    return np.array(np.broadcast_to(np.asarray(found.values, bool) & ~np.asarray(found.null, bool), rows))


def _evaluate(node: Node, columns: Mapping[str, pa.Array]) -> Cells:
    if node.kind == "constant":
        return _constant(node.value)
    if node.kind == "column":
        return _column(columns[node.value])
    if node.kind == "in":
        return _in(_evaluate(node.children[0], columns), node.children[1])
    parts = [_evaluate(child, columns) for child in node.children]
    if node.kind == "call":
        return _call(node.value, parts)
    if any(part.kind == "null" for part in parts) and node.kind not in ("and", "or"):
        return Cells("null", False, True)
    if node.kind in COMPARE:
        return _compare(node.kind, *parts)
    if node.kind in ARITHMETIC:
        return _arithmetic(node.kind, *parts)
    if node.kind in ("and", "or"):
        return _logic(node.kind == "and", *parts)
    _of_kind("boolean" if node.kind == "not" else "number", *parts)
    return Cells(parts[0].kind, np.logical_not(parts[0].values) if node.kind == "not" else np.negative(parts[0].values), parts[0].null)


def _constant(value: Any) -> Cells:
    if value is None:
        return Cells("null", False, True)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _EXACT:
        raise RowByRow
    return Cells("boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number", value, False)


def _column(column: pa.Array) -> Cells:
    kind = column.type
    null = is_null(column) if column.null_count else False
    if pa.types.is_null(kind):
        return Cells("null", False, True)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return Cells("text", column, null)
    if pa.types.is_boolean(kind):
        return Cells("boolean", is_true(column), null)
    if pa.types.is_integer(kind):
        values = as_numbers(column.fill_null(0) if column.null_count else column)
        if kind.bit_width == 64:
            _exact(values)
        return Cells("number", values.astype(np.int64), null)
    if pa.types.is_floating(kind):
        return Cells("number", as_numbers(column.fill_null(0) if column.null_count else column).astype(np.float64), null)
    if pa.types.is_list(kind):
        return Cells("list", column, null)
    raise RowByRow


def _exact(values: Any) -> Any:
    if len(np.atleast_1d(values)) and max(-int(np.min(values)), int(np.max(values))) >= _EXACT:
        raise RowByRow
    return values


def _of_kind(kind: str, *parts: Cells) -> None:
    if any(part.kind != kind for part in parts):
        raise RowByRow


def _compare(name: str, left: Cells, right: Cells) -> Cells:
    null = np.logical_or(left.null, right.null)
    if left.kind == right.kind == "text":
        if isinstance(left.values, str) and isinstance(right.values, str):
            return Cells("boolean", COMPARE[name](left.values, right.values), null)
        return Cells("boolean", is_true(_TEXT_COMPARE[name](_arrow(left), _arrow(right))), null)
    if left.kind != right.kind:
        raise RowByRow
    return Cells("boolean", COMPARE[name](left.values, right.values), null)


def _arrow(cells: Cells) -> Any:
    return pa.scalar(cells.values) if isinstance(cells.values, str) else cells.values


def _arithmetic(name: str, left: Cells, right: Cells) -> Cells:
    _of_kind("number", left, right)
    a, b, null = np.asarray(left.values), np.asarray(right.values), np.logical_or(left.null, right.null)
    whole = a.dtype.kind == b.dtype.kind == "i"
    if name in ("/", "%"):
        null, b = np.logical_or(null, b == 0), np.where(b == 0, 1, b)
    if whole and name == "*" and a.size and b.size and float(np.abs(a).max()) * float(np.abs(b).max()) >= _EXACT:
        raise RowByRow
    with np.errstate(all="ignore"):
        found = ARITHMETIC[name](a, b)
    if not whole and name == "%" and not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise RowByRow
    return Cells("number", _exact(found) if whole and name != "/" else found, null)


def _logic(both: bool, left: Cells, right: Cells) -> Cells:
    """Three-valued: false decides `and`, true decides `or`, else a null makes null."""
    for part in (left, right):
        if part.kind not in ("boolean", "null"):
            raise RowByRow
    truths = [np.asarray(part.values, bool) & ~np.asarray(part.null, bool) for part in (left, right)]
    falses = [~np.asarray(part.values, bool) & ~np.asarray(part.null, bool) for part in (left, right)]
    true = truths[0] & truths[1] if both else truths[0] | truths[1]
    false = falses[0] | falses[1] if both else falses[0] & falses[1]
    return Cells("boolean", true, ~true & ~false)


def _in(value: Cells, listed: Node) -> Cells:
    if any(child.kind != "constant" for child in listed.children):
        raise RowByRow
    if value.kind == "null":
        return value
    wanted = [child.value for child in listed.children if child.value is not None]
    kinds = {_constant(one).kind for one in wanted}
    if kinds - {value.kind} or isinstance(value.values, str):
        raise RowByRow
    if value.kind == "text":
        return Cells("boolean", is_true(pc.is_in(value.values, pa.array(wanted, value.values.type))), value.null)
    found = np.zeros(np.shape(value.values), bool)
    for one in wanted:
        found |= np.equal(value.values, one)
    return Cells("boolean", found, value.null)


def _call(name: str, parts: list[Cells]) -> Cells:
    first = parts[0]
    if name == "is_null":
        return Cells("boolean", np.asarray(first.null, bool), False)
    if any(part.kind == "null" for part in parts):
        return Cells("null", False, True)
    if name == "abs" and first.kind == "number":
        return Cells("number", np.abs(first.values), first.null)
    if isinstance(first.values, pa.Array) and name == "length":
        lengths = pc.utf8_length(first.values) if first.kind == "text" else pc.list_value_length(first.values)
        return Cells("number", as_numbers(lengths.fill_null(0)).astype(np.int64), first.null)
    if name in _TEXT_TESTS and isinstance(first.values, pa.Array) and first.kind == "text" and isinstance(parts[1].values, str):
        return Cells("boolean", is_true(_TEXT_TESTS[name](first.values, pattern=parts[1].values)), first.null)
    raise RowByRow
