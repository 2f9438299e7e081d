"""Texts that try to leave their place: in a page, in a terminal, in a layout."""

from __future__ import annotations

ATTACKS = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=2">',
    "'><svg onload=window.pwned=3>",
    "</title></style></script><script>window.pwned=4</script>",
    "</pre></textarea><iframe src=javascript:window.pwned=5>",
    "javascript:window.pwned=6",
    "{{ 7*7 }}{% raw %}",
    "<!-- --!> <plaintext>",
    "&lt;script&gt;window.pwned=7&lt;/script&gt;",
    "\u202egpj.elif \u2066right to left\u2067 \u200f",
    "\x1b]0;title\x07\x1b[31mred\x9b31m",
    "line\u2028separator\u2029paragraph",
    "long " + "word " * 25_000,
    "unbroken" * 13_000,
    "z\u0335\u0321a" + "\u0336\u0322" * 400,
    "\ufdd0\uffff\ufffe nonc\ud7ff",
]


def hostile_rows() -> list[dict]:
    """Rows for the source given_rows: each attack as text, in the URL and in a carried column; kept, dropped and failed ones."""
    return [
        {"url": f"https://web.example/{i}/{attack}{'/gone' if i % 5 == 4 else ''}", "alt_text": attack, "note": attack, "score": 0.05 + 0.9 * (i % 4) / 3}
        for i, attack in enumerate(ATTACKS * 2)
    ]  # fmt: skip
