"""Runs that are only read: what their recipe names outside of them (evaluation sets, indexes, dictionaries, weights) need not be there any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from pipeline.errors import RecipeError

T = TypeVar("T")
_READING: ContextVar[bool] = ContextVar("reading", default=False)


@contextmanager
def reading() -> Iterator[None]:
    """Recipes that are built within are those of finished runs."""
    token = _READING.set(True)
    try:
        yield
    finally:
        _READING.reset(token)


def is_reading() -> bool:
    return _READING.get()


def known_or(find: Callable[[], T], known: T) -> T:
    """What `find` gives; while a run is only read `known`, where it raises RecipeError."""
    try:
        return find()
    except RecipeError:
        if not is_reading():
            raise
        return known
