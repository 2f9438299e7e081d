"""Texts of the web on their way into a page: capped, control characters made visible, secrets and URLs taken out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

SHORT = 220  # characters shown at once
LONG = 1_500  # characters shown on request
LONGEST_VALUE = 2_000  # characters of a value of the recipe
LEFT_OUT = "[URL left out]"

_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
# C1 controls, and noncharacters that HTML forbids.
_PICTURES |= dict.fromkeys([*range(0x80, 0xA0), *range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF], 0xFFFD)
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]{1,15}:)?//\S+|\bdata:\S+|\bwww\.\S+|\b(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}/\S*", re.I)
_HOST = re.compile(r"//(?:[^/@\s]*@)?([^/:?#\s\\]{4,})")
_USER = re.compile(r"(?<=//)[^/\s@]+@")
_SECRET = re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-token|token|secret|password|passwd|api_?key|access_?key|sig))=([^&\s]+)")
_SECRET_KEY = re.compile(r"(?i)(token|secret|password|passwd|api_?key|access_?key|credential)")


def visible(text: str) -> str:
    """Control characters as their pictures (U+241B for ESC): a page must not hold them, and a reader should see them."""
    return text.translate(_PICTURES)


def without_secrets(text: str) -> str:
    """User names and passwords of URLs and the values of token-like query parameters replaced by ***."""
    return _SECRET.sub(r"\1=***", _USER.sub("***@", text))


def without_urls(text: str) -> str:
    """Every URL replaced, also one without a scheme that starts with // or www. or is a domain and a path. A mere domain name stays."""
    return _URL.sub(LEFT_OUT, text)


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it: `head` at once, `rest` on request; `length` of the whole text in characters."""

    head: str
    rest: str = ""
    length: int = 0
    cut: bool = False


class Cleaner:
    """Makes texts fit for the page. `share`: URLs are left out. `budget`: bytes of long texts (as HTML) until only heads are shown."""

    def __init__(self, share: bool = False, budget: int = 3_000_000):
        self.share = share
        self.budget = budget
        self._host: re.Pattern[str] | None = None

    def hide_host(self, url: str) -> None:
        """From now on leave out the host of this URL too, where the page is shared: failures name it without the rest."""
        host = _HOST.search(url) if self.share else None
        self._host = re.compile(re.escape(host[1]), re.I) if host else None

    def text(self, value: Any, short: int = SHORT, long: int = LONG) -> Shown:
        """Any value as a capped text."""
        raw = value if isinstance(value, str) else plain(value)
        whole = self.line(raw[: long + 1])
        length = len(raw)
        if len(whole) <= short and length <= long:
            return Shown(whole, "", length)
        rest = whole[short:long]
        cost = 6 * len(rest)  # an upper bound of escaped ASCII; others take at most 4 bytes
        if cost > self.budget:
            return Shown(whole[:short], "", length, True)
        self.budget -= cost
        return Shown(whole[:short], rest, length, length > long)

    def line(self, value: str) -> str:
        """A short text (a name, a detail): visible, without secrets, and without URLs where the page is shared."""
        cleaned = without_secrets(visible(value))
        cleaned = without_urls(cleaned) if self.share else cleaned
        return cleaned if self._host is None else self._host.sub(LEFT_OUT, cleaned)

    def tree(self, value: Any) -> Any:
        """A recipe's values: secrets by key and by form; where the page is shared also no URL and no folder of this machine."""
        if isinstance(value, dict):
            return {self.line(str(key)): "***" if inner and isinstance(inner, str) and _SECRET_KEY.search(str(key)) else self.tree(inner)
                    for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(inner) for inner in value]
        if not isinstance(value, str):
            return value
        cleaned = self.line(value[:LONGEST_VALUE]) + ("… cut" if len(value) > LONGEST_VALUE else "")
        return cleaned.rsplit("/", 1)[-1] if self.share and cleaned.startswith(("/", "~")) else cleaned


def plain(value: Any) -> str:
    """A stored value as a text: bytes as hex, floats with 6 digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return str(value)


def json_block(value: Any) -> Markup:
    """JSON that stands inside a <script type="application/json"> without a way out: no <, >, &, U+2028 or U+2029 in it."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
