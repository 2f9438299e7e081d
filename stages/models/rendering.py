"""Prompts as a model's own chat template and tokenizer make them, with the proof that no text in them is read as a control token."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any


class RenderError(ValueError):
    """A prompt whose tokens hold a control token or an image placeholder that the template did not put there."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt as one string and as token ids, the image still being one placeholder."""

    text: str
    ids: list[int]


class Renderer:
    """Renders with a transformers processor (or a tokenizer, where a model has no processor)."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token: str | None = getattr(processor, "image_token", None)
        added = {token.content: token.special for token in self.tokenizer.added_tokens_decoder.values()}
        controls = {*self.tokenizer.all_special_tokens, *added, *filter(None, [self.image_token])}
        # A word that a vocabulary lacks steers nothing, unless its token is also one that ends or begins a text.
        unknown = {self.tokenizer.unk_token} - {self.tokenizer.eos_token, self.tokenizer.bos_token}
        self.control_ids = frozenset(self.tokenizer.convert_tokens_to_ids(sorted(controls - unknown)))
        self.image_id = None if self.image_token is None else self.tokenizer.convert_tokens_to_ids(self.image_token)
        self._controls = re.compile("|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True) if token.strip()))
        self._expected: dict[bool, Counter[int]] = {}

    def render(self, system: str, text: str, has_image: bool) -> Rendered:
        """Control strings in `system` and `text` are taken apart. Raises RenderError where one gets through all the same."""
        expected = self._expected_controls(has_image)
        for prepare in (str, _plain):
            prompt = self._template(self.defused(prepare(system)), self.defused(prepare(text)), has_image)
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if self._count_controls(ids) == expected:
                return Rendered(prompt, ids)
        raise RenderError("the prompt holds a control token of the model beside those of its template")

    def defused(self, text: str) -> str:
        """`text` without any of the model's control strings: a space is put behind the first character of each."""
        while (found := self._controls.search(text)) is not None:
            token = found.group()
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 and not token[1:].isspace() else " ")
        return text

    def _template(self, system: str, text: str, has_image: bool) -> str:
        content: list[dict[str, str]] = [{"type": "image"}] if has_image else []
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _expected_controls(self, has_image: bool) -> Counter[int]:
        if has_image not in self._expected:
            prompt = self._template("a", "a", has_image)
            found = self._count_controls(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            if has_image and (self.image_id is None or found[self.image_id] != 1):
                raise RenderError(f"the model's chat template must put one image placeholder into a prompt, it puts {found[self.image_id or 0]}")
            self._expected[has_image] = found
        return self._expected[has_image]

    def _count_controls(self, ids: list[int]) -> Counter[int]:
        return Counter(token for token in ids if token in self.control_ids)


def _plain(text: str) -> str:
    """Compatibility forms made ordinary, and what is not shown left out: a tokenizer that normalises may make control strings of them."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Cc", "Cs", "Co", "Cn"))


def yes_no_ids(tokenizer: Any) -> dict[int, str]:
    """Token id -> 'yes' or 'no', for every spelling of them that is one token."""
    found: dict[int, str] = {}
    for word in ("yes", "no"):
        for text in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                found[ids[0]] = word
    return found


def number_ids(tokenizer: Any) -> dict[int, int]:
    """Token id -> number from 0 to 100, with or without a space before it; empty where one of them is several tokens, for then the
    probability of a first token says nothing of the number (Qwen's tokenizers, for example, split numbers into digits; see `number_tree`)."""
    found: dict[int, int] = {}
    for number in range(101):
        for text in (str(number), f" {number}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                found[ids[0]] = number
    return found if len(set(found.values())) == 101 else {}
