"""A finished run and the recipe it would have with some values changed: where `whatif` and `recut` begin."""

from __future__ import annotations

import copy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chain import Chain
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, apply_overrides, build_recipe
from pipeline.run import open_run
from pipeline.run_view import RunView
from pipeline.storage import Place


@dataclass
class Changed:
    """`run` is the run as it stands, `chain` that of the changed recipe over the same input."""

    run: RunView
    recipe: Recipe
    chain: Chain
    sets: list[str]

    def command(self, out: str) -> str:
        """The command that measures in `out` what the changed recipe lacks; the dataset there stays as it is."""
        sets = [word for one in self.sets for word in ("--set", one)]
        return shlex.join(["pairmill", "run", f"{out.rstrip('/')}/run.json", "--out", out, "--no-jobs", *sets])


def changed_run(out: str | Path | Place, sets: list[str], keep_jobs: Any = lambda job: True) -> Changed:
    """Open a run and change its recipe. keep_jobs: which jobs the changed recipe has (Job -> bool).

    Raises RecipeError where there is no run, a value is wrong, or a value of the input is changed: that is another run.
    """
    run = open_run(str(out))
    record = run.store.read_run()
    assert record is not None
    data = copy.deepcopy(record.recipe)
    apply_overrides(data, sets)
    recipe = build_recipe(data)
    if recipe.resolved["input"] != run.chain.recipe.resolved["input"]:
        raise RecipeError(f"{out}: the input cannot be changed for rows that are measured already; start a run of the other input in a new folder")
    recipe.jobs = [job for job in recipe.jobs if keep_jobs(job)]
    recipe.resolved["jobs"] = [entry for entry in recipe.resolved["jobs"] if any(job.instance in entry for job in recipe.jobs)]
    return Changed(run, recipe, Chain(recipe, run.chain.facts), sets)
