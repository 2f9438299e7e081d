"""Unigram entropy of texts under the word frequencies of the whole corpus (RealSyn, arXiv 2502.12513, sentence filtration)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.stage import Evidence

if TYPE_CHECKING:
    import duckdb

# Terms are added as integers of 1e-9 nats: a sum of integers does not depend on the order in which threads add.
_QUERY = """
WITH entries AS (
    SELECT part, "row", unnest(range(1, len({column}) + 1)) AS place, unnest({column}).text AS text FROM rows
), words AS (
    SELECT part, "row", place, unnest(string_split_regex(lower(text), '\\s+')) AS word FROM entries
), frequencies AS (
    SELECT word, count(*) / (SELECT count(*) FROM words WHERE word <> '') AS p FROM words WHERE word <> '' GROUP BY word
), terms AS (
    SELECT word, CAST(round(-p * ln(p) * 1e9) AS BIGINT) AS nano FROM frequencies
), sums AS (
    SELECT e.part, e."row", e.place, CAST(coalesce(sum(t.nano), 0) AS DOUBLE) / 1e9 AS entropy
    FROM entries e LEFT JOIN words w USING (part, "row", place) LEFT JOIN terms t USING (word)
    GROUP BY e.part, e."row", e.place
)
SELECT part, "row", list(CAST(round(entropy, 4) AS FLOAT) ORDER BY place) AS {name}
FROM sums GROUP BY part, "row" ORDER BY part, "row"
"""


def corpus_entropy(evidence: Evidence, column: str, name: str) -> duckdb.DuckDBPyRelation:
    """theta(x) = -sum over the words of x of p log p, natural logarithm, p = share of the word among all words of all
    texts of live rows. Returns part, row and a list of floats in the order of the TEXTS list `column`, under `name`.
    """
    return evidence.con.sql(_QUERY.format(column=f'"{column}"', name=name))
