"""Probabilities of the numbers 0 to 100 from a server with OpenAI's chat completions.

Such a server tells the likeliest 20 first tokens. Where its tokenizer has whole numbers these are the numbers' probabilities. Where it splits numbers, the
digit 8 may be the beginning of 87: then the server must tell what follows, as the answer continued behind an 8. vLLM's servers (and those that took over
its fields) do so with `continue_final_message`. Others refuse it, or take the 8 for a whole turn and begin another, which the number of prompt tokens
gives away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.errors import Fatal
from schemas.outcome import Failure, FailureCode
from stages.models.numbers import TextTree, Walk, number_of

Body = dict[str, Any]
Exchange = Callable[[Body], Awaitable[Body | Failure]]

MOST_LOGPROBS = 20  # as many first tokens does OpenAI's interface tell of
_OF_THE_ANSWER = ("structured_outputs", "min_tokens", "seed", "top_p")
_ONES = " ".join("1" for _ in range(10, 101))
_NUMBERS = " ".join(str(number) for number in range(10, 101))


class Failed(Exception):
    """What the server said of a request in place of an answer."""

    def __init__(self, failure: Failure):
        super().__init__(failure.detail)
        self.failure = failure


class ServerNumbers:
    """What is known of one server's tokenizer, and how its answers are followed. `exchange` sends one body and gives the server's answer."""

    def __init__(self, name: str, exchange: Exchange):
        self.name = name
        self._exchange = exchange
        self._lock: asyncio.Lock | None = None
        self._whole: bool | None = None
        self._refusal: str | None = None  # why answers cannot be continued, '' where they can; None: not tried yet

    async def read(self, body: Body, answer: Body) -> tuple[dict[int, float], int, int]:
        """Probability of each number as the beginning of the answer to `body`; further requests that this took, and the tokens of their prompts.

        Raises Failed where a further request fails, Fatal where the server splits numbers and does not continue answers.
        """
        first = first_tokens(answer)
        tree = TextTree()
        if not any(tree.goes_on((text,)) for text, _ in first) or await self._has_whole_numbers(first):
            return _whole(first), 0, 0
        walk, calls, prompt_tokens = Walk(tree), 0, 0
        plain = {key: given for key, given in body.items() if key not in _OF_THE_ANSWER} | {"temperature": 0.0, "max_tokens": 1}
        if "structured_outputs" in body:  # its probabilities are those among the tokens let through, not those that lead to the digits behind
            calls, prompt_tokens = 1, prompt_tokens + _prompt_tokens(answer)
            first = first_tokens(await self._ask(plain))
        walk.put((), first)
        while due := walk.due():
            await self._check_continues()
            answers = await asyncio.gather(*(self._continued(plain, path, _prompt_tokens(answer)) for path in due))
            for path, found in zip(due, answers, strict=True):
                walk.put(path, first_tokens(found))
                calls, prompt_tokens = calls + 1, prompt_tokens + _prompt_tokens(found)
        return walk.found, calls, prompt_tokens

    async def _has_whole_numbers(self, first: list[tuple[str, float]]) -> bool:
        """Whether each number is one token: then all numbers from 10 to 100 in a prompt are as many tokens as so many ones."""
        async with self._once():
            if self._whole is None:
                ones, numbers = [_prompt_tokens(await self._ask(self._probe(text))) for text in (_ONES, _NUMBERS)]
                if not ones:  # a server that counts no tokens: this answer has to do
                    return any((number_of(text) or 0) >= 10 for text, _ in first)
                self._whole = ones == numbers
            return self._whole

    async def _check_continues(self) -> None:
        """Raises Fatal where the server does not continue an answer. Tried once, without an image, so that no row is to blame."""
        async with self._once():
            if self._refusal is None:
                before = _prompt_tokens(await self._ask(self._probe(_ONES)))
                found = await self._exchange(_continuing(self._probe(_ONES), "8"))
                if isinstance(found, Failure):
                    if found.code != FailureCode.MODEL_ERROR:  # one that may pass
                        raise Failed(found)
                    self._refusal = found.detail
                elif not before:
                    self._refusal = "it counts no prompt tokens, so that nothing tells whether it does"
                else:
                    self._refusal = "" if _prompt_tokens(found) == before + 1 else f"of 8 behind {before} prompt tokens it makes {_prompt_tokens(found)}"
        if self._refusal:
            raise Fatal(_not_continued(self.name, self._refusal))

    async def _continued(self, body: Body, path: tuple[str, ...], before: int) -> Body:
        """The server's answer behind a path. Raises Failed where it was behind something else, such as the digits without the space before them."""
        found = await self._ask(_continuing(body, "".join(path)))
        if _prompt_tokens(found) != before + len(path):
            told = f"asked to continue {''.join(path)!r} behind {before} prompt tokens, the server counts {_prompt_tokens(found)}"
            raise Failed(Failure(FailureCode.MODEL_ERROR, f"{told}: another template or tokenizer; the numbers' probabilities cannot be known"))
        return found

    async def _ask(self, body: Body) -> Body:
        found = await self._exchange(body)
        if isinstance(found, Failure):
            raise Failed(found)
        return found

    def _probe(self, text: str) -> Body:
        return {"model": self.name, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0.0}

    def _once(self) -> asyncio.Lock:
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock


def first_tokens(answer: Body) -> list[tuple[str, float]]:
    """Text and probability of the likeliest first tokens, as the server tells of them."""
    told = (answer["choices"][0].get("logprobs") or {}).get("content") or [{}]
    return [(str(entry["token"]), math.exp(entry["logprob"])) for entry in told[0].get("top_logprobs") or ()]


def _whole(first: list[tuple[str, float]]) -> dict[int, float]:
    """Probability of each number from 0 to 100 among the first tokens."""
    found: dict[int, float] = {}
    for text, chance in first:
        number = number_of(text)
        if number is not None:
            found[number] = found.get(number, 0.0) + chance
    return found


def _continuing(body: Body, text: str) -> Body:
    """The same question, its answer begun with `text`."""
    messages = [*body["messages"], {"role": "assistant", "content": text}]
    return body | {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


def _prompt_tokens(answer: Body) -> int:
    """Tokens of the prompt, 0 where the server does not tell."""
    return int((answer.get("usage") or {}).get("prompt_tokens") or 0)


def _not_continued(name: str, told: str) -> str:
    return (
        f"models: the tokenizer of {name!r} splits numbers into several tokens, and its server does not continue an answer that is begun "
        f"(continue_final_message: {told}), so the numbers' probabilities cannot be known; switch `expectation` off, or ask the model through kind vllm or "
        "transformers, or a server of vLLM"
    )
