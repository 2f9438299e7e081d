"""Takes secrets out of texts that people read: messages, logs, failure details, run.json."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_KEYS = (
    r"x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|awsaccesskeyid|signature|sig|token|access_token|id_token|"
    r"refresh_token|session_token|auth|authorization|api[-_]?key|apikey|key-pair-id|policy|password|passwd|pwd|secret|client_secret|"
    r"aws_access_key_id|aws_secret_access_key|aws_session_token|access_key_id|secret_access_key"
)
# scheme://user:password@host and scheme://token@host
_USER_INFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.\-]*://)[^/?#\s@'\"<>]+@")
_VALUE = r"[^&#;,\s'\"<>)\]}]*[^&#;,\s'\"<>)\]}:.]"
_QUERY = re.compile(rf"(?P<name>[?&;](?:{_KEYS})=){_VALUE}", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>(?<![?&;])\b(?:{_KEYS})(?:=|['\"]\s*:\s*['\"])){_VALUE}", re.IGNORECASE)
_HEADER = re.compile(
    r"(?P<name>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:Bearer|Basic|AWS4-HMAC-SHA256)\s+)?|\bBearer\s+)[A-Za-z0-9+/=_.%~\-]{8,}", re.IGNORECASE
)
_SECRET_KEY = re.compile(rf"^(?:{_KEYS})$", re.IGNORECASE)


def mask(text: str) -> str:
    """`text` with passwords in URLs, signed query strings, tokens and authorization headers replaced by ***.

    Idempotent. An address without a secret comes back as it is.
    """
    if "://" in text:
        text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    if "=" in text or ":" in text:
        text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
        text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
        text = _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)
    return text


def masked(value: Any) -> Any:
    """Plain JSON values with secrets masked, also whole texts under a key that names a secret (`password`, `api_key`)."""
    if isinstance(value, dict):
        return {key: HIDDEN if isinstance(inner, str) and inner and _SECRET_KEY.match(str(key)) else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    return mask(value) if isinstance(value, str) else value
