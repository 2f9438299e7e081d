"""Temporary folders of this machine. What a killed process left of one is removed when the next one is made."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OWNER = "owner"  # locked as long as the folder's process lives
_FRESH_S = 60.0  # between making a folder and locking it


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder in the system's temporary folder, removed at the end, and folders of this purpose whose process is gone are removed first."""
    prefix = f"pairmill-{purpose}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _is_left(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    with (folder / _OWNER).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether no process holds the folder. One that cannot be looked at is somebody else's."""
    try:
        with (folder / _OWNER).open() as owner:
            if time.time() - (folder / _OWNER).stat().st_mtime < _FRESH_S:
                return False
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
