"""Which disk a path lies on, and what to tell when it is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def mount_of(path: str | Path) -> Path:
    """Where the disk of `path` (or of its nearest folder that exists) is mounted."""
    folder = nearest_folder(path)
    while not os.path.ismount(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def nearest_folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def full_disk_message(path: str | Path) -> str:
    """One sentence that names the file, the disk, its free space, and what to do."""
    disk = mount_of(path)
    usage = shutil.disk_usage(disk)
    return (
        f"disk full while writing {path}: {usage.free:,} of {usage.total:,} bytes are free on {disk} (or the quota there is used up); "
        "make space, then run the same command again: what is committed stays"
    )
