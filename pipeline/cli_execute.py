"""What `pairmill run` and `pairmill retry` have in common: running with progress, the summary, and a clean stop."""

from __future__ import annotations

from typing import Any

from pipeline.chain import InputFacts
from pipeline.console import command_line, print_json, results, say
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.retry import PASSING_CODES, Retry, failures_of_outages
from pipeline.run import RunOptions, RunResult, open_run, run
from pipeline.stop import StopOnSignal
from pipeline.store import VALUES, VERDICTS


def execute(
    recipe: Recipe, out: str, options: RunOptions, progress: str, interval: float, facts: InputFacts | None = None
) -> RunResult | None:
    """Run with progress on standard error. None where a signal stopped it: how to go on has then been said."""
    from pipeline.progress import Progress

    result = None
    with StopOnSignal() as stop, Progress(progress, interval) as shown:
        result = run(recipe, out, options, shown, facts)
    if result is None:
        assert stop.asked
        _say_interrupted(out)
    return result


def print_result(result: RunResult, json: bool, more: dict[str, Any] | None = None) -> None:
    """The summary on standard output, as a table or as JSON with `more` beside it."""
    from pipeline.summary import print_summary, summary

    found = summary(result)
    if json:
        print_json({**found, **(more or {})})
    else:
        print_summary(found, results())
        results().print(f"\ndataset: {found['dataset'] or 'none written (no job of this recipe writes one)'}", soft_wrap=True)


def say_next(result: RunResult, out: str) -> None:
    """How long it took, and what a further run would try once more."""
    view = result.view
    record = view.store.read_run()
    again = failures_of_outages(view.chain, view.store, view.parts, record.stops if record else [])
    for stage, (rows, parts) in _per_stage(result, again).items():
        say(
            f"{stage}: the rate of failures rose during this run; the next run tries {rows:,} rows in {parts:,} part{'' if parts == 1 else 's'} "
            "once more that failed for a reason that may pass"
        )
    say(f"done in {result.seconds:.1f} s; a row's whole life: pairmill explain {out} SAMPLE_ID; why rows failed: pairmill failures {out}")


def _per_stage(result: RunResult, again: Retry) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for stage, part in again.parts:
        record = result.view.store.record(VALUES, stage, part)
        rows, parts = found.get(stage, (0, 0))
        failed = sum(record.counts.get(f"failed:{code}", 0) for code in PASSING_CODES) if record is not None else 0
        found[stage] = (rows + failed, parts + 1)
    return found


def _say_interrupted(out: str) -> None:
    """Say what stays and how to go on."""
    try:
        view = open_run(out)
    except RecipeError:
        say("\nstopped; nothing is committed yet (the input was still being read)")
    else:
        steps = (len(view.chain.nodes) - 1) * len(view.parts)
        committed = sum(kind == VERDICTS and stage != "source" for kind, stage, _ in view.records())
        say(f"\nstopped; {committed:,} of {steps:,} steps (one stage on one part) are committed in {out} and will not be done again")
    say(f"to go on: {command_line()}", whole=True)
