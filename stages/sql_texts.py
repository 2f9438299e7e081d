"""SQL pieces that the resolves over URLs and texts share. Keys are MD5 numbers: 16 bytes to sort by, however long the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import duckdb

TEXTS_SQL: Final = (
    "STRUCT(kind VARCHAR, text VARCHAR, source VARCHAR, model VARCHAR, prompt VARCHAR, clip_score FLOAT)[]"
)

_WHITE: Final = r"[\s\x{0085}\x{00a0}\x{1680}\x{2000}-\x{200b}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}]+"
_URL: Final = r"^([A-Za-z][A-Za-z0-9+.-]*)://(?:([^/?#]*)@)?([^/?#@]*)([^#]*)"


def has_column(con: duckdb.DuckDBPyConnection, column: str) -> bool:
    """Whether `rows` has that column; an optional one may be absent."""
    return column in con.sql("SELECT * FROM rows LIMIT 0").columns


def text_entry(text: str, source: str) -> str:
    """SQL of one entry of TEXTS (as schemas.sample.make_text) from SQL of the text and of a sample_id BLOB."""
    return (
        f"{{'kind': 'alt_text', 'text': {text}, 'source': lower(hex({source})), 'model': '', 'prompt': '', "
        "'clip_score': CAST(NULL AS FLOAT)}"
    )


def texts_of_row(con: duckdb.DuckDBPyConnection, alias: str = "rows") -> str:
    """SQL that gives a row's TEXTS list, whether its column `texts` holds the list or one alt-text (then a list of that)."""
    if con.sql("SELECT texts FROM rows LIMIT 0").types[0].id == "list":
        return f"coalesce({alias}.texts, CAST([] AS {TEXTS_SQL}))"
    entry = text_entry(f"coalesce({alias}.texts, '')", f"{alias}.sample_id")
    return f"CAST([{entry}] AS {TEXTS_SQL})"


def rows_with_url_key() -> str:
    """SQL of the table `rows` with a column url_key beside its own.

    White space is stripped, scheme and host are in lower case, default port and fragment left out, an empty path read as
    '/'. Path, query and user info are compared as they are. What is no URL (a path) is only stripped. A row without URL
    (of a local image) has a key of its own.
    """
    stripped = "trim(url, E' \\t\\r\\n')"
    pieces = f"regexp_extract({stripped}, '{_URL}', ['scheme', 'user', 'host', 'rest'])"
    port = "CASE lower(p.scheme) WHEN 'http' THEN ':80$' WHEN 'https' THEN ':443$' WHEN 'ftp' THEN ':21$' ELSE ':$' END"
    host = f"CASE WHEN contains(p.host, ':') THEN regexp_replace(lower(p.host), {port}, '') ELSE lower(p.host) END"
    rest = "CASE WHEN p.rest = '' THEN '/' WHEN p.rest[1] = '?' THEN '/' || p.rest ELSE p.rest END"
    user = "CASE WHEN p.user = '' THEN '' ELSE p.user || '@' END"
    whole = f"lower(p.scheme) || '://' || {user} || {host} || {rest}"
    row = "'row ' || part || ' ' || \"row\""
    key = f"md5_number(CASE WHEN url IS NULL THEN {row} WHEN p.host = '' THEN {stripped} ELSE {whole} END)"
    return f"(SELECT * EXCLUDE (p), {key} AS url_key FROM (SELECT *, {pieces} AS p FROM rows))"


def text_key(text: str) -> str:
    """SQL of a text's key: NFC, lower case, white space folded. Texts that differ otherwise are different."""
    return f"md5_number(lower(nfc_normalize(trim(regexp_replace({text}, '{_WHITE}', ' ', 'g')))))"
