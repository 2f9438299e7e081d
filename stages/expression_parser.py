"""Tokenizer and Pratt parser of the expressions of `select`; see stages.expression for the grammar and its meaning."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from pipeline.errors import RecipeError

_TOKENS: Final = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*|`[^`]+`)|(?P<op><=|>=|==|!=|<>|[-+*/%<>=()\[\],])|(?P<end>$))""",
    re.X,
)
_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})
COMPARE: Final = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ARITHMETIC: Final = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod}
_BINDING: Final = {
    "or": 1,
    "and": 2,
    "in": 4,
    "not": 4,
    "is": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
    "%": 6,
} | dict.fromkeys(COMPARE, 4)
_NOT, _NEGATE = 3, 7


@dataclass(frozen=True)
class Function:
    """A function: argument kinds ('any' takes all), whether the last repeats, kind of the result, and its code."""

    arguments: tuple[str, ...]
    result: str
    call: Callable[..., Any]
    repeats: bool = False
    null_safe: bool = False  # is called with nulls too


def host_of(url: str) -> str | None:
    """Host of a URL in lower case, without port, user and a leading 'www.'; None where there is none."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return host.removeprefix("www.") if host else None


_SECOND_LEVEL: Final = frozenset("ac co com edu gob gov go gen ltd me mil ne net nom or org plc sch web".split())


def domain_of(url: str) -> str | None:
    """The domain that somebody registered, by a rule of thumb: the last two labels of the host, three under a country's second level (co.uk, com.br)."""
    host = host_of(url)
    labels = host.split(".") if host else []
    if len(labels) < 3 or ":" in (host or "") or labels[-1].isdigit():
        return host
    return ".".join(labels[-3 if len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else -2 :])


FUNCTIONS: Final[dict[str, Function]] = {
    "length": Function(("text or list",), "number", len),
    "lower": Function(("text",), "text", str.lower),
    "upper": Function(("text",), "text", str.upper),
    "contains": Function(("text", "text"), "boolean", lambda text, part: part in text),
    "starts_with": Function(("text", "text"), "boolean", str.startswith),
    "ends_with": Function(("text", "text"), "boolean", str.endswith),
    "host": Function(("text",), "text", host_of),
    "domain": Function(("text",), "text", domain_of),
    "abs": Function(("number",), "number", abs),
    "min": Function(("number", "number"), "number", min, repeats=True),
    "max": Function(("number", "number"), "number", max, repeats=True),
    "is_null": Function(("any",), "boolean", lambda value: value is None, null_safe=True),
    "coalesce": Function(
        ("any", "any"),
        "any",
        lambda *values: next((v for v in values if v is not None), None),
        repeats=True,
        null_safe=True,
    ),
}


@dataclass(frozen=True)
class Token:
    kind: str  # number, text, name, column, op, end
    value: Any
    at: int


@dataclass(frozen=True)
class Node:
    """kind: constant, column, call, list or an operator. `at` is the place in the source, from 0."""

    kind: str
    at: int
    value: Any = None
    children: tuple[Node, ...] = field(default=())


def fail(source: str, at: int, problem: str) -> NoReturn:
    raise RecipeError(f"expression, character {at + 1}: {problem}\n  {source}\n  {' ' * at}^")


def near(name: str, choices: Sequence[str]) -> str:
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _tokenize(source: str) -> list[Token]:
    tokens, at = [], 0
    while True:
        match = _TOKENS.match(source, at)
        if match is None:
            start = at + len(source[at:]) - len(source[at:].lstrip())
            fail(
                source,
                start,
                "a text without its closing quote" if source[start] in "'\"`" else f"unexpected {source[start]!r}",
            )
        kind = str(match.lastgroup)
        raw, start, at = match[kind], match.start(kind), match.end()
        tokens.append(_token(kind, raw, start))
        if kind == "end":
            return tokens


def _token(kind: str, raw: str, at: int) -> Token:
    if kind == "number":
        return Token(kind, float(raw) if re.search("[.eE]", raw) else int(raw), at)
    if kind == "text":
        return Token(kind, re.sub(r"\\(.)", r"\1", raw[1:-1]), at)
    if kind == "name" and raw.startswith("`"):
        return Token("column", raw[1:-1], at)
    if kind == "name" and raw.lower() in _WORDS:
        return Token("op", raw.lower(), at)
    return Token(kind, {"=": "==", "<>": "!="}.get(raw, raw), at)


class Parser:
    """Pratt parser: `expression(binding)` reads all that binds more tightly."""

    def __init__(self, source: str):
        self.source = source
        self.tokens = _tokenize(source)
        self.place = 0
        self.columns: list[str] = []

    @property
    def ahead(self) -> Token:
        return self.tokens[self.place]

    def take(self) -> Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def expect(self, value: str, why: str) -> Token:
        if self.ahead.kind != "op" or self.ahead.value != value:
            fail(self.source, self.ahead.at, f"expected {value!r} {why}")
        return self.take()

    def at_op(self, value: str) -> bool:
        return self.ahead.kind == "op" and self.ahead.value == value

    def parse(self) -> Node:
        root = self.expression(0)
        if self.ahead.kind != "end":
            fail(self.source, self.ahead.at, f"unexpected {self.ahead.value!r} after the end of the expression")
        return root

    def expression(self, binding: int) -> Node:
        left = self.prefix()
        compared = False
        while self.ahead.kind == "op" and (power := _BINDING.get(self.ahead.value, 0)) > binding:
            if power == _BINDING["=="]:
                if compared:
                    fail(self.source, self.ahead.at, "comparisons cannot be chained; join them with `and`")
                compared = True
            left = self.infix(left, self.take(), power)
        return left

    def prefix(self) -> Node:
        token = self.take()
        if token.kind in ("number", "text"):
            return Node("constant", token.at, token.value)
        if token.kind == "column" or (token.kind == "name" and not self.at_op("(")):
            self.columns.append(token.value)
            return Node("column", token.at, token.value)
        if token.kind == "name":
            return self.call(token)
        if token.kind == "op" and token.value in ("true", "false", "null"):
            return Node("constant", token.at, {"true": True, "false": False, "null": None}[token.value])
        if token.kind == "op" and token.value == "not":
            return Node("not", token.at, None, (self.expression(_NOT),))
        if token.kind == "op" and token.value == "-":
            return Node("negate", token.at, None, (self.expression(_NEGATE),))
        if token.kind == "op" and token.value == "(":
            inner = self.expression(0)
            self.expect(")", "to close the bracket")
            return inner
        fail(
            self.source,
            token.at,
            "expected a column, a number, a text or '('" if token.kind == "end" else f"unexpected {token.value!r}",
        )

    def infix(self, left: Node, token: Token, power: int) -> Node:
        negated = False
        if token.value == "not":
            self.expect("in", "after 'not'")
            negated, token = True, Token("op", "in", token.at)
        if token.value == "in":
            node = Node("in", token.at, None, (left, self.list()))
        elif token.value == "is":
            negated = self.at_op("not") and bool(self.take())
            self.expect("null", "after 'is'")
            node = Node("call", token.at, "is_null", (left,))
        else:
            return Node(token.value, token.at, None, (left, self.expression(power)))
        return Node("not", token.at, None, (node,)) if negated else node

    def list(self) -> Node:
        opening = self.ahead
        if not (self.at_op("[") or self.at_op("(")):
            fail(self.source, opening.at, "expected a list such as ['en', 'de']")
        self.take()
        return Node("list", opening.at, None, self.items("]" if opening.value == "[" else ")"))

    def call(self, name: Token) -> Node:
        if name.value not in FUNCTIONS:
            fail(
                self.source,
                name.at,
                f"no function {name.value!r}{near(name.value, list(FUNCTIONS))}; there are: {', '.join(FUNCTIONS)}",
            )
        self.take()
        node = Node("call", name.at, name.value, self.items(")"))
        function, given = FUNCTIONS[name.value], len(node.children)
        if given != len(function.arguments) and not (function.repeats and given >= 1):
            fail(self.source, name.at, f"{name.value} takes {len(function.arguments)} arguments, found {given}")
        return node

    def items(self, closing: str) -> tuple[Node, ...]:
        found: list[Node] = []
        while not self.at_op(closing):
            found.append(self.expression(0))
            if not self.at_op(closing):
                self.expect(",", f"or {closing!r}")
        self.take()
        return tuple(found)
