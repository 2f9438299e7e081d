"""One run from recipe to result: lock, input, parts, jobs, checks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.chain import Chain, InputFacts
from pipeline.cut import cut_input
from pipeline.environment import Environment, code_version
from pipeline.errors import BudgetExceeded, Fatal, RecipeError
from pipeline.executor import Executor, LocalExecutor, default_workers
from pipeline.files import read_metadata, remove_temporaries
from pipeline.forgotten import Forgotten
from pipeline.groups import Group, make_groups
from pipeline.lock import RunLock
from pipeline.preflight import check_address, check_devices, take_lock, unwritable
from pipeline.reading import reading
from pipeline.recipe import Recipe, build_recipe
from pipeline.retry import Retry, failures_of_outages
from pipeline.run_view import RunView
from pipeline.schedule import Schedule, Tally
from pipeline.stop import undisturbed
from pipeline.storage import ObjectPath, place_of
from pipeline.store import BOOKKEEPING, VALUES, VERDICTS, Store
from schemas.record import RunRecord
from schemas.sample import SOURCE_COLUMNS

Notify = Callable[[str, Any], None]
RAY_WORTH_S = 30.0
PUBLISHING = frozenset({"write_shards", "write_index", "report"})  # jobs that show what the stages came to


@dataclass
class RunOptions:
    """How to run, as opposed to what: nothing here changes a byte of the dataset.

    workers: processes, 0 for one per processor (of the cluster, where there is one). address: of a Ray cluster; without one, that of RAY_ADDRESS,
    which Ray sets in a job that it runs, counts for all but the local executor. measures: False where everything is measured already, so that no
    device of a model is asked for. forgetting: this run ends a removal (`pairmill forget`): of the jobs only those that publish what the stages came to.
    """

    executor: str = "auto"
    workers: int = 0
    address: str | None = None
    retry: dict[str, frozenset[str]] = field(default_factory=dict)
    jobs: bool = True
    measures: bool = True
    forgetting: bool = False


@dataclass
class RunResult:
    """What a run did and found."""

    view: RunView
    tally: Tally
    jobs: dict[str, dict[str, Any]]
    seconds: float


def run(
    recipe: Recipe, out: str | Path, options: RunOptions | None = None, notify: Notify = lambda kind, what: None, facts: InputFacts | None = None
) -> RunResult:
    """Run a recipe in a directory, going on with what is committed there. Raises Fatal and RecipeError.

    facts: of the input, where they are known from an earlier run and the input itself need not be seen.
    """
    options = options or RunOptions()
    if options.executor != "local" and options.address is None:
        options = replace(options, address=cluster_here())
    started = time.perf_counter()
    root = place_of(out)
    check_options(options)
    if options.measures and not options.address:  # the machines of a cluster may have what this one lacks
        check_devices(recipe)
    chain = Chain(recipe, facts)
    lock = RunLock(root)
    store = Store(root, lock.token)
    check_directory(store, chain)
    try:
        with undisturbed():
            take_lock(lock)
        if lock.warning:
            notify("warning", lock.warning)
        remove_temporaries(root)
        if Forgotten.of_run(root).open and not options.forgetting:
            raise Fatal(f"{root}: a removal of rows was interrupted here; end it first: pairmill forget {root}")
        parts = _cut(chain, store, notify)
        retry = _what_to_retry(chain, store, options)
        notify("retry", retry)
        groups = make_groups(chain)
        schedule = Schedule(chain, store, parts, groups, retry, notify)
        notify("schedule", schedule)
        executor = make_executor(chain, store, groups, parts, options, retry, notify)
        try:
            try:
                schedule.run(executor)
            except BudgetExceeded as error:
                with undisturbed():
                    stop = _note_stop(store, error)
                    executor.close()
                    _end_stop(store, stop)
                raise
            executor.release_models()
            view = RunView(chain, store, parts)
            problems = list(view.check_counts())
            if problems:
                raise Fatal("the counts do not add up; this is a fault of pairmill: " + "; ".join(problems))
            jobs = _run_jobs(recipe, executor, view, notify, options.forgetting) if options.jobs else {}
            with undisturbed():
                lock.release()  # before Ray ends: for a second it leaves SIGTERM to the system, which would end this process with the lock in place
        finally:
            with undisturbed():
                executor.close()
    finally:
        with undisturbed():
            lock.release()
    return RunResult(view, schedule.tally, jobs, time.perf_counter() - started)


def check_options(options: RunOptions) -> None:
    """Raises RecipeError for an executor that is not known or not installed and a cluster that does not answer, before anything is read or written."""
    if options.executor not in ("auto", "local", "ray"):
        raise RecipeError(f"--executor {options.executor}: must be auto, local or ray")
    if (options.executor == "ray" or options.address) and not _ray_installed():
        wanted = "--executor ray" if options.executor == "ray" else f"--address {options.address}"
        raise RecipeError(f"{wanted}: Ray is not installed; install pairmill[ray], or use --executor local")
    check_address(options.address)


def check_directory(store: Store, chain: Chain) -> None:
    """Raises RecipeError where the folder holds a run of another input, or a run.json that cannot be read."""
    try:
        record = store.read_run()
    except ValueError as error:
        raise RecipeError(f"{store.root}: {error}") from error
    except OSError as error:
        raise unwritable(store.root, error) from error
    if record is None:
        return
    if record.source_fingerprint != chain.nodes[0].compute_fingerprint:
        raise RecipeError(
            f"{store.root}: this folder holds a run of another input (recipe {record.recipe.get('name')!r}: other files, columns, rows_per_part, "
            "limit or sample); name a new folder with --out, or give the same input"
        )


def _cut(chain: Chain, store: Store, notify: Notify) -> list[int]:
    record = store.read_run()
    parts = record.parts if record is not None else []
    if not parts or not _input_committed(store, parts):
        notify("input", 0)
        cut = cut_input(Environment(chain, store), lambda rows: notify("input", rows))
        if parts and cut != parts:
            raise RecipeError(f"{store.root}: part files of the input are missing and the input no longer gives the rows it gave; name a new folder")
        parts = cut
    run_id = record.run_id if record is not None else store.token
    stops, probe = (record.stops, record.probe) if record is not None else ([], {})
    store.write_run(RunRecord(run_id, code_version(), chain.recipe.resolved, chain.nodes[0].compute_fingerprint, parts, stops, probe))
    return parts


def _input_committed(store: Store, parts: list[int]) -> bool:
    """True when every part of the input is there: values and verdicts, with the row counts that run.json names."""
    wanted = [(kind, "source", part) for kind in (VALUES, VERDICTS) for part in range(len(parts))]
    found = store.records(wanted)
    return all((record := found.get(key)) is not None and record.rows == parts[key[2]] for key in wanted)


def _what_to_retry(chain: Chain, store: Store, options: RunOptions) -> Retry:
    """The failures asked for, and unasked those of an outage (pipeline.retry)."""
    record = store.read_run()
    assert record is not None
    for stage in options.retry:
        chain.node(stage)
    return Retry(options.retry, failures_of_outages(chain, store, record.parts, record.stops).parts)


def _note_stop(store: Store, error: BudgetExceeded) -> dict[str, Any]:
    """Leave word in run.json, so that the next run knows which committed parts the outage had reached."""
    record = store.read_run()
    assert record is not None
    at = round(time.time(), 3)
    stop = {"at": at, "began": round(error.began or at, 3), "reach": error.reach, "stage": error.stage, "code": error.code, "why": str(error)}
    record.stops.append(stop)
    store.write_run(record)
    return stop


def _end_stop(store: Store, stop: dict[str, Any]) -> None:
    """Tasks that were on their way when a budget stopped the run may have begun and committed until the executor was closed: they count as beside it."""
    record = store.read_run()
    assert record is not None
    record.stops = [{**one, "at": round(time.time(), 3)} if one == stop else one for one in record.stops]
    store.write_run(record)


def make_executor(
    chain: Chain, store: Store, groups: list[Group], parts: list[int], options: RunOptions, retry: Retry, notify: Notify
) -> Executor:
    """The executor asked for; 'auto' takes the plain loop for work estimated under 30 s (Ray needs about 10 s to start)."""
    choice = options.executor
    if choice == "auto":
        cost = sum(stage.seconds_per_row for stage in chain.recipe.stages) * sum(parts)
        choice = "ray" if options.address or cost > RAY_WORTH_S else "local"
        if choice == "ray" and not _ray_installed():
            choice = "local"
    notify("executor", choice)
    if choice == "local":
        return LocalExecutor(Environment(chain, store, retry, workers=options.workers or default_workers()), groups)
    from pipeline.ray_executor import RayExecutor

    return RayExecutor(chain, store, groups, options.workers, options.address, retry)


def cluster_here() -> str | None:
    """The cluster that the environment names: in a job of Ray's jobs API it is the one that runs the job."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address.startswith(("http://", "https://")) else address or None  # those are for `ray job submit`


def _ray_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


def _run_jobs(recipe: Recipe, executor: Executor, view: RunView, notify: Notify, forgetting: bool = False) -> dict[str, dict[str, Any]]:
    summaries: dict[str, dict[str, Any]] = {}
    for place, job in enumerate(recipe.jobs):
        if forgetting and job.name not in PUBLISHING:
            continue
        notify("job", job.instance)
        tasks = job.tasks(view)
        results = []
        for result in executor.run_job(place, view, tasks):
            results.append(result)
            notify("job_task", (job.instance, len(results), len(tasks)))
        summaries[job.instance] = job.finish(view, results)
        notify("job_done", (job.instance, summaries[job.instance]))
    return summaries


def open_run(out: str | Path, recipe: Recipe | None = None) -> RunView:
    """A run directory for reading, through the recipe it was last run with. Raises RecipeError where there is none.

    Files that the recipe names outside of the run may be gone: then nothing that a stage measured by them counts as valid."""
    store = Store(out)
    try:
        record = store.read_run()
    except ValueError as error:
        raise RecipeError(f"{out}: {error}") from error
    except NotADirectoryError:
        raise RecipeError(f"{out}: no run here (this is no folder); start one with `pairmill run RECIPE --out FOLDER`") from None
    if record is None:
        missing = "run.json is missing" if isinstance(store.root, ObjectPath) or store.root.is_dir() else "there is no such folder"
        raise RecipeError(f"{out}: no run here ({missing}); start one with `pairmill run RECIPE --out {out}`")
    if not record.parts:
        raise RecipeError(f"{out}: no run here yet, only its estimate by `plan --probe`; start it with `pairmill run RECIPE --out {out}`")
    try:
        schema = read_metadata(store.path(VALUES, "source", 0)).schema.to_arrow_schema()
    except FileNotFoundError as error:
        raise RecipeError(f"{error.filename}: is missing, though run.json names {len(record.parts)} parts; start again in a new folder") from error
    carried = {field.name: field.type for field in schema if field.name not in (*BOOKKEEPING, *SOURCE_COLUMNS)}
    facts = InputFacts(record.source_fingerprint, carried)
    with reading():
        return RunView(Chain(recipe or build_recipe(record.recipe), facts), store, record.parts)
