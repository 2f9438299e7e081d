"""One pass over a run, part by part: counts, histograms, and the rows that the galleries show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.errors import Fatal
from pipeline.run_view import RunView
from pipeline.view import PartView, flat
from schemas.outcome import Status
from stages.report.captions import KindCounts
from stages.report.draws import Draw, Place, random_keys
from stages.report.histograms import Histogram
from stages.report.measures import Measure, Threshold, find_measures, find_thresholds
from stages.report.samples import Sample, SampleReader

KEPT, ELSEWHERE, HERE = range(3)  # series of the histograms: kept in the end, left at another stage, left at this one
CORRUPTED = "corrupted"


@dataclass(frozen=True)
class Group:
    """Rows that left at one stage for one reason; status is 'dropped' or 'failed'."""

    stage: str
    status: str
    reason: str


@dataclass(frozen=True)
class Limits:
    """How much of a run the report shows."""

    seed: int = 0
    kept: int = 24
    per_reason: int = 8
    nearest: int = 6
    galleries: int = 60
    measures: int = 48


class Gallery:
    """Draws of one group of rows: at random, and those nearest to each threshold that may have decided."""

    def __init__(self, limits: Limits, size: int, thresholds: list[int]):
        self.rows = 0
        self.random = Draw(size)
        self.nearest = {threshold: Draw(limits.nearest) for threshold in thresholds}
        self.beyond = dict.fromkeys(thresholds, 0)  # rows on the far side of the threshold

    def places(self) -> Iterator[Place]:
        for draw in (self.random, *self.nearest.values()):
            yield from draw.places()


@dataclass
class Collected:
    """What one pass found."""

    measures: list[Measure]
    thresholds: list[Threshold]
    histograms: list[Histogram]
    clean_or_corrupted: dict[int, Histogram]  # measure -> values of clean (0) and corrupted (1) rows
    kept: Gallery
    left: dict[Group, Gallery]
    counts: Counter[Group]
    kinds: KindCounts
    rows: int = 0
    samples: dict[Place, Sample] = field(default_factory=dict)

    def deciding(self, gallery: Gallery) -> list[int]:
        """Thresholds that every row of a group of dropped rows lies beyond: those that can be the reason."""
        return [threshold for threshold, beyond in gallery.beyond.items() if beyond == gallery.rows > 0]


class Collector:
    """Fills a Collected, in memory bounded by a part and by what is shown."""

    def __init__(self, run: RunView, limits: Limits):
        self.run = run
        self.limits = limits
        chain = run.chain
        measures = find_measures(chain, limits.measures)
        thresholds = find_thresholds(chain, measures)
        flag = chain.find_column(CORRUPTED) if chain.has_column(CORRUPTED) else None
        self.flag = flag if flag is not None and pa.types.is_boolean(chain.type_of(flag)) else None  # type: ignore[arg-type]
        judged = [place for place, m in enumerate(measures) if self.flag is not None and m.is_score and m.ref.node > self.flag.node]
        self.found = Collected(
            measures, thresholds, [Histogram(3) for _ in measures], {place: Histogram(2) for place in judged},
            Gallery(limits, limits.kept, list(range(len(thresholds)))), {}, Counter(), KindCounts(),
        )  # fmt: skip
        self.shown = self._largest_groups()
        self.reader = SampleReader(run, measures)

    def _largest_groups(self) -> set[Group]:
        """Groups that get a gallery: the largest ones, where a stage of the user's own has more reasons than a page can hold."""
        sizes = Counter({Group(stage, *key.split(":", 1)): n for stage, counts in self.run.counts().items() for key, n in counts.items() if ":" in key})
        return {group for group, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0].stage, item[0].reason))[: self.limits.galleries]}

    def collect(self) -> Collected:
        """Read every part once. Raises Fatal where the run is not finished, or its counts and its rows differ."""
        for part in range(len(self.run.parts)):
            self._part(part)
        self._check()
        return self.found

    def _part(self, part: int) -> None:
        view = self.run.view(part)
        left_at, groups = fates(self.run, view)
        values = [self._values(view, measure) for measure in self.found.measures]
        self._histograms(view, values, left_at)
        keys = random_keys(flat(view.column(self.run.chain.find_column("sample_id"))), self.limits.seed)
        kept = np.flatnonzero(left_at < 0)
        self._offer_kept(part, kept, keys, values)
        for group, rows in groups.items():
            self.found.counts[group] += len(rows)
            if group in self.shown:
                self._offer_left(group, part, rows, keys, values)
        self.found.rows += view.rows
        self.found.kinds.add(self.run, view, kept)
        self._read_samples(view)

    def _values(self, view: PartView, measure: Measure) -> np.ndarray:
        """A measure as float64 [N], NaN where the row was not measured."""
        column = view.masked(measure.ref)
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

    def _histograms(self, view: PartView, values: list[np.ndarray], left_at: np.ndarray) -> None:
        for measure, histogram, column in zip(self.found.measures, self.found.histograms, values, strict=True):
            histogram.add(column, np.where(left_at < 0, KEPT, np.where(left_at == measure.ref.node, HERE, ELSEWHERE)))
        if self.flag is None:
            return
        flags = view.masked(self.flag)
        known = flags.is_valid().to_numpy(zero_copy_only=False)
        corrupted = flags.fill_null(False).to_numpy(zero_copy_only=False)[known].astype(int)
        for place, histogram in self.found.clean_or_corrupted.items():
            histogram.add(values[place][known], corrupted)

    def _offer_kept(self, part: int, rows: np.ndarray, keys: np.ndarray, values: list[np.ndarray]) -> None:
        gallery = self.found.kept
        gallery.rows += len(rows)
        gallery.random.offer(part, rows, keys[rows])
        for place, draw in gallery.nearest.items():
            distance = self._distance(place, rows, values)
            inside = distance <= 0
            draw.offer(part, rows[inside], -distance[inside])

    def _offer_left(self, group: Group, part: int, rows: np.ndarray, keys: np.ndarray, values: list[np.ndarray]) -> None:
        gallery = self.found.left.get(group)
        if gallery is None:
            limits = enumerate(self.found.thresholds) if group.status == "dropped" else ()
            own = [place for place, t in limits if t.stage == group.stage and (not t.reasons or group.reason in t.reasons)]
            gallery = self.found.left[group] = Gallery(self.limits, self.limits.per_reason, own)
        gallery.rows += len(rows)
        gallery.random.offer(part, rows, keys[rows])
        for place, draw in gallery.nearest.items():
            distance = self._distance(place, rows, values)
            beyond = distance > 0
            gallery.beyond[place] += int(beyond.sum())
            draw.offer(part, rows[beyond], distance[beyond])

    def _distance(self, place: int, rows: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        """How far rows lie beyond a threshold (negative: inside), NaN without a value."""
        threshold = self.found.thresholds[place]
        kind = self.run.chain.type_of(self.found.measures[threshold.measure].ref)
        value = float(np.float32(threshold.value)) if kind == pa.float32() else threshold.value
        distance = values[threshold.measure][rows] - value
        return -distance if threshold.side == "min" else distance

    def _read_samples(self, view: PartView) -> None:
        """Read what the draws took from this part, and forget what they let go."""
        galleries = [self.found.kept, *self.found.left.values()]
        drawn = {place for gallery in galleries for place in gallery.places()}
        self.found.samples = {place: sample for place, sample in self.found.samples.items() if place in drawn}
        rows = np.array(sorted(row for part, row in drawn if part == view.part), np.int64)
        for row, sample in zip(rows.tolist(), self.reader.read(view, rows), strict=True):
            self.found.samples[(view.part, row)] = sample

    def _check(self) -> None:
        """The rows read must be those that the footers counted, whatever the report says of them afterwards."""
        found, run = self.found, self.run
        footers = Counter({Group(stage, *key.split(":", 1)): n for stage, counts in run.counts().items() for key, n in counts.items() if ":" in key})
        if found.rows != sum(run.parts) or found.kept.rows + found.counts.total() != found.rows or found.counts != footers:
            raise Fatal(
                f"{run.root}: {found.rows} rows were read, {found.kept.rows} kept and {found.counts.total()} left; the run counts {sum(run.parts)} rows "
                f"of which {footers.total()} left: part files were changed while they were read; run the recipe again, then `pairmill report`"
            )


def fates(run: RunView, view: PartView) -> tuple[np.ndarray, dict[Group, np.ndarray]]:
    """(node at which each row left, -1 where it was kept: int16 [N]; rows of each group that left in this part)."""
    left_at = np.full(view.rows, -1, np.int16)
    groups: dict[Group, np.ndarray] = {}
    for node in run.chain.nodes:
        verdict = view.verdict(node.index)
        for status in (Status.DROPPED, Status.FAILED):
            rows = np.flatnonzero(verdict.status == status)
            if not len(rows):
                continue
            left_at[rows] = node.index
            reasons = verdict.reason.take(pa.array(rows)).dictionary_encode()
            codes = reasons.indices.to_numpy(zero_copy_only=False)
            for code, reason in enumerate(reasons.dictionary.to_pylist()):
                groups[Group(node.name, status.name.lower(), str(reason))] = rows[codes == code]
    return left_at, groups
