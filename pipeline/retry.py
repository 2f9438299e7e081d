"""Which stored failures a run computes again: those it was asked for, and those of an outage, once, unasked.

What an outage is follows from what is stored. Each values footer says when its part was computed (`began`, `at`), and, where more than
half of the stage's `max_share` of the last `window` rows had failed for a passing reason, `rose`: how many rows of earlier parts were
among those when that was first so. run.json keeps `stops`: when a budget stopped the run, and how far back its rows reach.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.chain import Chain
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from pipeline.run_view import RunView
from pipeline.store import VALUES, VERDICTS, Store
from schemas.outcome import PASSING, FailureCode, Outcome, Reason
from schemas.record import PartRecord

PASSING_CODES = frozenset(str(code) for code in PASSING)
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Retry:
    """Failure codes to compute again: of a stage in all parts, and of a stage in one part."""

    everywhere: Mapping[str, frozenset[str]] = field(default_factory=dict)
    parts: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)

    def codes(self, stage: str, part: int) -> frozenset[str]:
        return self.everywhere.get(stage, NONE) | self.parts.get((stage, part), NONE)


def failures_of_outages(chain: Chain, store: Store, parts: list[int], stops: Iterable[Mapping[str, float | str]] = ()) -> Retry:
    """The passing failures of parts committed since the rate of failures rose that have not been tried once more yet."""
    stops = list(stops)
    found: dict[tuple[str, int], frozenset[str]] = {}
    for node in chain.nodes[1:]:
        if not node.has_compute:
            continue
        records = list(store.records((VALUES, node.name, part) for part in range(len(parts))).values())
        mine = [stop for stop in stops if stop["stage"] == node.name]
        for record in _committed_in_an_outage(records, mine):
            if passing_failures(record) and not record.info.get("retried"):
                found[(node.name, record.part)] = PASSING_CODES
    return Retry(parts=found)


def passing_failures(record: PartRecord) -> int:
    """Rows of a values file that failed for a reason that may pass."""
    return sum(record.counts.get(f"failed:{code}", 0) for code in PASSING_CODES)


def _committed_in_an_outage(records: list[PartRecord], stops: list[Mapping[str, float | str]]) -> list[PartRecord]:
    """Parts in whose computing the rate had risen or that ran beside a stop, and those before them, as far back as the rows reach."""
    timed = sorted((record for record in records if "at" in record.info), key=lambda record: (record.info["at"], record.part))
    found: dict[int, PartRecord] = {}
    reaches: list[tuple[float, int]] = []
    for record in timed:
        if "rose" in record.info:
            found[record.part] = record
            reaches.append((record.info["began"], record.info["rose"]))
    for stop in stops:
        began, at = float(stop["began"]), float(stop["at"])
        found |= {record.part: record for record in timed if record.info["at"] >= began and record.info["began"] <= at}
        reaches.append((began, int(stop["reach"])))
    times = [record.info["at"] for record in timed]
    for began, reach in reaches:
        place = bisect_left(times, began)
        while reach > 0 and place > 0:
            place -= 1
            found[timed[place].part] = timed[place]
            reach -= timed[place].info["computed"]
    return [found[part] for part in sorted(found)]


def footer_marks(before: PartRecord | None, codes: frozenset[str], marks: dict[str, float | int]) -> dict[str, float | int | bool]:
    """What a values footer says of when its part was computed. A retry keeps the marks of the computing before it, so that parts beside
    it are still found; `retried` says that all passing failures have been tried once more."""
    if codes and before is not None and "rose" not in marks:
        marks = {**marks, **{key: before.info[key] for key in ("began", "at", "rose", "retried") if key in before.info}}
    return {**marks, **({"retried": True} if codes >= PASSING_CODES else {})}


def failure_codes(text: str) -> frozenset[str]:
    """The failure codes that `--reason` names: a list with commas, 'passing' or 'all'. Raises RecipeError with the nearest name."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = [str(code) for code in FailureCode]
    found: set[str] = set()
    for word in words:
        if word in ("passing", "all"):
            found |= PASSING_CODES if word == "passing" else set(known)
        elif word in known:
            found.add(word)
        elif word in set(Reason):
            raise RecipeError(f"--reason {word}: rows are dropped for this by a rule, and have not failed; change the rule with `pairmill run ... --set`")
        else:
            raise RecipeError(f"--reason {word}: no such failure{nearest(word, [*known, 'passing', 'all'])}; there are: passing, all, {', '.join(known)}")
    if not found:
        raise RecipeError("--reason: names no failure; for example timeout,dns or passing")
    return frozenset(found)


def rows_to_retry(view: RunView, stage: str | None, codes: frozenset[str]) -> dict[str, Counter[str]]:
    """Per stage, rows that reach it and are stored as failed with one of `codes`, by code. One stage, or all that compute.

    Reads the failures of one part at a time, and only of parts whose footers count some. Raises RecipeError for a stage that
    is not there or computes nothing.
    """
    nodes = [node for node in view.chain.nodes[1:] if node.has_compute]
    if stage is not None:
        node = view.chain.node(stage)
        if node not in nodes:
            names = ", ".join(node.name for node in nodes)
            why = "its rows come from the input and are read, not computed" if node.index == 0 else "it computes nothing that could fail"
            raise RecipeError(f"--stage {stage}: {why}; stages that compute: {names}")
        nodes = [node]
    found: dict[str, Counter[str]] = {}
    for node in nodes:
        counted: Counter[str] = Counter()
        before = view.chain.nodes[node.index - 1].name
        footers = view.store.records((VALUES, node.name, part) for part in range(len(view.parts)))
        for (_, _, part), record in sorted(footers.items()):
            if any(record.counts.get(f"failed:{code}") for code in codes):
                counted.update(_failed_in(view.store, node.name, before, part, codes))
        if counted:
            found[node.name] = counted
    return found


def _failed_in(store: Store, stage: str, before: str, part: int, codes: frozenset[str]) -> Counter[str]:
    values, verdicts = store.read(VALUES, stage, part, ["outcome", "failure"]), store.read(VERDICTS, before, part, ["open"])
    if values is None or verdicts is None:
        return Counter()
    failed = (values["outcome"].to_numpy() == Outcome.FAILED) & verdicts["open"].to_numpy()
    told = values["failure"].filter(failed).to_pylist()
    return Counter(code for code in told if code in codes)
