"""From what was collected to HTML: cards, charts and tables, all texts escaped, under a policy that forbids every script."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.run_view import RunView
from pipeline.storage import Place
from stages.report import charts
from stages.report.captions import Kind
from stages.report.cards import Card, CardMaker
from stages.report.collect import Collected, Gallery, Group
from stages.report.facts import MOST_REASONS, Cost, Estimate, Rule, Waterfall
from stages.report.safe import Cleaner, json_block
from stages.report.thumbnails import Thumbnails
from stages.report.training import Evaluation, Training
from stages.report.words import in_words

SERIES = ("kept in the end", "left at another stage", "left at this stage")


@dataclass
class Facts:
    """Everything a page tells."""

    waterfall: Waterfall
    costs: list[Cost]
    estimates: list[Estimate] = field(init=False, default_factory=list)
    models: list[dict[str, str]]
    versions: list[str]
    trainings: list[Training] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    kept_against_truth: tuple[int, int] | None = None
    balances: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # stage -> head and tail of each of its rules
    notes: list[str] = field(default_factory=list)


class Page:
    """Builds one page. `share` leaves out images and URLs; `thumbnails` is None where there are no images; `inputs` is
    the digest by which a page is known to be up to date."""

    def __init__(self, run: RunView, found: Collected, facts: Facts, share: bool, thumbnails: Thumbnails | None, inputs: str = ""):
        self.run = run
        self.found = found
        self.facts = facts
        self.inputs = inputs
        self.cleaner = Cleaner(share)
        self.thumbnails = None if share else thumbnails
        self.local = "path" in run.chain.nodes[0].writes  # a source of files at hand, not of addresses
        self.cards = CardMaker(found.samples, found.measures, self.cleaner, self.thumbnails, "caption" if self.local else "alt-text")
        self.anchors = {group: f"g{place}" for place, group in enumerate(found.left)}
        env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        env.filters["n"] = charts.number
        env.filters["s"] = charts.seconds
        env.filters["line"] = self.cleaner.line
        env.filters["share"] = lambda part, whole: f"{part / whole:.1%}" if whole else "-"
        self.template = env.from_string(_resource("page.html"))

    def render(self) -> str:
        """The page. Nothing in it depends on the time or the machine."""
        style = _resource("page.css")
        hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        found, facts = self.found, self.facts
        kept = self._gallery(found.kept, list(found.kept.nearest))
        stages = self._stage_galleries()
        html = self.template.render(
            style=Markup(style), policy=f"default-src 'none'; img-src data:; style-src 'sha256-{hashed}'; base-uri 'none'; form-action 'none'",
            inputs=self.inputs, recipe=self.run.chain.recipe, share=self.cleaner.share, facts=facts, waterfall=facts.waterfall, steps=self._steps(),
            strip=self._strip(),
            largest=self._largest(), charts=self._charts(), words=SERIES, kept=kept, stages=stages, captions=self._captions(), kinds=self._kinds(),
            aucs=self._aucs(), curves=self._curves(), evaluations=self._evaluations(), yaml=self._recipe(), data=json_block(self._data()),
            local=self.local, textless=found.kinds.without,
            bundled=[model for model in facts.models if model["bundled"]], images_left_out=self.thumbnails.left_out if self.thumbnails else 0,
        )  # fmt: skip
        return html.lstrip()

    def _strip(self) -> Markup:
        w = self.facts.waterfall
        kept, dropped = w.kept / max(1, w.rows), w.total("dropped") / max(1, w.rows)
        return charts.share_bar([("kept", 0, kept), ("here", kept, dropped), ("failed", kept + dropped, w.total("failed") / max(1, w.rows))])

    def _steps(self) -> list[dict[str, Any]]:
        """Waterfall lines: what stays (from the left) and what leaves (after it), as shares of the input."""
        total, lines = max(1, self.facts.waterfall.rows), []
        for step in self.facts.waterfall.steps:
            leaving: list[dict[str, Any]] = [
                {"line": one, "anchor": self.anchors.get(Group(step.stage, one.status, one.reason), ""), "words": in_words(one.status, one.reason)}
                for one in step.leaving
            ]
            shown, rest = leaving[:MOST_REASONS], leaving[MOST_REASONS:]
            dropped = sum(one.rows for one in step.leaving if one.status == "dropped") / total
            failed = step.left / total - dropped
            stayed = step.stayed / total
            bar = charts.share_bar([("kept", 0, stayed), ("here", stayed, dropped), ("failed", stayed + dropped, failed)])
            lines.append({"step": step, "bar": bar, "leaving": shown, "more": sum(entry["line"].rows for entry in rest), "more_reasons": len(rest)})
        return lines

    def _largest(self) -> list[tuple[int, str, str]]:
        """The three largest losses: rows, reason, sentence."""
        leaving = [one for step in self.facts.waterfall.steps for one in step.leaving]
        top = sorted(leaving, key=lambda one: -one.rows)[:3]
        return [(one.rows, one.reason, in_words(one.status, one.reason)) for one in top]

    def _charts(self) -> dict[str, list[dict[str, Any]]]:
        """Histograms: those with a threshold or of a score, and the rest."""
        first: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for place, (measure, histogram) in enumerate(zip(self.found.measures, self.found.histograms, strict=True)):
            if not len(histogram.counts):
                continue
            limits = [t for t in self.found.thresholds if t.measure == place]
            whole = not self._is_float(place)
            bars = histogram.bars(whole=whole)
            # A bar of whole numbers begins at its number, so that what a 'max' allows ends one further.
            lines = [charts.Line(t.value + (whole and t.side == "max"), f"{t.sign} {charts.number(t.value)}") for t in limits]
            label = self.cleaner.line(measure.label)
            svg = charts.histogram(bars, lines, f"histogram of {label}", SERIES)
            outside = [t for t in limits if not bars.start <= t.value <= bars.stop]
            chart = {
                "label": label, "stage": measure.stage, "meaning": measure.meaning, "svg": svg, "rows": int(histogram.total.sum()), "bars": bars,
                "limits": limits, "outside": outside, "low": histogram.low, "high": histogram.high, "median": histogram.quantile(0.5),
                "counts": histogram.total.tolist(),
            }  # fmt: skip
            (first if limits or measure.is_score else rest).append(chart)
        return {"first": sorted(first, key=lambda chart: not chart["limits"]), "rest": rest}

    def _is_float(self, place: int) -> bool:
        return "int" not in str(self.run.chain.type_of(self.found.measures[place].ref))

    def _stage_galleries(self) -> list[dict[str, Any]]:
        """Per stage of the waterfall its groups with their galleries, in the waterfall's order."""
        stages = []
        for step in self.facts.waterfall.steps:
            groups = []
            for one in step.leaving:
                group = Group(step.stage, one.status, one.reason)
                gallery = self.found.left.get(group)
                if gallery is not None:
                    shown = self._gallery(gallery, self.found.deciding(gallery))
                    groups.append({"group": group, "anchor": self.anchors[group], "words": in_words(one.status, one.reason), **shown})
            if groups:
                stages.append({"step": step, "groups": groups})
        return stages

    def _gallery(self, gallery: Gallery, thresholds: list[int]) -> dict[str, Any]:
        nearest = []
        for place in thresholds:
            threshold, places = self.found.thresholds[place], gallery.nearest[place].places()
            if places:
                label = f"{self.cleaner.line(self.found.measures[threshold.measure].label)} {threshold.sign} {charts.number(threshold.value)}"
                nearest.append({"label": label, "cards": [self.cards.card(p, threshold.measure) for p in places]})
        return {"rows": gallery.rows, "random": [self.cards.card(place) for place in gallery.random.places()], "nearest": nearest}

    def _captions(self) -> list[Card]:
        if self.found.kinds.without >= self.facts.waterfall.kept:
            return []
        return [self.cards.card(place) for place in self.found.kept.random.places()[:10]]

    def _kinds(self) -> dict[str, Kind]:
        return {self.cleaner.line(name): kind for name, kind in self.found.kinds.shown().items()}

    def _aucs(self) -> list[dict[str, Any]]:
        lines = []
        for place, histogram in self.found.clean_or_corrupted.items():
            value = histogram.auc(0, 1)
            clean, corrupted = histogram.total.tolist()
            if value is not None:
                lines.append({"label": self.cleaner.line(self.found.measures[place].label), "clean": clean, "corrupted": corrupted, "auc": value})
        return lines

    def _curves(self) -> list[dict[str, Any]]:
        return [{"training": one, "svg": charts.curve(one.steps, one.losses, f"loss of {one.name} over steps")} for one in self.facts.trainings]

    def _evaluations(self) -> dict[str, Any]:
        names = {name for one in self.facts.evaluations for name in one.results} - {"images", "texts"}
        order = sorted(names, key=lambda name: [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)])
        return {"names": order, "of": self.facts.evaluations}

    def _recipe(self) -> str:
        resolved = {key: value for key, value in self.run.chain.recipe.resolved.items() if key != "budgets"}
        return yaml.safe_dump(self.cleaner.tree(resolved), sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)

    def _data(self) -> dict[str, Any]:
        """The page's numbers for programs."""
        w, line = self.facts.waterfall, self.cleaner.line
        steps = [
            {"stage": step.stage, "reached": step.reached, "stayed": step.stayed,
             "leaving": [{"status": one.status, "reason": line(one.reason), "rows": one.rows} for one in step.leaving]}
            for step in w.steps
        ]  # fmt: skip
        rows = {"input": w.rows, "kept": w.kept, "dropped": w.total("dropped"), "failed": w.total("failed"), "shards": w.shards}
        truth = {"rules": [asdict(rule) for rule in self.facts.rules], "kept": self.facts.kept_against_truth}
        costs = [asdict(cost) for cost in self.facts.costs]
        return {"rows": rows, "steps": steps, "costs": costs, "truth": truth, "auc": self._aucs(), "balance": self.facts.balances}


def _resource(name: str) -> str:
    return (resources.files("stages.report") / name).read_text(encoding="utf-8")


def thumbnails_for(run: RunView, writer: str, budget: int) -> Thumbnails | None:
    """Thumbnails of the stage that stores images, or None where no stage does."""
    return Thumbnails(run, writer, budget) if writer else None


def default_path(root: Place, share: bool) -> Place:
    """Where a report goes: one to share never replaces the whole one."""
    return root / ("report-share.html" if share else "report.html")
