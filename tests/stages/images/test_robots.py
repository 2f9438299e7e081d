"""robots.txt against a real server: what is asked, what is refused, and what counts as no answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from stages.images.consent import agent_token
from stages.images.fetch import USER_AGENT, Fetched, FetchOptions, fetch_all

BODY = b"some bytes of an image"
RULES = b"User-agent: *\nDisallow: /private/\nAllow: /private/open\n\nUser-agent: pairmill\nDisallow: /art/\nDisallow: /*.gif$\n"


def get(urls: list[str], **options: Any) -> list[Fetched]:
    found: dict[int, Fetched] = {}

    async def handle(result: Fetched) -> None:
        found[result.row] = result

    settings = {"allow_private": True, "timeout_s": 2.0, "retries": 0, "robots": True, **options}
    asyncio.run(fetch_all(urls, FetchOptions(**settings), handle))
    return [found[row] for row in range(len(urls))]


def test_group_of_our_name_counts_and_the_file_is_read_once(web: Any) -> None:
    web.answers["/robots.txt"] = web.http(RULES)
    paths = ["/art/a.jpg", "/private/a.jpg", "/b.gif", "/b.gif?x", "/c.jpg"] * 4
    web.answers |= {path: web.http(BODY) for path in paths}
    results = get([web.url(path) for path in paths])
    wanted = [False, True, False, True, True] * 4
    assert [result.robots == "allowed" for result in results] == wanted
    assert [result.body == BODY for result in results] == wanted
    assert web.asked["/robots.txt"] == 1 and web.asked["/art/a.jpg"] == web.asked["/b.gif"] == 0
    refused = results[0]
    assert refused.robots == f"{web.url('/robots.txt')} disallows /art/a.jpg for pairmill"
    assert refused.failure is None and refused.checked_at is not None and abs(refused.checked_at / 1000 - time.time()) < 10


def test_another_agent_has_the_other_group(web: Any) -> None:
    web.answers |= {"/robots.txt": web.http(RULES), "/private/a": web.http(BODY), "/private/open": web.http(BODY), "/art/a": web.http(BODY)}
    results = get([web.url(path) for path in ("/private/a", "/private/open", "/art/a")], user_agent="otherbot/2.0")
    assert [result.robots == "allowed" for result in results] == [False, True, True]


@pytest.mark.parametrize(("status", "code"), [("404 Not Found", None), ("403 Forbidden", None), ("500 Oops", "http_5xx"), ("429 Slow", "rate_limited")])
def test_no_file_allows_and_a_failing_server_forbids(web: Any, status: str, code: str | None) -> None:
    web.answers |= {"/robots.txt": web.http(b"", status), "/a": web.http(BODY)}
    (result,) = get([web.url("/a")])
    assert (result.failure.code if result.failure else None) == code
    assert web.asked["/a"] == (1 if code is None else 0)


def test_robots_that_hangs_fails_the_rows_of_its_host_only_once(web: Any) -> None:
    async def silent(writer: asyncio.StreamWriter, _: int) -> None:
        await asyncio.sleep(20)

    web.answers |= {"/robots.txt": silent, "/a": web.http(BODY)}
    started = time.monotonic()
    results = get([web.url("/a")] * 30, timeout_s=0.4)
    assert {result.failure.code for result in results if result.failure} == {"timeout"} and len(results) == 30
    assert web.asked == {"/robots.txt": 1} and time.monotonic() - started < 8


def test_redirects_are_asked_for_at_their_own_host(web: Any, new_web: Callable[..., Any]) -> None:
    other = new_web(host="127.0.0.2")
    other.answers |= {"/robots.txt": web.http(b"User-agent: *\nDisallow: /"), "/a": web.http(BODY)}
    web.answers["/a"] = web.http(b"", "302 Found", location=other.url("/a"))
    web.answers |= {"/robots.txt": web.http(b"", "301 Moved", location="/r.txt"), "/r.txt": web.http(b"")}
    (result,) = get([web.url("/a")])
    assert result.robots == f"{other.url('/robots.txt')} disallows /a for pairmill"
    assert other.asked == {"/robots.txt": 1} and web.asked["/r.txt"] == 1


def test_a_huge_file_is_read_as_far_as_the_standard_asks(web: Any) -> None:
    async def endless(writer: asyncio.StreamWriter, _: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /no\n")
        while True:
            writer.write(b"# " + b"x" * 60_000 + b"\n")
            await writer.drain()

    web.answers |= {"/robots.txt": endless, "/no": web.http(BODY), "/yes": web.http(BODY)}
    assert [result.robots == "allowed" for result in get([web.url("/no"), web.url("/yes")])] == [False, True]


def test_not_asked_by_default_and_private_addresses_hold_for_it(web: Any) -> None:
    web.answers |= {"/robots.txt": web.http(RULES), "/art/a": web.http(BODY)}
    (result,) = get([web.url("/art/a")], robots=False)
    assert result.body == BODY and result.robots is None and "/robots.txt" not in web.asked
    (blocked,) = get([web.url("/art/a")], allow_private=False)
    assert blocked.failure is not None and blocked.failure.code == "blocked_address" and "/robots.txt" not in web.asked


@pytest.mark.parametrize(("agent", "token"), [(USER_AGENT, "pairmill"), ("MyBot/1.0 (+http://x)", "mybot"), ("", "*")])
def test_name_by_which_rules_address_an_agent(agent: str, token: str) -> None:
    assert agent_token(agent) == token
