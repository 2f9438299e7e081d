"""balance's rules over whole columns, for `whatif`: the rows, probabilities and details that the queries in `stages/balancing/groups.py` give.

The order of the rows within their groups follows from columns and seed alone. It is made once and kept; each set of living rows then takes the first of each
group in one pass, without a sort. Details and probabilities are made for the rows that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.reason_columns import as_bools, as_floats, as_numbers
from pipeline.stage import ColumnEvidence
from stages.balancing.draws import evaluate, row_hash
from stages.balancing.groups import SCORE_SHOWN, CapRule, QuotaRule, ReduceRule, drawn_sql, first_sql
from stages.balancing.names import column_groups, column_names, expression_groups, expression_names, tagged
from stages.balancing.rule import Rule

Index = dict[str, np.ndarray]


@dataclass
class Seen:
    """What a rule is asked: columns of the run, the rows that those before it let stay (`alive` bool [N]), and the seed of its draws."""

    evidence: ColumnEvidence
    alive: np.ndarray
    seed: str

    def index(self, name: str, by: tuple[str, ...], make: Callable[[], Index]) -> Index:
        return self.evidence.index(f"order.{digest_of(name, self.seed)}", (*by, "sample_id"), make)

    def draws(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The 64 bits of some rows, or of all."""
        ids = self.evidence.column("sample_id")
        return as_numbers(evaluate(row_hash(self.seed), sample_id=ids if rows is None else ids.take(pa.array(rows))))


@dataclass
class Judged:
    """`gone` bool [N]: rows that the rule takes out. detail(places of such rows): why; probability(places): float64, that rows which it saw stay."""

    gone: np.ndarray
    detail: Callable[[np.ndarray], list[str]]
    probability: Callable[[np.ndarray], np.ndarray]


class Living:
    """The living rows of groups: `rows` group by group in their seeded order, `starts` int64 [G + 1] where each group begins, `sizes` int64 [G]."""

    def __init__(self, index: Index, alive: np.ndarray):
        lives = alive[index["rows"]]
        self.total = len(alive)
        self.rows = index["rows"][lives]
        before = np.zeros(len(lives) + 1, np.int32 if len(lives) < 1 << 31 else np.int64)
        np.cumsum(lives, out=before[1:])
        self.starts = before[index["starts"]].astype(np.int64)
        self.sizes = np.diff(self.starts)

    def beyond(self, most: np.ndarray | int) -> np.ndarray:
        """Places in `rows` of those that come after the first `most` of their group (bool)."""
        over, edges = self.sizes > most, np.zeros(len(self.rows) + 1, np.int8)
        edges[(self.starts[:-1] + most)[over]] += 1
        edges[self.starts[1:][over]] -= 1
        return np.cumsum(edges[:-1], dtype=np.int8).view(bool)

    def mask(self, chosen: np.ndarray) -> np.ndarray:
        """Some of `rows` as bool [N]."""
        found = np.zeros(self.total, bool)
        found[self.rows[chosen]] = True
        return found


def judge_whole(rule: Rule, seen: Seen) -> Judged | None:
    """None where only the rule's query can judge."""
    if isinstance(rule, CapRule):
        return _cap(rule, seen)
    if isinstance(rule, ReduceRule):
        return _reduce(rule, seen)
    return _quota(rule, seen) if isinstance(rule, QuotaRule) else None


def order_index(codes: np.ndarray, draws: np.ndarray) -> Index:
    """`rows` that have a group by group, draw and place, `starts` of the groups (int64 [G + 1]), and `codes`, the group of each row (-1 for none)."""
    grouped = np.flatnonzero(codes >= 0)
    order = grouped[np.lexsort((draws[grouped], codes[grouped]))]
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes[grouped]))]).astype(np.int64)
    return {"rows": order, "starts": starts, "codes": codes}


def _cap(rule: CapRule, seen: Seen) -> Judged | None:
    expression, by, most = rule.expression, rule.params.by, rule.params.max
    columns = {name: seen.evidence.column(name) for name in expression.columns}
    if not columns or any(pa.types.is_nested(column.type) for column in columns.values()):
        return None
    only = columns[expression.columns[0]]

    def make() -> Index:
        return order_index(column_groups(only, True, None)[0] if expression.is_column else expression_groups(expression, columns), seen.draws())

    try:
        index = seen.index(f"cap {by}", expression.columns, make)
    except RecipeError:  # rows that are not alive may hold what the expression cannot take
        return None
    living = Living(index, seen.alive)

    def detail(places: np.ndarray) -> list[str]:
        some = {name: column.take(pa.array(places)) for name, column in columns.items()}
        names = column_names(some[expression.columns[0]], True).to_pylist() if expression.is_column else expression_names(expression, some)
        return [f"{name}: {most} of {size} rows stay" for name, size in zip(names, living.sizes[index["codes"][places]].tolist(), strict=True)]

    shares = np.append(np.minimum(1.0, most / np.maximum(living.sizes, 1)), 1.0)
    return Judged(living.mask(living.beyond(most)), detail, lambda places: shares[index["codes"][places]])


def _reduce(rule: ReduceRule, seen: Seen) -> Judged | None:
    params, evidence = rule.params, seen.evidence
    clusters = evidence.column(params.cluster)
    scores = _scores(evidence.column(params.score)) if params.score else np.zeros(len(seen.alive))
    if pa.types.is_nested(clusters.type) or scores is None:
        return None

    def make() -> Index:
        codes, names = column_groups(clusters, False, "null")
        return {**order_index(codes, seen.draws()), "first": as_numbers(evaluate(first_sql(seen.seed), name=names))}

    index = seen.index(f"reduce {params.cluster}", (params.cluster,), make)
    living, total = Living(index, seen.alive), int(np.count_nonzero(seen.alive))
    group = np.repeat(np.arange(len(living.sizes)), living.sizes)
    nth = pa.array(np.arange(len(living.rows)) - living.starts[:-1][group])
    drawn = as_bools(evaluate(drawn_sql(params.ratio), nth=nth, first=pa.array(index["first"][group])))
    best = math.floor(Fraction(str(params.quantile)) * total) if params.score else total
    good = _best(seen, scores, best)

    def detail(places: np.ndarray) -> list[str]:
        some = pa.array(places)
        shown = evaluate(SCORE_SHOWN, score=pa.array(scores[places], mask=np.isnan(scores[places]))).to_pylist()
        names, sizes = column_names(clusters.take(some), False).fill_null("null").to_pylist(), living.sizes[index["codes"][places]].tolist()
        return [
            f"cluster {name}: {params.ratio:g} of {size} rows stay" if fine else f"score {score}, not among the best {best} of {total} rows"
            for name, size, score, fine in zip(names, sizes, shown, good[places].tolist(), strict=True)
        ]

    return Judged(living.mask(~drawn) | (seen.alive & ~good), detail, lambda places: np.where(good[places], params.ratio, 0.0))


def _scores(column: pa.Array) -> np.ndarray | None:
    """float64 [N], NaN where there is none; None for a column that is not of numbers."""
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_null(kind) or (pa.types.is_integer(kind) and kind.bit_width < 64)):
        return None
    return as_floats(column)


def _best(seen: Seen, scores: np.ndarray, best: int) -> np.ndarray:
    """The `best` living rows with the highest scores (bool [N]), equal ones by draw and place; rows without a score are not among them."""
    scored = seen.alive & ~np.isnan(scores)
    rows = np.flatnonzero(scored)
    if len(rows) <= best:
        return scored
    if best == 0:
        return np.zeros(len(scored), bool)
    least = np.partition(scores[rows], len(rows) - best)[len(rows) - best]
    good = scored & (scores > least)
    ties = np.flatnonzero(scored & (scores == least))
    good[ties[np.argsort(seen.draws(ties), kind="stable")[: best - np.count_nonzero(good)]]] = True
    return good


def _quota(rule: QuotaRule, seen: Seen) -> Judged | None:
    column, quotas = seen.evidence.column(rule.params.by), rule.params.max
    tags, most = list(quotas), np.array(list(quotas.values()), np.int64)
    if tagged(column.slice(0, 0), tags) is None:
        return None

    def make() -> Index:
        pairs = tagged(column, tags)
        assert pairs is not None
        rows, tag = pairs
        order = np.lexsort((seen.draws(rows), tag))
        starts = np.concatenate([[0], np.cumsum(np.bincount(tag, minlength=len(tags)))]).astype(np.int64)
        return {"rows": rows[order], "starts": starts}

    living = Living(seen.index(f"quota {rule.params.by} {tags}", (rule.params.by,), make), seen.alive)
    beyond = living.beyond(most)
    over = [np.sort(living.rows[start:stop][beyond[start:stop]]) for start, stop in zip(living.starts, living.starts[1:], strict=False)]
    sizes, shares = living.sizes.tolist(), np.minimum(1.0, most / np.maximum(living.sizes, 1))

    def told(tag: int) -> str:
        return f"{tags[tag]}: at most {most[tag]} of {sizes[tag]} rows stay"

    def detail(places: np.ndarray) -> list[str]:
        return [min(told(tag) for tag in range(len(tags)) if _has(over[tag], place)) for place in places.tolist()]

    def probability(places: np.ndarray) -> np.ndarray:
        pairs, found = tagged(column.take(pa.array(places)), tags), np.ones(len(places))
        assert pairs is not None
        np.minimum.at(found, pairs[0], shares[pairs[1]])
        return found

    return Judged(living.mask(beyond), detail, probability)


def _has(rows: np.ndarray, place: int) -> bool:
    at = int(np.searchsorted(rows, place))
    return at < len(rows) and int(rows[at]) == place
