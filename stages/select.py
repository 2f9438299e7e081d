"""select: every cut over the whole corpus: an expression, a list of ids, a percentile, a top fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline import stage as machine
from pipeline.errors import RecipeError
from pipeline.reason_columns import reason_column
from pipeline.stage import Evidence, Row, Stage, decides
from schemas.outcome import Drop, Reason, cap_detail
from stages.expression import Expression
from stages.file_digests import file_sha256
from stages.id_lists import load_ids

if TYPE_CHECKING:
    import duckdb

BATCH = 100_000


class TopFraction(BaseModel):
    """Keep the floor(fraction * rows) best by a column."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    column: str = Field(description="column to rank by, highest first; rows where it is null are never kept")
    fraction: float = Field(
        description="share to keep; the number is floor(fraction * rows), in exact decimal arithmetic", ge=0, le=1
    )
    of: Literal["alive", "input"] = Field(
        "alive", description="rows that the share is taken of: those that reach this stage, or all of the input"
    )


class Percentile(BaseModel):
    """Keep rows between two percentiles of a column, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    column: str = Field(description="column; rows where it is null are dropped")
    min: float | None = Field(
        None, description="percentile, 0 to 100: values below the one at that place are dropped", ge=0, le=100
    )
    max: float | None = Field(
        None, description="percentile, 0 to 100: values above the one at that place are dropped", ge=0, le=100
    )


class Params(machine.Params):
    """All cuts given must be passed, in the order: where, ids_file, percentile, top_fraction."""

    where: str | None = decides(
        None,
        "expression over stored columns, for example: clip_score >= 0.28 and n_words < 40 and lang in ['en', 'de']",
    )
    ids_file: str | None = decides(
        None,
        "list of ids to keep: text (one per line), Parquet (column sample_id or uid), or DataComp's .npy of sorted u8 pairs",
    )
    ids_column: str = decides("sample_id", "column that the ids are matched on, for example uid")
    percentile: Percentile | None = decides(None, "keep rows between two percentiles of a column: {column, min, max}")
    top_fraction: TopFraction | None = decides(None, "keep the best share by a column: {column, fraction, of}")
    seed: int = decides(0, "seed of the draw among rows with equal values at the cut")
    ids_sha256: str = decides("", "filled in by itself: digest of ids_file")

    @model_validator(mode="before")
    @classmethod
    def _digest_ids(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {**raw, "ids_sha256": file_sha256(str(raw["ids_file"]), "select.ids_file", raw.get("ids_sha256")) if raw.get("ids_file") else ""}

    @field_validator("where")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            Expression(value)
        return value


class Select(Stage):
    """Keeps rows by an expression over stored columns (null does not pass), membership in a list of ids, percentiles and
    a top fraction. Each cut sees the rows that passed the one before it; the number kept by top_fraction is a share of
    all rows that reach the stage (or of the input), whatever the other cuts took.

    Among equal values at the cut the rows kept are drawn by a hash of sample_id and seed. With `where` alone there is no
    barrier: each part is judged by itself. Nothing is computed, so every change here is free of model calls.
    """

    name: ClassVar[str] = "select"
    Params = Params

    @cached_property
    def expression(self) -> Expression | None:
        return Expression(self.params.where) if self.params.where else None

    @property
    def _has_cuts(self) -> bool:
        return bool(self.params.ids_file or self.params.percentile or self.params.top_fraction)

    @property
    def reads_decide(self) -> Sequence[str]:  # type: ignore[override]
        return self.expression.columns if self.expression else ()

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        if not self._has_cuts:
            return ()
        ranked = [cut.column for cut in (self.params.percentile, self.params.top_fraction) if cut]
        matched = [self.params.ids_column] if self.params.ids_file else []
        return tuple(name for name in dict.fromkeys([*self.reads_decide, *ranked, *matched]) if name != "sample_id")

    @property
    def resolves(self) -> Mapping[str, pa.DataType]:  # type: ignore[override]
        return {"cut_reason": pa.string(), "cut_detail": pa.string()} if self._has_cuts else {}

    def check(self, available: Mapping[str, Any]) -> None:
        """Check the expression against the columns before this stage (name -> Arrow type). Raises RecipeError."""
        if self.expression:
            self.expression.check(available)

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        if self.expression and not self.expression(row):
            values = ", ".join(f"{name}={_shown(row[name])}" for name in self.expression.columns)
            return Drop(Reason.EXPRESSION, cap_detail(values))
        reason = resolved.get("cut_reason")
        return Drop(reason, resolved.get("cut_detail") or "") if reason else None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array | None:
        cut = columns["cut_reason"] if self._has_cuts else None
        if self.expression is None:
            return cut
        rows = len(columns[self.expression.columns[0]]) if self.expression.columns else len(cut) if cut is not None else None
        passing = self.expression.passing(columns, rows) if rows is not None else None
        if passing is None:
            return None
        failed = pa.array(~passing)
        return reason_column(len(passing), [(~passing, Reason.EXPRESSION)]) if cut is None else pc.if_else(failed, pa.scalar(str(Reason.EXPRESSION)), cut)

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        con, params = evidence.con, self.params
        self._judge_expression(con)
        con.execute('CREATE OR REPLACE TEMP TABLE select_state AS SELECT r.*, NULL::VARCHAR AS cut_reason, NULL::VARCHAR AS cut_detail '
                    'FROM rows r ANTI JOIN select_failed f USING (part, "row")')  # fmt: skip
        if params.ids_file:
            load_ids(con, params.ids_file, "select_ids")
            self._keep_listed(con)
        if params.percentile:
            self._keep_percentiles(con, params.percentile)
        if params.top_fraction:
            total = evidence.total if params.top_fraction.of == "input" else evidence.alive
            self._keep_top(con, params.top_fraction, total, f"{evidence.seed}:{params.seed}")
        return con.sql('SELECT part, "row", cut_reason, cut_detail FROM select_state')

    def _judge_expression(self, con: duckdb.DuckDBPyConnection) -> None:
        """Table select_failed: rows that the expression does not pass. The evaluator is that of `decide`."""
        failed: list[pa.RecordBatch] = []
        if self.expression:
            columns = ", ".join(_quoted(name) for name in ("part", "row", *self.expression.columns))
            for batch in con.sql(f"SELECT {columns} FROM rows").to_arrow_reader(BATCH):
                passing = self.expression.passing({name: batch[name] for name in self.expression.columns}, batch.num_rows)
                if passing is None:
                    passing = np.array([self.expression(row) for row in batch.to_pylist()], bool)
                mask = pa.array(~passing)
                failed.append(batch.select(["part", "row"]).filter(mask))
        schema = pa.schema([("part", pa.int64()), ("row", pa.int64())])
        table = pa.Table.from_batches(failed).cast(schema) if failed else schema.empty_table()
        con.register("select_failed_arrow", table)
        con.execute("CREATE OR REPLACE TEMP TABLE select_failed AS SELECT * FROM select_failed_arrow")
        con.unregister("select_failed_arrow")

    def _keep_listed(self, con: duckdb.DuckDBPyConnection) -> None:
        column = _quoted(self.params.ids_column)
        kind = con.sql(f"SELECT {column} FROM rows LIMIT 0").types[0].id
        key = f"lower(hex({column}))" if kind == "blob" else f"lower(CAST({column} AS VARCHAR))"
        con.execute(
            f"""UPDATE select_state SET cut_reason = '{Reason.NOT_LISTED}', cut_detail = coalesce({key}, 'null') || ' is not in the list'
            WHERE {column} IS NULL OR {key} NOT IN (SELECT id FROM select_ids)"""
        )

    def _keep_percentiles(self, con: duckdb.DuckDBPyConnection, cut: Percentile) -> None:
        column = _quoted(cut.column)
        _numbers_only(con, cut.column)
        sides = [
            (share, compare, word)
            for share, compare, word in ((cut.min, "<", "below"), (cut.max, ">", "above"))
            if share is not None
        ]
        edges = [
            con.execute(
                f"SELECT quantile_disc({column}, CAST(? AS DOUBLE)) FROM select_state WHERE cut_reason IS NULL AND NOT isnan({column}::DOUBLE)",
                [share / 100],
            ).fetchall()[0][0]
            for share, _, _ in sides
        ]
        for (share, compare, word), edge in zip(sides, edges, strict=True):
            con.execute(
                f"""UPDATE select_state SET cut_reason = '{Reason.BELOW_CUT}',
                    cut_detail = coalesce(CAST({column} AS VARCHAR), 'null') || ' is {word} ' || ? || ', percentile {share:g} of ' || ?
                WHERE cut_reason IS NULL AND ({column} IS NULL OR isnan({column}::DOUBLE) OR {column} {compare} ?)""",
                [str(edge), cut.column, edge],
            )

    def _keep_top(self, con: duckdb.DuckDBPyConnection, cut: TopFraction, total: int, seed: str) -> None:
        column, keep = _quoted(cut.column), math.floor(Fraction(str(cut.fraction)) * total)
        _numbers_only(con, cut.column)
        con.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE select_ranked AS
            SELECT part, "row", row_number() OVER (
                ORDER BY {column} DESC, md5(? || ':' || hex(sample_id)), part, "row") AS rank
            FROM select_state WHERE cut_reason IS NULL AND {column} IS NOT NULL AND NOT isnan({column}::DOUBLE)
            """,
            [seed],
        )
        con.execute(
            f"""UPDATE select_state SET cut_reason = '{Reason.BELOW_CUT}', cut_detail = ? || '=' || coalesce(CAST({column} AS VARCHAR), 'null')
                || ', kept are the best {keep} of {total} rows'
            WHERE cut_reason IS NULL AND NOT EXISTS (
                SELECT 1 FROM select_ranked k WHERE k.part = select_state.part AND k."row" = select_state."row" AND k.rank <= {keep})""",
            [cut.column],
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _numbers_only(con: duckdb.DuckDBPyConnection, column: str) -> None:
    kind = str(con.sql(f"SELECT {_quoted(column)} FROM rows LIMIT 0").types[0])
    if kind in ("VARCHAR", "BLOB", "BOOLEAN") or kind.endswith(("]", ")")) and not kind.startswith("DECIMAL"):
        raise RecipeError(f"select: column {column!r} holds {kind}, not numbers; a cut needs a column of numbers")


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
