"""The command `pairmill forget`."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from pipeline.cli_options import Address, Debug, ExecutorName, Imports, Interval, Json, ProgressMode, RunFolder, Workers, answers
from pipeline.cli_repair import same_recipe
from pipeline.console import print_json, results, say
from pipeline.errors import RecipeError
from pipeline.stop import EXIT_INTERRUPTED
from pipeline.storage import place_of

Values = list[str] | None


@answers
def forget(
    out: RunFolder,
    url: Annotated[Values, typer.Option("--url", metavar="URL", help="All rows with this URL; repeatable.")] = None,
    domain: Annotated[Values, typer.Option("--domain", metavar="HOST", help="All rows of this host and those under it; repeatable.")] = None,
    hash: Annotated[Values, typer.Option("--hash", metavar="SHA256", help="All rows with this image, as fetched or as stored; repeatable.")] = None,
    id: Annotated[Values, typer.Option("--id", metavar="SAMPLE_ID", help="All rows with this id (32 hex digits); repeatable.")] = None,
    list: Annotated[Values, typer.Option("--list", metavar="FILE", help="A line each: URL, domain, SHA-256 or id; repeatable.")] = None,
    index: Annotated[Values, typer.Option("--index", metavar="INDEX", help="Also take the rows out of this index of the run; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many rows would be removed; nothing is written.")] = False,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    imports: Imports = None,
    progress: ProgressMode = "auto",
    interval: Interval = 10.0,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove rows from a run for good: from its tables, images, caches, dataset, card, report and index.

    What is left of a row is that there was one, and salted digests in OUT/forgotten.json, by which later runs in OUT refuse it, and other runs
    too (stage `refuse`). Rows that had taken over a text of it are judged again. Interrupted, it goes on when given again, or as `pairmill forget OUT`.
    Not reached: copies and exports made elsewhere, and what a trained model has learnt.

    \b
    Example:
      pairmill forget RUN --domain example.org --dry-run
      pairmill forget RUN --url https://example.org/cat.jpg --index crawl_1
    """
    from pipeline import forget as work
    from pipeline.cli_execute import execute
    from pipeline.forgotten import Forgotten
    from pipeline.run import RunOptions, check_options, open_run

    options = RunOptions(executor, workers or 0, address, forgetting=True)
    check_options(options)
    wanted = _wanted({"url": url, "domain": domain, "hash": hash, "id": id}, list or [])
    view, root = open_run(out), place_of(out)
    if not wanted and not Forgotten.of_run(root).open:
        raise RecipeError("forget: name rows with --url, --domain, --hash, --id or --list")
    if dry_run:
        found = work.count_rows(out, wanted)
        print_json({"run": out, "rows": found.rows, "parts": found.parts}) if json else results().print(f"{found.rows:,} rows would be removed")
        return 0
    for name in index or []:
        importlib.import_module("stages.index.files").known_path(name)  # before anything is removed
    before, recipe = work.manifest_digest(root), same_recipe(out, [])
    found = work.forget_rows(out, wanted)
    written = "; the dataset is written again" if found.dataset else ""
    say(f"{found.rows:,} rows are taken out of the tables{written}" if found.rows or written else "no row here is of what was named; later runs here refuse it")
    if found.dataset and execute(recipe, out, options, progress, interval, view.chain.facts) is None:
        return EXIT_INTERRUPTED
    proof = work.finish(out, before, found)
    taken = {name: _from_index(name, out) for name in index or []}
    if json:
        print_json({"run": out, **proof, "indexes": taken})
        return 0
    results().print(f"{proof['rows']:,} rows removed, {proof['images']:,} images of theirs; the proof: {root}/forgotten.json", soft_wrap=True)
    for name, count in taken.items():
        results().print(f"index {name}: {count:,} items taken out", soft_wrap=True)
    return 0


def _wanted(given: dict[str, Values], lists: Any) -> list[tuple[str, str]]:
    """(kind, value) of all options."""
    from pipeline.forgotten import checked, parsed

    found = [checked(kind, value) for kind, values in given.items() for value in values or []]
    for file in lists:
        try:
            found += parsed(place_of(file).read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            raise RecipeError(f"--list {file}: no such file") from None
    return found


def _from_index(name: str, out: str) -> int:
    from pipeline.forgotten import Forgotten

    files, forgotten = importlib.import_module("stages.index.files"), Forgotten.of_run(place_of(out))

    def matches(item: dict[str, Any]) -> bool:
        return forgotten.names(item["item"], item["raw_sha256"].hex() if item["raw_sha256"] else "", item["url_sha256"])

    return int(importlib.import_module("stages.index.manage").remove_items(files.known_path(name), matches))
