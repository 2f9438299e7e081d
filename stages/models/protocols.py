"""What a model that reads images and text and answers in text must offer: requests in, one typed answer or failure each out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from schemas.outcome import Failure

NUMBERS = range(101)
"""The numbers whose probabilities may be asked for: the scores from 0 to 100."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. temperature 0 is greedy; seed: of this one request, None where it is greedy.

    numbers: also give the probabilities of the numbers 0 to 100 as beginning of the answer; yes_no: that of yes against no. choices: the answer must
    be one of these texts. min_tokens: the answer may not end before.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    numbers: bool = False
    choices: tuple[str, ...] = ()
    yes_no: bool = False
    min_tokens: int = 0

    def to_json(self) -> str:
        """As it goes into the key of a request. A field that came later stands in it only where it is set: older answers stay known."""
        facts = asdict(self)
        if not self.min_tokens:
            del facts["min_tokens"]
        return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question: system text, image (uint8 [H, W, 3] in RGB, or None), then the user's text. Prompts of one image share a prefix.

    image_digest: SHA-256 over the pixels and their shape, b'' without an image.
    """

    system: str
    text: str
    image: np.ndarray | None
    image_digest: bytes
    sampling: Sampling

    def key(self, model_digest: str) -> bytes:
        """SHA-256 over all that makes the answer: model, engine and version (in `model_digest`), texts, pixels, sampling."""
        parts = [model_digest, self.system, self.text, self.image_digest.hex(), self.sampling.to_json()]
        if self.sampling.numbers and model_digest.startswith("http-"):
            parts.append("numbers by their tokens")  # older answers of servers took the first digit for the number; other kinds never did
        digest = hashlib.sha256()
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.digest()

    @staticmethod
    def read_answer(text: str) -> ChatAnswer:
        """An answer from the cache of answers."""
        return ChatAnswer.from_json(text)


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """Text of an answer; how many tokens it has, how many the prompt had (0: unknown), and how it ended.

    numbers: probability of each number from 0 to 100 with which the answer could begin (those the engine tells of, see `stages/models/numbers.py`); None
    where not asked. The tokens of further requests that numbers of several tokens take are in n_tokens and prompt_tokens.
    yes: probability that the first token is yes, of those that are yes or no; None where not asked, or where the engine tells of neither.
    """

    text: str
    n_tokens: int
    finish_reason: Literal["stop", "length", "refused"]
    prompt_tokens: int = 0
    numbers: Mapping[int, float] | None = None
    yes: float | None = None

    def to_json(self) -> str:
        """As it is kept in the cache of answers."""
        numbers = None if self.numbers is None else sorted(self.numbers.items())
        return json.dumps([self.text, self.n_tokens, self.finish_reason, self.prompt_tokens, self.yes, numbers])

    @classmethod
    def from_json(cls, text: str) -> ChatAnswer:
        """The answer that `to_json` wrote."""
        *plain, yes, numbers = json.loads(text)
        return cls(*plain, numbers=None if numbers is None else {int(number): float(share) for number, share in numbers}, yes=yes)


class Chat(Protocol):
    """A model of kind vllm, transformers, http or fake.

    `digest` names weights, tokenizer, engine and its version. `chat` answers each request by itself: what is wrong with one request
    (too long, refused) is its Failure. Raises EngineDied where the engine ended under the requests, Fatal where it cannot answer at all.
    """

    digest: str

    def describe(self) -> dict[str, Any]:
        """kind, name, engine, engine_version, max_pixels (images are scaled down to it), note ('' or what must stand beside answers)."""
        ...

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Answers in the order of the requests."""
        ...


def yes_share(chances: Iterable[tuple[str, float]]) -> float | None:
    """Probability of yes among the first tokens (text, probability) that are yes or no in any spelling; None where none is."""
    found = {"yes": 0.0, "no": 0.0}
    for text, chance in chances:
        word = text.strip().lower()
        if word in found:
            found[word] += chance
    total = sum(found.values())
    return round(found["yes"] / total, 4) if total > 0 else None


def image_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 over pixels uint8 [H, W, 3] and their shape."""
    shape = np.array(pixels.shape, "<i8").tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).data.tobytes()).digest()
