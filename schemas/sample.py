"""What a source must yield, how a sample_id is made, and what a tar key may be."""

from __future__ import annotations

import hashlib

import pyarrow as pa

MAX_TEXT_BYTES = 64 * 1024
SAMPLE_ID = pa.binary(16)

# Every source yields these; further columns of the input are carried beside them under their own names.
SOURCE_COLUMNS: dict[str, pa.DataType] = {
    "sample_id": SAMPLE_ID,
    "url": pa.string(),
    "alt_text": pa.string(),
    "alt_text_cut": pa.bool_(),
}

# Sources whose images are at hand, and not to be fetched from a URL, yield these too; their `url` is null where none is known.
FILE_COLUMNS: dict[str, pa.DataType] = {
    "path": pa.string(),
    "source_file": pa.string(),
    "source_offset": pa.int64(),
    "source_size": pa.int64(),
}

# One text of a row. kind: alt_text, or the caption stage that wrote it; source: sample_id (hex) of the row it came from.
TEXTS = pa.list_(
    pa.struct(
        [
            ("kind", pa.string()),
            ("text", pa.string()),
            ("source", pa.string()),
            ("model", pa.string()),
            ("prompt", pa.string()),
            ("clip_score", pa.float32()),
        ]
    )
)


def make_text(
    text: str, kind: str = "alt_text", source: str = "", model: str = "", prompt: str = "", clip_score: float | None = None
) -> dict:
    """One entry of a TEXTS column."""
    return {"kind": kind, "text": text, "source": source, "model": model, "prompt": prompt, "clip_score": clip_score}


def sample_id(source: str, locator: str, text: str) -> bytes:
    """128 bits of SHA-256 over source name, URL (or path relative to the source's root) and text as read.

    Each field is preceded by its length in bytes (8 bytes, little endian), so that no two splits collide.
    """
    digest = hashlib.sha256()
    for field in (source, locator, text):
        raw = field.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()[:16]


def cap_text(text: str) -> tuple[str, bool]:
    """Cut a text at MAX_TEXT_BYTES of UTF-8; the flag says whether it was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return (text if raw.decode("utf-8") == text else raw.decode("utf-8")), False
    return raw[:MAX_TEXT_BYTES].decode("utf-8", "ignore"), True


def tar_key(identifier: bytes) -> str:
    """Key of a sample in a tar: its id in hex. No dots, so that every loader splits key and extension alike."""
    return identifier.hex()
