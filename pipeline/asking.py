"""Requests that are answered one by one: looked up in the cache, sent, and sent again where the engine ended under them."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from pipeline.answer_cache import AnswerCache
from pipeline.errors import EngineDied, Fatal
from pipeline.models import ModelHandle
from schemas.outcome import Failure, FailureCode

DEATHS_ALONE = 2  # a request under which, alone, the engine ended so often is at fault
DEAD_REQUESTS = 3  # so many requests in a row at fault, and none answered between: is it the engine?
TICK_S = 1.0


class Request(Protocol):
    """One request to a model."""

    def key(self, model_digest: str) -> bytes:
        """SHA-256 over all that makes the answer."""
        ...

    def read_answer(self, text: str) -> Any:
        """An answer as its `to_json` wrote it."""
        ...


class Asking:
    """One stage's requests to one model for one part. `sent` counts requests that went to the model, `found` those the cache answered;
    `tokens` are those of the answers that came from the model (prompt, answer), where it tells."""

    def __init__(self, model: ModelHandle, method: str, cache: AnswerCache):
        self.model = model
        self.method = method
        self.cache = cache
        self.sent = 0
        self.found = 0
        self.tokens = (0, 0)
        self.died_in_a_row = 0
        self.answered: Request | None = None  # one that the engine has answered
        self._under_way: list[Future[list[Any]]] = []

    def ask(self, requests: Sequence[Request | Failure | None]) -> Answers:
        """Send what the cache does not know; equal requests are sent once. A Failure or None in place of a request is its own answer."""
        return Answers(self, list(requests))

    def send(self, requests: list[Request], keys: list[bytes], alone: bool = False) -> list[Future[list[Any]]]:
        """One call per request where the model takes several at a time, else one call for all."""
        self.sent += len(requests)
        each = [[at] for at in range(len(requests))] if self.model.concurrency > 1 or alone else [list(range(len(requests)))]
        futures: list[Future[list[Any]]] = []
        self._under_way = [future for future in self._under_way if not future.done()]
        for places in each:
            future = self.model.send(self.method, [requests[at] for at in places], alone)
            future.add_done_callback(functools.partial(self._keep, [keys[at] for at in places]))
            futures.append(future)
        self._under_way += futures
        return futures

    def close(self) -> None:
        """Write the answers that have come; requests that were not sent yet are not sent any more (after an error, or Ctrl+C)."""
        for future in self._under_way:
            future.cancel()
        self.cache.flush()

    def count_tokens(self, answers: list[Any]) -> None:
        """Add up the tokens of fresh answers."""
        counts = [(getattr(one, "prompt_tokens", 0), getattr(one, "n_tokens", 0)) for one in answers]
        self.tokens = (self.tokens[0] + sum(asked for asked, _ in counts), self.tokens[1] + sum(made for _, made in counts))

    def _keep(self, keys: list[bytes], done: Future[list[Any]]) -> None:
        """Put answers into the cache as they come, from whichever thread."""
        if done.cancelled() or done.exception() is not None:
            return
        for key, answer in zip(keys, done.result(), strict=False):
            if not isinstance(answer, Failure):
                self.cache.put(key, answer.to_json())


class Answers(Future[list[Any]]):
    """Answers to the requests of one batch, in order."""

    def __init__(self, asking: Asking, requests: list[Request | Failure | None]):
        super().__init__()
        self.asking = asking
        self.places: list[bytes | Failure | None] = []  # the key of each request, or what stands in its place
        self.known: dict[bytes, Any] = {}
        self.open: dict[bytes, Request] = {}
        for request in requests:
            if request is None or isinstance(request, Failure):
                self.places.append(request)
                continue
            key = request.key(asking.model.digest)
            self.places.append(key)
            if key in self.known or key in self.open:
                continue
            text = asking.cache.get(key)
            if text is None:
                self.open[key] = request
            else:
                asking.found += 1
                self.known[key] = request.read_answer(text)
        self._under_way = self._send(list(self.open)) if self.open else []

    def result(self, timeout: float | None = None) -> list[Any]:
        """Wait for all. Requests under which the engine ended are sent twice more together, then one by one, alone: one under which it
        ends DEATHS_ALONE times is a Failure. Raises Fatal where the engine answers nothing any more, TimeoutError after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        for _ in range(2):
            dead = self._collect(self._under_way, until)
            if not dead:
                break
            self._under_way = self._send(dead)
        else:
            for key in self._collect(self._under_way, until):
                self._ask_alone(key, until)
        self._under_way = []
        return [self.known[place] if isinstance(place, bytes) else place for place in self.places]

    def _send(self, keys: list[bytes], alone: bool = False) -> list[tuple[list[bytes], Future[list[Any]]]]:
        futures = self.asking.send([self.open[key] for key in keys], keys, alone)
        return list(zip([[key] for key in keys] if len(futures) == len(keys) else [keys], futures, strict=True))

    def _collect(self, under_way: list[tuple[list[bytes], Future[list[Any]]]], until: float | None) -> list[bytes]:
        """Take answers as they come; returns the requests under which the engine ended."""
        dead: list[bytes] = []
        for keys, future in under_way:
            try:
                answers = self._wait(future, until)
            except EngineDied:
                dead += keys
                continue
            if len(answers) != len(keys):
                raise Fatal(f"models: {len(answers)} answers to {len(keys)} requests: a fault of the model's kind")
            self.known.update(zip(keys, answers, strict=True))
            self.asking.count_tokens(answers)
            self.asking.died_in_a_row = 0
            self.asking.answered = self.open[keys[-1]]
        return dead

    def _wait(self, future: Future[list[Any]], until: float | None) -> list[Any]:
        while True:
            try:
                return future.result(TICK_S if until is None else max(0.0, min(TICK_S, until - time.monotonic())))
            except TimeoutError:
                if future.done() or (until is not None and time.monotonic() >= until):
                    raise
            finally:
                self.asking.cache.flush_due()

    def _ask_alone(self, key: bytes, until: float | None) -> None:
        deaths = 0
        while key not in self.known:
            if self._collect(self._send([key], alone=True), until):
                deaths += 1
            if deaths == DEATHS_ALONE:
                self.known[key] = Failure(FailureCode.MODEL_ERROR, f"the model's engine ended {deaths} times while it answered this request alone")
                self.asking.died_in_a_row += 1
                if self.asking.died_in_a_row % DEAD_REQUESTS == 0:
                    self._check_engine(until)

    def _check_engine(self, until: float | None) -> None:
        """Several prompts about one image may be at fault together. Raises Fatal where what was answered before is not answered any more."""
        good = self.asking.answered
        if good is not None:
            try:
                self._wait(self.asking.model.send(self.asking.method, [good], alone=True), until)
                return
            except EngineDied:
                pass
        raise Fatal(f"models: the engine ended under each of {DEAD_REQUESTS} requests in a row, sent alone, and answers nothing else; its log says why")
