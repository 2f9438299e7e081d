"""Commands that change a cut of a finished run: `whatif` tells what would change, `recut` writes that dataset beside the old one."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli_options import Address, Debug, ExecutorName, Imports, Interval, Json, ProgressMode, RunFolder, Sets, Workers, answers
from pipeline.errors import Fatal
from pipeline.stop import EXIT_INTERRUPTED


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
