"""What acts on a terminal is shown as an escape; everything else stays as it is."""

from __future__ import annotations

import io
import json

import pytest

from pipeline.console import SafeConsole, plain, plain_table, print_fact, some
from pipeline.safe_text import one_line, safe, safe_json


@pytest.mark.parametrize(
    "text",
    [
        "plain ASCII, 100 %", "Grüße, façade, naïve", "Ελληνικά, Русский, עברית, العربية", "漢字かな交じり文、한국어", "नमस्ते, ไทย",
        "family 👨\u200d👩\u200d👧, flag 🇩🇪, heart ❤️", "a\nb",
    ],  # fmt: skip
)
def test_texts_of_all_scripts_stay(text):
    assert safe(text) == text
    assert json.loads(safe_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m\x07\x00\x7f", "\\x9b31m\\x07\\x00\\x7f"),
        ("\u202egpj.\u2066x\u2069\u200f", "\\u202egpj.\\u2066x\\u2069\\u200f"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\ufeff\u200b\uffff\ud800", "\\ufeff\\u200b\\uffff\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("a\rb\tc", "a\\x0db\\x09c"),
        ("z" + "\u0336" * 400, "z" + "\u0336" * 4),
    ],
)
def test_what_acts_is_shown(text, shown):
    assert safe(text) == shown
    assert safe(shown) == shown
    assert json.loads(safe_json(json.dumps(text, ensure_ascii=False))) == text


def test_a_value_is_one_line_and_cut():
    assert one_line("a\nb\r\tc") == "a\\nb\\r\\tc"
    assert one_line("x" * 100_000, 10) == "xxxxxxxxxx ... (100,000 characters)"


def test_every_way_to_print_is_safe():
    screen = io.StringIO()
    console = SafeConsole(file=screen, width=60, markup=False, highlight=False)
    evil = "\x1b]0;title\x07\x9b2J\u202e"
    table = plain_table("name", f"head {evil}", wide="name")
    table.add_row(evil, plain(evil))
    console.print(evil)
    console.print(table)
    print_fact(console, evil, evil, 2)
    assert not set(screen.getvalue()) & set("\x1b\x07\x9b\u202e")
    assert screen.getvalue().count("\\x1b]0;title") >= 5


def test_names_in_a_message_are_as_many_as_fit():
    assert some(["a", "b"]) == "a, b"
    assert some([f"column_{i}" for i in range(100)], 30) == "column_0, column_1, column_2 and 97 more"
    assert some(["x" * 500], 20) == "x" * 20 + " ... (500 characters)"
