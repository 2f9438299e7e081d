"""HTTP sessions of a download: verified TLS, public addresses only, proxies, and headers whose secrets stay in the environment."""

from __future__ import annotations

import functools
import os
import re
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.request import getproxies_environment, proxy_bypass_environment

import aiohttp
from yarl import URL

from stages.images import addresses
from stages.images.resolver import Resolver

MAX_HEADER_BYTES = 32768
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

    def __init__(self, headers: Mapping[str, str], resolver: Resolver, proxy: str | None, trust_env: bool, allow_private: bool):
        self.resolver, self.proxy, self.trust_env, self.allow_private = resolver, proxy, trust_env, allow_private
        # The place where a connection is made checks the address, so that no second lookup can put another in its place.
        # A proxy may stand on a private network; what it is asked for is checked before (`check`).
        self._direct = _session(headers, resolver, None if allow_private else addresses.make_socket)
        self._proxied = _session(headers, resolver, None)

    async def __aenter__(self) -> WebClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._direct.close()
        await self._proxied.close()

    def get(self, url: URL) -> Any:
        """The response to one GET, as an async context manager; redirects are not followed."""
        proxy = self.proxy_of(url)
        if proxy is None:
            return self._direct.get(url, allow_redirects=False)
        return self._proxied.get(url, allow_redirects=False, proxy=proxy)

    def proxy_of(self, url: URL) -> str | None:
        """The proxy for a URL, or None."""
        if self.proxy is not None:
            return self.proxy
        if not self.trust_env or proxy_bypass_environment(f"{url.host}:{url.port}"):
            return None
        return getproxies_environment().get(url.scheme)

    async def check(self, url: URL) -> None:
        """Raises BlockedAddress for a URL that would be asked of a proxy and whose host has an address that is not public.

        A name that does not resolve here is left to the proxy, which may be the only one that knows it.
        """
        if self.allow_private or self.proxy_of(url) is None:
            return
        host = (url.raw_host or "").strip("[]")
        try:
            found = [address for _, address in await self.resolver.addresses(host)]
        except OSError:
            return
        for address in found:
            addresses.check_public(address)


def _session(headers: Mapping[str, str], resolver: Resolver, socket_factory: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=0,  # HostQueue bounds what is under way; waiting inside the connector would count against the timeout
        use_dns_cache=False,  # the resolver remembers, failures too
        resolver=resolver,
        ssl=tls_context(),
        socket_factory=socket_factory,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # no state from one row to another
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=headers,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )
