"""Caps per group (RealSyn, Wukong, CLIP), TL;DR's share per cluster, quotas by tag: ranks by a seeded draw within a group."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import RecipeError
from stages.balancing.draws import row_hash, uniform_sql
from stages.balancing.rule import Judging
from stages.expression import Expression

if TYPE_CHECKING:
    import duckdb

BATCH: Final = 100_000


class Cap(BaseModel):
    """At most so many rows of each group."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    by: str = Field(description="column or expression whose value is the group: cluster, query, host(url), domain(url); rows where it is null all stay")
    max: int = Field(description="rows of a group that stay, drawn by hash (RealSyn: 20, 35, 180 for 15, 30, 100 million of a million clusters)", ge=0)

    @field_validator("by")
    @classmethod
    def _parses(cls, value: str) -> str:
        Expression(value)
        return value


class Reduce(BaseModel):
    """TL;DR's reduction: a share of each cluster, and of all rows those with the best scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cluster: str = Field("cluster", description="column whose value is the cluster; rows where it is null are a cluster of their own")
    ratio: float = Field(0.5, description="share of each cluster that stays, to the nearest row below or above", ge=0, le=1)
    score: str | None = Field("clip_score", description="column of the match score (TL;DR: BLIP's image-text matching); null: no cut by score")
    quantile: float = Field(0.5, description="share of all rows, those with the highest scores, that may stay; ratio x quantile of all do", ge=0, le=1)


class Quota(BaseModel):
    """At most so many rows with each of some tags."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    by: str = Field("tags", description="column of a text, of a list of texts, or of a list of structs with a name, such as tags")
    max: dict[str, int] = Field(description="tag -> rows with it that may stay; a row stays where it is within the quotas of all its tags", min_length=1)


class CapRule:
    """Of each group the first `max` rows of a seeded order."""

    def __init__(self, params: Cap, nth: int) -> None:
        self.params, self.nth = params, nth
        self.title = f"at most {params.max} by {params.by}"
        self.expression = Expression(params.by)
        self.reads: Sequence[str] = self.expression.columns

    def judge(self, at: Judging) -> dict[str, Any]:
        most = self.params.max
        group_values(at, self.expression, at.members)
        at.con.execute(
            f"""
            CREATE OR REPLACE TABLE {at.out} AS
            SELECT key, nth <= {most} AS kept, least(1.0, {most} / n) AS probability,
                CASE WHEN nth > {most} THEN name || ': {most} of ' || n || ' rows stay' END AS detail
            FROM (SELECT key, name, count(*) OVER (PARTITION BY name) AS n, row_number() OVER (PARTITION BY name ORDER BY {row_hash(at.seed)}, key) AS nth
                  FROM {at.members} JOIN {at.rows} USING (key))
            """
        )
        return {"max": most}


class ReduceRule:
    """Every (1 / ratio)-th row of each cluster in a seeded order, from a seeded place on, so that small clusters give their share too; and the best scores."""

    def __init__(self, params: Reduce) -> None:
        self.params = params
        self.title = f"{params.ratio:g} of each {params.cluster}" + (f", best {params.quantile:g} by {params.score}" if params.score else "")
        self.reads: Sequence[str] = (params.cluster, *([params.score] if params.score else []))

    def judge(self, at: Judging) -> dict[str, Any]:
        params, con = self.params, at.con
        cluster = quoted(params.cluster)
        con.execute(f"CREATE OR REPLACE TABLE {at.members} AS SELECT key, coalesce(CAST({cluster} AS VARCHAR), 'null') AS name FROM {at.rows}")
        total = at.one(f"SELECT count(*) FROM {at.rows}")
        best = math.floor(Fraction(str(params.quantile)) * total) if params.score else total
        score = f"CAST({quoted(params.score)} AS DOUBLE)" if params.score else "0.0"
        con.execute(
            f"""
            CREATE OR REPLACE TABLE {at.out} AS
            WITH drawn AS (
                SELECT key, name, {row_hash(at.seed)} AS draw, CASE WHEN isnan({score}) THEN NULL ELSE {score} END AS score
                FROM {at.rows} JOIN {at.members} USING (key)
            ), ranked AS (
                SELECT *, row_number() OVER (PARTITION BY name ORDER BY draw, key) - 1 AS nth, count(*) OVER (PARTITION BY name) AS n,
                    score IS NOT NULL AND row_number() OVER (ORDER BY score DESC NULLS LAST, draw, key) <= {best} AS good,
                    {first_sql(at.seed)} AS first FROM drawn
            ), chosen AS (
                SELECT *, {drawn_sql(params.ratio)} AS drawn FROM ranked
            )
            SELECT key, drawn AND good AS kept, CASE WHEN good THEN {params.ratio!r} ELSE 0 END AS probability,
                CASE WHEN NOT good THEN 'score ' || {SCORE_SHOWN} || ', not among the best {best} of {total} rows'
                     WHEN NOT drawn THEN 'cluster ' || name || ': {params.ratio:g} of ' || n || ' rows stay' END AS detail FROM chosen
            """
        )
        return {"ratio": params.ratio, "quantile": params.quantile if params.score else None}


class QuotaRule:
    """A row stays where it is among the first of a seeded order with each of its tags that has a quota. One order for all tags: what one tag lets go is
    for the most part what another lets go."""

    def __init__(self, params: Quota) -> None:
        self.params = params
        self.title = f"quotas of {params.by}"
        self.reads: Sequence[str] = (params.by,)

    def judge(self, at: Judging) -> dict[str, Any]:
        con = at.con
        con.register("balance_incoming", pa.table({"name": list(self.params.max), "most": pa.array(list(self.params.max.values()), pa.int64())}))
        con.execute("CREATE OR REPLACE TABLE balance_quotas AS SELECT * FROM balance_incoming")
        con.unregister("balance_incoming")
        names = tag_names(con, self.params.by)
        con.execute(
            f"""
            CREATE OR REPLACE TABLE {at.members} AS
            SELECT key, name FROM (SELECT key, unnest(list_distinct({names})) AS name FROM {at.rows}) WHERE name IN (SELECT name FROM balance_quotas)
            """
        )
        con.execute(
            f"""
            CREATE OR REPLACE TABLE {at.out} AS
            WITH ranked AS (
                SELECT key, name, most, count(*) OVER (PARTITION BY name) AS n, row_number() OVER (PARTITION BY name ORDER BY {row_hash(at.seed)}, key) AS nth
                FROM {at.members} JOIN {at.rows} USING (key) JOIN balance_quotas USING (name)
            )
            SELECT key, bool_and(nth <= most) AS kept, min(least(1.0, most / n)) AS probability,
                min(name || ': at most ' || most || ' of ' || n || ' rows stay') FILTER (WHERE nth > most) AS detail FROM ranked GROUP BY key
            """
        )
        con.execute("DROP TABLE balance_quotas")
        return {"quotas": dict(self.params.max)}


def holds_names(kind: Any) -> bool:
    """Whether a column of this Arrow type holds texts, lists of texts, or lists of structs with a name."""
    if not isinstance(kind, pa.DataType):
        return False
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_struct(inner) and inner is not kind:
        inner = inner.field("name").type if inner.get_field_index("name") >= 0 else pa.int8()
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner))


SCORE_SHOWN: Final = "coalesce(CAST(score AS VARCHAR), 'null')"


def first_sql(seed: str) -> str:
    """SQL of the place in [0, 1) from which on a cluster (`name`) is counted."""
    return uniform_sql(f"md5_number_lower('{seed.replace(chr(39), chr(39) * 2)}:first:' || name)")


def drawn_sql(ratio: float) -> str:
    """SQL: whether the row with `nth` rows of its cluster before it is one of those that stay; `first` as `first_sql` gives it."""
    return f"floor((nth + 1) * {ratio!r} + first) > floor(nth * {ratio!r} + first)"


def name_sql(column: str, blob: bool) -> str:
    """SQL of a group's name from its value."""
    return f"lower(hex({column}))" if blob else f"CAST({column} AS VARCHAR)"


def group_values(at: Judging, expression: Expression, table: str) -> None:
    """Table of key and name (the expression's value as text) of the rows where it is not null. A bare column stays inside DuckDB."""
    con = at.con
    if expression.is_column:
        column = quoted(expression.columns[0])
        value = name_sql(column, con.sql(f"SELECT {column} FROM rows LIMIT 0").types[0].id == "blob")
        con.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT key, {value} AS name FROM {at.rows} WHERE {column} IS NOT NULL")
        return
    con.execute(f"CREATE OR REPLACE TABLE {table} (key BIGINT, name VARCHAR)")
    columns = ", ".join(quoted(name) for name in ("key", *expression.columns))
    con.execute(f"CREATE OR REPLACE TABLE balance_values AS SELECT {columns} FROM {at.rows}")  # a cursor sees tables, and no columns in memory
    for batch in con.cursor().sql("SELECT * FROM balance_values").to_arrow_reader(BATCH):
        values = [expression.value(row) for row in batch.to_pylist()]
        names = pa.array([None if value is None else shown(value) for value in values], pa.string())
        con.register("balance_incoming", pa.table({"key": batch.column(0), "name": names}))
        con.execute(f"INSERT INTO {table} SELECT * FROM balance_incoming WHERE name IS NOT NULL")
        con.unregister("balance_incoming")
    con.execute("DROP TABLE balance_values")


def shown(value: Any) -> str:
    """A group's name; whole numbers are one group, whatever step of arithmetic made them."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def tag_names(con: duckdb.DuckDBPyConnection, column: str) -> str:
    """SQL of a list of names from a column of a text, of texts, or of structs with a name. Raises RecipeError for another type."""
    kind = str(con.sql(f"SELECT {quoted(column)} FROM rows LIMIT 0").types[0])
    if kind == "VARCHAR":
        return f"[{quoted(column)}]"
    if kind == "VARCHAR[]":
        return quoted(column)
    if kind.startswith("STRUCT(") and kind.endswith("[]") and re.search(r'[(, ]"?name"? VARCHAR', kind):
        return f"list_transform({quoted(column)}, lambda e: e.name)"
    raise RecipeError(f"balance.quota.by: column {column!r} holds {kind}; name one of texts, of lists of texts, or of lists of structs with a name")


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'
