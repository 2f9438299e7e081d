"""How the demo's MLLM did against the truth of its rendered scenes: the filter by its score, and what its captions name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.run_view import RunView
from stages.demo.claims import named_objects
from stages.demo.scenes import Scene, draw_scene
from stages.demo.truth import LATER
from stages.report.captions import written_refs

SCORE = "image_text_matching"
REASON = "low_mllm"


@dataclass(frozen=True)
class FilterScore:
    """Rows that were scored, those of them whose text belongs to another image, those taken for their score, those taken rightly.

    `auc`: share of pairs of a right and a wrong text in which the right one has the higher score, ties half (NaN without both).
    """

    scored: int
    wrong: int
    taken: int
    right: int
    auc: float


@dataclass(frozen=True)
class CaptionScore:
    """Captions of one stage: how many, their mean length in CLIP's tokens, share of named objects that are there (precision) and
    share of objects named (recall), by colour and shape."""

    stage: str
    captions: int
    tokens: float
    precision: float
    recall: float


def score_filter(run: RunView, truth: Path) -> FilterScore | None:
    """The MLLM's filter on the rows that reached it; None where the recipe scores nothing."""
    if not run.chain.has_column(SCORE):
        return None
    expected = pq.read_table(truth, columns=["expected_reason"])["expected_reason"].to_pylist()
    rows = list(_rows(run, [SCORE]))
    return filter_score((want == LATER[REASON], reason == REASON, score) for want, (reason, score) in zip(expected, rows, strict=True) if score is not None)


def filter_score(rows: Iterable[tuple[bool, bool, float]]) -> FilterScore:
    """From (the text is wrong, the row was taken, the score) of every scored row."""
    from stages.pretrain.evaluate import auc

    given = list(rows)
    good, bad = ([score for wrong, _, score in given if wrong is which] for which in (False, True))
    taken = [wrong for wrong, gone, _ in given if gone]
    return FilterScore(len(given), len(bad), len(taken), sum(taken), auc(good, bad) if good and bad else float("nan"))


def score_captions(run: RunView, truth: Path) -> list[CaptionScore]:
    """Every caption stage of the run, over the rows that have its caption."""
    seeds = pq.read_table(truth, columns=["scene_seed"])["scene_seed"].to_pylist()
    found = []
    for written in written_refs(run):
        rows = list(_rows(run, [f"{written.stage}.text", f"{written.stage}.n_tokens"]))
        told = [(draw_scene(seed), text, n) for seed, (_, text, n) in zip(seeds, rows, strict=True) if text]
        found.append(caption_score(written.stage, told))
    return found


def caption_score(stage: str, captions: Sequence[tuple[Scene, str, int]]) -> CaptionScore:
    """From (scene, caption, tokens) of every caption."""
    named = [named_objects(text) for _, text, _ in captions]
    there = [{(item.color, item.shape) for item in scene.objects} for scene, _, _ in captions]
    right = sum(len(a & b) for a, b in zip(named, there, strict=True))
    told, objects = max(1, sum(map(len, named))), max(1, sum(map(len, there)))
    return CaptionScore(stage, len(captions), sum(n for _, _, n in captions) / max(1, len(captions)), right / told, right / objects)


def _rows(run: RunView, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Final reason ('' for kept rows) and values of columns of every row of the input, in order; None where a row did not get that far."""
    refs = [run.chain.find_column(name) for name in columns]
    for part in range(len(run.parts)):
        view = run.view(part)
        reasons = run.final(view)["reason"].to_pylist()
        values = [_plain(view.masked(ref)) for ref in refs]
        yield from zip([reason or "" for reason in reasons], *values, strict=True)


def _plain(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    return column.to_pylist()
