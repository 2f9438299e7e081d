"""What the run did to every row, held against what was planted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_view import RunView

# Of two images that are one, either may be the one that stays.
INTERCHANGEABLE = frozenset({"exact_dup", "near_dup"})
# A later filter -> the reason that the truth names for the fault both look for. It can only take what the earlier one left.
LATER = {"low_mllm": "low_clip"}


@dataclass(frozen=True)
class RuleScore:
    """How one reason did: rows planted for it, rows it took, and those it took rightly."""

    reason: str
    planted: int
    taken: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.taken if self.taken else None

    @property
    def recall(self) -> float | None:
        return self.right / self.planted if self.planted else None


def final_reasons(run: RunView) -> list[str]:
    """Reason of every input row in order; '' for the rows that were kept."""
    reasons: list[str] = []
    for part in range(len(run.parts)):
        reasons += [reason or "" for reason in run.final(run.view(part))["reason"].to_pylist()]
    return reasons


def score_rules(run: RunView, truth: Path) -> list[RuleScore]:
    """Precision and recall of every reason against the truth table (row-aligned with the input).

    A row planted for several faults has one expected reason; a row taken earlier for another reason is a miss of the
    one expected and a wrong take of the other. For a later filter of the same fault the planted rows are those that reached it.
    """
    table: pa.Table = pq.read_table(truth, columns=["expected_reason", "original_row"])
    expected = [reason or "" for reason in table["expected_reason"].to_pylist()]
    found = final_reasons(run)
    for copy, original in enumerate(table["original_row"].to_pylist()):
        if expected[copy] in INTERCHANGEABLE and not found[copy] and found[original] == expected[copy]:
            expected[copy], expected[original] = expected[original], expected[copy]
    planted: dict[str, int] = defaultdict(int)
    taken: dict[str, int] = defaultdict(int)
    right: dict[str, int] = defaultdict(int)
    for want, got in zip(expected, found, strict=True):
        planted[want] += 1
        taken[got] += 1
        right[want] += want == got
        if LATER.get(got) == want:
            right[got] += 1
    for later, reason in LATER.items():
        if taken[later]:
            planted[later] = sum(want == reason and got in (later, "") for want, got in zip(expected, found, strict=True))
    reasons = sorted((set(planted) | set(taken)) - {""})
    return [RuleScore(reason, planted[reason], taken[reason], right[reason]) for reason in reasons]


def kept_purity(run: RunView, truth: Path) -> tuple[int, int]:
    """(kept rows, those of them that nothing was planted on)."""
    expected = pq.read_table(truth, columns=["expected_reason"])["expected_reason"].to_pylist()
    kept = [want for want, got in zip(expected, final_reasons(run), strict=True) if not got]
    return len(kept), sum(not want for want in kept)
