"""The resolver: answers remembered both ways, one lookup for many that ask, and none waited for without end.

The system's resolver cannot be made to fail or hang from here, so the one function that asks it is replaced.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stages.images import addresses, resolver
from stages.images.fetch import Fetched, FetchOptions, fetch_all
from stages.images.resolver import LookupThreads, Resolver

LOOPBACK = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


class System:
    """Stands for socket.getaddrinfo: `answer(host, times)` answers, raises or waits."""

    def __init__(self, answer: Callable[[str, int], Any]):
        self.answer = answer
        self.asked: Counter[str] = Counter()

    def __call__(self, host: str, port: Any, **_: Any) -> Any:
        self.asked[host] += 1
        return self.answer(host, self.asked[host])


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], Any]], System]:
    def use(answer: Callable[[str, int], Any]) -> System:
        made = System(answer)
        monkeypatch.setattr(resolver.socket, "getaddrinfo", made)
        monkeypatch.setattr(resolver, "_threads", LookupThreads())
        return made

    return use


def unknown(host: str, times: int) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_many_askers_make_one_lookup_and_it_is_remembered(system: Any) -> None:
    asked = system(lambda host, times: time.sleep(0.05) or LOOPBACK)

    async def ask() -> list[Any]:
        found = Resolver(5)
        return [*await asyncio.gather(*[found.addresses("a.test") for _ in range(20)]), await Resolver(5).addresses("a.test")]

    assert asyncio.run(ask()) == [((socket.AF_INET, "127.0.0.1"),)] * 21
    assert asked.asked == {"a.test": 1}


def test_failures_are_remembered_for_a_short_while(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "NOT_FOUND_S", 0.6)
    asked = system(unknown)

    async def ask() -> None:
        found = Resolver(5)
        for _ in range(10):
            with pytest.raises(socket.gaierror, match="not known"):
                await found.addresses("a.test")
        assert asked.asked["a.test"] == 1
        await asyncio.sleep(0.65)
        with pytest.raises(socket.gaierror):
            await found.addresses("a.test")

    asyncio.run(ask())
    assert asked.asked["a.test"] == 2


def test_a_hung_lookup_holds_up_neither_others_nor_the_end(system: Any) -> None:
    release = threading.Event()
    system(lambda host, times: (release.wait(20) if host.startswith("hung") else None, LOOPBACK)[1])

    async def ask() -> None:
        found = Resolver(1.0)
        hung = [asyncio.create_task(found.addresses(f"hung{n}.test")) for n in range(40)]
        await found.addresses("good.test")
        assert not any(task.done() for task in hung)
        answers = await asyncio.gather(*hung, return_exceptions=True)
        assert {type(answer) for answer in answers} == {socket.gaierror}
        assert "no answer within 1 s" in str(answers[0])

    started = time.monotonic()
    try:
        asyncio.run(ask())
        assert time.monotonic() - started < 10, "the loop waited for lookups that were given up"
    finally:
        release.set()


def outcomes(urls: list[str], **options: Any) -> list[str]:
    found: dict[int, str] = {}

    async def handle(result: Fetched) -> None:
        found[result.row] = "ok" if result.failure is None else f"{result.failure.code}: {result.failure.detail}"

    asyncio.run(fetch_all(urls, FetchOptions(**{"allow_private": True, "timeout_s": 2.0, **options}), handle))
    return [found[row] for row in range(len(urls))]


def test_a_burst_of_failed_lookups_is_tried_once_more(system: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.images.fetch._LOOKUP_PAUSE_S", 0.3)
    monkeypatch.setattr(resolver, "NOT_FOUND_S", 0.1)
    asked = system(lambda host, times: LOOPBACK if times > 1 else unknown(host, times))
    web.answers["/a"] = web.http(b"body")
    hosts = [f"h{n}.test" for n in range(30)]
    assert outcomes([f"http://{host}:{web.port}/a" for host in hosts]) == ["ok"] * 30
    assert asked.asked == dict.fromkeys(hosts, 2)


def test_names_that_stay_unknown_fail_after_the_second_lookup(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.images.fetch._LOOKUP_PAUSE_S", 0.1)
    monkeypatch.setattr(resolver, "NOT_FOUND_S", 0.01)
    asked = system(unknown)
    assert all(text.startswith("dns: ") for text in outcomes(["http://a.test/", "http://b.test/"]))
    assert asked.asked == {"a.test": 2, "b.test": 2}


def test_a_silent_resolver_is_dns_and_no_timeout(system: Any) -> None:
    release = threading.Event()
    system(lambda host, times: (release.wait(20), LOOPBACK)[1])
    try:
        (text,) = outcomes(["http://b.test/"], timeout_s=1.6, retries=0)
        assert text.startswith("dns: ") and "no answer within 1.2 s" in text
    finally:
        release.set()


def test_an_address_that_changes_after_a_check_is_checked_again(system: Any, web: Any, new_web: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second lookup leads to an address that is refused. What is connected to is what was checked."""
    outer = new_web(host="127.0.0.2")
    outer.answers["/a"] = outer.http(b"public", connection="close")
    web.answers["/a"] = web.http(b"secret")
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.2")
    monkeypatch.setattr(resolver, "FOUND_S", 0.0)
    system(lambda host, times: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2" if times == 1 else "127.0.0.1", 0))])
    assert outcomes([f"http://rebind.test:{outer.port}/a"], allow_private=False) == ["ok"]
    (text,) = outcomes([f"http://rebind.test:{web.port}/a"], allow_private=False)
    assert text.startswith("blocked_address") and web.connections == 0


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
def test_names_that_are_none_are_dns(host: str) -> None:
    async def ask() -> None:
        await Resolver(5).addresses(host)

    with pytest.raises(socket.gaierror):
        asyncio.run(ask())
