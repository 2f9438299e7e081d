"""The report in a real browser, wide and narrow: no script error, nothing planted runs, nothing is asked for, nothing sticks out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, open_run, run
from stages.report.job import write_report
from tests.e2e.browser import Browser
from tests.stages.report.attacks import hostile_rows

TOYS = Path(__file__).parents[1] / "stages" / "report" / "toys.py"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run over hostile rows, whole and to share."""
    registry.import_file(str(TOYS))
    folder = tmp_path_factory.mktemp("report")
    rows = hostile_rows() + [{"url": f"https://web.example/{i}", "alt_text": f"thing number {i}", "note": "cc0", "score": i / 60} for i in range(60)]
    (folder / "rows.json").write_text(json.dumps(rows))
    data = {
        "name": "hostile <b>rows</b>", "input": {"kind": "given_rows", "file": str(folder / "rows.json"), "column": "note\u202e<i>", "rows_per_part": 30},
        "stages": ["paint", "grade"],
    }  # fmt: skip
    run(build_recipe(data), folder / "run", RunOptions(executor="local"))
    for name in ("pretrain/small", "evaluate"):
        (folder / "run" / name).mkdir(parents=True)
    (folder / "run/pretrain/small/metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": {9 / step}}}\n' for step in range(1, 400)))
    (folder / "run/evaluate/evaluate.json").write_text('{"image_to_text_recall@1": 0.5, "images": 10, "weird <script>": 1}')
    return {name: Path(write_report(open_run(folder / "run"), share=name == "share")["report"]) for name in ("whole", "share")}


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with Browser(chromium) as started:
        yield started


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", ["whole", "share"])
def test_page_in_a_browser(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    seen = browser.open(pages[name], width)
    assert seen.problems == []
    assert seen.requests == [pages[name].as_uri()], "the page asked for something beside itself"
    assert browser.evaluate("typeof window.pwned") == "undefined"
    assert browser.evaluate("document.title") == "hostile <b>rows</b>: what happened to the data"
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    images = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth)")
    assert all(images) and bool(images) == (name == "whole")
    assert browser.evaluate("document.querySelectorAll('script:not([type=\"application/json\"]), iframe, [onload], [onerror], [onclick]').length") == 0
    # Nothing runs over its neighbour: every text ends inside its card.
    sticking_out = "[...document.querySelectorAll('.card .text, .card .detail, .card dd')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert browser.evaluate(sticking_out) == 0
    assert seen.problems == []


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(pages["whole"].read_text().replace("<header>", "<header><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"))
    seen = browser.open(broken, 800)
    assert browser.evaluate("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in problem for problem in seen.problems)


def test_a_reason_leads_to_its_samples(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"], 1400)
    assert browser.evaluate("[...document.querySelectorAll('.reason a')].every(a => document.getElementById(a.hash.slice(1)).closest('details') !== null)")
    browser.evaluate("location.hash = document.querySelector('.reason a').hash")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    opened = "document.getElementById(location.hash.slice(1)).closest('details')"
    assert browser.evaluate(f"{opened}.open") is True
    assert browser.evaluate(f"{opened}.querySelectorAll('.card').length") > 0


def test_dark_and_light_differ_and_both_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = set()
    for dark in (False, True):
        browser.open(pages["whole"], 1000, dark=dark)
        grounds.add(ground := browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in ("body", "small", "a", ".kind", ".detail"):
            card = browser.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
            ink = browser.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
            for behind in (ground, card) if selector != "body" else (ground,):
                light, dim = sorted((luminance(ink), luminance(behind)), reverse=True)
                assert (light + 0.05) / (dim + 0.05) >= 4.5, (selector, ink, behind, dark)
    assert len(grounds) == 2
