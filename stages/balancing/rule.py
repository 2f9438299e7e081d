"""What a rule of `balance` is, and the table of head and tail that each leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import duckdb

HEAD: Final = 12  # groups of the head that are listed by name
NAME: Final = 200  # letters of a name that are told: a group may be a whole text


@dataclass(frozen=True)
class Judging:
    """Where a rule works. `rows`: relation with key (BIGINT), sample_id and the columns that the rule reads, of the rows that it sees.

    `out`: name of the table that it makes: key, kept (BOOLEAN), probability (DOUBLE), detail (VARCHAR, null where kept), one line for each row judged;
    rows that it does not judge stay. `members`: name of a table key, name (VARCHAR) that says which groups a row counts in.
    """

    con: duckdb.DuckDBPyConnection
    rows: str
    out: str
    members: str
    seed: str

    def one(self, query: str) -> Any:
        """First value of a query."""
        return self.con.execute(query).fetchall()[0][0]


class Rule(Protocol):
    """One rule: `reads` are the columns of `rows` that it needs; `judge` makes the tables of Judging and returns further facts for the report."""

    title: str
    reads: Sequence[str]

    def judge(self, at: Judging) -> dict[str, Any]: ...


def head_and_tail(at: Judging) -> dict[str, Any]:
    """How often the groups' rows stood before and after: the largest groups by name, and all groups by power of ten of their size.

    {'groups', 'head': [[name, before, after]], 'bands': [[least, most, groups, before, after]]}, largest first; a row counts once in each of its groups.
    """
    at.con.execute(
        f"""
        CREATE OR REPLACE TABLE balance_sizes AS
        SELECT m.name, count(*) AS before, count(*) FILTER (WHERE coalesce(o.kept, TRUE)) AS after FROM {at.members} m LEFT JOIN {at.out} o USING (key)
        GROUP BY m.name
        """
    )
    head = at.con.execute(f"SELECT name[1:{NAME}], before, after FROM balance_sizes ORDER BY before DESC, name LIMIT {HEAD}").fetchall()
    bands = at.con.execute(
        """
        SELECT length(CAST(before AS VARCHAR)) AS digits, count(*), sum(before)::BIGINT, sum(after)::BIGINT FROM balance_sizes
        GROUP BY digits ORDER BY digits DESC
        """
    ).fetchall()
    return {
        "groups": at.one("SELECT count(*) FROM balance_sizes"),
        "head": [list(line) for line in head],
        "bands": [[10 ** (digits - 1), 10**digits - 1, groups, before, after] for digits, groups, before, after in bands],
    }
