"""Small real images and tars for the tests of the sources."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from stages.source.local_rows import LocalSource


def picture(number: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG") -> bytes:
    """An image whose bytes differ for each number."""
    made = io.BytesIO()
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number % 256)).save(made, format)
    return made.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]] | dict[str, bytes], mode: str = "w", **options: Any) -> Path:
    """A tar by Python's tarfile, members in the order given (a name may come twice)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, number: int = 0, text: str | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", picture(number)), (f"{key}.txt", (text if text is not None else f"text of {key}").encode())]


def rows_of(source: LocalSource) -> list[dict[str, Any]]:
    return [row for batch in source.batches() for row in batch.to_pylist()]


def facts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    """(path, text, failure) of every row."""
    return [(row["path"], row["alt_text"], row["failure"]) for row in rows]


def bytes_at(row: dict[str, Any]) -> bytes:
    """The bytes of a file that a row names by its place."""
    data = Path(row["source_file"]).read_bytes()
    return data if row["source_offset"] is None else data[row["source_offset"] : row["source_offset"] + row["source_size"]]
