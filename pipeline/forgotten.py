"""forgotten.json: what was removed from a run for good, as salted digests: enough to refuse it again and to prove that it went, and no text of it.

A digest is SHA-256 over the list's own random salt and the SHA-256 of the value. Who has a URL or an image can ask whether it is on the list; who has the list
alone cannot read it, and cannot compare it with another list. It is no secret, though: guesses can be tried.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from pipeline.errors import RecipeError
from pipeline.files import commit_bytes
from pipeline.storage import Place, place_of
from schemas.outcome import FailureCode

NAME = "forgotten.json"
FORMAT = 1
KINDS = ("url", "domain", "hash", "id")


@dataclass
class Forgotten:
    """One list. entries: kind -> salted digests (hex). open: a removal is under way. proofs: of each removal, when and how much."""

    salt: str = ""
    entries: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    open: bool = False
    proofs: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    def __post_init__(self) -> None:
        self._known = {kind: set(self.entries.get(kind, ())) for kind in KINDS}

    @classmethod
    def read(cls, path: str | Place) -> Forgotten:
        """A list from its file. Raises RecipeError where it is missing or something else."""
        try:
            data = json.loads(place_of(path).read_text())
            found = cls(**data)
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such list; `pairmill forget RUN` leaves one as RUN/{NAME}") from None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{path}: is no list of `pairmill forget` ({error})") from error
        if found.format != FORMAT:
            raise RecipeError(f"{path}: format {found.format}, this pairmill reads format {FORMAT}")
        return found

    @classmethod
    def of_run(cls, root: Place) -> Forgotten:
        """The list of a run directory, empty where nothing was ever forgotten there."""
        return cls.read(root / NAME) if (root / NAME).is_file() else cls()

    def write(self, root: Place, guard: Callable[[], None] | None = None) -> None:
        self.entries = {kind: sorted(self._known[kind]) for kind in KINDS}
        commit_bytes(root / NAME, json.dumps(asdict(self), indent=1, sort_keys=True).encode(), guard)

    def __bool__(self) -> bool:
        return any(self._known.values())

    def add(self, kind: str, value: str) -> None:
        """A URL, a domain, a SHA-256 or a sample_id (hex). The first one draws the salt."""
        self.salt = self.salt or secrets.token_hex(16)
        self._known[kind].add(self._salted(kind, _digest(kind, value)))

    @property
    def has_hashes(self) -> bool:
        return bool(self._known["hash"])

    def refuses_url(self, url: str | None) -> bool:
        """Whether the URL is on the list, or its host or a domain above it."""
        if not url or not (self._known["url"] or self._known["domain"]):
            return False
        if self._has("url", _digest("url", url)):
            return True
        return bool(self._known["domain"]) and any(self._has("domain", _digest("domain", name)) for name in domains_of(url))

    def refuses_id(self, sample_id: bytes) -> bool:
        return bool(self._known["id"]) and self._has("id", _digest("id", sample_id.hex()))

    def refuses_bytes(self, *sha256: bytes | None) -> bool:
        """Whether one of the SHA-256 digests of an image (as fetched, as stored) is on the list."""
        return bool(self._known["hash"]) and any(one is not None and self._has("hash", one) for one in sha256)

    def names(self, item: str, raw_sha256: str, url_sha256: bytes | None) -> bool:
        """Whether an item of an index is on the list: its sample_id and SHA-256 in hex ('' for none), and the SHA-256 of its URL."""
        if url_sha256 is not None and self._has("url", url_sha256):
            return True
        return self._has("id", _digest("id", item)) or (bool(raw_sha256) and self._has("hash", bytes.fromhex(raw_sha256)))

    def blind(self, sample_id: bytes) -> bytes:
        """The id under which a forgotten row goes on: it tells rows apart, and shows to whom has the row which it was."""
        return bytes.fromhex(self._salted("blind", hashlib.sha256(sample_id).digest()))[:16]

    def blinded(self, table: pa.Table, also: np.ndarray | None = None) -> pa.Table:
        """Rows of the input (columns sample_id, url, failure, failure_detail and others), those on the list without all that they held.

        also: further rows (bool [N]). A forgotten row is a failed one: code `forgotten`, a blind id, all other columns null. Those that are so already stay.
        """
        done = np.array([code == FailureCode.FORGOTTEN for code in table["failure"].to_pylist()], bool)
        gone = self.rows(table) if also is None else self.rows(table) | also
        gone &= ~done
        if not gone.any():
            return table
        keep = pa.array(np.arange(len(gone)), mask=gone)
        columns = {name: table[name].take(keep) for name in table.column_names}
        ids = table["sample_id"].to_pylist()
        columns["sample_id"] = pa.array([self.blind(one) if hidden else one for one, hidden in zip(ids, gone.tolist(), strict=True)], table["sample_id"].type)
        codes = table["failure"].to_pylist()
        columns["failure"] = pa.array([str(FailureCode.FORGOTTEN) if hidden else code for code, hidden in zip(codes, gone.tolist(), strict=True)], pa.string())
        return pa.table(columns)

    def rows(self, table: pa.Table) -> np.ndarray:
        """Rows of the input whose URL or id is on the list (bool [N])."""
        if not self:
            return np.zeros(table.num_rows, bool)
        pairs = zip(table["url"].to_pylist(), table["sample_id"].to_pylist(), strict=True)
        return np.array([self.refuses_url(url) or self.refuses_id(identifier) for url, identifier in pairs], bool)

    def _has(self, kind: str, digest: bytes) -> bool:
        return bool(self._known[kind]) and self._salted(kind, digest) in self._known[kind]

    def _salted(self, kind: str, digest: bytes) -> str:
        return hashlib.sha256(bytes.fromhex(self.salt) + kind.encode() + b"\0" + digest).hexdigest()


def _digest(kind: str, value: str) -> bytes:
    """SHA-256 of a value; a hash is one already."""
    return bytes.fromhex(value) if kind == "hash" else hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def domains_of(url: str) -> list[str]:
    """The host of a URL and the domains above it: of https://a.b.example/x these are a.b.example, b.example and example."""
    try:
        host = (urlsplit(url.strip()).hostname or "").rstrip(".").lower()
    except ValueError:
        return []
    labels = _plain_host(host).split(".")
    return [".".join(labels[at:]) for at in range(len(labels))] if host else []


def _plain_host(host: str) -> str:
    """A host in the form of ASCII (xn--...), in which URLs and people may name it or not."""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def parsed(lines: Iterable[str]) -> list[tuple[str, str]]:
    """(kind, value) of each line of a list: a URL, a SHA-256 (64 hex digits), a sample_id (32), else a domain. Lines that begin with # are left out."""
    found = []
    for line in (one.strip() for one in lines):
        if line and not line.startswith("#"):
            kind = _kind(line)
            found.append(checked(kind, line))
    return found


def _kind(text: str) -> str:
    if "://" in text:
        return "url"
    plain = text.lower()
    if set(plain) <= set("0123456789abcdef") and len(plain) in (32, 64):
        return "hash" if len(plain) == 64 else "id"
    return "domain"


def checked(kind: str, value: str) -> tuple[str, str]:
    """One (kind, value) of an option. Raises RecipeError where it is not of that kind."""
    digits = {"hash": 64, "id": 32}.get(kind)
    plain = value.strip()
    if kind == "domain" and (not plain or set(plain) & set("/:*@? ")):
        raise RecipeError(f"--domain {value}: name a host alone, such as example.org (its sub-domains go with it), or give a whole address to --url")
    if digits and (len(plain) != digits or not set(plain.lower()) <= set("0123456789abcdef")):
        what = "a SHA-256" if kind == "hash" else "a sample_id"
        raise RecipeError(f"--{kind} {value}: {what} has {digits} hex digits")
    return kind, plain if kind == "url" else _plain_host(plain.lower().rstrip(".")) if kind == "domain" else plain.lower()
