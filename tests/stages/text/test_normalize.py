from __future__ import annotations

import unicodedata

import pytest

from stages.text.normalize import NameMask, normalize, replace_spans


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a\t b\n\nc ", "a b c"),
        ("Tom &amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("&amp;amp;quot;x&amp;amp;quot;", '"x"'),
        ("caf&eacute;", "café"),
        (unicodedata.normalize("NFD", "café"), "café"),
        ("zero\u200bwidth\ufeff and soft\u00adhyphen", "zerowidth and softhyphen"),
        ("no\u00a0break\u3000space", "no break space"),
        ("bell\x07 and \x00null", "bell and null"),
        ("\u202eright to left\u202c", "right to left"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the joiner is part of Persian spelling
        ("AT&T and R&D", "AT&T and R&D"),
        ("&nbsp;", ""),
        ("", ""),
    ],
)
def test_normalised_form(raw: str, expected: str) -> None:
    assert normalize(raw) == expected
    assert normalize(expected) == expected


def test_names_are_masked_as_whole_words_longest_first() -> None:
    mask = NameMask(["Ann", "Ann Lee", "王小明"], "<person>")
    assert mask("Ann Lee and Ann, not Annex nor ann") == "<person> and <person>, not Annex nor ann"
    assert mask("明星王小明在北京") == "明星<person>在北京"
    assert mask("nobody here") == "nobody here"


def test_spans_are_replaced_once_even_where_they_overlap() -> None:
    assert replace_spans("0123456789", [(5, 7), (1, 3), (2, 4)], "X") == "0X4X789"
