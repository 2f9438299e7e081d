"""Secrets do not appear in messages, logs, failure details or run.json, and what is no secret stays readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.console import say
from pipeline.errors import Fatal, RecipeError, as_fatal, failure_of
from pipeline.run import RunOptions, run
from pipeline.secrets import mask, masked
from tests.pipeline.helpers import make_recipe

SECRET = "S3cr3t+/value=="
HOLDERS = [
    "https://user:{}@proxy.example:3128/",
    "http://{}@proxy.example:3128",
    "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={}&X-Amz-Expires=60",
    "https://example.org/a.jpg?width=3&token={}",
    "https://example.org/a.jpg?api_key={}#part",
    "https://storage.example.org/a?X-Goog-Signature={}",
    "https://acc.blob.core.windows.net/c/a?sv=2024&sig={}&se=1",
    "Authorization: Bearer {}",
    "redirect from https://a.example/x?Signature={}: blocked",
    '{{"secret_access_key": "{}"}}',
    "aws_secret_access_key={}",
]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_secret_is_masked_and_the_rest_stays(holder: str) -> None:
    for secret in ("abcdefgh12345", SECRET.replace("/", "%2F")):
        shown = mask(holder.format(secret))
        assert secret not in shown and "***" in shown
        assert mask(shown) == shown, "masking twice changes nothing"
    before, _, after = holder.format("abcdefgh12345").partition("abcdefgh12345")
    if not before.endswith("user:"):
        assert shown.startswith(before) or "Bearer" in before
    assert mask(holder.format("abcdefgh12345")).endswith(after)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a.jpg?width=300&height=200",
        "https://example.org/@user/photo.jpg",
        "s3://bucket/run/values/score/part-00000.parquet",
        "read me at alice@example.org: status 404",
        "download: 97 % of the last 2000 rows failed, all dns. Check the resolver",
        "policy of the bucket; the token is gone",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert mask(text) == text


def test_plain_values_are_masked_by_their_key_too() -> None:
    given = {"models": {"a": {"api_key": "abc", "max_tokens": 5, "url": "http://u:p@h/"}}, "list": ["https://h/?sig=xyz", 3, None], "token": ""}
    assert masked(given) == {"models": {"a": {"api_key": "***", "max_tokens": 5, "url": "http://***@h/"}}, "list": ["https://h/?sig=***", 3, None], "token": ""}


def test_errors_and_notes_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://user:hush@proxy/a?X-Amz-Signature=deadbeef"
    say(f"to go on: pairmill run x --set download.proxy={url}")
    told = [str(Fatal(url)), str(RecipeError(url)), str(as_fatal(OSError(url), url)), failure_of(ValueError(url)).detail, capsys.readouterr().err]
    for text in told:
        assert "hush" not in text and "deadbeef" not in text and "proxy" in text


def test_run_json_and_failure_details_hold_no_secret(tmp_path: Path) -> None:
    book = tmp_path / "book.json"
    book.write_text("{}")
    proxy = "http://user:hush@proxy.example:3128"
    stages = [{"score": {"calls": str(tmp_path / "calls")}}, {"told": {"url": "https://h/a?X-Amz-Signature=deadbeef"}}]
    recipe = make_recipe(stages, rows=100, budgets={"told": {"max_share": 1.0}})
    recipe.resolved["input"]["proxy"] = proxy
    result = run(recipe, tmp_path / "run", RunOptions(executor="local"))
    text = (tmp_path / "run" / "run.json").read_text()
    assert "hush" not in text and "deadbeef" not in text
    assert json.loads(text)["recipe"]["input"]["proxy"] == "http://***@proxy.example:3128"
    table = result.view.store.read("values", "told", 0, ["failure_detail"])
    assert table is not None and {detail for detail in table["failure_detail"].to_pylist() if detail} == {"redirected to https://h/a?X-Amz-Signature=***"}
