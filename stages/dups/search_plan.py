"""Which passes find every pair of hashes within a distance, and what they cost: the plan of `hamming.near_pairs`.

A pass looks at some bits of one word and finds the pairs that agree on all of them. The passes of a plan miss nothing:

1. Cut the hash into W words and let the errors that a word may have, t_w, add up to distance - W + 1. A pair within the distance has a word with
   at most t_w errors (the general pigeonhole principle: were every word above its t_w, they would add up to more). A word with t_w < 0 is not needed.
2. Cut that word into t_w + r blocks. At most t_w of them hold an error, so the pair agrees on some r of them: one pass for each
   choice of r blocks (block combinations; Manku, Jain and Das Sarma 2007, section 3.1, have them for one word).

With few rows a small r is best (few passes with short keys), with many a large one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

# Nanoseconds on one core, fitted on x86 with numpy 2.3: a row in a pass (key, sort, comparison with its neighbour), a candidate that is checked, a word of a
# pair in brute force. They only steer the choice.
ROW_NS, CANDIDATE_NS, BRUTE_NS = 100.0, 25.0, 1.2
# Bits of real hashes depend on each other: k of them tell pairs apart as this share of k fair coins would.
FAIR_SHARE = 0.85
MOST_PASSES = 20_000


@dataclass(frozen=True, slots=True)
class Pass:
    """Find pairs that agree in the bits `mask` of the 64-bit word `word` of the hash (0 is the first)."""

    word: int
    mask: int


@dataclass(frozen=True)
class SearchPlan:
    """Passes in their order; none: brute force. `cost` in seconds of one core, roughly."""

    passes: tuple[Pass, ...]
    cost: float


def make_plan(rows: int, bits: int, distance: int) -> SearchPlan:
    """The cheapest plan for that many distinct hashes of 64 or 256 bits. Raises ValueError for other widths or a distance that finds everything."""
    if bits not in (64, 256):
        raise ValueError(f"hashes have 64 or 256 bits, not {bits}")
    if not 0 <= distance < bits // 2:
        raise ValueError(f"distance {distance} of {bits} bits: give 0 to {bits // 2 - 1}")
    best = SearchPlan((), rows * rows / 2 * BRUTE_NS * (bits // 64) * 1e-9)
    for words in (1, 2, 4, 8, 16, 32):
        plan = _with_words(rows, bits, distance, words) if bits // words in (64, 32, 16, 8) else None
        if plan is not None and plan.cost < best.cost:
            best = plan
    return best


def _with_words(rows: int, bits: int, distance: int, words: int) -> SearchPlan | None:
    width = bits // words
    allowed, over = divmod(distance - words + 1, words)
    passes: list[Pass] = []
    cost = 0.0
    for nth in range(words):
        errors = allowed + (nth < over)
        if errors < 0:
            continue
        found = _best_blocks(rows, width, errors)
        if found is None:
            return None
        blocks, agree, seconds = found
        cost += seconds
        word, shift = divmod(nth * width, 64)
        passes += [Pass(word, mask << shift) for mask in _masks(width, blocks, agree)]
    return SearchPlan(tuple(passes), cost) if len(passes) <= MOST_PASSES else None


def _best_blocks(rows: int, width: int, errors: int) -> tuple[int, int, float] | None:
    """(blocks, blocks that agree, seconds) of the cheapest cut of one word; None where each has more passes than allowed."""
    choices = []
    for agree in range(1, width - errors + 1):
        blocks = errors + agree
        passes = math.comb(blocks, agree)
        if passes > MOST_PASSES:
            continue
        key_bits = width * agree / blocks * FAIR_SHARE
        candidates = passes * rows * rows / 2 / 2**key_bits
        choices.append((blocks, agree, (passes * rows * ROW_NS + candidates * CANDIDATE_NS) * 1e-9))
    return min(choices, key=lambda choice: choice[2], default=None)


def _masks(width: int, blocks: int, agree: int) -> list[int]:
    """Masks over one word: every choice of `agree` of its `blocks` blocks, which are as equal as can be."""
    edges = [width * nth // blocks for nth in range(blocks + 1)]
    pieces = [(1 << stop) - (1 << start) for start, stop in zip(edges, edges[1:], strict=False)]
    return [sum(chosen) for chosen in combinations(pieces, agree)]
