"""balance: of what there is much of only some rows stay, by seeded draws: MetaCLIP's entries, TL;DR's clusters, caps of any group, quotas of tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import model_validator

from pipeline import stage as machine
from pipeline.errors import RecipeError
from pipeline.reason_columns import reason_column
from pipeline.stage import ColumnEvidence, Evidence, OfPlaces, Row, Stage, decides
from schemas.outcome import Drop, Reason, cap_detail
from stages.balancing.groups import Cap, CapRule, Quota, QuotaRule, Reduce, ReduceRule, holds_names
from stages.balancing.metaclip import Metadata, MetadataRule
from stages.balancing.rule import Judging, Rule, head_and_tail
from stages.balancing.whole import Judged, Seen, judge_whole
from stages.dups.keeper import ROW_KEY

if TYPE_CHECKING:
    import duckdb


class BalanceParams(machine.Params):
    """Rules, applied in the order metadata, reduce, caps, quota: each sees the rows that those before it let stay. At least one."""

    metadata: Metadata | None = decides(None, "MetaCLIP: entries matched in the texts, each thinned to about t of its matches: {file, t | size, ...}")
    reduce: Reduce | None = decides(None, "TL;DR: a share of each cluster, of the rows with the best scores: {cluster, ratio, score, quantile}")
    caps: tuple[Cap, ...] = decides((), "at most so many rows of each group: [{by: column or expression, max: rows}, ...]")
    quota: Quota | None = decides(None, "at most so many rows with a tag: {by: column, max: {tag: rows}}")
    seed: int = decides(0, "another seed draws other rows")

    @model_validator(mode="after")
    def _has_a_rule(self) -> BalanceParams:
        if not (self.metadata or self.reduce or self.caps or self.quota):
            raise ValueError("balance has no rule: give it metadata, reduce, caps or quota")
        return self


class Balance(Stage):
    """Thins out what is common, in DuckDB, out of core. Each draw is a hash of sample_id and seed: the same rows stay however the input is cut into parts.

    `keep_probability` is the probability with which a row stays (its reciprocal is the weight that undoes the thinning); under caps and quotas that of its
    group's size. With `metadata`, `matched_entries` are the entries of the row's texts, and `balance_t` is the least t from which on it would stay.
    """

    name: ClassVar[str] = "balance"
    version: ClassVar[int] = 1
    Params = BalanceParams
    params: BalanceParams

    @cached_property
    def rules(self) -> list[Rule]:
        """The rules in the order in which they are applied."""
        params = self.params
        found: list[Rule] = [MetadataRule(params.metadata)] if params.metadata else []
        found += [ReduceRule(params.reduce)] if params.reduce else []
        found += [CapRule(cap, nth) for nth, cap in enumerate(params.caps)]
        return [*found, *([QuotaRule(params.quota)] if params.quota else [])]

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return tuple(name for name in dict.fromkeys(name for rule in self.rules for name in rule.reads) if name != "sample_id")

    @property
    def resolves(self) -> Mapping[str, pa.DataType]:  # type: ignore[override]
        found = {"balance_reason": pa.string(), "balance_detail": pa.string(), "keep_probability": pa.float32()}
        return {**found, "balance_t": pa.float64(), "matched_entries": pa.list_(pa.string())} if self.params.metadata else found

    def check(self, available: Mapping[str, Any]) -> None:
        """Check expressions and columns against those before this stage (name -> Arrow type). Raises RecipeError."""
        where, reduce, quota = f"stages.{self.instance}", self.params.reduce, self.params.quota
        if reduce and (kind := available.get(reduce.cluster)) is not None and (isinstance(kind, machine.Vector) or pa.types.is_nested(kind)):
            raise RecipeError(f"{where}.reduce.cluster: {reduce.cluster!r} holds {kind}, not one cluster; the nearest of `clusters` is the column `cluster`")
        if reduce and reduce.score:
            machine.check_number(f"{where}.reduce.score", reduce.score, available)
        if quota and (kind := available.get(quota.by)) is not None and not holds_names(kind):
            raise RecipeError(f"{where}.quota.by: {quota.by!r} holds {kind}; name a column of texts, of lists of texts, or of lists of structs with a name")
        for cap in (rule for rule in self.rules if isinstance(rule, CapRule)):
            if cap.expression.check_value(available) == "list":
                raise RecipeError(f"{where}.caps: {cap.params.by!r} is a list, not one group; the nearest of `clusters` is the column `cluster`")

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        reason = resolved.get("balance_reason")
        return Drop(reason, cap_detail(resolved.get("balance_detail") or "")) if reason else None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        return columns["balance_reason"]

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con = evidence.con
        con.execute(f"CREATE OR REPLACE VIEW balance_seen_0 AS SELECT *, {ROW_KEY} AS key FROM rows")
        told = []
        for nth, rule in enumerate(self.rules):
            at = Judging(con, f"balance_seen_{nth}", f"balance_out_{nth}", "balance_members", self._seed(evidence.seed, nth))
            more = rule.judge(at)
            after = f"SELECT s.* FROM {at.rows} s ANTI JOIN (SELECT key FROM {at.out} WHERE NOT kept) o USING (key)"
            con.execute(f"CREATE OR REPLACE VIEW balance_seen_{nth + 1} AS {after}")
            rows = {"before": at.one(f"SELECT count(*) FROM {at.rows}"), "after": at.one(f"SELECT count(*) FROM balance_seen_{nth + 1}")}
            told.append({"rule": rule.title, **rows, **more, **head_and_tail(at)})
        evidence.facts["balance"] = told
        return con.sql(self._answer())

    def resolve_columns(self, evidence: ColumnEvidence) -> Mapping[str, pa.Array | OfPlaces] | None:
        """Without `metadata`, whose entries are matched in texts: for it the query is asked."""
        seen, found = evidence.alive, list[Judged]()
        for nth, rule in enumerate(self.rules):
            judged = judge_whole(rule, Seen(evidence, seen, self._seed(evidence.seed, nth)))
            if judged is None:
                return None
            seen = seen & ~judged.gone
            found.append(judged)
        return {
            "balance_reason": reason_column(len(seen), [(evidence.alive & ~seen, Reason.BALANCED_OUT)]),
            "balance_detail": lambda places: _details(found, places),
            "keep_probability": lambda places: _probabilities(found, places),
        }

    def _seed(self, run: int, nth: int) -> str:
        return f"{run}:{self.params.seed}:{nth}"

    def _answer(self) -> str:
        """SQL that joins what the rules found: the detail of the one that put the row out, the product of all probabilities up to it."""
        nths = range(len(self.rules))
        details = ", ".join(f"o{nth}.detail" for nth in nths)
        probability = " * ".join(f"coalesce(o{nth}.probability, 1)" for nth in nths)
        more = ", o0.balance_t, o0.matched_entries" if self.params.metadata else ""
        joins = " ".join(f"LEFT JOIN balance_out_{nth} o{nth} USING (key)" for nth in nths)
        return f"""
            SELECT s.part, s."row", CASE WHEN coalesce({details}) IS NOT NULL THEN '{Reason.BALANCED_OUT}' END AS balance_reason,
                coalesce({details}) AS balance_detail, round({probability}, 9)::FLOAT AS keep_probability{more}
            FROM balance_seen_0 s {joins}
        """


def _details(found: Sequence[Judged], places: np.ndarray) -> pa.Array:
    """What the rule that took a row out says, null for rows that stay."""
    told = np.full(len(places), None, object)
    for judged in found:
        out = np.flatnonzero(judged.gone[places])
        told[out] = judged.detail(places[out])
    return pa.array(told, pa.string())


def _probabilities(found: Sequence[Judged], places: np.ndarray) -> pa.Array:
    """The product over the rules that saw the row, rounded as SQL does it: halves away from zero."""
    product, sees = np.ones(len(places)), np.ones(len(places), bool)
    for judged in found:
        product[sees] *= judged.probability(places[sees])
        sees &= ~judged.gone[places]
    scaled = product * 1e9
    whole = np.floor(scaled)
    return pa.array(((whole + (scaled - whole >= 0.5)) / 1e9).astype(np.float32))
