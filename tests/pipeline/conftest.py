"""Fixtures of the machine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import registry
from tests.pipeline.s3_server import S3Server, running

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(TOYS))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    yield from running(monkeypatch)
