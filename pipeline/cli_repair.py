"""Commands for when something went wrong: `failures`, `retry`, `doctor`."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import typer

from pipeline.cli_options import (
    EXIT_FAILED,
    Address,
    Debug,
    ExecutorName,
    Imports,
    Interval,
    Json,
    NoJobs,
    ProgressMode,
    RunFolder,
    Sets,
    Workers,
    answers,
)
from pipeline.console import print_json, results, say
from pipeline.errors import RecipeError
from pipeline.stop import EXIT_INTERRUPTED

Stage = Annotated[str | None, typer.Option("--stage", metavar="S", help="Only this stage of the recipe; default: every stage.")]


@answers
def failures(
    out: RunFolder,
    stage: Stage = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="A,B", help="Only these reasons; `passing` for those that may pass.")] = None,
    examples: Annotated[int, typer.Option("--examples", metavar="N", help="Example rows of each reason.", min=0)] = 3,
    dropped: Annotated[bool, typer.Option("--dropped", help="Also rows that rules dropped.")] = False,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Show why rows failed: counts and shares by stage and reason, example rows, and what to do next.

    \b
    Example:
      pairmill failures RUN
      pairmill failures RUN --stage download --reason timeout,dns --examples 10
    """
    from pipeline.failures import failures_of, print_failures

    found = failures_of(out, stage, reason, examples, dropped)
    print_json(found) if json else print_failures(found, results())
    return 0


@answers
def retry(
    out: RunFolder,
    stage: Stage = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="A,B", help="Failures to try again; `passing`: all that may pass; `all`: every failure.")
    ] = "passing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many rows would be tried again; nothing is written.")] = False,
    sets: Sets = None,
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
    """Try failed rows again: only those, and what follows from them. Rows that are good stay as they are.

    The recipe is that of the last run in OUT; --set may change speed and patience only (such as download.timeout_s). What
    fails again is stored and not tried by the next run. A retry that was stopped can be given again: rows that it has
    tried already and that failed again are tried once more.

    \b
    Example:
      pairmill retry RUN --stage download --reason timeout,dns,http_5xx
      pairmill retry RUN --dry-run
    """
    from pipeline.cli_execute import execute, print_result, say_next
    from pipeline.retry import failure_codes, rows_to_retry
    from pipeline.run import RunOptions, check_options, open_run

    codes = failure_codes(reason)
    options = RunOptions(executor, workers or 0, address, jobs=not no_jobs)
    check_options(options)
    view = open_run(out)
    recipe = same_recipe(out, list(sets or []))
    wanted = rows_to_retry(view, stage, codes)
    told = {name: dict(sorted(counted.items())) for name, counted in wanted.items()}
    if dry_run or not wanted:
        print_json({"run": str(out), "retry": told}) if json else _print_wanted(told, out, stage, codes)
        return 0
    options.retry = {name: codes for name in wanted}
    values = _with_value(view, wanted)
    result = execute(recipe, out, options, progress, interval, view.chain.facts)
    if result is None:
        return EXIT_INTERRUPTED
    after = _with_value(result.view, wanted)
    tried = {name: {"tried": sum(counts.values()), "have a value now": after[name] - values[name]} for name, counts in told.items()}
    print_result(result, json, {"retry": tried})
    for name, counts in tried.items():
        say(f"{name}: {counts['tried']:,} rows were to be tried again; {counts['have a value now']:,} more rows than before have a value")
    say_next(result, out)
    return 0


def _with_value(view: Any, stages: Any) -> dict[str, int]:
    """Rows with a value, by stage, from footers."""
    keys = [("values", stage, part) for stage in stages for part in range(len(view.parts))]
    found = dict.fromkeys(stages, 0)
    for (_, stage, _), record in view.store.records(keys).items():
        found[stage] += record.counts.get("value", 0)
    return found


def _print_wanted(told: dict[str, dict[str, int]], out: str, stage: str | None, codes: frozenset[str]) -> None:
    for name, counts in told.items():
        total = sum(counts.values())
        named = ", ".join(f"{rows:,} {code}" for code, rows in counts.items())
        results().print(f"{name}: {total:,} row{'' if total == 1 else 's'} would be tried again ({named})", soft_wrap=True)
    if told:
        results().print("later stages then compute those of them that get there; all other rows stay as they are")
    else:
        place = f" at {stage}" if stage else ""
        shown = ", ".join(sorted(codes)) if len(codes) < 8 else "any failure"
        results().print(f"nothing to try again: no row failed{place} with {shown}; what there is: pairmill failures {out}", soft_wrap=True)


def same_recipe(out: str, sets: list[str]) -> Any:
    """The recipe of the last run, with values that change speed and patience only. Raises RecipeError for any other."""
    from pipeline.chain import Chain
    from pipeline.recipe import apply_overrides, build_recipe
    from pipeline.run import open_run
    from pipeline.stage import params_affecting

    def facts_of(data: dict[str, Any]) -> list[Any]:
        recipe = build_recipe(data)
        chain = Chain(recipe, view.chain.facts)
        nodes = [(node.name, node.compute_fingerprint, node.decide_fingerprint, node.resolve_fingerprint) for node in chain.nodes]
        jobs = [(job.instance, job.name, params_affecting(job.params, "compute"), params_affecting(job.params, "decide")) for job in recipe.jobs]
        return [nodes, jobs, recipe.late, recipe.resolved["input"]]

    view = open_run(out)
    record = view.store.read_run()
    assert record is not None
    data = copy.deepcopy(record.recipe)
    before = facts_of(data)
    for item in sets:
        apply_overrides(data, [item])
        if facts_of(data) != before:
            raise RecipeError(f"--set {item}: this changes more than speed and patience, and rows that are done would change; give it to `pairmill run`")
    return build_recipe(data)


@answers
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe whose models and limits are to be checked too.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Where the run directory will be: its disk, or its object store, is checked.")
    ] = None,
    sets: Sets = None,
    online: Annotated[str | None, typer.Option("--online", metavar="URL", help="Also fetch this URL, with its certificate checked.")] = None,
    address: Address = None,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Check this machine: resolver, TLS, proxy, limits, disk, packages, Ray, GPU, models; say what is wrong and what to do.

    Exit code 1 where something is a problem; a warning is none. Writes one small file or object to --out and removes it.

    \b
    Example:
      pairmill doctor
      pairmill doctor web_pairs --out RUN --online https://example.org/
    """
    from pipeline.doctor import PROBLEM, examine, print_checks

    checks = examine(recipe, list(sets or []), out, online, address)
    print_json([vars(check) for check in checks]) if json else print_checks(checks, results())
    problems = sum(check.state == PROBLEM for check in checks)
    if problems:
        say(f"{problems} problem{'' if problems == 1 else 's'}")
    return EXIT_FAILED if problems else 0
