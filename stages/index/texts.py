"""Texts as they are compared with evaluation texts: words alone, and runs of eight of them."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

import xxhash

from stages.text.unspaced import words

GRAM = 8  # words of a run


def plain_words(text: str) -> list[str]:
    """Words of a text: Unicode NFKC, letters folded, everything but letters, digits and underscores left out; of scripts without spaces each letter."""
    return words(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The text as an index keeps it."""
    return " ".join(plain_words(text))


def grams(given: list[str], size: int = GRAM) -> set[int]:
    """64-bit hashes of all runs of `size` words; of a shorter text, of the whole."""
    last = max(1, len(given) - size + 1)
    return {xxhash.xxh64_intdigest(" ".join(given[at : at + size]).encode("utf-8", "surrogatepass")) for at in range(last)}


class TextTable:
    """Evaluation texts, by the runs of words that they have. Texts of fewer than `least_words` words are left out: they say too little."""

    def __init__(self, texts: Iterable[tuple[str, str]], least_words: int):
        """texts: (item, normalised text)."""
        self.items: list[str] = []
        self.sizes: list[int] = []
        self.by_gram: dict[int, list[int]] = defaultdict(list)
        self.least_words = least_words
        for item, text in texts:
            given = words(text)
            if len(given) < least_words:
                continue
            found = grams(given)
            for gram in sorted(found):
                self.by_gram[gram].append(len(self.items))
            self.items.append(item)
            self.sizes.append(len(found))

    def best(self, texts: Iterable[str]) -> tuple[str, float] | None:
        """(item, share of its runs of eight words that a text has) of the evaluation text that is most contained in one of `texts`.

        Of a text with fewer than eight words the whole must stand in it as the whole. None where no run is shared.
        """
        best: tuple[float, int] | None = None
        for text in texts:
            own = plain_words(text)
            if len(own) < self.least_words:
                continue
            shared = Counter(which for gram in grams(own) for which in self.by_gram.get(gram, ()))
            for which, count in shared.items():
                share = (count / self.sizes[which], -which)
                best = share if best is None or share > best else best
        return None if best is None else (self.items[-best[1]], round(best[0], 4))
