"""Single rows as the galleries show them, read from a part while it is at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chain import Ref
from pipeline.run_view import RunView
from pipeline.stage import Vector
from pipeline.view import PartView
from schemas.outcome import Status
from schemas.sample import SOURCE_COLUMNS
from stages.report.captions import texts_refs, written_refs
from stages.report.measures import Measure
from stages.report.safe import LONG

MOST_TEXTS = 8
MOST_CARRIED = 20
LEFT = [int(Status.DROPPED), int(Status.FAILED)]
_IMAGE = ("tar", "offset", "size")


@dataclass(frozen=True)
class Text:
    """One text of a row, cut at LONG + 1 characters; `length` is that of the whole. `other`: it came from another row."""

    kind: str
    text: str
    length: int
    score: float | None = None
    model: str = ""
    other: bool = False


@dataclass
class Sample:
    """A row: what it was, what was measured, what became of it. `image`: tar, offset and size of its stored bytes."""

    identifier: str
    url: Text
    alt_text: Text
    texts: list[Text] = field(default_factory=list)
    more_texts: int = 0
    scores: dict[int, float] = field(default_factory=dict)  # measure -> value
    carried: dict[str, Text] = field(default_factory=dict)
    stage: str = ""
    reason: str = ""
    detail: str = ""
    image: tuple[str, int, int] | None = None


class SampleReader:
    """Reads rows of a part as Samples."""

    def __init__(self, run: RunView, measures: list[Measure]):
        self.run = run
        self.measures = measures
        self.texts, self.written = texts_refs(run), written_refs(run)
        chain = run.chain
        self.writer = chain.nodes[chain.find_column("image_sha256").node].name if chain.has_column("image_sha256") else ""
        self.place = [chain.find_column(f"{self.writer}.{name}") for name in _IMAGE] if self.writer else []
        numbers = {measure.ref for measure in measures}
        writes = chain.nodes[0].writes
        plain = [name for name, kind in writes.items() if name not in SOURCE_COLUMNS and not isinstance(kind, Vector)]
        self.carried = [name for name in plain if Ref(0, name) not in numbers][:MOST_CARRIED]

    def read(self, view: PartView, rows: np.ndarray) -> list[Sample]:
        """Samples of some rows (int64 [N]), in their order."""
        if not len(rows):
            return []
        source = {name: view.column(Ref(0, name)).take(pa.array(rows)).to_pylist() for name in ("sample_id", "url", "alt_text", *self.carried)}
        samples = [
            Sample(source["sample_id"][at].hex(), capped("url", source["url"][at]), capped("alt_text", source["alt_text"][at]))
            for at in range(len(rows))
        ]
        for name in self.carried:
            for sample, value in zip(samples, source[name], strict=True):
                if value is not None:
                    sample.carried[name] = capped(name, value)
        self._add_scores(view, rows, samples)
        self._add_texts(view, rows, samples)
        self._add_fates(view, rows, samples)
        self._add_images(view, rows, samples)
        return samples

    def _add_scores(self, view: PartView, rows: np.ndarray, samples: list[Sample]) -> None:
        for place, measure in enumerate(self.measures):
            for sample, value in zip(samples, cells(view, measure.ref, rows), strict=True):
                if value is not None:
                    sample.scores[place] = value

    def _add_texts(self, view: PartView, rows: np.ndarray, samples: list[Sample]) -> None:
        """The last list of texts that the row had when it left, and behind them the captions written for it."""
        for ref in self.texts:
            for sample, entries in zip(samples, cells(view, ref, rows), strict=True):
                if entries and not sample.texts:
                    sample.texts = [_entry(entry, sample.identifier) for entry in entries[:MOST_TEXTS]]
                    sample.more_texts = max(0, len(entries) - MOST_TEXTS)
        for written in self.written:
            for sample, text, model in zip(samples, cells(view, written.text, rows), cells(view, written.model, rows), strict=True):
                if text:
                    sample.texts.append(capped(written.stage, text, model=(model or "")[:80]))

    def _add_fates(self, view: PartView, rows: np.ndarray, samples: list[Sample]) -> None:
        for node in self.run.chain.nodes:
            verdict = view.verdict(node.index)
            for at in np.flatnonzero(np.isin(verdict.status[rows], LEFT)).tolist():
                row, sample = int(rows[at]), samples[at]
                sample.stage, sample.reason = node.name, verdict.reason[row].as_py()
                sample.detail = (verdict.detail[row].as_py() or "")[: LONG + 1]

    def _add_images(self, view: PartView, rows: np.ndarray, samples: list[Sample]) -> None:
        if not self.place:
            return
        columns = [cells(view, ref, rows) for ref in self.place]
        for sample, *place in zip(samples, *columns, strict=True):
            if all(value is not None for value in place):
                sample.image = (str(place[0]), int(place[1]), int(place[2]))


def cells(view: PartView, ref: Ref, rows: np.ndarray) -> list[Any]:
    """A column at some rows as Python values, None where the row was dead at the column's stage."""
    values = view.column(ref).take(pa.array(rows)).to_pylist()
    if not ref.node:
        return values
    present = view.present(view.chain.nodes[ref.node])[rows]
    return [value if there else None for value, there in zip(values, present.tolist(), strict=True)]


def capped(kind: str, value: Any, **more: Any) -> Text:
    """A value as a Text; bytes as hex."""
    text = value if isinstance(value, str) else "" if value is None else value.hex() if isinstance(value, bytes) else str(value)
    return Text(kind, text[: LONG + 1], len(text), **more)


def _entry(entry: dict[str, Any], identifier: str) -> Text:
    source, score = entry.get("source") or "", entry.get("clip_score")
    more = {"score": score, "model": (entry.get("model") or "")[:80], "other": bool(source) and source != identifier}
    return capped(entry.get("kind") or "text", entry.get("text"), **more)
