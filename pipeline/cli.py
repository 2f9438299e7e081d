"""The command line `pairmill`. Results go to standard output, everything else to standard error.

Exit codes: 0 done; 1 a part, a budget or a check failed; 2 the recipe, an option or the input is wrong; 130 stopped by
Ctrl+C or SIGTERM.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import cli_dataset, cli_forget, cli_index, cli_repair, cli_whatif
from pipeline.cli_options import (
    EXIT_FAILED,
    Address,
    Debug,
    ExecutorName,
    Imports,
    Interval,
    Json,
    Limit,
    NoJobs,
    ProgressMode,
    RecipeName,
    RunFolder,
    Sample,
    Sets,
    Workers,
    answers,
)
from pipeline.console import command_line, print_json, results, say
from pipeline.recipe import Recipe, load_recipe
from pipeline.safe_text import one_line
from pipeline.stop import EXIT_INTERRUPTED, StopOnSignal
from pipeline.storage import place_of

app = typer.Typer(
    name="pairmill",
    help="Turns a table of image URLs with noisy alt-text into curated image-text shards, and trains a model on them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        results().print(f"pairmill {version('pairmill')}")
        raise typer.Exit


@app.callback()
def common(show: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    pass


def _load(recipe: str, sets: list[str] | None, limit: int | None, sample: float | None) -> Recipe:
    return load_recipe(recipe, list(sets or []), limit, sample)


@app.command(short_help="Run a recipe and write the dataset.")
@answers
def run(
    recipe: RecipeName,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Run directory or s3://BUCKET/FOLDER; the same command goes on with what is committed.")],
    sets: Sets = None,
    limit: Limit = None,
    sample: Sample = None,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    imports: Imports = None,
    progress: ProgressMode = "auto",
    interval: Interval = 10.0,
    no_jobs: NoJobs = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a recipe: read the input, measure and judge every row, write the dataset.

    What is committed in --out is never computed again. Ctrl+C stops cleanly; the same command goes on.

    \b
    Example:
      pairmill run web_pairs --set input.table=urls.parquet --out RUN
      pairmill run web_pairs --set input.table=urls.parquet --out TRY --limit 1000
    """
    from pipeline.cli_execute import execute, print_result, say_next
    from pipeline.run import RunOptions

    built = _load(recipe, sets, limit, sample)
    result = execute(built, out, RunOptions(executor, workers or 0, address, jobs=not no_jobs), progress, interval)
    if result is None:
        return EXIT_INTERRUPTED
    print_result(result, json)
    say_next(result, out)
    return 0


@app.command(short_help="Show what a run would do, and why.")
@answers
def plan(
    recipe: RecipeName,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Run directory to plan for; without it a new run is planned.")] = None,
    sets: Sets = None,
    limit: Limit = None,
    sample: Sample = None,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    imports: Imports = None,
    progress: ProgressMode = "auto",
    interval: Interval = 10.0,
    no_jobs: NoJobs = False,
    probe: Annotated[
        int | None, typer.Option("--probe", metavar="N", help="Run the stages on the first N rows in a temporary folder and estimate times and costs.", min=1)
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", metavar="X", help="With --probe: what an hour of the model's machine costs.", min=0)
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Show what `run` with the same options would do, and why; nothing is written.

    Stages with their columns, models, order and barriers, and per stage the rows and model calls that are not
    committed yet. 'at most' marks numbers that depend on what earlier stages will find. With --probe the stages run on a
    few rows, which downloads and asks models as a run would; with --out as well, the estimate is kept in run.json for the report.

    \b
    Example:
      pairmill plan web_pairs --set input.table=urls.parquet --out RUN --set clip_score.min=0.3
    """
    from pipeline.plan import make_plan
    from pipeline.plan_text import print_plan
    from pipeline.probe import keep_probe, make_probe
    from pipeline.run import RunOptions, check_options

    check_options(RunOptions(executor, workers or 0, address))
    built = _load(recipe, sets, limit, sample)
    if no_jobs:
        built.jobs.clear()
    result = None
    with StopOnSignal():
        made = make_plan(built, out)
        if probe is not None:
            found = make_probe(built, made, probe, price_per_hour, say)
            made.probe = found.to_dict()
            if out is not None:
                keep_probe(built, out, found)
        result = made
    if result is None:
        say("\nstopped")
        return EXIT_INTERRUPTED
    if json:
        print_json(result.to_dict())
    else:
        print_plan(result, results())
    return 0


@app.command(short_help="Show how far a run is.")
@answers
def status(out: RunFolder, imports: Imports = None, json: Json = False, debug: Debug = False) -> int:
    """Show how far a run is: parts and rows per stage, and whether a process works on it now.

    \b
    Example:
      pairmill status RUN
    """
    from pipeline.status import print_status, status_of

    found = status_of(out)
    print_json(found) if json else print_status(found, results())
    return 0


@app.command(short_help="Show a row's whole life.")
@answers
def explain(
    out: RunFolder,
    sample: Annotated[str, typer.Argument(metavar="SAMPLE_ID", help="sample_id in hex (6 digits or more of it), or a URL of the input.")],
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Show a row's whole life: source columns, every stage's values and verdict, its place in the dataset.

    \b
    Example:
      pairmill explain RUN 3f9c21
      pairmill explain RUN https://example.org/cat.jpg
    """
    from pipeline.explain import explain as find
    from pipeline.explain import print_life

    lives = find(out, sample)
    if json:
        print_json(lives)
        return 0
    for place, life in enumerate(lives):
        if place:
            results().print()
        print_life(life, results())
    return 0


app.command(short_help="Show why rows failed, and what to do.")(cli_repair.failures)
app.command(short_help="Try failed rows again, and nothing else.")(cli_repair.retry)


@app.command(short_help="Check a finished dataset.")
@answers
def verify(
    out: RunFolder,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Also decode every image.")] = True,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Check a finished dataset: digests, keys, order of members, counts, and that every image decodes.

    OUT may be a run directory or a dataset folder. Exit code 1 where something is wrong.

    \b
    Example:
      pairmill verify RUN
    """
    folder = cli_dataset.dataset_of(out)
    # The checks know shards and images and stand among the stages, which this package must not import.
    problems = list(importlib.import_module("stages.shards.verify").verify_dataset(folder, decode=decode))
    if json:
        plain = [asdict(problem) if is_dataclass(problem) and not isinstance(problem, type) else str(problem) for problem in problems]
        print_json({"dataset": str(folder), "problems": plain})
    elif problems:
        for problem in problems:
            results().print(one_line(problem, 600), soft_wrap=True)
    else:
        results().print(f"{folder}: no problems found", soft_wrap=True)
    if problems:
        say(f"{len(problems):,} problem{'' if len(problems) == 1 else 's'} in {folder}; delete it and run the same command again to write it anew")
    return EXIT_FAILED if problems else 0


@app.command(short_help="Write a page that shows what happened to the data.")
@answers
def report(
    out: RunFolder,
    share: Annotated[bool, typer.Option("--share", help="Leave out images and URLs, to show the page to others.")] = False,
    file: Annotated[str | None, typer.Option("--out", metavar="FILE", help="The page; default: OUT/report.html, or OUT/report-share.html.")] = None,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Write a page that shows what happened to the data: one HTML file that needs no network.

    Where the rows went, scores and thresholds, samples of every reason, time, training. Its options (how many samples,
    the truth if it is known) are those of the job `report` in the recipe.

    \b
    Example:
      pairmill report RUN
      pairmill report RUN --share --out share.html
    """
    from pipeline.run import open_run

    # The page knows images and stands among the stages, which this package must not import.
    found = importlib.import_module("stages.report.job").write_report(open_run(out), share=share, out=place_of(file) if file else None)
    if json:
        print_json(found)
    else:
        results().print(f"{found['report']}: {found['bytes'] / 1e6:.1f} MB; open it in a browser", soft_wrap=True)
    return 0


app.command(short_help="Show what a changed recipe would keep.")(cli_whatif.whatif)
app.command(short_help="Write the dataset of a changed recipe beside the old.")(cli_whatif.recut)
app.command(short_help="Write the dataset as Parquet with images.")(cli_dataset.export)
app.command(short_help="Give back the space of images that no row names.")(cli_dataset.gc)
app.command(short_help="Remove rows for good, from everywhere.")(cli_forget.forget)
app.add_typer(cli_index.app, name="index", short_help="Indexes of evaluation sets and finished runs.")


@app.command(short_help="Run it all on a small rendered web.")
@answers
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run directory.")] = Path("runs/demo"),
    rows: Annotated[int | None, typer.Option("--rows", metavar="N", help="Rows of the rendered web.", min=1)] = None,
    executor: ExecutorName = "ray",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the rendered web.")] = 0,
    sets: Sets = None,
    workers: Workers = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete what an earlier demo left in --out and start over.")] = False,
    progress: ProgressMode = "auto",
    interval: Interval = 10.0,
    debug: Debug = False,
) -> int:
    """Run the whole mill on a small web of rendered images, served from this machine, and measure it against the truth.

    \b
    Example:
      pairmill demo --out runs/demo --rows 3000
    """
    from pipeline.progress import Progress

    options: dict[str, Any] = {"out": out, "executor": executor, "seed": seed, "workers": workers or 0, "overrides": sets, "fresh": fresh}
    options |= {"rows": rows} if rows else {}
    code = EXIT_INTERRUPTED
    with StopOnSignal(), Progress(progress, interval) as shown:
        code = int(importlib.import_module("stages.demo.main").demo(**options, notify=shown) or 0)
    if code == EXIT_INTERRUPTED:
        say(f"\nstopped; to go on: {command_line()}", whole=True)
    return code


@app.command(short_help="List stages, sources, jobs and models, or describe one.")
@answers
def stages(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A source, stage, job or kind of model.")] = None,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List all sources, stages, jobs and kinds of models, or tell all about one.

    For each parameter: type, default, meaning, and whether a change of it computes again, only judges again, or
    changes nothing that is stored.

    \b
    Example:
      pairmill stages
      pairmill stages clip_score
    """
    from pipeline import describe

    if name is None:
        found = describe.all_plugins()
        print_json(found) if json else describe.print_all(found, results())
    else:
        one = describe.describe(name)
        print_json(one) if json else describe.print_one(one, results())
    return 0


app.command(short_help="Check this machine: network, disk, packages, models.")(cli_repair.doctor)


def main() -> None:
    """Run the command line; ends by SystemExit."""
    app(prog_name="pairmill")


if __name__ == "__main__":
    main()
