"""Which passes find every pair of hashes within a distance, and what they cost: the plan of `hamming.near_pairs`.

A pass looks at some bits of one word and finds the pairs that agree on all of them. The passes of a plan miss nothing:

1. Cut the hash into W parts and let the errors that a part may have, t_w, add up to distance - W + 1. A pair within the distance has a part with
   at most t_w errors (the general pigeonhole principle: were every part above its t_w, they would add up to more). A part with t_w < 0 is not needed, and
   a pass of a part need not look at pairs with more errors in it.
2. Cut that part into v blocks. At most t_w of them hold an error, so it is enough that for each choice of t_w blocks some pass looks at none of them. Such
   passes are the blocks that a covering design leaves out (`coverings`; 20 passes of 4 of 10 blocks for 4 errors). Every choice of r of t_w + r blocks
   (block combinations; Manku, Jain and Das Sarma 2007, section 3.1) is the plainest one.

With few rows short keys are best (few passes, many candidates), with many rows long ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from stages.dups.coverings import COVERINGS
from stages.dups.parting import BUCKET_ROWS

# Nanoseconds on one core, fitted on x86 with numpy 2.3: a row that is parted into buckets, a row in a pass (key, sort, comparison with its neighbour), a
# candidate that is checked, a sort of one bucket (a pass costs four more), a word of a pair in brute force. They only steer the choice.
PART_NS, ROW_NS, CANDIDATE_NS, CALL_NS, BRUTE_NS = 4.0, 7.0, 3.0, 150_000.0, 0.6
# Bits of real hashes depend on each other: 18 to 26 of a pHash tell the 5,000 photos of Flickr8k apart as this share of fair coins would.
FAIR_SHARE = 0.94
MOST_PASSES = 20_000


@dataclass(frozen=True, slots=True)
class Pass:
    """Find pairs that agree in the bits `mask` of the 64-bit word `word` of the hash (0 is the first) and have at most `errors` in its bits `part`.

    lead: neighbouring bits of the mask that it shares with the passes beside it in the plan.
    """

    word: int
    mask: int
    part: int
    errors: int
    lead: int


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
    for parts in (1, 2, 4, 8, 16, 32):
        plan = _with_parts(rows, bits, distance, parts) if bits // parts in (64, 32, 16, 8) else None
        if plan is not None and plan.cost < best.cost:
            best = plan
    return best


def _with_parts(rows: int, bits: int, distance: int, parts: int) -> SearchPlan | None:
    width = bits // parts
    allowed, over = divmod(distance - parts + 1, parts)
    passes: list[Pass] = []
    cost = 0.0
    for nth in range(parts):
        errors = allowed + (nth < over)
        if errors < 0:
            continue
        found = _best_cut(rows, width, errors)
        if found is None:
            return None
        chosen, blocks, seconds = found
        cost += seconds
        word, shift = divmod(nth * width, 64)
        passes += _passes(word, shift, width, blocks, errors, chosen)
    return SearchPlan(tuple(passes), cost) if len(passes) <= MOST_PASSES else None


def _best_cut(rows: int, width: int, errors: int) -> tuple[list[int], int, float] | None:
    """(the blocks of each pass as a bit mask, blocks, seconds) of the cheapest cut of one part; None where each has more passes than allowed."""
    choices = []
    for place, (blocks, agree, count) in enumerate(_cuts(width, errors)):
        key_bits = width * agree / blocks * FAIR_SHARE
        candidates = count * rows * rows / 2 / 2**key_bits
        calls = count * (4 + rows / BUCKET_ROWS)
        parting = (errors + 1) * rows * PART_NS if rows > BUCKET_ROWS else 0.0  # fewer groups cannot hold all passes, few designs need more
        choices.append(((parting + count * rows * ROW_NS + candidates * CANDIDATE_NS + calls * CALL_NS) * 1e-9, place, blocks, agree))
    if not choices:
        return None
    seconds, place, blocks, agree = min(choices)
    designs = COVERINGS.get(errors, [])
    if place < len(designs):
        return list(designs[place][1]), blocks, seconds
    return [sum(1 << block for block in some) for some in combinations(range(blocks), agree)], blocks, seconds


def _cuts(width: int, errors: int) -> Iterator[tuple[int, int, int]]:
    """(blocks, blocks that agree, passes) of each way to cut a part: the designs of `COVERINGS` in their order, then the plain ones."""
    for blocks, passes in COVERINGS.get(errors, []):
        yield blocks, passes[0].bit_count(), len(passes)
    for agree in range(1, width - errors + 1):
        if (count := math.comb(errors + agree, agree)) <= MOST_PASSES:
            yield errors + agree, agree, count


def _passes(word: int, shift: int, width: int, blocks: int, errors: int, chosen: list[int]) -> Iterator[Pass]:
    """The passes over one part, those with the same leading block behind one another. Blocks are as equal as can be."""
    edges = [width * nth // blocks for nth in range(blocks + 1)]
    pieces = [((1 << stop) - (1 << start)) << shift for start, stop in zip(edges, edges[1:], strict=False)]
    while chosen:
        lead = max(range(blocks), key=lambda block: sum(one >> block & 1 for one in chosen))
        for one in chosen:
            if one >> lead & 1:
                mask = sum(piece for block, piece in enumerate(pieces) if one >> block & 1)
                yield Pass(word, mask, ((1 << width) - 1) << shift, errors, pieces[lead])
        chosen = [one for one in chosen if not one >> lead & 1]
