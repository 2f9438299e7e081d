"""`pairmill demo`: build the rendered web, serve it, curate it, train on it, and hold the result against the truth."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe
from pipeline.run import RunOptions, RunResult, run
from stages.demo.truth import kept_purity, score_rules
from stages.demo.world import World, build_world, load_world, make_heldout_dataset
from stages.demo.world_server import WorldServer, free_port

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
    world = _world(root, rows, seed)
    pairs = root / "heldout" / "pairs.parquet"
    if not pairs.is_file():
        make_heldout_dataset(root / "heldout", HELDOUT)
    note(f"{rows:,} rows of the rendered web on {world.base_url}")
    with WorldServer(world.folder, world.port):
        curated = run_recipe("demo", world, pairs, root / "curated", seed, executor, workers, overrides, notify)
        raw = run_recipe("demo_raw", world, pairs, root / "raw", seed, executor, workers, None, notify)
    report(curated, raw, world, root)
    note(f"the whole demo took {time.perf_counter() - started:.0f} s; all of it lies in {root}")
    return 0


def _world(root: Path, rows: int, seed: int) -> World:
    if (root / "world" / "world.json").is_file():
        world = load_world(root / "world")
        if (world.rows, world.seed) != (rows, seed):
            raise RecipeError(f"{root}: holds a demo of {world.rows} rows and seed {world.seed}; name another folder with --out, or start over with --fresh")
        return world
    if root.exists() and any(root.iterdir()):
        raise RecipeError(f"{root}: is not empty and holds no demo; name another folder with --out")
    return build_world(root / "world", rows, seed, f"http://127.0.0.1:{free_port()}")


def run_recipe(
    name: str,
    world: World,
    pairs: Path,
    out: Path,
    seed: int,
    executor: str = "local",
    workers: int = 0,
    overrides: list[str] | None = None,
    notify: Callable[[str, Any], None] = lambda kind, what: None,
) -> RunResult:
    """Run one of the demo's recipes on a world that is being served."""
    settings = [f"input.table={world.urls}", f"evaluate.pairs={pairs}", f"seed={seed}", f"pretrain.seed={seed}", *(overrides or [])]
    recipe = load_recipe(name, settings)
    return run(recipe, out, RunOptions(executor=executor, workers=workers), notify)


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(text, file=sys.stderr, flush=True)


def report(curated: RunResult, raw: RunResult, world: World, root: Path) -> None:
    """Print the demo's tables on standard output and keep them in report.txt."""
    screen = Console()
    with open(root / "report.txt", "w") as file:
        for console in (screen, Console(file=file, width=100)):
            console.print(_flow_table(curated))
            console.print(_rules_table(curated, world))
            kept, clean = kept_purity(curated.view, world.truth)
            console.print(f"kept {kept:,} rows, {clean:,} of them ({clean / max(1, kept):.1%}) with nothing planted on them")
            console.print(_training_table(curated, raw))
            console.print("Scores come from the bundled CLIP, which knows the rendered world only; they say nothing about photographs.")


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 1 else "right", no_wrap=True)
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


def _training_table(curated: RunResult, raw: RunResult) -> Table:
    rows = []
    for name, result in (("raw rows", raw), ("curated rows", curated)):
        found, trained = result.jobs["evaluate"], result.jobs["pretrain"]
        samples = result.jobs["write_shards"].get("samples", "")
        recalls = [f"{found[key]:.1%}" for key in RECALLS]
        rows.append([name, str(samples), str(trained["steps"]), *recalls])
    return _table(
        f"CLIP from random weights, recall on {HELDOUT:,} held-out pairs",
        ["trained on", "samples", "steps", "i->t @1", "@10", "t->i @1", "@10"],
        rows,
    )


RECALLS = ("image_to_text_recall@1", "image_to_text_recall@10", "text_to_image_recall@1", "text_to_image_recall@10")
