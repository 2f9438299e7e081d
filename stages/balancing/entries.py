"""Metadata built from the run's own texts: frequent words, and pairs of words that stand together more often than by chance.

MetaCLIP's recipe counts both in Wikipedia (words at least 100 times, pairs with a pointwise mutual information of at least 30) and adds the titles of
its articles and WordNet's synsets; those come from a file. Which logarithm and which further counts its 30 is in is not known here: in bits, as here, the
measure of a pair seen c times among N words cannot be more than log2(N / c).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stages.balancing.matching import WRAPPED

if TYPE_CHECKING:
    import duckdb

_WORD = r"[\p{L}\p{N}]"  # what has neither letter nor digit is no word


def spaced_sql(text: str) -> str:
    """SQL of stages.balancing.matching.spaced."""
    return f"translate(regexp_replace({text}, '[{WRAPPED}]', ' \\0 ', 'g'), E'\\t\\n\\r', '   ')"


def build_entries(con: duckdb.DuckDBPyConnection, min_count: int, min_pmi: float | None, ignore_case: bool) -> list[str]:
    """Entries from the table `balance_texts` (key, text): words seen `min_count` times or more, and pairs of neighbours of them with that count and
    log2(c(ab) N / (c(a) c(b))) >= min_pmi (null: no pairs). The most frequent first, equal ones by their letters.
    """
    text = spaced_sql("lower(text)" if ignore_case else "text")
    con.execute(f"CREATE OR REPLACE TABLE balance_words AS SELECT string_split({text}, ' ') AS words FROM balance_texts")
    is_word = f"regexp_matches(word, '{_WORD}')"
    con.execute(
        f"""
        CREATE OR REPLACE TABLE balance_unigrams AS
        SELECT word, count(*) AS n FROM (SELECT unnest(words) AS word FROM balance_words) WHERE {is_word} GROUP BY word
        """
    )
    [(total,)] = con.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM balance_unigrams").fetchall()
    con.execute("DELETE FROM balance_unigrams WHERE n < ?", [min_count])
    found = "SELECT word AS entry, n FROM balance_unigrams"
    if min_pmi is not None and total:
        # A pair seen often enough has words seen often enough, so others are left out before pairs are counted.
        con.execute(
            """
            CREATE OR REPLACE TABLE balance_bigrams AS
            SELECT pair[1] AS a, pair[2] AS b, count(*) AS n FROM (
                SELECT unnest(list_transform(range(1, len(words)), lambda i: [words[i], words[i + 1]])) AS pair FROM balance_words
            ) WHERE pair[1] IN (SELECT word FROM balance_unigrams) AND pair[2] IN (SELECT word FROM balance_unigrams) GROUP BY a, b
            """
        )
        con.execute(
            f"""
            CREATE OR REPLACE TABLE balance_pairs_kept AS SELECT p.a || ' ' || p.b AS entry, p.n FROM balance_bigrams p
            JOIN balance_unigrams x ON x.word = p.a JOIN balance_unigrams y ON y.word = p.b
            WHERE p.n >= {int(min_count)} AND log2(p.n::DOUBLE) - log2(x.n::DOUBLE) - log2(y.n::DOUBLE) >= {min_pmi - math.log2(total)!r}
            """
        )
        found += " UNION ALL SELECT entry, n FROM balance_pairs_kept"
    entries = [entry for (entry,) in con.execute(f"SELECT entry FROM ({found}) ORDER BY n DESC, entry").fetchall()]
    for table in ("balance_words", "balance_unigrams", "balance_bigrams", "balance_pairs_kept"):
        con.execute(f"DROP TABLE IF EXISTS {table}")
    return entries
