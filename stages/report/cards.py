"""A row as the galleries show it: its image, texts, scores and what else is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from stages.report.charts import number
from stages.report.draws import Place
from stages.report.measures import Measure
from stages.report.safe import Cleaner, Shown
from stages.report.samples import Sample, Text
from stages.report.thumbnails import Picture, Thumbnails


@dataclass
class Entry:
    """A text of a card: its label, what is shown, its score."""

    label: str
    shown: Shown
    score: str = ""


@dataclass
class Card:
    """A row in a gallery."""

    identifier: str
    image: Picture
    entries: list[Entry]
    more_texts: int
    detail: Shown | None
    scores: list[tuple[str, str]]
    facts: list[tuple[str, Shown]]


class CardMaker:
    """Makes cards of samples. `thumbnails` is None where no image is shown; `own_text` is what the input's texts are called."""

    def __init__(self, samples: dict[Place, Sample], measures: list[Measure], cleaner: Cleaner, thumbnails: Thumbnails | None, own_text: str):
        self.samples = samples
        self.measures = measures
        self.cleaner = cleaner
        self.thumbnails = thumbnails
        self.own_text = own_text

    def _image(self, sample: Sample) -> Picture:
        if sample.image is None or self.thumbnails is None:
            return Picture(why="no image was stored")
        return self.thumbnails.picture(sample.image)

    def card(self, place: Place, first: int | None = None) -> Card:
        """A row; the measure `first` stands at the head of its scores."""
        sample = self.samples[place]
        self.cleaner.hide_host(sample.url.text)
        order = sorted(sample.scores, key=lambda m: (m != first, not self.measures[m].is_score, m))
        numbers = [(self.cleaner.line(self.measures[m].label), number(sample.scores[m])) for m in order]
        ahead = sum(m == first or self.measures[m].is_score for m in order)
        facts = [] if self.cleaner.share else [("url", self.cleaner.text(sample.url.text))]
        facts += [(self.cleaner.line(name), self.cleaner.text(text.text)) for name, text in sample.carried.items()]
        facts += [(label, Shown(value)) for label, value in numbers[ahead:]]
        detail = self.cleaner.text(sample.detail) if sample.detail else None
        card = Card(sample.identifier, self._image(sample), self._entries(sample), sample.more_texts, detail, numbers[:ahead], facts)
        self.cleaner.hide_host("")
        return card

    def _shown(self, text: Text) -> Shown:
        shown = self.cleaner.text(text.text)
        return Shown(shown.head, shown.rest, text.length, shown.cut or text.length > len(text.text))

    def _entries(self, sample: Sample) -> list[Entry]:
        """The alt-text as read, then the row's texts; one that is the same stands once."""
        entries, own = [], Entry(self.own_text, self._shown(sample.alt_text))
        whole = any(text.text == sample.alt_text.text and not text.other for text in sample.texts)
        for text in sample.texts:
            same_kind = f"further {self.own_text}" if whole else f"{self.own_text}, cleaned"
            label = text.kind.replace("alt_text", self.own_text if text.other else same_kind) + (" of a duplicate" if text.other else "")
            score = "" if text.score is None else number(text.score)
            if text.text == sample.alt_text.text and not text.other:
                own.score = score
            else:
                entries.append(Entry(self.cleaner.line(label + (f" ({text.model})" if text.model else "")), self._shown(text), score))
        return [own, *entries]
