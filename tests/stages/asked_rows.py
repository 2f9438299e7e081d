"""Rows through a chat stage: prepare, the model, finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.models import LocalModel
from pipeline.stage import Context
from schemas.outcome import Failure
from schemas.sample import make_text
from stages.models.protocols import ChatAnswer, ChatRequest
from tests.stages.conftest import jpeg_bytes


class Bytes:
    """What a row's `image` offers."""

    def __init__(self, data: bytes):
        self.data = data

    @property
    def place(self) -> tuple[bytes]:
        return (self.data,)

    def read(self) -> bytes:
        return self.data


class Scripted:
    """A chat model that answers with given texts in turn, and keeps what it was asked."""

    digest = "scripted"

    def __init__(self, *answers: str | ChatAnswer, max_pixels: int = 64 * 64):
        self.answers = answers
        self.max_pixels = max_pixels
        self.asked: list[ChatRequest] = []

    def describe(self) -> dict[str, Any]:
        return {"name": "scripted", "max_pixels": self.max_pixels}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        found = []
        for request in requests:
            answer = self.answers[len(self.asked) % len(self.answers)]
            self.asked.append(request)
            found.append(answer if isinstance(answer, ChatAnswer) else ChatAnswer(answer, len(answer.split()), "stop"))
        return found


def row(*texts: str, at: int = 0, data: bytes | None = None) -> dict[str, Any]:
    """A row with a small JPEG and some texts."""
    entries = [make_text(text, source=f"{number:032x}") for number, text in enumerate(texts)]
    return {"image": Bytes(data or jpeg_bytes(64, 48, at)), "texts": entries, "sample_id": at.to_bytes(16, "big")}


def ask(stage: Any, model: Any, rows: list[dict[str, Any]], seed: int = 0) -> list[Any]:
    """Values or failure of each row."""
    ctx = Context(stage.instance, 0, seed=seed, model=LocalModel(model))
    requests = stage.prepare(rows, ctx)
    sent = [request for request in requests if isinstance(request, ChatRequest)]
    answers = iter(model.chat(sent))
    return stage.finish(rows, [next(answers) if isinstance(request, ChatRequest) else request for request in requests], ctx)
