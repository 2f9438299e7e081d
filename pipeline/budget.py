"""The circuit breaker: outcomes of a stage over its last rows, when they stop the run, and what the message says."""

from __future__ import annotations

import time
from collections import Counter, deque

from pipeline.advice import advice_for
from pipeline.errors import Budget, BudgetExceeded
from schemas.outcome import PASSING, Failure

Runs = list[tuple[str, int]]  # outcomes in order: (failure code or '' for a value, so many rows in a row)


class BudgetWindow:
    """Outcomes of a stage over the last `window` rows, oldest first.

    earlier: outcomes before those that this window is to judge (of earlier parts). They count in the shares; `own`
    counts the rows added since.
    """

    def __init__(self, stage: str, budget: Budget, earlier: Runs | None = None):
        self.stage = stage
        self.budget = budget
        self.runs: deque[tuple[str, int]] = deque()
        self.seen = self.own = 0
        self.codes: Counter[str] = Counter()
        self.slid = False  # rows have left at the old end: those here are not the first ones
        self.details: dict[str, str] = {}
        self.identical = 0
        self.previous: tuple[str, str] = ("", "")
        self.rose: int | None = None
        for code, rows in earlier or []:
            self.add(code, rows=rows)
        self.own, self.identical, self.rose = 0, 0, None

    @property
    def share(self) -> float:
        return 1 - self.codes[""] / self.seen if self.seen else 0.0

    @property
    def before(self) -> int:
        """Rows of `earlier` that are still in the window."""
        return max(0, self.seen - self.own)

    def add(self, code: str, detail: str = "", rows: int = 1) -> None:
        """Count rows of one outcome: '' for a value, else a failure code."""
        if self.runs and self.runs[-1][0] == code:
            self.runs[-1] = (code, self.runs[-1][1] + rows)
        else:
            self.runs.append((code, rows))
        self.codes[code] += rows
        self.seen += rows
        self.own += rows
        self._slide()
        if code:
            self.details[code] = detail
            self.identical = self.identical + rows if (code, detail) == self.previous else rows
        else:
            self.identical = 0
        self.previous = (code, detail)
        if self.rose is None and code in PASSING and self.seen >= self.budget.min_rows:
            self.note_rise()

    def _slide(self) -> None:
        while self.seen > self.budget.window:
            self.slid = True
            old, count = self.runs[0]
            gone = min(count, self.seen - self.budget.window)
            self.codes[old] -= gone
            self.seen -= gone
            if gone == count:
                self.runs.popleft()
            else:
                self.runs[0] = (old, count - gone)

    def note_rise(self, least: int = 1) -> None:
        """Set `rose` where passing failures are more than half of `max_share` of the window, or of `least` rows where it holds
        fewer: so many of its rows are of earlier parts."""
        passing = sum(self.codes[code] for code in PASSING)
        if self.rose is None and passing > self.budget.max_share / 2 * max(self.seen, least):
            self.rose = self.before

    def check(self) -> None:
        """Raises BudgetExceeded, with a diagnosis, when the window breaks the budget."""
        budget, (code, detail) = self.budget, self.previous
        if code and self.identical >= budget.max_identical:
            self._stop(code, f"{self.identical:,} rows in a row failed alike, with {code} ({detail[:200]})", "max_identical")
        if self.seen >= budget.min_rows and self.share > budget.max_share:
            failed = {code: rows for code, rows in self.codes.items() if code and rows}
            worst, *others = sorted(failed, key=lambda code: -failed[code])
            total = sum(failed.values())
            every = ", ".join(f"{failed[code] / total:.0%} of them {code}" for code in [worst, *others[:2]]) if others else f"all {worst}"
            example = f" (such as: {self.details[worst][:200]})" if self.details.get(worst) else ""
            self._stop(worst, f"{self.share:.0%} of the {'last' if self.slid else 'first'} {self.seen:,} rows failed, {every}{example}")

    def _stop(self, code: str, told: str, limit: str = "max_share") -> None:
        raise BudgetExceeded(f"{self.stage}: {told}: {advice_for(code)}", self.stage, code, self.before, limit)


class Breaker:
    """Judges one stage on one part while its rows are computed: over the part alone, and over the run's last rows.

    again: stored failure code of each row that is retried. A retried row that fails as before is no news and is not counted.
    """

    def __init__(self, stage: str, budget: Budget, earlier: Runs, again: dict[int, str]):
        self.part = BudgetWindow(stage, budget)
        self.run = BudgetWindow(stage, budget, earlier)
        self.again = again
        self.began = time.time()
        self.reported: set[int] = set()

    def count(self, row: int, failure: Failure | None) -> None:
        """Count one row (place in the part), once. Raises BudgetExceeded."""
        if row in self.reported:
            return
        self.reported.add(row)
        code, detail = (failure.code, failure.detail) if failure else ("", "")
        if code and self.again.get(row) == code:
            return
        self.part.add(code, detail)
        self.run.add(code, detail)
        if code:
            try:
                self.part.check()
                self.run.check()
            except BudgetExceeded as error:
                error.reach, error.began = self.run.before, self.began
                raise

    def count_values(self, rows: int) -> None:
        """Count rows that all have a value."""
        self.part.add("", rows=rows)
        self.run.add("", rows=rows)

    def outcomes(self) -> Runs:
        """Outcomes of this part's last `window` rows, for the windows of the parts after it."""
        return list(self.part.runs)

    def marks(self, rows: int) -> dict[str, float | int]:
        """What the footer of a part of `rows` rows keeps: when it was computed, and `rose` where the rate of passing failures had
        risen. A few rows computed anew in a large part are no sign of an outage, but a small part may be all there is."""
        self.run.note_rise(min(rows, self.run.budget.min_rows))
        times: dict[str, float | int] = {"began": round(self.began, 3), "at": round(time.time(), 3)}
        return times if self.run.rose is None else {**times, "rose": self.run.rose}
