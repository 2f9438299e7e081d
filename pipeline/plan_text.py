"""A plan as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipeline.console import number, plain_table, print_fact, span
from pipeline.plan import Plan, StagePlan
from pipeline.reasons import shown
from pipeline.safe_text import one_line

MACHINE_ONLY = ("kind",)
ROOMY = 76  # columns of a terminal from which all numbers have their place


def print_plan(plan: Plan, console: Console) -> None:
    """Everything a user should know before a run starts, in at most the console's width."""
    _print_head(plan, console)
    _print_stages(plan, console)
    _print_models(plan, console)
    _print_order(plan, console)
    _print_work(plan, console)
    if plan.probe is not None:
        _print_probe(plan.probe, console)
    for note in plan.notes:
        console.print(f"note: {one_line(note, 600)}")


def _print_head(plan: Plan, console: Console) -> None:
    where = "a new run" if plan.new else f"on top of what is committed in {plan.out}"
    console.print(f"recipe {one_line(plan.recipe, 60)}: {plan.rows:,} rows in {plan.parts:,} part{'' if plan.parts == 1 else 's'}, {where}\n")


def _print_stages(plan: Plan, console: Console) -> None:
    console.print("Stages in order, with the columns they read and add", style="bold")
    for place, stage in enumerate(plan.stages, 1):
        name = stage.name if stage.name == stage.use else f"{stage.name} ({stage.use})"
        console.print(f"{place:>2} {name}{'' if stage.decides else '  (drops no row by a rule)'}")
        print_fact(console, "reads", ", ".join(one_line(name, 60) for name in _reads(stage)) or "nothing", 3)
        print_fact(console, "adds", ", ".join(one_line(name, 60) for name in stage.adds) or "nothing", 3, 5)


def _reads(stage: StagePlan) -> list[str]:
    """'source.url', 'text = caption.text' where the name differs, 'lang (none here)' for an optional one that is missing;
    the four columns of a stored image are shown as one."""
    shown_reads = []
    for key, owner in stage.reads.items():
        if key.startswith("image."):
            if key == "image.tar":
                shown_reads.append(f"the image of {str(owner).rpartition('.')[0]}")
        elif owner is None:
            shown_reads.append(f"{key} (none here)")
        else:
            shown_reads.append(owner if owner.rpartition(".")[2] == key.rpartition(".")[2] else f"{key} = {owner}")
    return list(dict.fromkeys(shown_reads))


def _print_models(plan: Plan, console: Console) -> None:
    if not plan.models:
        return
    console.print("\nModels", style="bold")
    for name, spec in plan.models.items():
        users = [stage.name for stage in plan.stages if stage.model == name]
        facts = ", ".join(f"{key} {shown(value)}" for key, value in spec.items() if key not in MACHINE_ONLY)
        console.print(f"{name}: {spec.get('kind')}{', ' if facts else ''}{facts}; used by {', '.join(users) or 'no stage'}")


def _print_order(plan: Plan, console: Console) -> None:
    console.print("\nOrder of work (the stages of a group run as one task on one part)", style="bold")
    resolving = {barrier.stage: barrier for barrier in plan.barriers}
    by_name = {stage.name: stage for stage in plan.stages}
    opened: set[str] = set()
    for place, names in enumerate(plan.groups, 1):
        first = by_name[names[0]]
        barrier = resolving.get(first.name)
        if barrier is not None and first.name not in opened and _judges(plan, place - 1, first):
            opened.add(first.name)
            evidence = ", ".join(one_line(name, 60) for name in barrier.reads) or "no column"
            behind = ", ".join(barrier.waiting) or "the jobs"
            print_fact(console, "barrier:", f"{first.name} waits for all parts, then compares {evidence}; behind it wait {behind}", 3)
        resources = first.resources + (f", model {first.model}" if first.model else "")
        print_fact(console, f"{place:>2}", f"{', '.join(dict.fromkeys(names))}  [{resources}]")
    if plan.jobs:
        console.print(f"   then the jobs {', '.join(plan.jobs)} (each leaves out what it has already written)")


def _judges(plan: Plan, group: int, stage: StagePlan) -> bool:
    """A stage that computes and resolves stands in two groups; the barrier is before the second."""
    return not any(stage.name in names for names in plan.groups[group + 1 :])


def _print_work(plan: Plan, console: Console) -> None:
    console.print("\nWhat a run computes", style="bold")
    if plan.nothing_to_do:
        jobs = "; the jobs check what they have written" if plan.jobs else ""
        console.print(f"nothing to do: every value and verdict is committed and valid{jobs}")
        return
    roomy = console.width >= ROOMY
    timed = roomy and any(stage.seconds for stage in plan.stages)
    headers = ["stage", "rows", "model calls", *(["seconds"] if timed else []), *(["kept after it"] if roomy else []), "why"]
    table = plain_table(*headers, wide="why")
    for stage in plan.stages:
        calls = span(stage.calls) if stage.model else "-"
        seconds = [_seconds(stage)] if timed else []
        kept = [span(stage.kept)] if roomy else []
        table.add_row(stage.name, span(stage.rows), calls, *seconds, *kept, one_line("; ".join(stage.why), 400))
    console.print(table)
    low, high = (sum(stage.calls[end] for stage in plan.stages if stage.model) for end in (0, 1))
    model_seconds = [stage.model_seconds for stage in plan.stages if stage.model and stage.model_seconds is not None]
    if high:
        told = f", about {number(round(sum(model_seconds)))} model-seconds at the rate of earlier parts" if model_seconds else ""
        console.print(f"model calls in all: {span((low, high))}{told}")


def _print_probe(probe: dict[str, Any], console: Console) -> None:
    console.print(f"\nWhat a probe of {probe['rows']:,} rows foretells", style="bold")
    roomy = console.width >= ROOMY
    table = plain_table("stage", *(["measured"] if roomy else []), "rows/s", *(["to come"] if roomy else []), "seconds", "model-s", wide="stage")
    for one in probe["stages"]:
        measured, to_come = ([number(one["measured"])], [number(one["rows"])]) if roomy else ([], [])
        table.add_row(one["stage"], *measured, _figure(one["rows_per_s"]), *to_come, _figure(one["seconds"]), _figure(one["model_seconds"]))
    console.print(table)
    console.print("Seconds are those of one worker and one engine, started before; rows to come follow from the share that came so far.")
    for one in probe["stages"]:
        if one["engine_hours_per_million"] is not None:
            asked, made = one["tokens_per_row"]
            price = f", {one['price_per_million']:,.2f} at {probe['price_per_hour']:g} an hour" if one["price_per_million"] is not None else ""
            tokens = f"{asked:,.1f} prompt and {made:,.1f} answer tokens a row, {_figure(one['answer_tokens_per_s'])} answer tokens/s"
            told = f"{one['stage']}: {tokens}; a million images take {one['engine_hours_per_million']:,.2f} engine-hours"
            console.print(told + price)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _seconds(stage: StagePlan) -> str:
    if stage.seconds is None:
        return "-" if stage.rows[1] == 0 else "not known"
    return f"about {stage.seconds:,.1f}"
