"""Schemes of attributes: categories of phrases that a CLIP chooses from, gates, and templates that make a sentence of what was chosen.

A scheme is a YAML file: `prompt` with {} for '<lead> <phrase>', `threshold` (an optional phrase must be above it), `min_labels`, `categories`
(name, phrases, required, lead, absent: what the phrases compete with and that is never written), `groups` (short form of many categories of one phrase and
its opposite), `templates`. A template has {name} for each category or group, '{a|b}' for several at once, and [parts] that are left out
where nothing was chosen for them. The files `person` (UniPT) and `face` (FaceCaption) come with pairmill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import RecipeError
from pipeline.registry import nearest

_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{([\w|]+)\}")
_PART = re.compile(r"\[([^\[\]]*)\]")
_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Category(_Model):
    """Phrases of which at most one is chosen: the likeliest where `required`, else only one above the threshold."""

    name: str
    phrases: tuple[str, ...] = Field(min_length=1)
    required: bool = False
    lead: str = ""
    absent: str | None = None
    group: str = ""

    @property
    def candidates(self) -> tuple[str, ...]:
        """All that compete, what is never written last."""
        return (*self.phrases, *([self.absent] if self.absent is not None else []))


class _Group(_Model):
    lead: str = ""
    each: tuple[tuple[str, str], ...]


class _File(_Model):
    note: str = ""
    needs_consent: bool = False
    prompt: str = Field(pattern=r"\{\}")
    threshold: float = Field(ge=0, lt=1)
    min_labels: int = Field(1, ge=1)
    categories: tuple[Category, ...] = ()
    groups: dict[str, _Group] = {}
    templates: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Chosen:
    """One chosen attribute: category, phrase, probability from 0 to 1."""

    category: str
    phrase: str
    score: float


@dataclass(frozen=True)
class Scheme:
    """A scheme that was read and checked."""

    name: str
    prompt: str
    threshold: float
    min_labels: int
    categories: tuple[Category, ...]
    templates: tuple[str, ...]
    needs_consent: bool = False
    note: str = ""

    def texts(self, category: Category) -> list[str]:
        """What the CLIP is asked for a category, in the order of its candidates."""
        return [self.prompt.replace("{}", f"{category.lead} {phrase}".strip()) for phrase in category.candidates]

    def sentence(self, chosen: Sequence[Chosen], draw: int) -> str:
        """A template drawn by a number, filled with all that was chosen."""
        return filled(self.templates[draw % len(self.templates)], self._slots(chosen))

    def mentioned(self, text: str) -> set[str]:
        """Phrases of the scheme that a text names, as whole words; the longest where one lies within another."""
        words = _WORDS.findall(text.lower())
        phrases = {tuple(_WORDS.findall(phrase.lower())): phrase for category in self.categories for phrase in category.phrases}
        longest = max(map(len, phrases))
        found, at = set(), 0
        while at < len(words):
            sizes = range(min(longest, len(words) - at), 0, -1)
            size = next((size for size in sizes if tuple(words[at : at + size]) in phrases), 0)
            if size:
                found.add(phrases[tuple(words[at : at + size])])
            at += max(size, 1)
        return found

    def differences(self, text: str, chosen: Sequence[str]) -> tuple[list[str], list[str]]:
        """Phrases that a text leaves out and phrases that it adds, against those chosen."""
        named, meant = self.mentioned(text), set(chosen)
        return sorted(meant - named), sorted(named - meant)

    def _slots(self, chosen: Sequence[Chosen]) -> dict[str, list[str]]:
        groups = {category.name: category.group or category.name for category in self.categories}
        slots: dict[str, list[str]] = {}
        for one in chosen:
            slots.setdefault(groups[one.category], []).append(one.phrase)
        return slots


def filled(template: str, slots: Mapping[str, list[str]]) -> str:
    """A template with its slots filled and the parts without anything to say left out."""

    def values(names: str) -> str:
        return listed([phrase for name in names.split("|") for phrase in slots.get(name, [])])

    def part(match: re.Match[str]) -> str:
        return match[1] if any(values(names) for names in _SLOT.findall(match[1])) else ""

    text = _SLOT.sub(lambda match: values(match[1]), _PART.sub(part, template))
    return text[:1].upper() + text[1:]


def listed(phrases: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), *phrases[-1:])))


def names() -> list[str]:
    """The schemes that come with pairmill."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load(name: str, where: str) -> Scheme:
    """A scheme that comes with pairmill, or a file where `name` is a path. Raises RecipeError that says what is wrong with it."""
    path = Path(name).expanduser() if "/" in name or name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if path.parent == _FOLDER and not path.is_file():
        raise RecipeError(f"{where}: no scheme {name!r}{nearest(name, names())}; there are: {', '.join(names())}, or name a file")
    try:
        given = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"{where}: scheme {name!r} cannot be read: {error}") from error
    grouped = [
        Category(name=phrase, phrases=(phrase,), absent=opposite, lead=group.lead, group=title)
        for title, group in given.groups.items()
        for phrase, opposite in group.each
    ]
    scheme = Scheme(
        name, given.prompt, given.threshold, given.min_labels, (*given.categories, *grouped), given.templates, given.needs_consent, given.note
    )
    _check(scheme, f"{where}: scheme {name!r}")
    return scheme


def _check(scheme: Scheme, where: str) -> None:
    """Raises RecipeError where a template cannot say all that may be chosen, or an optional category has nothing to compete with."""
    named = [category.name for category in scheme.categories]
    phrases = [phrase.lower() for category in scheme.categories for phrase in category.phrases]
    for kind, entries in (("category", named), ("phrase", phrases)):
        for entry in entries:
            if entries.count(entry) > 1:
                raise RecipeError(f"{where}: {kind} {entry!r} stands twice")
    slots: Any = {category.group or category.name: category.required for category in scheme.categories}
    for template in scheme.templates:
        used = [name for names_ in _SLOT.findall(template) for name in names_.split("|")]
        if sorted(used) != sorted(slots):
            wrong = sorted(set(slots) ^ set(used)) or sorted(name for name in used if used.count(name) > 1)
            raise RecipeError(f"{where}: template {template!r} must name each of {', '.join(slots)} once; look at {', '.join(wrong)}")
        bare = [name for names_ in _SLOT.findall(_PART.sub("", template)) for name in names_.split("|")]
        if optional := [name for name in bare if not slots[name]]:
            raise RecipeError(f"{where}: template {template!r}: {optional[0]} is optional, put it into [brackets] with the words around it")
    for category in scheme.categories:
        if not category.required and len(category.candidates) < 2:
            raise RecipeError(f"{where}: {category.name} is optional and has one phrase: give `absent`, what it competes with")
