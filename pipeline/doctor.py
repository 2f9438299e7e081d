"""Checks of the machine a run is to work on: what is there, what is wrong, what to do. Works where optional packages are missing.

What may hang or crash (importing torch or Ray, reaching a cluster) runs in a child process with a time limit.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import doctor_machine, registry
from pipeline.console import plain
from pipeline.doctor_machine import OK, PROBLEM, WARNING, Check
from pipeline.doctor_store import object_store
from pipeline.errors import RecipeError
from pipeline.preflight import check_address
from pipeline.recipe import Recipe, apply_overrides, load_recipe, read_recipe
from pipeline.safe_text import one_line
from pipeline.storage import ObjectPath, place_of

CHILD_LIMIT_S = 60


def examine(
    recipe: str | None = None, sets: list[str] | None = None, out: str | None = None, online: str | None = None,
    address: str | None = None,
) -> list[Check]:
    """All checks, in a fixed order. Raises RecipeError for a recipe that is not there or an address without Ray."""
    built, raw, told = _recipe(recipe, list(sets or []))
    checks = [doctor_machine.python(), doctor_machine.memory(), *told, *doctor_machine.resolver(online), doctor_machine.tls(), doctor_machine.proxies()]
    if online:
        checks.append(doctor_machine.online(online))
    place = place_of(out or ".")
    # On its way to object storage everything lies in the temporary folder.
    folder = Path(tempfile.gettempdir()) if isinstance(place, ObjectPath) else place
    checks += [doctor_machine.open_files(_concurrency(built)), *doctor_machine.disk(folder), *doctor_machine.shared_memory()]
    if isinstance(place, ObjectPath):
        checks.append(object_store(place))
    return [*checks, *_packages(), _locked(), _ray(address), _gpu(), *_models(raw)]


def _recipe(name: str | None, sets: list[str]) -> tuple[Recipe | None, dict[str, Any], list[Check]]:
    """The recipe built, its raw dictionary, and a finding where it cannot be built (its input is not named, for example)."""
    if name is None:
        return None, {}, []
    raw = read_recipe(name)
    apply_overrides(raw, sets)
    try:
        return load_recipe(name, sets), raw, [Check("recipe", OK, f"{name}: valid")]
    except RecipeError as error:
        return None, raw, [Check("recipe", WARNING, f"{name} cannot run as it is: {error}", "name what is missing with --set, as for `pairmill run`")]


def _concurrency(recipe: Recipe | None) -> int:
    """Requests that one worker has under way, by the recipe or by download's default."""
    params = [stage.params for stage in recipe.stages] if recipe else [registry.find("stage", "download").Params()]
    return max([int(getattr(given, "concurrency", 0)) for given in params], default=0)


def _packages() -> Iterator[Check]:
    """Packages without which nothing works, and the optional ones, each with what it is needed for."""
    needed = {"aiohttp": "download", "cv2": "images", "simplejpeg": "images", "PIL": "images", "duckdb": "resolves", "pyarrow": "all tables"}
    missing = [f"{name} ({use})" for name, use in needed.items() if util.find_spec(name) is None]
    if missing:
        yield Check("packages", PROBLEM, f"not installed: {', '.join(missing)}", "install pairmill with its dependencies again")
        return
    failed = _child(f"import {', '.join(needed)}")
    if failed[0]:
        yield Check("packages", PROBLEM, f"cannot be imported: {failed[1]}", "install the versions of the requirements file again")
    else:
        yield Check("packages", OK, f"{', '.join(needed)} can be imported")


def _locked() -> Check:
    """Versions in the requirements file beside this source tree against those installed."""
    files = [Path(__file__).parents[1] / "requirements" / name for name in ("gpu.txt" if _has_gpu() else "cpu.txt", "cpu.txt")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return Check("versions", OK, "no requirements file beside this installation to compare with")
    wanted = dict(line.strip().split("==", 1) for line in file.read_text().splitlines() if "==" in line)
    other, absent = [], []
    for name, version in wanted.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if installed.split("+")[0] != version.split("+")[0]:
            other.append(f"{name} {installed} (locked {version})")
    if not other and not absent:
        return Check("versions", OK, f"{len(wanted)} packages as locked in {file.name}")
    told = [f"not as locked in {file.name}: {_some(other)}"] * bool(other) + [f"not installed: {_some(absent)}"] * bool(absent)
    return Check("versions", WARNING, "; ".join(told), f"for the tested set: uv pip install --no-deps -r requirements/{file.name}")


def _ray(address: str | None) -> Check:
    if util.find_spec("ray") is None:
        if address:
            return Check("ray", PROBLEM, f"not installed, but --address {address} names a cluster", "install pairmill[ray]")
        return Check("ray", WARNING, "not installed: only --executor local works", "install pairmill[ray] to use several processes or machines")
    if not address:
        code, told = _child("import ray; print(ray.__version__)")
        return Check("ray", OK, f"{told} can be imported") if not code else Check("ray", PROBLEM, f"cannot be imported: {told}", "install it again")
    try:
        check_address(address)
    except RecipeError as error:
        return Check("ray", PROBLEM, str(error), "check `ray status` there and the port")
    script = (
        "import logging, sys, ray; ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False); r = ray.cluster_resources(); "
        "print(f\"{len(ray.nodes())} nodes, {r.get('CPU', 0):g} CPUs, {r.get('GPU', 0):g} GPUs, Ray {ray.__version__}\")"
    )
    code, told = _child(script, address)
    if code:
        return Check("ray", PROBLEM, f"no cluster at {address}: {told}", "check `ray status` there, the port, and that both have the same Ray and Python")
    return Check("ray", OK, f"cluster at {address}: {told}")


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and not _run(["nvidia-smi", "-L"])[0]


def _gpu() -> Check:
    """What the driver sees against what torch sees."""
    code, listed = _run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]) if shutil.which("nvidia-smi") else (1, "")
    driver = [] if code else [line.strip() for line in listed.splitlines() if line.strip()]
    if util.find_spec("torch") is None:
        told = f"torch is not installed; the driver sees {', '.join(driver) or 'no GPU'}"
        return Check("gpu", WARNING, told, "install pairmill[clip]: clip_score and training need torch")
    code, told = _child("import torch; print(torch.__version__, torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.version.cuda)")
    if code:
        return Check("gpu", PROBLEM, f"torch cannot be imported: {told}", "install it again from the requirements file, with uv")
    version, number, cuda = told.split()[:3]
    if driver and number == "0":
        do = "install a torch that fits the driver (`nvidia-smi` names its CUDA version)" if cuda != "None" else "install a torch with CUDA"
        return Check("gpu", PROBLEM, f"the driver sees {', '.join(driver)}, torch {version} (CUDA {cuda}) sees none", do)
    if number == "0":
        return Check("gpu", OK, f"none; torch {version} computes on the CPU")
    return Check("gpu", OK, f"{', '.join(driver) or number}; torch {version}, CUDA {cuda}")


def _models(raw: dict[str, Any]) -> Iterator[Check]:
    """Whether the weights of a recipe's models are at hand; each kind knows its own (`availability` in stages/models/<kind>.py)."""
    available = registry.built_in_modules("stages.models")
    for name, spec in (raw.get("models") or {}).items():
        kind = spec.get("kind") if isinstance(spec, dict) else None
        if kind not in available:
            yield Check(f"model {name}", PROBLEM, f"unknown kind {kind!r}{registry.nearest(str(kind), available)}", "mend models in the recipe")
            continue
        look = getattr(importlib.import_module(available[str(kind)]), "availability", None)
        if look is None:
            yield Check(f"model {name}", WARNING, f"kind {kind} cannot be checked without loading it")
            continue
        try:
            yield Check(f"model {name}", *look(spec))
        except RecipeError as error:
            yield Check(f"model {name}", PROBLEM, str(error), "mend models in the recipe")


def _child(code: str, *arguments: str) -> tuple[int, str]:
    """Run Python code in a child process: (exit status, its output, or the last line of its error)."""
    return _run([sys.executable, "-c", code, *arguments])


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {CHILD_LIMIT_S} s"
    if done.returncode < 0:
        return done.returncode, f"the process died of signal {-done.returncode}"
    lines = (done.stdout if not done.returncode else done.stderr).strip().splitlines()
    return done.returncode, (done.stdout.strip() if not done.returncode else lines[-1] if lines else f"exit status {done.returncode}")


def _some(entries: list[str], most: int = 6) -> str:
    return ", ".join(entries[:most]) + (f" and {len(entries) - most} more" if len(entries) > most else "")


def print_checks(checks: list[Check], console: Console) -> None:
    """The answer of `pairmill doctor`."""
    styles = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}
    wide = console.width >= 72
    table = Table.grid(padding=(0, 2, 0, 0))
    for place in range(3 if wide else 2):
        table.add_column(no_wrap=place < (2 if wide else 1), overflow="fold")
    for check in checks:
        state = plain(check.state, style=styles[check.state])
        told = plain(one_line(check.found, 600) if wide else f"{check.name}: {one_line(check.found, 600)}")
        if check.do:
            told.append(f"\nto do: {check.do}", style="bold")
        table.add_row(*((state, plain(check.name), told) if wide else (state, told)))
    console.print(table)
