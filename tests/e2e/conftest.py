"""The browser of the tests that need one: where there is none they are skipped, and the end of the test run says so."""

from __future__ import annotations

import os

import pytest

from tests.e2e.browser import find_chromium

MISSING = "no Chromium found: set CHROMIUM to the path of one, or install the package chromium"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser. Fails instead of skipping where PAIRMILL_NEED_CHROMIUM is set."""
    found = find_chromium()
    if found is None:
        (pytest.fail if os.environ.get("PAIRMILL_NEED_CHROMIUM") else pytest.skip)(MISSING)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if MISSING in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests of the report in a browser were skipped: {MISSING}")
