"""`pairmill demo`: build the rendered web, serve it, curate it, train on it, and hold the result against the truth."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import RunOptions, RunResult, open_run, run
from stages.demo.mllm_truth import score_captions, score_filter
from stages.demo.truth import kept_purity, score_rules
from stages.demo.world import World, build_world, load_world, make_heldout_dataset
from stages.demo.world_server import WorldServer, free_port
from stages.report.job import write_report

HELDOUT = 1000


def demo(
    out: str | Path = "runs/demo",
    rows: int = 3000,
    executor: str = "ray",
    seed: int = 0,
    workers: int = 0,
    overrides: list[str] | None = None,
    notify: Callable[[str, Any], None] = lambda kind, what: None,
    fresh: bool = False,
) -> int:
    """Run the demo in `out`; a second call goes on from what is there (`fresh` starts over). Returns the exit code.

    Prints its tables on standard output and keeps them in `out`/report.txt. Raises RecipeError when `out` holds
    something that is no demo.
    """
    root = Path(out)
    if fresh and (root / "world" / "world.json").is_file():
        shutil.rmtree(root)
    started = time.perf_counter()
    world, pairs = demo_world(root, rows, seed)
    recipe = load_recipe("demo", [*recipe_settings(world, pairs, seed), *report_settings(world, root), *(overrides or [])])
    check_engine(recipe)
    note(f"{rows:,} rows of the rendered web on {world.base_url}")
    with WorldServer(world.folder, world.port), RawRun(world, pairs, root, seed) as raw:
        curated = run(recipe, root / "curated", RunOptions(executor=executor, workers=workers), notify)
        raw_jobs = raw.wait()
    report(curated, raw_jobs, world, root)
    page = write_report(open_run(root / "curated"))  # once more: the job ran before the training on raw rows had ended
    note(f"a page with all of it: {page['report']}")
    note(f"the whole demo took {time.perf_counter() - started:.0f} s; all of it lies in {root}")
    return 0


def check_engine(recipe: Recipe) -> None:
    """Raises RecipeError before anything runs where the recipe asks for vLLM and there is none."""
    if any(spec.get("kind") == "vllm" for spec in recipe.models.values()) and importlib.util.find_spec("vllm") is None:
        raise RecipeError("vLLM is not installed: install pairmill[vllm], or add --set models.mllm.kind=transformers (the same answers, more slowly)")


def demo_world(root: Path, rows: int, seed: int) -> tuple[World, Path]:
    """The rendered web and the table of held-out pairs under `root`, built where they are not there yet."""
    world = _world(root, rows, seed)
    pairs = root / "heldout" / "pairs.parquet"
    if not pairs.is_file():
        make_heldout_dataset(root / "heldout", HELDOUT)
    return world, pairs


def _world(root: Path, rows: int, seed: int) -> World:
    if (root / "world" / "world.json").is_file():
        world = load_world(root / "world")
        if (world.rows, world.seed) != (rows, seed):
            raise RecipeError(f"{root}: holds a demo of {world.rows} rows and seed {world.seed}; name another folder with --out, or start over with --fresh")
        return world
    if root.exists() and any(root.iterdir()):
        raise RecipeError(f"{root}: is not empty and holds no demo; name another folder with --out")
    return build_world(root / "world", rows, seed, f"http://127.0.0.1:{free_port()}")


def recipe_settings(world: World, pairs: Path, seed: int) -> list[str]:
    """What the demo's recipes leave open: the table, the evaluation pairs, the seed."""
    return [f"input.table={world.urls}", f"evaluate.pairs={pairs}", f"pretrain.seed={seed}"]


def report_settings(world: World, root: Path) -> list[str]:
    """What the report is told: the truth, and the run on raw rows to stand beside. Full paths, so that it can be written again from anywhere."""
    compare = json.dumps({"raw rows": str((root / "raw").resolve())})
    return [f"report.truth={json.dumps(str(world.truth.resolve()))}", f"report.compare={compare}"]


class RawRun:
    """The same rows without curation, in a process beside the curated run: each trains on one core."""

    def __init__(self, world: World, pairs: Path, root: Path, seed: int):
        self.out = root / "raw"
        self.log = root / "raw.log"
        self.command = [sys.executable, "-m", "pipeline", "run", "demo_raw", "--out", str(self.out), "--executor", "local", "--progress", "lines"]
        for setting in recipe_settings(world, pairs, seed):
            self.command += ["--set", setting]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RawRun:
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def wait(self) -> dict[str, dict[str, Any]]:
        """The summaries of its jobs once it has ended. Raises Fatal with the end of its log where it failed."""
        assert self.process is not None
        if self.process.wait():
            raise Fatal(f"the run on raw rows failed; the end of {self.log}:\n" + "\n".join(self.log.read_text().splitlines()[-5:]))
        view = open_run(self.out)
        return {job.instance: job.finish(view, []) for job in view.chain.recipe.jobs if job.name != "write_shards"}


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(curated: RunResult, raw: dict[str, dict[str, Any]], world: World, root: Path) -> None:
    """Print the demo's tables on standard output and keep them in report.txt."""
    screen = Console()
    with open(root / "report.txt", "w") as file:
        for console in (screen, Console(file=file, width=100)):
            console.print(_flow_table(curated))
            console.print(_rules_table(curated, world))
            kept, clean = kept_purity(curated.view, world.truth)
            console.print(f"kept {kept:,} rows, {clean:,} of them ({clean / max(1, kept):.1%}) with nothing planted on them")
            console.print(*_mllm_tables(curated, world), sep="\n")
            console.print(_training_table({"raw rows": raw, "curated rows": curated.jobs}))
            console.print("Scores and captions come from the bundled CLIP and MLLM, which know the rendered world only; they say nothing about photographs.")


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 1 else "right", no_wrap=place > 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _flow_table(result: RunResult) -> Table:
    rows = []
    total = sum(result.view.parts)
    kept = total
    for stage, counts in result.view.counts().items():
        reasons = [(key, n) for key, n in sorted(counts.items()) if ":" in key and n]
        for key, n in reasons:
            status, _, reason = key.partition(":")
            rows.append([f"{stage}: {reason}", str(n) if status == "dropped" else "", str(n) if status == "failed" else ""])
        kept = counts["kept"]
    dropped = sum(int(row[1] or 0) for row in rows)
    failed = sum(int(row[2] or 0) for row in rows)
    rows.append([f"in {total:,} = kept {kept:,} + dropped {dropped:,} + failed {failed:,}", f"{dropped:,}", f"{failed:,}"])
    return _table("Rows by reason", ["stage: reason", "dropped", "failed"], rows)


def _rules_table(result: RunResult, world: World) -> Table:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    scores = score_rules(result.view, world.truth)
    rows = [[s.reason, str(s.planted), str(s.taken), share(s.precision), share(s.recall)] for s in scores]
    return _table("Every rule against the planted truth", ["reason", "planted", "taken", "precision", "recall"], rows)


def _mllm_tables(result: RunResult, world: World) -> list[Table]:
    """The MLLM's filter and captions against the truth; none where the recipe has no such stage."""
    tables, found = [], score_filter(result.view, world.truth)
    if found:
        precision, recall = (f"{found.right / whole:.3f}" if whole else "-" for whole in (found.taken, found.wrong))
        columns = ["what reached it", "rows", "swapped texts", "taken", "precision", "recall", "AUC"]
        rows = [["image_text_matching", f"{found.scored:,}", str(found.wrong), str(found.taken), precision, recall, f"{found.auc:.3f}"]]
        tables.append(_table("The MLLM's filter against the planted truth", columns, rows))
    rows = [[c.stage, f"{c.captions:,}", f"{c.tokens:.0f}", f"{c.precision:.3f}", f"{c.recall:.3f}"] for c in score_captions(result.view, world.truth)]
    if rows:
        tables.append(_table("Captions: named objects that are there, objects named", ["stage", "captions", "tokens", "precision", "recall"], rows))
    return tables


def _training_table(results: dict[str, dict[str, dict[str, Any]]]) -> Table:
    rows = []
    for name, jobs in results.items():
        found, trained = jobs["evaluate"], jobs["pretrain"]
        rows.append([name, str(trained["steps"]), f"{trained['epochs']:.1f}", *(f"{found[key]:.1%}" for key in RECALLS)])
    return _table(
        f"CLIP from random weights, recall on {HELDOUT:,} held-out pairs",
        ["trained on", "steps", "epochs", "i->t @1", "@10", "t->i @1", "@10"],
        rows,
    )


RECALLS = ("image_to_text_recall@1", "image_to_text_recall@10", "text_to_image_recall@1", "text_to_image_recall@10")
