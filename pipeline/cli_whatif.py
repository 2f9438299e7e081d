"""Commands that change a cut of a finished run: `whatif` tells what would change, `recut` writes that dataset beside the old one."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipeline.cli_options import Address, Debug, ExecutorName, Imports, Interval, Json, ProgressMode, RunFolder, Sets, Workers, answers
from pipeline.console import print_json, results
from pipeline.errors import Fatal
from pipeline.stop import EXIT_INTERRUPTED


@answers
def whatif(
    run: RunFolder,
    sets: Sets = None,
    examples: Annotated[int, typer.Option("--examples", metavar="N", help="Example rows on each side of each moved cut.", min=0)] = 3,
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Count CLIP tokens (on a sample of 20,000 rows) where open_clip is installed.")] = True,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Tell what a changed recipe would keep, from what is measured: rows, overlap, texts, reasons, and rows at the boundary.

    Stages that compare all rows are asked again in memory. Where a change needs new measurements it says how many and what
    they would take; these rows count as undecided. The run stays as it is, but for files in its cache/whatif that make
    the next call fast.

    \b
    Example:
      pairmill whatif RUN --set clip_score.min=0.27 --set dedup.max_distance=8
    """
    _leave_pandas()
    from pipeline.changed import changed_run
    from pipeline.whatif_report import whatif as find
    from pipeline.whatif_text import print_whatif

    found = find(changed_run(run, list(sets or [])), examples, tokens)
    print_json(found) if json else print_whatif(found, results())
    return 0


class _WithoutPandas:
    """A finder of modules for which there is no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def _leave_pandas() -> None:
    """For its first array pyarrow imports pandas, where there is one: half a second for what nothing here needs. It looks for it once."""
    import pyarrow as pa

    sys.meta_path.insert(0, _WithoutPandas)  # type: ignore[arg-type]
    pa.array([0])
    sys.meta_path.remove(_WithoutPandas)  # type: ignore[arg-type]


@answers
def recut(
    run: RunFolder,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Run directory of the new dataset, beside the old one.")],
    sets: Sets = None,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    imports: Imports = None,
    progress: ProgressMode = "auto",
    interval: Interval = 10.0,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Write the dataset of a changed recipe beside the old one, from what is measured: no image is decoded, no model runs.

    Measurements and stored images are hard links where the disk allows it. Where the change needs measurements that are
    not there, it says how many and which command makes them. The same command goes on after a stop.

    \b
    Example:
      pairmill recut RUN --set clip_score.min=0.3 --out OTHER
    """
    from pipeline.cli_execute import execute, print_result, say_next
    from pipeline.recut import prepare_recut
    from pipeline.run import RunOptions, check_options

    options = RunOptions(executor, workers or 0, address, measures=False)
    check_options(options)
    changed = prepare_recut(run, list(sets or []), out)
    result = execute(changed.recipe, out, options, progress, interval, changed.chain.facts)
    if result is None:
        return EXIT_INTERRUPTED
    if computed := sum(result.tally.computed.values()):
        raise Fatal(f"{out}: {computed} rows were measured although none was missing; this is a fault of pairmill")
    print_result(result, json)
    say_next(result, out)
    return 0
