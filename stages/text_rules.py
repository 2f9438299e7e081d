"""text_rules: normalises texts, measures them, and drops rows of which no text passes the rules."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import fsspec
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipeline import stage as machine
from pipeline.errors import RecipeError
from pipeline.stage import Context, Evidence, Row, Stage, Values, decides, tunes
from schemas.outcome import Drop, Failure
from schemas.sample import TEXTS, make_text
from stages.presets import preset as find_preset
from stages.text.entropy import corpus_entropy
from stages.text.language import CANDIDATES, identify_all
from stages.text.measures import MEASURES, Boilerplate, measure
from stages.text.normalize import NameMask, normalize, replace_spans
from stages.text.rules import first_broken, passing_texts

if TYPE_CHECKING:
    import duckdb

BOILERPLATE_FILE = Path(__file__).parent / "text" / "boilerplate.txt"
CORPUS_ENTROPY = "corpus_entropy"


class Params(machine.Params):
    """Thresholds of the rules (None or false: rule off), and what normalising replaces."""

    preset: str | None = tunes(
        None,
        "rules of a published dataset: filip, wukong, wit, realsyn, datacomp_basic; parameters given beside it win",
    )
    name_token: str = Field("<person>", description="what a person name becomes")
    names: tuple[str, ...] = Field((), description="person names to be replaced")
    names_file: str | None = Field(None, description="file of person names to be replaced, one per line")
    name_recogniser: str | None = Field(
        None, description="package.module:function from a list of texts to a list of (start, end) of names for each"
    )
    boilerplate_file: str | None = Field(
        None, description="file of stock phrases, one per line, '#' starts a comment; default: the built-in list"
    )
    candidate_languages: tuple[str, ...] = Field(
        CANDIDATES, description="languages that language id chooses from, ISO 639-1"
    )
    files_sha256: str = Field("", description="filled in by itself: digest of names_file and boilerplate_file")
    empty: bool = decides(True, "drop rows without a text (empty)")
    min_chars: int | None = decides(5, "fewest characters (too_short)", ge=0)
    max_chars: int | None = decides(None, "most characters (too_long)", ge=0)
    min_words: int | None = decides(
        2, "fewest words; each Chinese, Japanese or Thai character is one (too_few_words)", ge=0
    )
    max_words: int | None = decides(None, "most words (too_many_words)", ge=0)
    min_han: int | None = decides(None, "fewest Chinese characters (language)", ge=0)
    max_han: int | None = decides(None, "most Chinese characters (too_long)", ge=0)
    boilerplate: bool = decides(True, "drop texts dominated by stock phrases (boilerplate)")
    max_boilerplate_share: float = decides(0.7, "largest share of letters in stock phrases", ge=0, le=1)
    file_name: bool = decides(True, "drop texts that are file names, digests or bare numbers (file_name)")
    url_text: bool = decides(True, "drop texts that are URLs (url_text)")
    max_url_share: float = decides(
        0.4, "largest share of characters inside URLs; 0 drops every text with a URL", ge=0, le=1
    )
    emoji: bool = decides(False, "drop texts with an emoji (emoji)")
    languages: tuple[str, ...] | None = decides(None, "languages allowed, ISO 639-1, for example [en, de] (language)")
    min_lang_score: float | None = decides(None, "least probability of the language (language)", ge=0, le=1)
    min_letters: float | None = decides(
        0.5, "least share of letters among characters that are no white space (low_letters)", ge=0, le=1
    )
    max_repeated_tokens: float | None = decides(
        0.6, "largest share of repeated words, 1 - distinct / all (repetition)", ge=0, le=1
    )
    max_repeated_ngrams: float | None = decides(
        0.6, "largest share of repeated character 5-grams (repetition)", ge=0, le=1
    )
    min_entropy: float | None = decides(None, "least unigram entropy in nats (low_entropy)", ge=0)
    entropy_of: Literal["text", "corpus"] = decides(
        "text",
        "text: entropy of the text's own words; corpus: sum of -p log p with p the word's frequency in all live texts (RealSyn), a barrier",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """Preset values where the recipe gives none, and the digest of the files named."""
        if not isinstance(raw, Mapping):
            return raw
        values = dict(raw)
        if values.get("preset"):
            values = {**find_preset(str(values["preset"])).text, **values}
        files = [path for key in ("names_file", "boilerplate_file") if (path := values.get(key))]
        values["files_sha256"] = hashlib.sha256(b"".join(map(_read, files))).hexdigest()[:20] if files else ""
        return values

    @field_validator("candidate_languages", "languages")
    @classmethod
    def _known_languages(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for code in value or ():
            if len(code) not in (2, 3) or not code.islower():
                raise ValueError(f"{code!r} is no ISO 639 code such as 'en'")
        return value


class TextRules(Stage):
    """Measures every text of a row and drops the row when none passes.

    `texts` holds all texts, normalised and each once; those that are no caption at all (empty, file name, mostly URL or
    boilerplate) stand last, else the order is that of the input. `text`, `lang`, `lang_score` and `n_words` are those of
    the first. Which texts pass depends on thresholds, and thresholds may move without computing anything again: so
    no text is removed here; `passing_texts` tells which may be shown, and the shard writer publishes only those.
    The reason of a dropped row is that of the row's own text.
    """

    name: ClassVar[str] = "text_rules"
    Params = Params
    seconds_per_row = 2e-4
    reads = ("texts|alt_text", "sample_id?")
    writes = {
        "texts": TEXTS,
        "text_measures": MEASURES,
        "text": pa.string(),
        "lang": pa.string(),
        "lang_score": pa.float32(),
        "n_words": pa.int32(),
    }
    batch_size = 2000

    @property
    def _by_corpus(self) -> bool:
        return self.params.min_entropy is not None and self.params.entropy_of == "corpus"

    @property
    def reads_resolve(self) -> Sequence[str]:  # type: ignore[override]
        return (f"{self.instance}.texts",) if self._by_corpus else ()

    @property
    def resolves(self) -> Mapping[str, pa.DataType]:  # type: ignore[override]
        return {CORPUS_ENTROPY: pa.list_(pa.float32())} if self._by_corpus else {}

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        params = self.params
        clean = _cleaner(params.names, params.names_file, params.name_token, params.files_sha256)
        entries = [_entries_of(row) for row in rows]
        cleaned = [[clean(entry["text"] or "") for entry in row_entries] for row_entries in entries]
        if params.name_recogniser:
            cleaned = _mask_recognised(cleaned, params.name_recogniser, params.name_token)
        stock = _boilerplate(params.boilerplate_file, params.files_sha256)
        texts = list(dict.fromkeys(text for row_texts in cleaned for text in row_texts))
        spoken = dict(zip(texts, identify_all(texts, params.candidate_languages), strict=True))
        return [_values(*pair, stock, spoken) for pair in zip(entries, cleaned, strict=True)]

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        own: Drop | None = None
        for measures in self._measures(row["text_measures"], resolved):
            broken = first_broken(measures, self.params)
            if broken is None:
                return None
            if measures["own"]:
                own = broken
        return own

    def passing_texts(self, texts: Sequence[Mapping[str, Any]], row: Row, resolved: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Those of `texts` (as a later stage may have ranked them or added to them) that pass every rule, in their order.

        `row` holds this stage's `texts` and `text_measures`, `resolved` what its resolve returned, as for `decide`.
        """
        measured = [entry["text"] for entry in row["texts"]]
        return passing_texts(texts, measured, list(self._measures(row["text_measures"], resolved)), self.params)

    def _measures(self, stored: Sequence[Mapping[str, Any]], resolved: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The stored measures of a row's texts, with the entropy that the parameters ask for."""
        entropies = resolved.get(CORPUS_ENTROPY) if self._by_corpus else None
        for place, measures in enumerate(stored):
            yield {**measures, "entropy": entropies[place] if entropies else 0.0} if self._by_corpus else measures

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        return corpus_entropy(evidence, f"{self.instance}.texts", CORPUS_ENTROPY)


def _entries_of(row: Row) -> list[Mapping[str, Any]]:
    """The row's texts: a TEXTS list, or its one alt-text (a string under the same key where no stage made a list)."""
    given = row["texts"]
    if given and not isinstance(given, str):
        return list(given)
    identifier = row.get("sample_id")
    return [make_text(given or "", source=identifier.hex() if identifier else "")]


def _values(
    entries: list[Mapping[str, Any]], cleaned: list[str], stock: Boilerplate, spoken: Mapping[str, tuple[str, float]]
) -> dict[str, Any]:
    """Texts each once, captions before what is none; their measures; the scalars of the first."""
    seen: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for place, (entry, text) in enumerate(zip(entries, cleaned, strict=True)):
        if text not in seen:
            seen[text] = ({**entry, "text": text}, measure(text, place == 0, stock, spoken[text]))
    ranked = sorted(seen.values(), key=lambda pair: _is_no_caption(pair[1]))
    first = ranked[0][1]
    return {
        "texts": [entry for entry, _ in ranked],
        "text_measures": [measures for _, measures in ranked],
        "text": ranked[0][0]["text"],
        "lang": first["lang"],
        "lang_score": first["lang_score"],
        "n_words": first["n_words"],
    }


def _is_no_caption(measures: Mapping[str, Any]) -> bool:
    return (
        not measures["n_chars"] or measures["file_name"] or measures["url_share"] > 0.5 or measures["boilerplate"] > 0.5
    )


def _read(path: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise RecipeError(
            f"text_rules: cannot read {path}: {error}; name a text file with one entry per line"
        ) from error


def _lines(path: str | Path) -> list[str]:
    lines = _read(str(path)).decode("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@lru_cache(maxsize=8)
def _cleaner(names: tuple[str, ...], names_file: str | None, token: str, digest: str) -> Callable[[str], str]:
    """`digest` is in the key so that a changed file is read again."""
    listed = [*names, *(_lines(names_file) if names_file else [])]
    if not listed:
        return normalize
    mask = NameMask(listed, token)
    return lambda text: mask(normalize(text))


@lru_cache(maxsize=8)
def _boilerplate(path: str | None, digest: str) -> Boilerplate:
    return Boilerplate(_lines(path or BOILERPLATE_FILE))


def _mask_recognised(cleaned: list[list[str]], recogniser: str, token: str) -> list[list[str]]:
    """Replace what the recogniser finds. One call for all texts, so that a model behind it may batch."""
    module_name, colon, function = recogniser.partition(":")
    try:
        find = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"text_rules.name_recogniser: cannot load {recogniser!r} ({error}); write it as package.module:function"
        ) from error
    flat = [text for texts in cleaned for text in texts]
    spans = iter(find(flat))
    return [[replace_spans(text, next(spans), token) for text in texts] for texts in cleaned]
