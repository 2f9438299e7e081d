"""Boolean expressions over stored columns: parsed, checked, and compiled to closures.

Never Python `eval` and never SQL. Grammar, from weakest to strongest binding:

    a or b | a and b | not a | a == b != < <= > >= , a in [x, y], a not in [x, y], a is null, a is not null
    | a + b, a - b | a * b, a / b, a % b | -a | f(a, b), (a), number, 'text', true, false, null, column

Columns are names (`clip_score`), names with their stage (`caption_short.n_words`) or anything in backticks. `=` is `==`.
Null: a comparison or an arithmetic step with null gives null; and, or, not follow three-valued logic (null and false is
false, null or true is true); `is null` and `in` never give null, save that null in [...] is null. A row passes only where
the whole is true: null does not pass. Division by zero gives null. Binary columns (sample_id) compare as hex text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import RecipeError
from stages.expression_columns import RowByRow, passes
from stages.expression_parser import ARITHMETIC, COMPARE, FUNCTIONS, Function, Node, Parser, fail, near

Evaluate = Callable[[Mapping[str, Any]], Any]


class Expression:
    """A parsed expression. `columns` are the names it reads, in order of appearance."""

    def __init__(self, source: str):
        self.source = source
        parser = Parser(source)
        self.root = parser.parse()
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(parser.columns))
        self._evaluate = _compile(self.root)

    @property
    def is_column(self) -> bool:
        """Whether the whole is one column."""
        return self.root.kind == "column"

    def value(self, row: Mapping[str, Any]) -> Any:
        """The value of the whole on a row. Raises RecipeError when kinds of values do not fit."""
        try:
            return self._evaluate(row)
        except TypeError as error:
            raise RecipeError(f"expression {self.source!r}: {error}; the columns hold {self._shown(row)}") from error

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """True where the row passes. Raises RecipeError when kinds of values do not fit (text < number)."""
        return self.value(row) is True

    def passing(self, columns: Mapping[str, pa.Array], rows: int) -> np.ndarray | None:
        """Rows that pass (bool [rows]), judged over whole columns; None where only `__call__` can judge the expression."""
        try:
            return passes(self.root, columns, rows)
        except RowByRow:
            return None

    def _shown(self, row: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} = {row.get(name)!r}" for name in self.columns)

    def check(self, available: Mapping[str, Any]) -> None:
        """Check names and kinds against the columns there are (name -> Arrow type, or None where unknown).

        Raises RecipeError with the place, and the nearest name for an unknown column.
        """
        kind = self.check_value(available)
        if kind not in ("boolean", "any"):
            fail(self.source, self.root.at, f"the whole is a {kind}, not true or false; compare it with something")

    def check_value(self, available: Mapping[str, Any]) -> str:
        """As `check`, whatever the kind of the whole, which is returned: boolean, number, text, list or any."""
        return _check(self.root, self.source, available)


def _compile(node: Node) -> Evaluate:
    """A closure that evaluates the node on a row."""
    if node.kind == "constant":
        return lambda row, value=node.value: value  # type: ignore[misc]
    if node.kind == "column":
        return _column(node.value)
    parts = [_compile(child) for child in node.children]
    if node.kind in COMPARE:
        return _binary(COMPARE[node.kind], *parts)
    if node.kind in ARITHMETIC:
        return _binary(ARITHMETIC[node.kind], *parts)
    if node.kind == "call":
        return _call(FUNCTIONS[node.value], parts)
    if node.kind == "list":
        return lambda row: [part(row) for part in parts]
    if node.kind == "in":
        return lambda row: None if (value := parts[0](row)) is None else value in parts[1](row)
    if node.kind == "and":
        return lambda row: _and(parts[0](row), parts[1], row)
    if node.kind == "or":
        return lambda row: _or(parts[0](row), parts[1], row)
    if node.kind == "not":
        return lambda row: None if (value := _boolean(parts[0](row))) is None else not value
    return lambda row: None if (value := parts[0](row)) is None else -value


def _column(name: str) -> Evaluate:
    def read(row: Mapping[str, Any]) -> Any:
        value = row[name]
        return value.hex() if isinstance(value, bytes) else value

    return read


def _binary(operation: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    def apply(row: Mapping[str, Any]) -> Any:
        a, b = left(row), right(row)
        if a is None or b is None:
            return None
        if isinstance(a, str) != isinstance(b, str):
            raise TypeError(f"{a!r} and {b!r} cannot be compared or added")
        try:
            return operation(a, b)
        except ZeroDivisionError:
            return None

    return apply


def _call(function: Function, parts: list[Evaluate]) -> Evaluate:
    def apply(row: Mapping[str, Any]) -> Any:
        values = [part(row) for part in parts]
        return None if not function.null_safe and any(value is None for value in values) else function.call(*values)

    return apply


def _boolean(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"{value!r} is not true or false")


def _and(left: Any, right: Evaluate, row: Mapping[str, Any]) -> bool | None:
    if _boolean(left) is False:
        return False
    other = _boolean(right(row))
    return False if other is False else (None if left is None or other is None else True)


def _or(left: Any, right: Evaluate, row: Mapping[str, Any]) -> bool | None:
    if _boolean(left) is True:
        return True
    other = _boolean(right(row))
    return True if other is True else (None if left is None or other is None else False)


def _kind_of(kind: Any) -> str:
    """boolean, number, text, list or any, for an Arrow type."""
    if not isinstance(kind, pa.DataType) or pa.types.is_null(kind):
        return "any"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return "text"
    return "list" if pa.types.is_nested(kind) else "any"


def _check(node: Node, source: str, available: Mapping[str, Any]) -> str:
    """Kind of the node's value; RecipeError where kinds do not fit."""
    if node.kind == "constant":
        value = node.value
        return (
            "any"
            if value is None
            else "boolean"
            if isinstance(value, bool)
            else "text"
            if isinstance(value, str)
            else "number"
        )
    if node.kind == "column":
        if node.value not in available:
            names = list(available)
            fail(source, node.at, f"no column {node.value!r}{near(node.value, names)}; there are: {', '.join(names)}")
        return _kind_of(available[node.value])
    kinds = [_check(child, source, available) for child in node.children]
    if node.kind in COMPARE or node.kind == "in":
        return _check_same(node, kinds, source)
    if node.kind in ARITHMETIC or node.kind == "negate":
        return _check_all(node, kinds, ("number",) * len(kinds), source, node.kind, "number")
    if node.kind in ("and", "or", "not"):
        return _check_all(node, kinds, ("boolean",) * len(kinds), source, node.kind, "boolean")
    if node.kind == "list":
        return kinds[0] if kinds else "any"
    function = FUNCTIONS[node.value]
    wanted = (*function.arguments, *[function.arguments[-1]] * len(kinds))[: len(kinds)]
    return _check_all(node, kinds, wanted, source, node.value, function.result)


def _check_same(node: Node, kinds: list[str], source: str) -> str:
    if len(set(kinds) - {"any"}) > 1:
        fail(source, node.at, f"{kinds[0]} and {kinds[1]} cannot be compared")
    return "boolean"


def _check_all(node: Node, kinds: list[str], wanted: tuple[str, ...], source: str, what: str, result: str) -> str:
    for child, kind, want in zip(node.children, kinds, wanted, strict=True):
        if "any" not in (kind, want) and kind not in want.split(" or "):
            fail(source, child.at, f"{what} needs a {want}, found a {kind}")
    return result
