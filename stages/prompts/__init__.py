"""Prompts, one versioned text file each: a front line `NAME, version N`, then the text for the user's turn.

A request is laid out as system text (`system.txt`, the same for all prompts), image, user text, so that system text and
image are a common prefix that an engine caches. The scores put the judged text before the criterion for the same reason:
the four scores of one text differ only behind it. Text from outside stands between <text> and </text>; whoever fills a
field in must see to it that the value cannot close these marks (`render` puts values in as they are).

Wording is our own. What is asked follows the papers: the four aspects and the form of a score MLM-Filter (Open-Qwen2VL, data
section), the formats short, descriptive, dense and fused 'Revisit' (SSC, DSC, DSC+, AFC; its prompts are not published),
`caption_merged` RealSyn, `caption_category` Omniview-Tuning. `caption_long` and `caption_brief` are DreamLIP's and
`caption_plain` ALIP's prompts as others quote them, not seen in the papers' own code.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_FRONT = re.compile(r"(?P<name>[a-z_]+), version (?P<version>[1-9][0-9]*)")
SYSTEM = "system"
OPENING, CLOSING = "<text>", "</text>"
"""The marks around text that comes from outside."""


class PromptError(ValueError):
    """A prompt that does not exist, is badly written, or lacks a field; the message says which."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. `user` is a template with named fields such as {alt_text}; `version` grows with every change of wording."""

    name: str
    version: int
    system: str
    user: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields in order of appearance."""
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(self.user) if name))

    def render(self, **values: str) -> str:
        """The user text with its fields filled in; values are not read as templates.

        Raises PromptError for a missing or an unknown field.
        """
        if set(values) != set(self.fields):
            needed = ", ".join(self.fields) or "no field"
            raise PromptError(f"prompt {self.name!r} needs {needed}; given: {', '.join(sorted(values)) or 'none'}")
        return self.user.format(**values)


def names() -> list[str]:
    """Names of all prompts."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt") if path.stem != SYSTEM)


@cache
def load(name: str) -> Prompt:
    """The prompt of that name. Raises PromptError for an unknown name or a file without a front line."""
    if name not in names():
        raise PromptError(f"there is no prompt {name!r}; there are: {', '.join(names())}")
    version, user = _read(name)
    return Prompt(name=name, version=version, system=_read(SYSTEM)[1], user=user)


def _read(name: str) -> tuple[int, str]:
    path = _FOLDER / f"{name}.txt"
    front, _, body = path.read_text(encoding="utf-8").partition("\n")
    match = _FRONT.fullmatch(front)
    if not match or match["name"] != name or not body.strip():
        raise PromptError(f"{path}: the first line must be '{name}, version N' and a text must follow")
    return int(match["version"]), body.strip()
