"""Texts of the web are hostile: none becomes an element, an attribute or a script, none leaves its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.report.job import ReportParams, write_report
from tests.stages.report.attacks import ATTACKS, hostile_rows


@pytest.mark.parametrize("share", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_text_becomes_markup(make_run, read_page, share: bool) -> None:
    file_name = "<img src=x onerror=alert(1)>.json"
    run = make_run(hostile_rows(), file_name=file_name, column='note"><script>window.pwned=8</script>', name="</title><script>window.pwned=9</script>", jobs=())
    folder = run.root / "pretrain" / "<script>alert(2)<!--"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    (folder / "result.json").write_text('{"steps": 2, "epochs": 1.5, "samples_per_s": 9}')
    told = write_report(run, ReportParams(compare={"<iframe src=//evil>": str(run.root)}), share=share)
    raw = Path(told["report"]).read_bytes()
    page = read_page(Path(told["report"]))
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}]
    assert not {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "form", "base", "link", "plaintext", "textarea", "foreignobject"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert attributes.get("href", "#").startswith("#") and attributes.get("src", "data:image/jpeg;").startswith("data:image/jpeg;")
    assert not set(raw) & {*range(9), 11, 12, *range(14, 32), 127}, "control characters"
    assert not set(raw.decode()) & {"\x9b", "\x85", "\ufdd0", "\uffff"}
    json.loads(page.by_id["data"])
    for attack in ATTACKS[:6]:
        assert attack in page.text or (share and "javascript:" in attack), attack
    assert told["bytes"] < 3_000_000


def test_every_place_that_shows_a_text_isolates_its_direction(make_run, read_page) -> None:
    mark = "\u202egpj.elif"
    path = Path(write_report(make_run(hostile_rows()))["report"])
    page, html = read_page(path), path.read_text()
    at = html.find(mark)
    places = 0
    while at >= 0:
        before = html[:at]
        assert before.rfind("<bdi") > before.rfind("</bdi>") or before.rfind("<pre") > before.rfind("</pre>") or in_code(before), before[-200:]
        places += 1
        at = html.find(mark, at + 1)
    assert places > 5 and mark in page.text


def in_code(before: str) -> bool:
    return before.rfind("<code") > before.rfind("</code>")


def test_a_page_to_share_has_no_image_and_no_url(make_run, read_page) -> None:
    given = hostile_rows()
    given[0]["note"] = "licence: https://licence.example/cc0"
    given[1]["alt_text"] = "see www.shop.example/cart and //cdn.example/x.png"
    run = make_run(given)
    whole, shared = (Path(write_report(run, share=share)["report"]) for share in (False, True))
    assert whole.name == "report.html" and shared.name == "report-share.html"
    assert "https://web.example" in whole.read_text() and "<img" in whole.read_text()
    text = shared.read_text()
    for leak in ("<img", "data:image/jpeg", "web.example", "licence.example", "shop.example", "cdn.example", "://", str(run.root.parent)):
        assert leak not in text.replace("img-src data:", ""), leak
    assert "[URL left out]" in text and "images and web addresses were left out" in text
    assert "window.pwned=1" in read_page(shared).text  # texts stay
