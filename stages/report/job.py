"""Job `report`: report.html, one page that shows what happened to the data."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from pipeline.digests import digest_of
from pipeline.errors import Fatal
from pipeline.files import commit_bytes
from pipeline.run_view import RunView
from pipeline.stage import Job, Params
from pipeline.storage import Place, place_of
from pipeline.store import VERDICTS
from stages.report import facts
from stages.report.collect import Collector, Limits
from stages.report.page import Facts, Page, default_path, thumbnails_for
from stages.report.training import files_of, make_evaluations, make_trainings

MAX_PAGE_BYTES = 20_000_000
_AMOUNTS = ("kept", "per_reason", "nearest", "image_bytes")  # halved until the page is small enough


class ReportParams(Params):
    """What the page shows, and how much of it."""

    seed: int = Field(0, description="another seed draws other samples")
    kept: int = Field(24, ge=0, le=500, description="kept samples drawn at random")
    per_reason: int = Field(8, ge=0, le=200, description="samples drawn at random for every reason")
    nearest: int = Field(6, ge=0, le=200, description="samples nearest to each threshold, on either side")
    image_bytes: int = Field(10_000_000, ge=0, le=16_000_000, description="bytes of the page that small images may take")
    truth: str = Field("", description="Parquet table of expected_reason and original_row, one line per row of the input: adds precision and recall")
    compare: dict[str, str] = Field({}, description="name -> run directory whose trainings and evaluations stand beside this run's")


class Report(Job):
    """Writes `report.html`: where the rows went, scores and thresholds, samples, cost, training. It needs no network and no script."""

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 1
    Params = ReportParams
    params: ReportParams

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        """Write the page, unless the one that is there tells of this very state of the run."""
        path = default_path(run.root, share=False)
        current = path.is_file() and f'content="{inputs_of(run, self.params)}"'.encode() in path.read_bytes()[:2_000]
        return {"report": str(path), "bytes": path.stat().st_size} if current else write_report(run, self.params)


def inputs_of(run: RunView, params: ReportParams) -> str:
    """Digest of what a page is made of: the run's values and verdicts, its recipe, its dataset, trainings and evaluations."""
    names = ("dataset/manifest.json", "result.json", "evaluate/*.json")
    roots = [run.root, *map(place_of, params.compare.values())]
    files = [piece for root in roots for name in names for path in files_of(root, name) for piece in (path.name, path.read_bytes())]
    record = run.store.read_run()
    probe = record.probe if record is not None else {}
    return digest_of("report", Report.version, params.model_dump(mode="json"), run.state_digest(), run.chain.recipe.resolved, probe, *files)


def params_of(run: RunView) -> ReportParams:
    """The options that the run's recipe gives its report job, else the defaults."""
    return next((job.params for job in run.chain.recipe.jobs if isinstance(job, Report)), ReportParams())


def write_report(run: RunView, params: ReportParams | None = None, share: bool = False, out: Place | None = None) -> dict[str, Any]:
    """Write the page; returns its path, size and what it holds. `share`: without images and URLs. `out` may be a folder.

    Raises Fatal where the run is not finished, or the page's numbers are not those of the run."""
    params = params or params_of(run)
    _check_finished(run)
    inputs, shrunk = inputs_of(run, params), False
    while True:
        page = make_page(run, params, share, inputs)
        if shrunk:
            page.facts.notes.append(f"Fewer samples are shown than were asked for: this page stays under {MAX_PAGE_BYTES / 1e6:.3g} MB.")
        data = page.render().encode("utf-8", "replace")
        if len(data) <= MAX_PAGE_BYTES or not any(getattr(params, name) for name in _AMOUNTS):
            break
        params, shrunk = params.model_copy(update={name: getattr(params, name) // 2 for name in _AMOUNTS}), True
    path = default_path(out, share) if out is not None and out.is_dir() else out or default_path(run.root, share)
    commit_bytes(path, data, run.store.guard)
    waterfall = page.facts.waterfall
    shown = {"samples": len(page.found.samples), "images_left_out": page.thumbnails.left_out if page.thumbnails else 0}
    told = {"input": waterfall.rows, "kept": waterfall.kept, "kept_without_text": page.found.kinds.without, **shown}
    return {"report": str(path), "bytes": len(data), **told, **({"balance": page.facts.balances} if page.facts.balances else {})}


def make_page(run: RunView, params: ReportParams, share: bool, inputs: str = "") -> Page:
    """Collect everything and put the page together."""
    limits = Limits(params.seed, params.kept, params.per_reason, params.nearest)
    collector = Collector(run, limits)
    found = collector.collect()
    waterfall = facts.make_waterfall(run, found)
    roots = {"this run": run.root} | {name: place_of(folder) for name, folder in params.compare.items()}
    costs = facts.make_costs(run, waterfall)
    told = Facts(waterfall, costs, facts.make_models(run), facts.make_versions(run))
    told.estimates = facts.make_estimates(run, costs)
    told.trainings, told.evaluations = make_trainings(roots), make_evaluations(roots)
    told.balances = balances_of(run)
    if params.truth:
        told.rules, kept, right = facts.make_rules(run, params.truth)
        told.kept_against_truth = (kept, right)
    return Page(run, found, told, share, thumbnails_for(run, collector.reader.writer, params.image_bytes), inputs)


def balances_of(run: RunView) -> dict[str, list[dict[str, Any]]]:
    """Head and tail of what each stage `balance` thinned out, rule by rule (stages.balancing.rule.head_and_tail)."""
    return {stage: told["balance"] for stage, told in run.facts().items() if "balance" in told}


def _check_finished(run: RunView) -> None:
    nodes, parts = run.chain.nodes, len(run.parts)
    judged = sum((VERDICTS, node.name, part) in run.records() for node in nodes for part in range(parts))
    if judged < len(nodes) * parts:
        raise Fatal(f"{run.root}: the run is not finished ({judged} of {len(nodes) * parts} steps are committed); finish it with `pairmill run`")
