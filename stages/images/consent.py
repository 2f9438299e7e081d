"""X-Robots-Tag headers that opt an image out of use for training."""

from __future__ import annotations

import re

from multidict import CIMultiDict

from schemas.outcome import cap_detail

# Directives of X-Robots-Tag that say 'not for machine learning data sets', as img2dataset (1.47, --disallowed_header_directives) has them.
OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def agent_token(user_agent: str) -> str:
    """The name by which robots rules address a User-Agent, lower case: that after 'compatible;', else its first product."""
    found = re.search(r"compatible;\s*([A-Za-z_-]+)", user_agent) or re.match(r"\s*([A-Za-z_-]+)", user_agent)
    return found.group(1).lower() if found else "*"


def opt_out(headers: CIMultiDict[str], agent: str) -> str | None:
    """The X-Robots-Tag values that opt out of use for training, or None.

    A tag may be meant for one agent ('name: noai'); it counts when the name is ours (`agent`, lower case).
    """
    found = [value for value in headers.getall("X-Robots-Tag", ()) if _opts_out(value, agent)]
    return cap_detail("; ".join(found)) if found else None


def _opts_out(value: str, agent: str) -> bool:
    head, colon, rest = value.partition(":")
    name = head.strip().lower()
    if colon and "," not in head and name not in _VALUED_DIRECTIVES:
        if name != agent:
            return False
        value = rest
    return any(directive.strip().lower() in OPT_OUT_DIRECTIVES for directive in value.split(","))
