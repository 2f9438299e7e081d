"""Which texts of a row are published: those that pass the recipe's text rules and the captions written for it, and which of them is the caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chain import Node
from pipeline.view import flat
from schemas.sample import TEXTS, make_text
from stages.text_rules import TextRules

_MARK = "?"
_WRITTEN = "!"
_WRITTEN_FIELDS = ("text", "model", "prompt", "clip_score")
COMPLEMENT_JOIN = "; "  # TL;DR (Wang et al. 2023), released code: original + "; " + generated


def rule_columns(rules: Node | None) -> dict[str, str]:
    """Columns that `keep_passing` reads: name in its table -> full name in the chain."""
    if rules is None:
        return {}
    return {f"{_MARK}{column}": f"{rules.name}.{column}" for column in ("texts", "text_measures", *rules.resolves)}


def written_columns(writers: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Columns that `with_captions` reads of the caption stages named: name in its table -> full name in the chain."""
    return {f"{_WRITTEN}{writer}.{field}": full for writer, fields in writers.items() for field, full in fields.items()}


def with_captions(writers: Mapping[str, Mapping[str, str]], texts: pa.Array, keys: pa.Array, table: pa.Table) -> pa.Array:
    """`texts` with the captions of the stages named behind them, the stage's name as their kind. `table` holds `written_columns`."""
    if not writers:
        return texts
    rows = texts.to_pylist()
    for writer, fields in writers.items():
        columns = [flat(table[f"{_WRITTEN}{writer}.{field}"]).to_pylist() if field in fields else [None] * len(rows) for field in _WRITTEN_FIELDS]
        for entries, key, text, model, prompt, score in zip(rows, keys.to_pylist(), *columns, strict=True):
            if text is not None:
                entries.append(make_text(text, writer, key, model or "", prompt or "", score))
    return pa.array(rows, TEXTS)


def complemented(captions: pa.Array, written: pa.Array) -> pa.Array:
    """Caption + "; " + the other text, where a row has both, else the one it has; both stand apart in `texts`."""
    joined = pc.if_else(has_words(captions), pc.binary_join_element_wise(captions, written, COMPLEMENT_JOIN), written)
    return pc.if_else(has_words(written), joined, captions)


def has_words(texts: pa.Array) -> pa.Array:
    """Where a text is neither null nor blank."""
    return pc.not_equal(pc.utf8_trim_whitespace(texts), "").fill_null(False)


def keep_passing(rules: Node | None, texts: pa.Array, captions: pa.Array, table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """`texts` (TEXTS [N]) without those that break a rule; a caption that breaks one gives way to the first text that is left.

    A row was kept because one of its texts passes, so rows with a single measured text need no look. `table` holds `rule_columns`.
    """
    if rules is None or not isinstance(rules.stage, TextRules):
        return texts, captions
    several = pc.greater(pc.list_value_length(flat(table[f"{_MARK}texts"])), 1).fill_null(False)
    rows = [row for row, more in enumerate(several.to_pylist()) if more]
    if not rows:
        return texts, captions
    chosen = pa.array(rows, pa.int64())
    measured = table.select(list(rule_columns(rules))).take(chosen).rename_columns([name.removeprefix(_MARK) for name in rule_columns(rules)])
    found = zip(rows, texts.take(chosen).to_pylist(), captions.take(chosen).to_pylist(), measured.to_pylist(), strict=True)
    made = {row: _passing(rules.stage, entries or [], caption, stored) for row, entries, caption, stored in found}
    new_texts = pa.array([list(entries) for entries, _ in made.values()], TEXTS)
    new_captions = pa.array([caption for _, caption in made.values()], captions.type)
    places = [len(texts) + at for at in range(len(rows))]
    order = list(range(len(texts)))
    for row, place in zip(rows, places, strict=True):
        order[row] = place
    index = pa.array(order, pa.int64())
    return pa.concat_arrays([texts, new_texts]).take(index), pa.concat_arrays([captions, new_captions]).take(index)


def _passing(stage: TextRules, entries: list[Mapping[str, Any]], caption: str, stored: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str]:
    kept = stage.passing_texts(entries, stored, stored)
    if not kept or any(entry["text"] == caption for entry in kept):
        return kept, caption
    broken = {entry["text"] for entry in entries} - {entry["text"] for entry in kept}
    return kept, kept[0]["text"] if caption in broken else caption
