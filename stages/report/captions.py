"""Counts of the texts of kept rows by kind: the alt-text and what captioners wrote."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chain import Ref
from pipeline.run_view import RunView
from pipeline.view import PartView, flat
from stages.caption import Caption

MOST_KINDS = 12


@dataclass
class Kind:
    """Texts of one kind over all kept rows. `first`: rows in which it stands first, and so is the chosen text."""

    texts: int = 0
    rows: int = 0
    first: int = 0
    characters: int = 0
    scored: int = 0
    score: float = 0.0


class KindCounts:
    """Kind -> counts, added up part by part. Rows without a list of texts count with their alt-text."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = defaultdict(Kind)
        self.without = 0  # kept rows that have no text at all

    def add(self, run: RunView, view: PartView, rows: np.ndarray) -> None:
        """Add the kept rows (int64 [N]) of a part."""
        self._add_given(run, view, rows)
        for written in written_refs(run):
            texts = flat(view.masked(written.text).take(pa.array(rows)))
            found, lengths = self.kinds[written.stage], pc.utf8_length(texts).fill_null(0)
            filled = pc.sum(pc.greater(lengths, 0)).as_py() or 0
            found.texts += filled
            found.rows += filled
            found.characters += pc.sum(lengths).as_py() or 0

    def _add_given(self, run: RunView, view: PartView, rows: np.ndarray) -> None:
        """What rows brought with them or took over from their duplicates."""
        column = self._texts(run, view, rows)
        if column is None:
            alt_texts = view.column(run.chain.find_column("alt_text")).take(pa.array(rows))
            found = self.kinds["alt_text"]
            filled = pc.sum(pc.greater(pc.utf8_length(alt_texts), 0)).as_py() or 0
            self.without += len(rows) - filled
            found.texts += filled
            found.rows += filled
            found.first += filled
            found.characters += pc.sum(pc.utf8_length(alt_texts)).as_py() or 0
            return
        entries, parents = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
        if not len(entries):
            self.without += len(rows)
            return
        kinds = entries.field("kind").fill_null("").dictionary_encode()
        codes, lengths = kinds.indices.to_numpy(), pc.utf8_length(entries.field("text")).fill_null(0).to_numpy()
        self.without += len(rows) - len(np.unique(parents[lengths > 0]))
        scores = entries.field("clip_score").cast(pa.float64()).to_numpy(zero_copy_only=False)
        leads = np.concatenate([[True], parents[1:] != parents[:-1]])
        for code, name in enumerate(kinds.dictionary.to_pylist()):
            mine = (codes == code) & (lengths > 0)
            found, scored = self.kinds[name], scores[mine & np.isfinite(scores)]
            found.texts += int(mine.sum())
            found.rows += len(np.unique(parents[mine]))
            found.first += int((mine & leads).sum())
            found.characters += int(lengths[mine].sum())
            found.scored += len(scored)
            found.score += float(scored.sum())

    def _texts(self, run: RunView, view: PartView, rows: np.ndarray) -> pa.Array | None:
        refs = texts_refs(run)
        return flat(view.masked(refs[0]).take(pa.array(rows))) if refs else None

    def shown(self) -> dict[str, Kind]:
        """The commonest kinds, the alt-text first."""
        order = sorted(self.kinds.items(), key=lambda item: (item[0] != "alt_text", -item[1].texts, item[0]))
        return dict(order[:MOST_KINDS])


@dataclass(frozen=True)
class Written:
    """Columns of a stage that writes captions: the text, and the model that wrote it."""

    stage: str
    text: Ref
    model: Ref


def written_refs(run: RunView) -> list[Written]:
    """The caption stages of the chain, in its order."""
    return [Written(n.name, Ref(n.index, "text"), Ref(n.index, "model")) for n in run.chain.nodes if isinstance(n.stage, Caption)]


def texts_refs(run: RunView) -> list[Ref]:
    """Columns `texts` of the chain, the last one first."""
    found = []
    for node in reversed(run.chain.nodes):
        found += [Ref(node.index, "texts", True)] if "texts" in node.resolves else [Ref(node.index, "texts")] if "texts" in node.writes else []
    return found
