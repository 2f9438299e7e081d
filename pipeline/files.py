"""Files of a run on a local disk: a file under its final name is the commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp-"


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no reader takes for data; left-overs of killed runs are removed at the next start."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_bytes(path: Path, data: bytes | memoryview, guard: Callable[[], None] | None = None) -> None:
    """Write beside, fsync, rename. `guard` is called last before the rename (it raises where the lock is lost).

    The folder is not fsynced: after a power cut the rename may be undone, and then the part is simply not committed.
    """
    temporary = temporary_name(path)
    try:
        try:
            handle = open(temporary, "wb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(temporary, "wb", buffering=0)
        with handle:
            handle.write(data)
            os.fsync(handle.fileno())
        if guard is not None:
            guard()
        os.rename(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def commit_file(temporary: Path, path: Path, guard: Callable[[], None] | None = None) -> None:
    """Give an already fsynced temporary file its final name."""
    if guard is not None:
        guard()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(temporary, path)
    sync_folder(path.parent)


def remove_temporaries(root: Path) -> int:
    """Remove what killed runs left half written; returns how many files."""
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.startswith(TEMPORARY):
                os.unlink(os.path.join(folder, name))
                removed += 1
    return removed
