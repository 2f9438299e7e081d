"""HTTP sessions of a download: verified TLS, public addresses only, proxies, and headers whose secrets stay in the environment."""

from __future__ import annotations

import functools
import os
import re
import ssl
from collections.abc import Mapping
from types import TracebackType
from urllib.request import getproxies_environment, proxy_bypass_environment

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from stages.images import addresses
from stages.images.buffers import Bytes
from stages.images.http_client import MAX_HEAD_BYTES, HttpClient
from stages.images.http_message import Answer, Head, Wants
from stages.images.resolver import Resolver

_READ_BYTES = 1 << 16
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def with_environment(text: str, where: str) -> str:
    """`text` with each ${NAME} replaced by that environment variable. Raises ValueError naming one that is not set."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match.group(1))
        if found is None:
            raise ValueError(f"{where}: the environment variable {match.group(1)} is not set")
        return found

    return _VARIABLE.sub(value, text)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Verified TLS. Kept for the process: loading the CA certificates takes tens of milliseconds."""
    return ssl.create_default_context()


class WebClient:
    """GET requests, direct or through a proxy. To be used as an async context manager within one event loop.

    proxy: URL of an HTTP proxy for all requests. trust_env: HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment
    where `proxy` names none. allow_private: also connect to addresses that are not public.
    """

    def __init__(self, headers: Mapping[str, str], resolver: Resolver, proxy: str | None, trust_env: bool, allow_private: bool, max_idle: int = 64):
        self.resolver, self.proxy, self.trust_env, self.allow_private = resolver, proxy, trust_env, allow_private
        self._direct = HttpClient(headers, resolver, tls_context, allow_private, max_idle)
        self._proxied = _proxied_session(headers, resolver) if proxy or trust_env else None

    async def __aenter__(self) -> WebClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._direct.close()
        if self._proxied is not None:
            await self._proxied.close()

    async def get(self, url: URL, wants: Wants) -> Answer:
        """The answer to one GET; redirects are answers. `wants` gets the head and says how many bytes of the body to read.

        Raises BlockedAddress, and what else fetch_failures.FETCH_ERRORS names.
        """
        proxy = self.proxy_of(url)
        if proxy is None or self._proxied is None:
            return await self._direct.get(url, wants)
        if not self.allow_private:
            await self._check(url)
        async with self._proxied.get(url, allow_redirects=False, proxy=proxy) as response:
            head = Head(response.status, response.reason or "", CIMultiDict(response.headers), keep_alive=True)
            limit = wants(head)
            body = await _read_at_most(response, limit + 1) if limit > 0 else b""
            return Answer(head, body[:limit], len(body) > limit)

    def give_back(self, body: Bytes) -> None:
        """The body of an answer is needed no more; its memory serves another."""
        self._direct.buffers.give_back(body)

    def proxy_of(self, url: URL) -> str | None:
        """The proxy for a URL, or None."""
        if self.proxy is not None:
            return self.proxy
        if not self.trust_env or proxy_bypass_environment(f"{url.host}:{url.port}"):
            return None
        return getproxies_environment().get(url.scheme)

    async def _check(self, url: URL) -> None:
        """Raises BlockedAddress for a URL to be asked of a proxy whose host has an address that is not public.

        A name that does not resolve here is left to the proxy, which may be the only one that knows it.
        """
        try:
            found = [address for _, address in await self.resolver.addresses(url.raw_host or "")]
        except OSError:
            return
        for address in found:
            addresses.check_public(address)


def _proxied_session(headers: Mapping[str, str], resolver: Resolver) -> aiohttp.ClientSession:
    """aiohttp knows proxies well. The proxy itself may stand on a private network."""
    connector = aiohttp.TCPConnector(limit=0, use_dns_cache=False, resolver=resolver, ssl=tls_context())
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # no state from one row to another
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=headers,
        max_line_size=MAX_HEAD_BYTES,
        max_field_size=MAX_HEAD_BYTES,
    )


async def _read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks, left = [], limit
    async for chunk in response.content.iter_chunked(_READ_BYTES):
        chunks.append(chunk[:left])
        left -= len(chunks[-1])
        if not left:
            break
    return b"".join(chunks)
