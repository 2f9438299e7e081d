"""What a walk found, told in numbers: rows, texts, stages and reasons, what would have to be measured, and examples at each moved boundary."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chain import Chain, Node, Ref
from pipeline.changed import Changed
from pipeline.corpus import Corpus
from pipeline.errors import RecipeError
from pipeline.reason_columns import as_numbers, as_stored
from pipeline.reasons import differences, section_of
from pipeline.stage import ColumnType, Stage
from pipeline.store import VALUES, VERDICTS
from pipeline.whatif import KEPT, Fate, Found, decide_refs, drops_of, walk

SAMPLE = 20_000  # rows whose tokens are counted
_THREADS = 2  # stages whose examples are looked for together
_TEXT = 100  # characters of an example's text


def whatif(changed: Changed, examples: int = 3, tokens: bool = True) -> dict[str, Any]:
    """The whole answer as plain JSON values. examples: rows on each side of a moved cut; tokens: count CLIP tokens where open_clip is installed.

    Raises RecipeError where the run is not finished.
    """
    corpus = Corpus(changed.run)
    found = walk(changed, corpus)
    now, then = found.kept_now, found.kept_then
    both, undecided = int((now & then).sum()), int(found.undecided.sum())
    texts = _Texts(changed, corpus, tokens)
    return {
        "run": str(changed.run.root),
        "changes": differences(section_of(changed.run.chain.recipe.resolved, "stages"), section_of(changed.recipe.resolved, "stages")),
        "rows": corpus.rows,
        "kept": {"now": int(now.sum()), "then": int(then.sum()), "both": both, "only_now": int((now & ~then).sum()), "only_then": int((then & ~now).sum())},
        "undecided": undecided,
        "measure": _measure(changed, found),
        "stages": _by_reason(changed, found),
        "texts": {"now": texts.count(now), "then": texts.count(then)},
        "resolved_again": found.resolved,
        "examples": _examples(changed, corpus, found, texts, examples),
        "estimate": f"for the {corpus.rows:,} rows of this run; a fresh input may differ"
        + (f"; {undecided:,} rows are undecided until they are measured" if undecided else ""),
        "cache": {"folder": str(corpus.folder), "files_made": corpus.made},
    }


def _measure(changed: Changed, found: Found) -> list[dict[str, Any]]:
    """Rows that stages would have to measure, and what that takes by the rates of the run."""
    told = []
    for missing in found.missing:
        rates = _rates(changed, missing.stage)
        stage = changed.chain.node(missing.stage).stage
        assert stage is not None
        if not stage.uses_model:
            rates.pop("model_seconds", None)
        told.append({"stage": missing.stage, "rows": [missing.low, missing.high], **{key: round(rate * missing.high, 1) for key, rate in rates.items()}})
    return told


def _rates(changed: Changed, stage: str) -> dict[str, float]:
    """Seconds and seconds of the model for a row, from footers of this stage; nothing where nothing was computed."""
    keys = [(VALUES, stage, part) for part in range(min(len(changed.run.parts), 200))]
    told = [record.info for record in changed.run.store.records(keys).values() if record.info.get("computed")]
    rows = sum(info["computed"] for info in told)
    return {key: sum(info.get(key, 0.0) for info in told) / rows for key in ("seconds", "model_seconds")} if rows else {}


def _by_reason(changed: Changed, found: Found) -> list[dict[str, Any]]:
    """Rows that leave by stage and reason, now and then, in the chain's order; only where the two differ is `changed` true."""
    counted = [_counts(fate, len(found.names)) for fate in (found.now, found.then)]
    told = []
    for node in changed.chain.nodes:
        for code, name in enumerate(found.names):
            now, then = (int(counts[node.index, code]) if node.index < len(counts) else 0 for counts in counted)
            if now or then:
                told.append({"stage": node.name, "reason": name, "now": now, "then": then})
    return told


def _counts(fate: Fate, reasons: int) -> np.ndarray:
    """Rows by node and reason (int64 [nodes, reasons])."""
    codes = (fate.left.astype(np.int16) + 1) * np.int16(reasons + 1) + fate.reason + np.int16(1)  # a kept row has the code 0
    counts = np.bincount(codes)
    return np.pad(counts, (0, -len(counts) % (reasons + 1))).reshape(-1, reasons + 1)[1:, 1:]


class _Texts:
    """The chosen captions: how many there are, their words, and their CLIP tokens by the share of a sample."""

    def __init__(self, changed: Changed, corpus: Corpus, tokens: bool):
        self.corpus, self.chain = corpus, changed.run.chain
        self.tokenizer = "clip" if tokens and importlib.util.find_spec("open_clip") else ""
        spec = next((job.params.caption for job in changed.recipe.jobs if getattr(job.params, "caption", None)), "text|alt_text")
        self.refs = [self.chain.find_column(name) for name in spec.split("|") if self.chain.has_column(name)]
        if not self.refs:
            raise RecipeError(f"no column {spec!r} for the captions")

    def count(self, rows: np.ndarray) -> dict[str, Any]:
        """captions, words and tokens of some rows (bool [N]); tokens null where they are not counted."""
        words = self.corpus.index(0, "words", self.refs, self._words)["words"]
        total = int((words * rows).sum(dtype=np.int64))
        told = {"captions": int(np.count_nonzero((words > 0) & rows)), "words": total, "clip_tokens": None, "tokens_counted_on": 0}
        if not self.tokenizer:
            return told
        sample = self.corpus.index(0, "clip_tokens", self.refs, self._tokens)
        here = rows[sample["rows"]]
        counted, in_sample = int(sample["tokens"][here].sum()), int(words[sample["rows"][here]].sum())
        return {**told, "clip_tokens": round(total * counted / in_sample) if in_sample else 0, "tokens_counted_on": int(here.sum())}

    def of(self, places: np.ndarray) -> list[str]:
        """Captions of some rows."""
        columns = [self.corpus.column(ref).take(pa.array(places)) for ref in self.refs]
        return [text or "" for text in pc.coalesce(*columns).to_pylist()]

    def _words(self) -> dict[str, np.ndarray]:
        self.corpus.load(self.refs)
        texts = pc.coalesce(*(self.corpus.column(ref) for ref in self.refs))
        return {"words": as_numbers(pc.count_substring_regex(texts, r"\S+").fill_null(0)).astype(np.int32)}

    def _tokens(self) -> dict[str, np.ndarray]:
        rows = np.arange(self.corpus.rows) if self.corpus.rows <= SAMPLE else np.linspace(0, self.corpus.rows - 1, SAMPLE).astype(np.int64)
        tokenizer = importlib.import_module("open_clip.tokenizer").SimpleTokenizer()  # CLIP's byte-pair vocabulary
        return {"rows": rows, "tokens": np.array([len(tokenizer.encode(text)) for text in self.of(rows)], np.int64)}


def _examples(changed: Changed, corpus: Corpus, found: Found, texts: _Texts, count: int) -> list[dict[str, Any]]:
    """Of each stage that judges otherwise than before, in the chain's order; stages do not wait for each other."""

    def of(index: int) -> list[dict[str, Any]]:
        return _Boundary(changed.chain, corpus, found, changed.chain.nodes[index], texts).examples(count)

    with ThreadPoolExecutor(_THREADS) as pool:
        return [example for some in pool.map(of, found.judged) for example in some]


class _Boundary:
    """Rows on both sides of a stage's cut as it would be, nearest first where one of its numbers makes the cut; else rows that change sides."""

    def __init__(self, chain: Chain, corpus: Corpus, found: Found, node: Node, texts: _Texts):
        self.chain, self.corpus, self.found, self.node, self.texts = chain, corpus, found, node, texts
        left = found.then.left
        reached = ((left == KEPT) | (left >= node.index)) & ~found.undecided
        self.dropped = reached & (left == node.index)
        self.kept = reached & (left != node.index)
        was = (found.now.left == KEPT) | (found.now.left >= node.index)
        self.moved = was & reached & ((found.now.left == node.index) != self.dropped)

    def examples(self, count: int) -> list[dict[str, Any]]:
        column, kept, dropped = self._nearest(count)
        told = [self._tell(kept, "kept", column), self._tell(dropped, "dropped", column)]
        return [example for side in told for example in side]

    def _nearest(self, count: int) -> tuple[str | None, np.ndarray, np.ndarray]:
        for name, ref in decide_refs(self.node).items():
            # A column that a resolve in memory makes for the rows told of cuts nothing.
            if ref is None or not _is_number(self.chain.type_of(ref)) or not isinstance(self.corpus.moved.get(ref, pa.nulls(0)), pa.Array):
                continue
            column = self.corpus.column(ref)
            if column.null_count == len(column):
                continue
            values = as_stored(column)
            low, high = (_bounds(values[side]) for side in (self.kept, self.dropped))
            if low is None or high is None:
                continue
            if high[1] <= low[0]:
                return name, _first(values, self.kept, count), _first(-values, self.dropped, count)
            if high[0] >= low[1]:
                return name, _first(-values, self.kept, count), _first(values, self.dropped, count)
        kept, dropped = (np.flatnonzero(self.moved & side)[:count] for side in (self.kept, self.dropped))
        return None, kept, dropped

    def _tell(self, places: np.ndarray, side: str, column: str | None) -> Iterator[dict[str, Any]]:
        if not len(places):
            return
        ids = self.corpus.column(Ref(0, "sample_id")).take(pa.array(places)).to_pylist()
        stage = self.node.stage
        assert isinstance(stage, Stage)
        for place, identifier, text in zip(places.tolist(), ids, self.texts.of(places), strict=True):
            drop = drops_of(self.node, stage, self.corpus, np.array([place]))[0]
            ref = decide_refs(self.node)[column] if column else None
            value = f"{column} {self.corpus.column(ref)[place].as_py():.6g}" if ref is not None else ""
            value = (drop.detail if drop is not None else "") or value or self._detail_now(place)
            told = {"stage": self.node.name, "side": side, "sample_id": identifier.hex(), "text": text[:_TEXT], "value": value}
            yield {**told, "now": "kept" if self.found.now.left[place] == KEPT else "dropped"}

    def _detail_now(self, place: int) -> str:
        """What the committed verdict says of a row that the stage drops now."""
        if self.found.now.left[place] != self.node.index:
            return ""
        part = int(np.searchsorted(self.corpus.starts, place, "right")) - 1
        table = self.corpus.run.store.read(VERDICTS, self.node.name, part, ["detail"])
        return "" if table is None else f"now {table['detail'][place - int(self.corpus.starts[part])].as_py()}"


def _bounds(values: np.ndarray) -> tuple[Any, Any] | None:
    """Least and greatest of some numbers, NaN left out; None where there are none."""
    if not len(values):
        return None
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    return None if np.isnan(low) else (low, high)


def _first(values: np.ndarray, side: np.ndarray, count: int) -> np.ndarray:
    """Places of the smallest values of one side (bool [N]), in their order, equal ones by place."""
    own = values[side]
    least = np.partition(own, count - 1)[count - 1] if 0 < count <= len(own) else np.nan
    places = np.flatnonzero(side & (np.isfinite(values) if np.isnan(least) else values <= least))
    return places[np.argsort(values[places], kind="stable")[:count]]


def _is_number(kind: ColumnType) -> bool:
    return isinstance(kind, pa.DataType) and bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

