"""Runs a recipe again and again, each time in a process that is killed (SIGKILL) before its nth file operation under jobs/ or dataset/.

    python killed_job.py RECIPE.json N OUT [N OUT ...]

Prints one JSON line per run: null when it was killed, else the list of its file operations. The processes are forked from
one that has imported everything and started nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline import registry
from pipeline.recipe import Recipe, build_recipe
from pipeline.run import RunOptions, run


def kill_before(nth: int, out: str) -> list[str]:
    """Count renames, removals and fsyncs in the folders of the job; the list says which there were."""
    seen: list[str] = []

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(target: Any, *rest: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            if path.startswith((f"{out}/jobs", f"{out}/dataset")):
                seen.append(f"{name} {path.removeprefix(out)}")
                if len(seen) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(target, *rest, **options)

        setattr(os, name, call)

    for name in ("rename", "unlink", "fsync"):
        counted(name)
    return seen


def in_child(recipe: Recipe, nth: int, out: str) -> None:
    seen = kill_before(nth, out)
    run(recipe, out, RunOptions(executor="local"))
    print(json.dumps(seen), flush=True)


def main() -> None:
    registry.import_file(str(Path(__file__).parent / "toys.py"))
    recipe = build_recipe(json.loads(Path(sys.argv[1]).read_text()))
    for nth, out in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        child = os.fork()
        if child == 0:
            in_child(recipe, int(nth), os.path.realpath(out))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            print("null", flush=True)
        elif status:
            raise SystemExit(f"the run for {out} ended with status {status}")


if __name__ == "__main__":
    main()
