"""A cap per cluster and a quota per tag as one resolve, for bench_whatif.py: rows stay by their sample_id, which is a hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.stage import Evidence, Params, Row, Stage, decides
from schemas.outcome import Drop, Reason


class CapQuotaParams(Params):
    cap: int = decides(1000, "most rows of a cluster")
    quota: int = decides(10**6, "most rows of a tag, of those that the cap left")


class CapQuota(Stage):
    """Drops what is beyond the cap of its cluster, then what is beyond the quota of its tag."""

    name = "cap_quota"
    Params = CapQuotaParams
    reads_resolve = ("cluster", "tag")
    resolves = {"cap_reason": pa.string()}

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        return Drop(resolved["cap_reason"]) if resolved.get("cap_reason") else None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        return columns["cap_reason"]

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        return evidence.con.sql(
            f"""
            WITH capped AS (
                SELECT part, "row", sample_id, tag, row_number() OVER (PARTITION BY cluster ORDER BY sample_id, part, "row") > {self.params.cap} AS over
                FROM rows
            ), counted AS (
                SELECT part, "row", over, row_number() OVER (PARTITION BY tag, over ORDER BY sample_id, part, "row") > {self.params.quota} AS beyond FROM capped
            )
            SELECT part, "row", CASE WHEN over OR beyond THEN '{Reason.BALANCED_OUT}' END AS cap_reason FROM counted
            """
        )
