"""Fixtures of the machine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import registry

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture(autouse=True)
def toys() -> None:
    registry.import_file(str(TOYS))
