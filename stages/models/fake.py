"""Model kind `fake`: made-up answers to images and prompts, for tests of recipes; no model looks at anything.

In a recipe: `models: {mllm: {kind: fake}}`. An answer depends on the request alone, so runs can be compared byte for byte: a number
for a prompt that asks for a score, else words. Options: failures (share of requests by code: bad_answer, refusal, truncated, model_error),
poison (requests that contain this text end the engine), log (a file that gets one line per request: for counting),
seconds (time each answer takes), concurrency (requests in flight, default 32), max_pixels. Its digest begins with `fake-`, in every record.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import EngineDied, RecipeError
from schemas.outcome import Failure, FailureCode
from stages.models.protocols import ChatAnswer, ChatRequest
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys

METHOD = "chat"
MACHINE_KEYS = frozenset({"log", "seconds", "concurrency"})
SHARED = True
USES_GPU = False
NOTE = "fake model: its answers are made up and mean nothing"
_KEYS = frozenset({"failures", "poison", "log", "seconds", "concurrency"})
_PLANNED = ("bad_answer", "refusal", "truncated", "model_error")
_WORDS = "red small old bright round tall house tree boat dog street cup near behind under beside with a the two".split()


def identity(spec: Mapping[str, Any]) -> str:
    """Always 'fake'. Raises RecipeError for an unknown option or failure."""
    check_keys(spec, _KEYS)
    for code in spec.get("failures") or {}:
        if code not in _PLANNED:
            raise RecipeError(f"models: fake.failures has no {code!r}; there are: {', '.join(_PLANNED)}")
    return "fake"


def concurrency(spec: Mapping[str, Any]) -> int:
    """Requests in flight."""
    return int(spec.get("concurrency", 32))


def load(spec: Mapping[str, Any]) -> FakeChat:
    """Raises RecipeError as `identity` does."""
    identity(spec)
    return FakeChat(spec)


class FakeChat:
    """Answers from a hash of the request."""

    def __init__(self, spec: Mapping[str, Any]):
        self.spec = spec
        self.digest = "fake-1"
        self.failures = dict(spec.get("failures") or {})

    def describe(self) -> dict[str, Any]:
        max_pixels = int(self.spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        return {"kind": "fake", "name": "fake", "engine": "fake", "engine_version": "1", "max_pixels": max_pixels, "note": NOTE}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """Raises EngineDied where the planned poison is among the requests, before any is answered."""
        poison = self.spec.get("poison")
        if poison and any(poison in request.text for request in requests):
            raise EngineDied("the fake engine ends on this text, as planned")
        return [self._answer(request) for request in requests]

    def _answer(self, request: ChatRequest) -> ChatAnswer | Failure:
        if self.spec.get("log"):
            self._note(request)
        time.sleep(float(self.spec.get("seconds", 0)))
        seed = hashlib.sha256(request.key(self.digest)).digest()
        planned = self._planned(seed[0] / 256 + seed[1] / 65536)
        sampling = request.sampling
        if planned == "model_error":
            return Failure(FailureCode.MODEL_ERROR, "planned failure of the fake model")
        if planned == "refusal":
            return ChatAnswer("I'm sorry, but I cannot help with that.", 10, "stop")
        if planned == "bad_answer":
            return ChatAnswer("n/a" if "score" in request.text.lower() else "", 1, "stop")
        numbers = None
        if sampling.choices:
            text = sampling.choices[seed[2] % len(sampling.choices)]
        elif sampling.yes_no:
            text = ("no", "yes")[seed[5] >= 128]
        elif "score" in request.text.lower() or sampling.numbers:
            text = str(int.from_bytes(seed[2:4], "big") % 101)
            numbers = {int(text): 0.75, 0: 0.25} if sampling.numbers and text != "0" else {0: 1.0} if sampling.numbers else None
        else:
            count = min(sampling.max_tokens, max(sampling.min_tokens, 8 + seed[3] % 8))
            text = " ".join(_WORDS[byte % len(_WORDS)] for byte in seed[4 : 4 + count])
        n_tokens = len(text.split())
        return ChatAnswer(text, n_tokens, "length" if planned == "truncated" else "stop", 0, numbers, seed[5] / 255 if sampling.yes_no else None)

    def _planned(self, draw: float) -> str:
        """The failure whose share of [0, 1) holds the draw; '' for none."""
        for code, share in self.failures.items():
            if draw < share:
                return code
            draw -= share
        return ""

    def _note(self, request: ChatRequest) -> None:
        line = f"{request.key(self.digest).hex()} {request.text[:200]!r}\n".encode()
        descriptor = os.open(self.spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
