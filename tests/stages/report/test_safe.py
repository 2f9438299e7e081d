"""What is done to texts before they are escaped."""

from __future__ import annotations

import json

import pytest

from stages.report.safe import LEFT_OUT, LONG, SHORT, Cleaner, json_block, visible, without_secrets, without_urls


def test_control_characters_become_visible_and_line_breaks_stay() -> None:
    assert visible("a\x1b[31mred\x00\x7f\nb\tc\x9b1m") == "a␛[31mred␀␡\nb\tc\ufffd1m"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://me:hunter2@bucket/x", "s3://***@bucket/x"),
        ("https://h/x?X-Amz-Signature=abc&v=1", "https://h/x?X-Amz-Signature=***&v=1"),
        ("token=abc, colour=red", "token=*** colour=red"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)  # fmt: skip
def test_secrets_are_masked(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


@pytest.mark.parametrize("url", ["https://a.b/c?d", "HTTP://A.B", "//cdn.x/y", "s3://b/k", "data:image/png;base64,AA", "www.a.org/x", "shop.example.org/cart", "javascript://%0aalert(1)"])
def test_urls_of_every_form_are_left_out(url: str) -> None:
    assert without_urls(f"see {url} there") == f"see {LEFT_OUT} there"


def test_the_host_of_a_rows_own_url_is_left_out_where_it_stands_alone() -> None:
    cleaner = Cleaner(share=True)
    cleaner.hide_host("https://user@Host.Example:80/a.jpg")
    assert cleaner.line("dns: host.example does not resolve") == f"dns: {LEFT_OUT} does not resolve"
    cleaner.hide_host("")
    assert cleaner.line("host.example") == "host.example"


def test_a_text_is_capped_and_says_how_long_it_was() -> None:
    shown = Cleaner().text("x" * 100_000)
    assert (len(shown.head), len(shown.rest), shown.length, shown.cut) == (SHORT, LONG - SHORT, 100_000, True)
    assert Cleaner().text("short").rest == ""


def test_when_the_budget_is_used_up_only_heads_are_shown() -> None:
    cleaner = Cleaner(budget=10_000)
    found = [cleaner.text("y" * 1000) for _ in range(5)]
    assert [bool(shown.rest) for shown in found] == [True, True, False, False, False]
    assert all(shown.head == "y" * SHORT and shown.length == 1000 for shown in found)


def test_a_recipe_for_others_has_no_url_folder_or_secret() -> None:
    recipe = {"input": {"table": "/home/me/urls.parquet", "from": "s3://b/k"}, "models": [{"api_key": "abc", "name": "m"}], "n": 3}
    shared = Cleaner(share=True).tree(recipe)
    assert shared == {"input": {"table": "urls.parquet", "from": LEFT_OUT}, "models": [{"api_key": "***", "name": "m"}], "n": 3}
    assert Cleaner().tree(recipe)["input"] == recipe["input"] and Cleaner().tree(recipe)["models"][0]["api_key"] == "***"


def test_json_in_a_page_has_no_way_out_and_reads_back() -> None:
    value = {"</script><script>alert(1)</script>": ["<!--", "\u2028\u2029", "]]>", "&lt;"]}
    block = json_block(value)
    assert not set("<>&\u2028\u2029") & set(block)
    assert json.loads(block) == value
