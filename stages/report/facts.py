"""What a run's footers and files say: the waterfall, costs, models, and results against a known truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import Fatal, RecipeError
from pipeline.run_view import RunView
from pipeline.store import VALUES
from schemas.dataset import MANIFEST, Manifest, ManifestError
from stages.report.collect import Collected
from stages.report.words import about

MOST_REASONS = 40  # lines per stage in the waterfall; the rest are one line
BUNDLED = "bundled:"


@dataclass
class Leaving:
    status: str
    reason: str
    rows: int


@dataclass
class Step:
    """One stage of the waterfall: rows that reached it, what left there, rows that stayed."""

    stage: str
    use: str
    about: str
    reached: int
    stayed: int
    leaving: list[Leaving] = field(default_factory=list)

    @property
    def left(self) -> int:
        return sum(leaving.rows for leaving in self.leaving)


@dataclass
class Waterfall:
    """Input, steps, and what is in the shards (None where there is no dataset of this state of the run)."""

    rows: int
    steps: list[Step]
    kept: int
    shards: int | None = None
    note: str = ""

    def total(self, status: str) -> int:
        return sum(leaving.rows for step in self.steps for leaving in step.leaving if leaving.status == status)


def make_waterfall(run: RunView, found: Collected) -> Waterfall:
    """From the rows read. Raises Fatal where the numbers do not add up to those of the run."""
    steps, reached = [], found.rows
    for node in run.chain.nodes:
        here = [Leaving(group.status, group.reason, n) for group, n in found.counts.items() if group.stage == node.name and n]
        here.sort(key=lambda leaving: (leaving.status, -leaving.rows, leaving.reason))
        use = node.stage.name if node.stage is not None else run.chain.recipe.source.name
        left = sum(leaving.rows for leaving in here)
        steps.append(Step(node.name, use, about(node.stage if node.stage is not None else run.chain.recipe.source), reached, reached - left, here))
        reached -= left
    waterfall = Waterfall(found.rows, steps, found.kept.rows)
    check_sums(run, waterfall)
    _add_shards(run, waterfall)
    return waterfall


def check_sums(run: RunView, waterfall: Waterfall) -> None:
    """Raises Fatal where the waterfall is not what the run counted, stage by stage."""
    problems = list(run.check_counts())
    counts, before = run.counts(), sum(run.parts)
    for step in waterfall.steps:
        told = counts[step.stage]
        if step.reached != before or step.stayed != told["kept"] or step.left != told["dropped"] + told["failed"]:
            problems.append(f"{step.stage}: {step.reached} reached, {step.left} left, {step.stayed} stayed; the run has {before}, "
                            f"{told['dropped'] + told['failed']}, {told['kept']}")  # fmt: skip
        before = told["kept"]
    if waterfall.rows != waterfall.kept + waterfall.total("dropped") + waterfall.total("failed") or waterfall.kept != before:
        problems.append(f"{waterfall.rows} rows are not {waterfall.kept} kept + {waterfall.total('dropped')} dropped + {waterfall.total('failed')} failed")
    if problems:
        raise Fatal(f"{run.root}: the numbers of the report do not add up; this is a fault of pairmill: " + "; ".join(problems))


def _add_shards(run: RunView, waterfall: Waterfall) -> None:
    """The shard writer's own step, where `dataset/` holds this state of the run."""
    try:
        path = run.dataset / MANIFEST
        manifest = Manifest.parse(path.read_bytes(), str(path))
    except (FileNotFoundError, ManifestError):
        if any(job.name == "write_shards" for job in run.chain.recipe.jobs):
            waterfall.note = "The shards are not written yet, or not to their end: dataset/manifest.json is missing."
        return
    told = {(stage, status, reason): n for stage, s in manifest.counts["stages"].items() for status in s for reason, n in s[status].items()}
    mine = {(step.stage, leaving.status, leaving.reason): leaving.rows for step in waterfall.steps for leaving in step.leaving}
    names = {step.stage for step in waterfall.steps}
    if manifest.counts["input"] != waterfall.rows or {key: n for key, n in told.items() if key[0] in names} != mine:
        waterfall.note = "The folder dataset/ holds an earlier state of this run; run the recipe again to write it anew."
        return
    for writer in [stage for stage in manifest.counts["stages"] if stage not in names]:
        leaving = [Leaving(status, reason, n) for (stage, status, reason), n in told.items() if stage == writer]
        left = sum(entry.rows for entry in leaving)
        waterfall.steps.append(Step(writer, writer, "Writes the shards.", waterfall.kept, waterfall.kept - left, leaving))
        waterfall.kept -= left
    if manifest.samples != waterfall.kept:
        raise Fatal(f"{run.dataset}: the shards hold {manifest.samples} samples and the run keeps {waterfall.kept}; check it with `pairmill verify`")
    waterfall.shards = manifest.samples


@dataclass
class Cost:
    """What a stage cost when its parts were last computed, and an estimate of what its cut saved later stages."""

    stage: str
    model: str
    computed: int
    calls: int
    seconds: float
    model_seconds: float
    cut: int = 0
    saved: float = 0.0
    saved_model: float = 0.0
    answer_tokens: int = 0

    @property
    def rate(self) -> float | None:
        return self.computed / self.seconds if self.seconds and self.computed else None

    @property
    def tokens_per_s(self) -> float | None:
        return self.answer_tokens / self.model_seconds if self.answer_tokens and self.model_seconds else None


def make_costs(run: RunView, waterfall: Waterfall) -> list[Cost]:
    """Sums over the footers of the values. A stage's cut saves what its dropped rows would have cost later, had they fared
    as those that stayed: dropped / stayed times the cost of all later stages at their present number of rows."""
    costs = []
    footers = run.records()
    for node in run.chain.nodes[1:]:
        infos = [footers[key].info for part in range(len(run.parts)) if (key := (VALUES, node.name, part)) in footers]
        sums = {name: sum(info.get(name) or 0 for info in infos) for name in ("computed", "calls", "seconds", "model_seconds", "answer_tokens")}
        uses = node.stage is not None and node.stage.uses_model
        costs.append(Cost(node.name, (node.stage.model_name or "") if uses and node.stage is not None else "", **sums))
    steps = {step.stage: step for step in waterfall.steps}
    seconds = model_seconds = 0.0
    for cost in reversed(costs):
        step = steps[cost.stage]
        cost.cut = sum(leaving.rows for leaving in step.leaving if leaving.status == "dropped")
        share = cost.cut / step.stayed if step.stayed else 0.0
        cost.saved, cost.saved_model = share * seconds, share * model_seconds
        per_row = 1 / cost.computed if cost.computed else 0.0
        seconds += cost.seconds * per_row * step.reached
        model_seconds += cost.model_seconds * per_row * step.reached
    return costs


@dataclass
class Estimate:
    """What `plan --probe` foretold for a stage, and what the run then took; `seconds` of workers side by side are added up."""

    stage: str
    rows: int
    seconds: float | None
    model_seconds: float | None
    cost: Cost


def make_estimates(run: RunView, costs: list[Cost]) -> list[Estimate]:
    """One line per stage that the probe in run.json tells of; none without a probe."""
    record = run.store.read_run()
    told = {one["stage"]: one for one in (record.probe if record is not None else {}).get("stages", [])}
    return [
        Estimate(cost.stage, one["rows"], one["seconds"], one["model_seconds"], cost)
        for cost in costs
        if (one := told.get(cost.stage)) is not None and (one["seconds"] or cost.computed)
    ]


def make_models(run: RunView) -> list[dict[str, str]]:
    """The models that stages used, with the digest of the weights as the footers have it."""
    found: dict[str, dict[str, Any]] = {}
    for node in run.chain.nodes[1:]:
        if node.stage is None or not node.stage.uses_model or not node.stage.model_name:
            continue
        spec = run.chain.recipe.models[node.stage.model_name]
        model = found.setdefault(node.stage.model_name, {"digests": set(), "stages": []})
        model |= {"kind": str(spec["kind"]), "name": str(spec.get("name") or ""), "weights": str(spec.get("weights") or "")}
        model["stages"].append(node.name)
        footers = run.records()
        model["digests"] |= {str(footers[key].info.get("weights") or "") for part in range(len(run.parts)) if (key := (VALUES, node.name, part)) in footers}
    return [
        {"model": name, "kind": model["kind"], "weights": f"{model['name']} {model['weights']}".strip(), "stages": ", ".join(model["stages"]),
         "digest": ", ".join(sorted(model["digests"] - {""})), "bundled": "yes" if model["weights"].startswith(BUNDLED) else ""}
        for name, model in found.items()
    ]  # fmt: skip


def make_versions(run: RunView) -> list[str]:
    """Versions of pairmill and Python that computed the values, as the footers have them."""
    infos = [record.info for (kind, _, _), record in run.records().items() if kind == VALUES and "python" in record.info]
    return sorted({f"pairmill {info.get('version')}, Python {info['python']}" for info in infos})


@dataclass(frozen=True)
class Rule:
    """How a reason did against the truth: rows that should have it, rows that got it, rows that rightly did."""

    reason: str
    planted: int
    taken: int
    right: int


def make_rules(run: RunView, truth: str) -> tuple[list[Rule], int, int]:
    """(every reason against the truth, kept rows, kept rows that are rightly kept). `truth` is a Parquet table with one line per
    row of the input, in order: expected_reason ('' for a row that should be kept), original_row (of a copy; else -1).

    Raises RecipeError where it cannot be read or has another number of rows."""
    from stages.demo.truth import kept_purity, score_rules

    path = Path(truth)
    try:
        names, rows = pq.read_schema(path).names, pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:
        raise RecipeError(f"report.truth: cannot read {truth}: {error}") from error
    missing = {"expected_reason", "original_row"} - set(names)
    if missing:
        raise RecipeError(f"report.truth: {truth} has no column {', '.join(sorted(missing))}; it has {', '.join(names)}")
    if rows != sum(run.parts):
        raise RecipeError(f"report.truth: {truth} has {rows} rows and the run {sum(run.parts)}; it must tell of every row of the input, in order")
    kept, right = kept_purity(run, path)
    return [Rule(score.reason, score.planted, score.taken, score.right) for score in score_rules(run, path)], kept, right
