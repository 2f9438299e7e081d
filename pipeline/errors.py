"""Errors that stop a run, the failure budget, and the one map from exceptions to failure codes."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections import Counter, deque
from dataclasses import dataclass

from pipeline.disk import full_disk_message
from pipeline.secrets import mask
from schemas.outcome import PASSING, Failure, FailureCode, cap_detail


class _Told(Exception):
    """An error whose text people read: secrets in it are masked."""

    def __init__(self, text: object = ""):
        super().__init__(mask(str(text)))


class Fatal(_Told):
    """Stops the run: nothing about one row, and trying further rows would fail the same way. Exit code 1."""


class RecipeError(_Told):
    """The recipe, an option or the input is wrong; the user must change it. Exit code 2."""


class BudgetExceeded(Fatal):
    """Too many rows failed. The part was not committed."""


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
        return Fatal(full if where in full else f"{where}: {full}")
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


class BudgetWindow:
    """Counts outcomes of a stage over the last rows and raises BudgetExceeded with a diagnosis."""

    def __init__(self, stage: str, budget: Budget):
        self.stage = stage
        self.budget = budget
        self.runs: deque[tuple[str, int]] = deque()  # runs of equal outcomes, oldest first
        self.seen = 0
        self.codes: Counter[str] = Counter()
        self.identical = 0
        self.previous: tuple[str, str] = ("", "")

    @property
    def share(self) -> float:
        return 1 - self.codes[""] / self.seen if self.seen else 0.0

    def add(self, code: str, detail: str = "", rows: int = 1) -> None:
        """Count rows of one outcome: '' for a value, else a failure code."""
        if self.runs and self.runs[-1][0] == code:
            self.runs[-1] = (code, self.runs[-1][1] + rows)
        else:
            self.runs.append((code, rows))
        self.codes[code] += rows
        self.seen += rows
        while self.seen > self.budget.window:
            old, count = self.runs[0]
            gone = min(count, self.seen - self.budget.window)
            self.codes[old] -= gone
            self.seen -= gone
            if gone == count:
                self.runs.popleft()
            else:
                self.runs[0] = (old, count - gone)
        self.identical = self.identical + rows if code and (code, detail) == self.previous else rows if code else 0
        self.previous = (code, detail)

    def check(self) -> None:
        """Raises BudgetExceeded when the window breaks the budget."""
        seen, budget = self.seen, self.budget
        if self.identical >= budget.max_identical:
            raise BudgetExceeded(
                f"{self.stage}: {self.identical} rows in a row failed alike: {self.previous[0]}: {self.previous[1][:200]}. {_advice(self.previous[0])}"
            )
        if seen >= budget.min_rows and self.share > budget.max_share:
            worst, n = max(((c, k) for c, k in self.codes.items() if c), key=lambda item: item[1])
            every = "all" if n == sum(k for c, k in self.codes.items() if c) else f"{n} of them"
            raise BudgetExceeded(f"{self.stage}: {self.share:.0%} of the last {seen} rows failed, {every} {worst}. {_advice(worst)}")


_ADVICE: dict[FailureCode, str] = {
    FailureCode.DNS: "Check the resolver (/etc/resolv.conf) and the network.",
    FailureCode.CONNECT: "Check the network, the firewall and the proxy settings.",
    FailureCode.TIMEOUT: "Check the bandwidth, or lower the stage's concurrency.",
    FailureCode.TLS: "Check the machine's clock and its CA certificates.",
    FailureCode.MODEL_ERROR: "Read the first failure's detail: the model or its input is broken.",
}


def _advice(code: str) -> str:
    hint = _ADVICE.get(FailureCode(code) if code in FailureCode._value2member_map_ else FailureCode.STAGE_ERROR)
    again = " What failed for a passing reason is tried again by the next run." if code in PASSING else ""
    return (hint or "Read the details with `pairmill status`, mend the cause, and run the same command again.") + again
