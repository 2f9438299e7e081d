"""Chats over http, closed at the end of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stages.models import http as kind


@pytest.fixture
def load() -> Iterator[Callable[..., kind.HttpChat]]:
    made: list[kind.HttpChat] = []

    def make(url: str, **options: Any) -> kind.HttpChat:
        made.append(kind.load({"kind": "http", "url": url, "name": "tiny", **options}))
        return made[-1]

    yield make
    for chat in made:
        chat.close()
