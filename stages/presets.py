"""Filter rules of published datasets by name, one table for `text_rules`, `repeated_text` and `download`.

How sure a value is stands beside it: [code] read in the authors' code, [paper] in the paper, [note] in a second-hand
summary, [mem] from memory only and so not certain, [ours] a choice made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from pipeline.errors import RecipeError


@dataclass(frozen=True)
class Preset:
    """Rules of one dataset.

    text: parameters of `text_rules`; a rule that the dataset does not have is switched off. Sides are pixels, aspect is
    width / height; a value at the limit passes. max_count: distinct URLs that may carry one text (`repeated_text`).
    """

    source: str
    text: Mapping[str, Any] = field(default_factory=dict)
    min_short_side: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_aspect: float | None = None
    min_aspect: float | None = None
    max_count: int | None = None


# Every rule off: a preset switches on what its dataset has.
RULES_OFF: Final[dict[str, Any]] = {
    "empty": True,  # [ours] a pair without a text is no pair
    "min_chars": None,
    "max_chars": None,
    "min_words": None,
    "max_words": None,
    "min_han": None,
    "max_han": None,
    "boilerplate": False,
    "file_name": False,
    "url_text": False,
    "emoji": False,
    "languages": None,
    "min_lang_score": None,
    "min_letters": None,
    "max_repeated_tokens": None,
    "max_repeated_ngrams": None,
    "min_entropy": None,
}

PRESETS: Final[dict[str, Preset]] = {
    "filip": Preset(
        source="FILIP (arXiv 2111.07783), filters of FILIP300M [note, mem]",
        text={
            **RULES_OFF,
            "languages": ["en"],
            "file_name": True,
        },  # 'meaningless text, e.g. raw filenames' [note, mem]
        min_short_side=200,  # [note, mem]
        max_aspect=3.0,  # [note, mem]
        min_aspect=1 / 3,  # [ours] 'aspect ratio > 3' is read as longer over shorter side
        max_count=10,  # 'more than 10 times in the corpus' [note, mem]
    ),
    "wukong": Preset(
        source="Wukong (arXiv 2202.06767), kinds of filters [note], numbers of the text filter [mem]",
        text={
            **RULES_OFF,
            "min_han": 1,  # 'has Chinese text' [mem]
            "max_han": 31,  # 'fewer than 32 Chinese characters' [mem]
            "file_name": True,  # 'meaningless names such as 000.jpg' [mem]
            "name_token": "<人名>",  # person names become a fixed token [mem]; the token's spelling is [mem] too
        },
        min_width=200,  # both sides [note]
        min_height=200,
        max_aspect=3.0,  # [note]
        min_aspect=1 / 3,  # [note]
        max_count=10,  # 'attached to more than 10 images' [mem]
    ),
    "wit": Preset(
        source="WIT (arXiv 2103.01913), kinds of filters [note], numbers [mem]",
        text={
            **RULES_OFF,
            "min_words": 3,  # [mem]
            "boilerplate": True,  # stock phrases 'icon', 'refer to', 'alt text' [mem]
            "file_name": True,  # [mem]
            "min_lang_score": 0.5,  # 'language cannot be identified' [mem]; the number is [ours]
        },
        min_width=100,  # both sides [mem]
        min_height=100,
    ),
    "realsyn": Preset(
        source="RealSyn (arXiv 2502.12513), image and sentence filtration [paper]; the rules by LM and parser: stages perplexity, text_structure",
        text={
            **RULES_OFF,
            "emoji": True,  # [paper]
            "url_text": True,  # [paper]; 'has a URL', so a share of 0 is allowed
            "max_url_share": 0.0,
            "min_words": 3,  # [paper]
            "max_words": 81,  # [paper]
            "min_entropy": 0.3,  # [paper], natural logarithm
            "entropy_of": "corpus",  # [paper] word frequencies of the whole corpus
        },
        min_short_side=100,  # [paper]
        max_aspect=3.0,  # [paper]
        min_aspect=1 / 3,  # [paper]
    ),
    "datacomp_basic": Preset(
        source="DataComp (arXiv 2304.14108), basic filtering of baselines/apply_filter.py [code]",
        text={
            **RULES_OFF,
            "languages": ["en"],  # [code]; by fastText there, by this program's own language id here
            "min_words": 3,  # [code] more than 2 words split at white space (the paper's text says more than 1 [mem])
            "min_chars": 6,  # [code] more than 5 characters
        },
        min_short_side=200,  # [code]
        max_aspect=3.0,  # [code] longer over shorter side
        min_aspect=1 / 3,
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises RecipeError with the nearest name for an unknown one."""
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, 1, 0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise RecipeError(f"no preset {name!r}{hint}; there are: {', '.join(PRESETS)}")


def image_rules(name: str) -> dict[str, int | float | None]:
    """Image limits of a preset: min_short_side, min_width, min_height (pixels), max_aspect, min_aspect (width / height).

    None where the dataset has no such rule; a value at the limit passes.
    """
    found = preset(name)
    return {
        "min_short_side": found.min_short_side,
        "min_width": found.min_width,
        "min_height": found.min_height,
        "max_aspect": found.max_aspect,
        "min_aspect": found.min_aspect,
    }
