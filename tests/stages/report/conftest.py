"""Runs of given rows, and a reader of HTML pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline import registry
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, open_run, run
from pipeline.run_view import RunView

VOID = {"meta", "img", "br", "rect", "line", "polyline", "link", "input"}


@pytest.fixture(scope="session", autouse=True)
def toys() -> None:
    registry.import_file(str(Path(__file__).with_name("toys.py")))


class Page(HTMLParser):
    """What a browser's parser would see: elements with their attributes, and the text inside elements with an id."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.by_id: dict[str, str] = {}
        self.cells: list[list[str]] = []
        self.text = ""
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert [tag for tag, _ in self._open] == [], "elements that were never closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self._open.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "style":
            return
        self.text += data
        for _, name in self._open:
            if name:
                self.by_id[name] = self.by_id.get(name, "") + data
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.cells[-1][-1] += data

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))


@pytest.fixture
def read_page() -> Callable[[Path], Page]:
    return lambda path: Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunView]:
    """Runs given rows through paint and grade (and `stages` between them) and opens the run."""

    def make(rows: list[dict[str, Any]], folder: str = "run", rows_per_part: int = 40, column: str = "note", between: tuple = (), min: float = 0.5,
             jobs: tuple = ("write_shards",), name: str = "toy", file_name: str = "rows.json", late: bool = False,
             first: str | None = "paint", models: dict[str, Any] | None = None, after: tuple = ()) -> RunView:  # fmt: skip
        file = tmp_path / file_name
        file.write_text(json.dumps(rows))
        recipe = build_recipe(
            {
                "name": name, "input": {"kind": "given_rows", "file": str(file), "column": column, "rows_per_part": rows_per_part},
                "stages": [*([first] if first else []), *between, {"grade": {"min": min}}, *after], "jobs": list(jobs), "decide": "late" if late else "early",
                **({"models": models} if models else {}),
            }
        )  # fmt: skip
        run(recipe, tmp_path / folder, RunOptions(executor="local"))
        return open_run(tmp_path / folder)

    return make


@pytest.fixture
def plain_rows() -> Callable[[int], list[dict[str, Any]]]:
    """n rows: scores 0.1 to 0.999 in steps, every 10th image gone, every 13th without a score."""

    def make(n: int) -> list[dict[str, Any]]:
        return [
            {"url": f"https://web.example/{i}{'/gone' if i % 10 == 9 else ''}", "alt_text": f"thing number {i}", "note": f"licence {i % 3}",
             "score": None if i % 13 == 12 else round(0.1 + 0.9 * ((i * 37) % n) / n, 4)}
            for i in range(n)
        ]  # fmt: skip

    return make
