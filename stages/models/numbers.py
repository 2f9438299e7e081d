"""Probabilities of the numbers 0 to 100 as the beginning of an answer, for tokenizers that have whole numbers and for those that split them.

Most tokenizers (Qwen's, Llama's) write 87 as the tokens 8 and 7. The tokens of all numbers form a tree; the probability of a number is the product of those
along its tokens, times, where other numbers go on from it (8 and 87, 10 and 100), the probability that none of them does. So each answer counts as the
longest number of the tree that it begins with. What the model says after the prompt and some digits costs the engine one further token: `Walk` names the
places that are worth it. With whole numbers all is known after the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from stages.models.protocols import NUMBERS
from stages.models.rendering import number_ids

LEFT_OUT = 0.005
"""Share of the probability of all numbers that may lie in places that are not asked. A mean over the others, weighted by their probabilities, is at most
this share of 100 away, half a point of the score: two means of numbers from 0 to 100 differ by 100 at most."""

Path = tuple[Any, ...]
"""Tokens from the start of the answer on: ids, or texts."""


class Tree(Protocol):
    """Which tokens spell which number."""

    def number(self, path: Path) -> int | None:
        """The number that a path spells; None for none."""
        ...

    def goes_on(self, path: Path) -> bool:
        """Whether further tokens may make a number, or another one, of it."""
        ...


class TokenTree:
    """The numbers as token ids of a tokenizer."""

    def __init__(self, spelled: Mapping[tuple[int, ...], int]):
        self.spelled = dict(spelled)
        after: dict[tuple[int, ...], set[int]] = {}
        for path in spelled:
            for at, token in enumerate(path):
                after.setdefault(path[:at], set()).add(token)
        self._after = {path: sorted(tokens) for path, tokens in after.items()}
        self.whole = set(after) <= {()}
        self.most_tokens = max(map(len, after.values()), default=0)

    def number(self, path: Path) -> int | None:
        return self.spelled.get(path)

    def goes_on(self, path: Path) -> bool:
        return path in self._after

    def tokens_after(self, path: Path) -> list[int]:
        """Token ids that a number may go on with, in order."""
        return self._after.get(path, [])


class Walk:
    """From the start of an answer to the probabilities of the numbers: `due` says where to look next, `put` what was seen there."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.found: dict[int, float] = {}
        self._open: dict[Path, float] = {(): 1.0}

    def due(self) -> list[Path]:
        """Paths after which the next token's probabilities are needed, likeliest first; none when at most LEFT_OUT of all lies in paths not looked at."""
        allowed = LEFT_OUT * (sum(self.found.values()) + sum(self._open.values()))
        rest, asked = sum(self._open.values()), []
        for path in sorted(self._open, key=lambda path: (-self._open[path], path)):
            if rest <= allowed:
                break
            asked.append(path)
            rest -= self._open[path]
        return asked

    def put(self, path: Path, chances: Iterable[tuple[Any, float]]) -> None:
        """The probabilities of tokens after an open path; those of no number are left aside."""
        share, on = self._open.pop(path), 0.0
        for token, chance in chances:
            longer = (*path, token)
            number = self.tree.number(longer)
            if self.tree.goes_on(longer):
                self._open[longer] = self._open.get(longer, 0.0) + share * chance  # a server may tell of two tokens by one text
            elif number is not None:
                self._add(number, share * chance)
            else:
                continue
            on += chance
        own = self.tree.number(path)
        if own is not None:
            self._add(own, share * max(0.0, 1.0 - on))

    def _add(self, number: int, chance: float) -> None:
        self.found[number] = self.found.get(number, 0.0) + chance


def number_tree(tokenizer: Any) -> TokenTree:
    """The tokens of the numbers 0 to 100, each with and without a space before it. Where every number is one token, the single tokens alone; empty where
    the tokenizer cannot tell the numbers apart."""
    whole = number_ids(tokenizer)
    if whole:
        return TokenTree({(token,): number for token, number in whole.items()})
    spelled: dict[tuple[int, ...], int] = {}
    for number in NUMBERS:
        for text in (str(number), f" {number}"):
            for path in _spellings(tokenizer, text):
                if spelled.setdefault(path, number) != number:
                    return TokenTree({})
    return TokenTree(spelled)


def _spellings(tokenizer: Any, text: str) -> set[tuple[int, ...]]:
    """A text by itself, before which some tokenizers put a space, and as it follows a line break."""
    alone, line, behind = (tuple(tokenizer(given, add_special_tokens=False)["input_ids"]) for given in (text, "\n", f"\n{text}"))
    return {path for path in (alone, behind[len(line) :] if behind[: len(line)] == line else ()) if path}


class TextTree:
    """The numbers as a server tells of tokens, by their texts, where the tokenizer is not at hand and splits numbers."""

    def number(self, path: Path) -> int | None:
        if not all(word.isascii() and word.isdigit() for word in path[1:]):
            return None
        return number_of("".join(path))

    def goes_on(self, path: Path) -> bool:
        if len(path) == 1 and path[0] in ("", " "):
            return True
        text = "".join(path)
        number = self.number(path)
        return number is not None and 1 <= number <= 10 and text.lstrip() == str(number)


def number_of(text: str) -> int | None:
    """The number from 0 to 100 that a text is, white space around it left aside."""
    word = text.strip()
    return int(word) if word.isascii() and word.isdigit() and int(word) in NUMBERS else None
