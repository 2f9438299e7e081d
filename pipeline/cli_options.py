"""Options that several commands share, and what turns an exception into a message and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from pipeline import registry
from pipeline.console import command_line, say
from pipeline.errors import BudgetExceeded, Fatal, RecipeError, as_fatal
from pipeline.stop import EXIT_INTERRUPTED
from schemas.outcome import PASSING

EXIT_FAILED = 1
EXIT_WRONG = 2
LONGEST_ERROR = 4000

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a built-in recipe, or path of a .yaml file.")]
RunFolder = Annotated[str, typer.Argument(metavar="OUT", help="Run directory or s3:// address (the --out of `pairmill run`).")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=V", help="Change a value of the recipe; may be repeated.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N rows of the input.", min=1)]
Sample = Annotated[float | None, typer.Option("--sample", metavar="F", help="Only this fraction of the rows, drawn by the recipe's seed.")]
ExecutorName = Annotated[Literal["auto", "local", "ray"], typer.Option("--executor", help="auto takes the plain loop for short work, else Ray.")]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", help="Worker processes; default: one per processor.", min=1)]
Address = Annotated[str | None, typer.Option("--address", metavar="RAY", help="A running Ray cluster, for example auto or ray://head:10001.")]
Imports = Annotated[list[str] | None, typer.Option("--import", metavar="FILE.py", help="Python file with plug-ins of your own; may be repeated.")]
ProgressMode = Annotated[Literal["auto", "table", "lines", "json"], typer.Option("--progress", help="auto: a live table on a terminal, else lines.")]
Interval = Annotated[float, typer.Option("--interval", metavar="S", help="Seconds between progress lines.", min=0.1)]
NoJobs = Annotated[bool, typer.Option("--no-jobs", help="Stop after the stages: no shards, no training, no report.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def answers(command: Callable[..., int | None]) -> Callable[..., None]:
    """Turn what a command raises into one message on standard error and an exit code; load its --import files first."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            for file in kwargs.get("imports") or []:
                registry.import_file(file)
            code = command(*args, **kwargs)
        except RecipeError as error:
            code = _failed(error, EXIT_WRONG, kwargs)
        except BudgetExceeded as error:
            code = _failed(error, EXIT_FAILED, kwargs)
            _say_what_follows(error, kwargs.get("out"))
        except Fatal as error:
            code = _failed(error, EXIT_FAILED, kwargs)
        except KeyboardInterrupt:  # a command that only reads, or that has not begun; `run` and `demo` stop in their own way
            say("\nstopped")
            code = EXIT_INTERRUPTED
        except BrokenPipeError:  # the reader of our output (head, less) has gone
            sys.stderr.close()
            code = 0
        except OSError as error:
            code = _failed(as_fatal(error, str(kwargs.get("out") or "pairmill")), EXIT_FAILED, kwargs)
        raise typer.Exit(code or 0)

    return wrapped


def _say_what_follows(error: BudgetExceeded, out: str | None) -> None:
    """After a stop by a budget: how to go on, and what becomes of rows that failed so and are committed."""
    again = "it tries once more what failed while the rate rose" if error.code in PASSING else ""
    say(f"then go on with the same command{f'; {again}' if again else ''}:")
    say(f"  {command_line()}", whole=True)
    if not again:
        say(f"rows that failed with {error.code} in parts that are committed stay so; to try them again:")
        say(f"  pairmill retry {out} --stage {error.stage} --reason {error.code}", whole=True)
    say("if so many failures are to be expected here, add:")
    say(f"  --set budgets.{error.stage}.{error.limit}={1 if error.limit == 'max_share' else 10**9}", whole=True)


def _failed(error: Exception, code: int, kwargs: dict[str, Any]) -> int:
    if kwargs.get("debug"):
        raise error
    told = str(error) if len(str(error)) <= LONGEST_ERROR else f"{str(error)[:LONGEST_ERROR]} ..."
    say("error: " + told.replace("\n", "\n  "))  # further lines stand under the first: none can pass for a line of ours
    return code
