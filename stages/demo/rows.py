"""Planning the rows of a rendered web: which scene, which fault, which URL and which alt-text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.demo import faults, spoiled_texts
from stages.demo.captions import caption_for
from stages.demo.scenes import Scene, draw_scene
from stages.demo.streams import seed_for

STRETCH: Final = 1 << 24
"""Scene indexes of one world; its mismatched texts come from the upper half."""
CLOSED_PORT: Final = 1
"""tcpmux: nothing listens there."""
_DONORS_PER_ROW: Final = 8
MAX_ROWS: Final = STRETCH // 2 // _DONORS_PER_ROW


@dataclass
class Row:
    """A row being made. `path` is empty for links that leave the server."""

    item: int
    fault: str
    scene: Scene
    url: str
    path: str
    alt_text: str | None
    true_caption: str
    original: int = -1


def row_rng(seed: int, item: int, purpose: int) -> np.random.Generator:
    """A generator of its own for each row and purpose, so that a new draw never shifts the others."""
    return np.random.Generator(np.random.PCG64([seed, item, 100 + purpose]))


def plan_rows(counts: dict[str, int], seed: int, base_url: str) -> list[Row]:
    """All rows in order of making: clean ones first, each copy pointing at a clean one of its own.

    Args:
        counts: rows per fault, as `faults.fault_counts` gives them.
    """
    items: list[Row] = []
    copied = 0
    for fault, count in counts.items():
        for index in range(count):
            if fault in faults.COPIES:
                items.append(_copy_row(seed, base_url, len(items), fault, items[copied]))
                copied += 1
            else:
                items.append(_fresh_row(seed, base_url, len(items), fault, index))
    return items


def _fresh_row(seed: int, base_url: str, item: int, fault: str, index: int) -> Row:
    scene = draw_scene(seed_for("web", seed * STRETCH + item))
    truth = caption_for(scene)
    path = _path(seed, item, fault)
    url = base_url + path
    if fault == "dead_link_dns":
        path, url = "", f"http://images{item}.gallery.invalid{path}"
    elif fault == "dead_link_connect":
        path, url = "", f"http://127.0.0.1:{CLOSED_PORT}{path}"
    return Row(item, fault, scene, url, path, _alt_text(seed, item, fault, index, scene, truth), truth)


def _copy_row(seed: int, base_url: str, item: int, fault: str, original: Row) -> Row:
    path = original.path if fault in ("duplicate_row", "same_url") else _path(seed, item, fault)
    variants = (caption_for(original.scene, variant) for variant in range(1, 99))
    other_truth = next(text for text in variants if text != original.alt_text)
    text = original.alt_text if fault == "duplicate_row" else other_truth
    url = base_url + path
    return Row(item, fault, original.scene, url, path, text, original.true_caption, original.item)


def _path(seed: int, item: int, fault: str) -> str:
    rng = row_rng(seed, item, 0)
    extension = "jpg" if fault in ("short_body", "not_an_image") else _any_extension(rng)
    name = hashlib.sha256(f"{seed}/{item}".encode()).hexdigest()[:14]
    return f"/img/{name[:2]}/{name[2:]}.{extension}"


def _any_extension(rng: np.random.Generator) -> str:
    return ("jpg", "png", "webp")[int(rng.choice(3, p=(0.75, 0.15, 0.10)))]


def _alt_text(seed: int, item: int, fault: str, index: int, scene: Scene, truth: str) -> str | None:
    rng = row_rng(seed, item, 1)
    if fault == "mismatch":
        first = seed * STRETCH + STRETCH // 2 + item * _DONORS_PER_ROW
        donors = [draw_scene(seed_for("web", first + k)) for k in range(_DONORS_PER_ROW)]
        return spoiled_texts.mismatched_caption(scene, donors)
    if fault == "other_language":
        return spoiled_texts.other_language(scene, rng)
    if fault == "repeated_text":
        return spoiled_texts.REPEATED_TEXT
    listed: dict[str, Callable[[int], str | None]] = {
        "empty": spoiled_texts.empty,
        "too_short": spoiled_texts.too_short,
        "one_word": spoiled_texts.one_word,
    }
    if fault in listed:
        return listed[fault](index)
    makers = {
        "boilerplate": spoiled_texts.boilerplate,
        "file_name": spoiled_texts.file_name,
        "url_in_text": spoiled_texts.url_text,
        "low_letters": spoiled_texts.low_letters,
        "repetition": spoiled_texts.repetition,
    }
    return makers[fault](rng) if fault in makers else truth


def table_places(items: list[Row], seed: int) -> NDArray[np.int64]:
    """Item -> row of the table: shuffled by the seed, each copy after its original."""
    places: NDArray[np.int64] = np.random.Generator(np.random.PCG64([seed, 99])).permutation(len(items))
    for row in items:
        if row.original >= 0 and places[row.item] < places[row.original]:
            places[[row.item, row.original]] = places[[row.original, row.item]]
    return places
