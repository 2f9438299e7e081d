"""Rules over the stored measures of a text: each on or off, with its threshold and its own reason. Pure functions.

Shares and scores are compared at four decimals, so that storing them as float32 moves no row over a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from schemas.outcome import Drop, Reason


class RuleParams(Protocol):
    """The thresholds; a limit of None or a switch of False turns the rule off. See `text_rules` for their meaning."""

    empty: bool
    min_chars: int | None
    max_chars: int | None
    min_words: int | None
    max_words: int | None
    min_han: int | None
    max_han: int | None
    boilerplate: bool
    max_boilerplate_share: float
    file_name: bool
    url_text: bool
    max_url_share: float
    emoji: bool
    languages: tuple[str, ...] | None
    min_lang_score: float | None
    min_letters: float | None
    max_repeated_tokens: float | None
    max_repeated_ngrams: float | None
    min_entropy: float | None


Measures = Mapping[str, Any]
Verdict = str | None


@dataclass(frozen=True)
class Rule:
    """One reason and its test: `broken` gives the detail (value and threshold), or None where the text passes."""

    reason: Reason
    broken: Callable[[Measures, RuleParams], Verdict]


def _below(measures: Measures, key: str, limit: float | None, unit: str) -> Verdict:
    if limit is None or round(measures[key], 4) >= round(limit, 4):
        return None
    return f"{_number(measures[key])} {unit}, at least {_number(limit)}"


def _above(measures: Measures, key: str, limit: float | None, unit: str) -> Verdict:
    if limit is None or round(measures[key], 4) <= round(limit, 4):
        return None
    return f"{_number(measures[key])} {unit}, at most {_number(limit)}"


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _empty(measures: Measures, params: RuleParams) -> Verdict:
    return "no text" if params.empty and measures["n_chars"] == 0 else None


def _file_name(measures: Measures, params: RuleParams) -> Verdict:
    return "the text is a file name" if params.file_name and measures["file_name"] else None


def _url_text(measures: Measures, params: RuleParams) -> Verdict:
    return _above(measures, "url_share", params.max_url_share, "of the text is URLs") if params.url_text else None


def _boilerplate(measures: Measures, params: RuleParams) -> Verdict:
    limit = params.max_boilerplate_share
    return _above(measures, "boilerplate", limit, "of the letters are stock phrases") if params.boilerplate else None


def _emoji(measures: Measures, params: RuleParams) -> Verdict:
    return f"{measures['n_emoji']} emoji" if params.emoji and measures["n_emoji"] else None


def _too_short(measures: Measures, params: RuleParams) -> Verdict:
    return _below(measures, "n_chars", params.min_chars, "characters")


def _too_long(measures: Measures, params: RuleParams) -> Verdict:
    long = _above(measures, "n_chars", params.max_chars, "characters")
    return long or _above(measures, "n_han", params.max_han, "Chinese characters")


def _too_few_words(measures: Measures, params: RuleParams) -> Verdict:
    return _below(measures, "n_words", params.min_words, "words")


def _too_many_words(measures: Measures, params: RuleParams) -> Verdict:
    return _above(measures, "n_words", params.max_words, "words")


def _low_letters(measures: Measures, params: RuleParams) -> Verdict:
    return _below(measures, "letters", params.min_letters, "of the characters are letters")


def _repetition(measures: Measures, params: RuleParams) -> Verdict:
    words = _above(measures, "repeated_tokens", params.max_repeated_tokens, "of the words are repeated")
    return words or _above(
        measures, "repeated_ngrams", params.max_repeated_ngrams, "of the character 5-grams are repeated"
    )


def _low_entropy(measures: Measures, params: RuleParams) -> Verdict:
    return _below(measures, "entropy", params.min_entropy, "nats of unigram entropy")


def _language(measures: Measures, params: RuleParams) -> Verdict:
    if params.min_han is not None and measures["n_han"] < params.min_han:
        return f"{measures['n_han']} Chinese characters, at least {params.min_han}"
    if params.languages is not None and measures["lang"] not in params.languages:
        return f"{measures['lang']} ({measures['lang_score']:.2f}), allowed: {', '.join(params.languages)}"
    return _below(measures, "lang_score", params.min_lang_score, f"is the score of {measures['lang']}")


# In this order: the first broken rule gives the reason.
RULES: Final[tuple[Rule, ...]] = (
    Rule(Reason.EMPTY, _empty),
    Rule(Reason.FILE_NAME, _file_name),
    Rule(Reason.URL_TEXT, _url_text),
    Rule(Reason.BOILERPLATE, _boilerplate),
    Rule(Reason.EMOJI, _emoji),
    Rule(Reason.TOO_SHORT, _too_short),
    Rule(Reason.TOO_LONG, _too_long),
    Rule(Reason.TOO_FEW_WORDS, _too_few_words),
    Rule(Reason.TOO_MANY_WORDS, _too_many_words),
    Rule(Reason.LOW_LETTERS, _low_letters),
    Rule(Reason.REPETITION, _repetition),
    Rule(Reason.LOW_ENTROPY, _low_entropy),
    Rule(Reason.LANGUAGE, _language),
)


def first_broken(measures: Measures, params: RuleParams) -> Drop | None:
    """The first rule that a text breaks, with value and threshold as detail; None where it passes all."""
    for rule in RULES:
        detail = rule.broken(measures, params)
        if detail is not None:
            return Drop(rule.reason, detail)
    return None


def passing(text_measures: Sequence[Measures], params: RuleParams) -> list[bool]:
    """For each text of a row, in the order of `texts` as text_rules wrote it: whether it passes every rule."""
    return [first_broken(measures, params) is None for measures in text_measures]


def passing_texts(
    texts: Sequence[Mapping[str, Any]], measured: Sequence[str], text_measures: Sequence[Measures], params: RuleParams
) -> list[Mapping[str, Any]]:
    """Those of `texts` that pass, in their order. A later stage may have ranked them anew or added captions: texts are
    found by their words in `measured` (the texts as text_rules wrote them), and one that it never saw is kept.
    """
    good = dict(zip(measured, passing(text_measures, params), strict=True))
    return [entry for entry in texts if good.get(entry["text"], True)]
