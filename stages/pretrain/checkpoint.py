"""Checkpoints: written beside, fsynced, renamed; the latest is found by looking."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stages.pretrain.errors import TrainError

_NAME = re.compile(r"step-(\d{6,})$")
_STATE = "state.pt"


def steps_saved(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `checkpoints/`, ascending. A folder under its final name is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.match(path.name)))


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Commit `state` as `step-<step>/state.pt` and remove all but the `keep` latest checkpoints.

    Raises TrainError where the disk refuses; no half checkpoint is left under a final name.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with (beside / _STATE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():  # a run that was set back to an earlier step writes this one again
            shutil.rmtree(final)
        beside.rename(final)
        fsync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(beside, ignore_errors=True)
        raise TrainError(f"cannot write the checkpoint {final}: {error}") from error
    for old in steps_saved(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:06d}")
    return final


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The state of the latest checkpoint, or None where there is none. Leftovers of killed writes are removed."""
    if folder.is_dir():
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    saved = steps_saved(folder)
    if not saved:
        return None
    path = folder / f"step-{saved[-1]:06d}" / _STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise TrainError(
            f"cannot read the checkpoint {path}: {error}; remove its folder to go on from the one before"
        ) from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` (in place of an older one) once all is on disk. Raises TrainError where it cannot be written."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for path in beside.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        fsync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise TrainError(f"cannot write the export {folder}: {error}") from error
