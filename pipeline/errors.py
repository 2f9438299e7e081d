"""Errors that stop a run, what a failure budget is, and the one map from exceptions to failure codes."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from dataclasses import dataclass

from pipeline.disk import full_disk_message
from pipeline.secrets import mask
from schemas.outcome import Failure, FailureCode, cap_detail


class _Told(Exception):
    """An error whose text people read: secrets in it are masked."""

    def __init__(self, text: object = ""):
        super().__init__(mask(str(text)))


class Fatal(_Told):
    """Stops the run: nothing about one row, and trying further rows would fail the same way. Exit code 1."""


class RecipeError(_Told):
    """The recipe, an option or the input is wrong; the user must change it. Exit code 2."""


class DiskFull(Fatal):
    """No room (or no quota) left where something was to be written."""


class BudgetExceeded(Fatal):
    """Too many rows of a stage failed, most of them with `code`; the part at hand was not committed.

    began: when that part's computing began (seconds since 1970; 0 where parts that are committed tripped the budget together).
    reach: so many rows of parts before it were among those judged. limit: the field of the budget that was broken.
    """

    def __init__(self, message: str, stage: str = "", code: str = "", reach: int = 0, limit: str = "max_share"):
        super().__init__(message)
        self.stage, self.code, self.reach, self.limit = stage, code, reach, limit
        self.began = 0.0


class EngineDied(_Told):
    """The engine behind a model ended before it answered. No fault of one request is known: the requests are sent again."""


class Interrupted(KeyboardInterrupt):
    """Ctrl+C or SIGTERM. No Exception, so that no row is blamed for it. What is committed stays; the same command goes on."""


# Errors of the program, the machine or its installation, never of a row.
FATAL_EXCEPTIONS = (Fatal, RecipeError, ImportError, NameError, MemoryError, NotImplementedError)
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO})


def is_fatal(error: BaseException) -> bool:
    """True where an exception speaks of the program or the machine and not of the row at hand."""
    if isinstance(error, FATAL_EXCEPTIONS):
        return True
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return True
    return "CUDA error" in str(error) or "out of memory" in str(error).lower()


def as_fatal(error: BaseException, where: str) -> Fatal:
    """Wrap a fatal exception with the place it happened; a full disk is named as such."""
    if isinstance(error, Fatal):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = full_disk_message(str(error.filename or tempfile.gettempdir()))
        return DiskFull(full if where in full else f"{where}: {full}")
    return Fatal(f"{where}: {type(error).__name__}: {error}")


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception raised for one row becomes."""
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        code: str = FailureCode.TIMEOUT
    else:
        code = FailureCode.STAGE_ERROR
    return Failure(code, cap_detail(mask(f"{type(error).__name__}: {error}")))


@dataclass(frozen=True)
class Budget:
    """How many rows of a stage may fail before the run stops.

    max_share: share of failed rows among the last `window` rows, judged once `min_rows` were seen.
    max_identical: identical failures in a row (same code and detail), a sign of a broken stage or network.
    """

    max_share: float = 0.95
    window: int = 2000
    min_rows: int = 200
    max_identical: int = 1000
