"""The files in docker/ and the commands of docs/cluster.md, checked without Docker: what they name is there, and commands take their options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PAIRMILL = typer.main.get_command(app)


def parsed(command: Any, words: list[str]) -> Any:
    """The command (click's, or typer's copy of it) with its options read. Raises a usage error for one that it does not have."""
    return command.make_context(command.name or "", list(words))


def check_pairmill(words: list[str]) -> None:
    """`words` follow `pairmill`: a command with options that it has, a built-in recipe with values that it takes."""
    if words[0].startswith("--"):
        assert any(words[0] in each.opts for each in PAIRMILL.params), words
        return
    given = parsed(PAIRMILL.commands[words[0]], words[1:]).params
    if given.get("recipe") and not given["recipe"].endswith(".yaml"):
        load_recipe(given["recipe"], list(given.get("sets") or []) or ["input.table=urls.parquet"])


def check_ray(words: list[str]) -> None:
    cli = pytest.importorskip("ray.scripts.scripts").cli
    command = cli.commands[words[0]]
    words = words[1:]
    if hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    entrypoint = words[words.index("--") + 1 :] if "--" in words else []
    parsed(command, words)
    if entrypoint and "..." not in entrypoint:
        check(entrypoint)


def check(words: list[str]) -> None:
    checks = {"pairmill": check_pairmill, "ray": check_ray}
    if words and words[0] in checks:
        checks[words[0]](words[1:])


def locked(file: str) -> dict[str, str]:
    return dict(line.split("==", 1) for line in (ROOT / "requirements" / file).read_text().split())


def instructions(name: str) -> list[list[str]]:
    return [line.split()[1:] for line in DOCKERFILE if line.startswith(f"{name} ")]


def test_the_dockerfile_names_files_targets_and_requirements_that_are_there() -> None:
    bases = instructions("FROM")
    assert [base[2] for base in bases] == ["base", "cpu", "gpu"] and {base[0] for base in bases[1:]} == {"base"}
    assert re.fullmatch(r"python:3\.1[12]-slim-bookworm", bases[0][0]), "a version of Python that pairmill is tested with, no registry's name"
    kept = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    copied = {source for words in instructions("COPY") for source in words[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    runs = [words for words in instructions("RUN") if words[0] == "make"]
    assert {word for words in runs for word in words if "=" in word} == {"REQUIREMENTS=requirements/cpu.txt", "REQUIREMENTS=requirements/gpu.txt"}
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in runs:
        assert words[1] in targets and (ROOT / words[2].split("=")[1]).is_file()


def test_what_the_make_target_needs_is_in_the_image() -> None:
    """make stops where a file that a rule depends on is missing, and setuptools where a package or the README is."""
    copied = {source for words in instructions("COPY") for source in words[:-1]}
    for rule in re.findall(r"^\.(?:venv|uv)/ready: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE):
        for need in rule.split():
            assert need.startswith((".uv", "$(")) or need.split("/")[0] in copied, need
    assert {"README.md", "schemas", "pipeline", "stages"} <= copied


def test_the_small_cluster_has_a_head_and_two_workers() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    head, worker = compose["services"]["head"], compose["services"]["worker"]
    assert worker["deploy"]["replicas"] == 2 and set(compose["services"]) == {"head", "worker"}
    for service in (head, worker):
        build = service["build"]
        context = (DOCKER / build["context"]).resolve()
        assert context == ROOT.resolve() and (context / build["dockerfile"]).is_file() and [build["target"]] in [words[2:] for words in instructions("FROM")]
        assert {mount.split(":")[0] for mount in service["volumes"]} <= set(compose["volumes"])
        check(shlex.split(service["command"]))
    check(head["healthcheck"]["test"][1:])
    assert "--head" in head["command"] and "--address=head:6379" in worker["command"]


def test_the_rayjob_asks_for_as_many_gpus_as_it_has() -> None:
    job = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]
    assert job["apiVersion"] == "ray.io/v1" and job["kind"] == "RayJob"
    assert spec["rayVersion"] == locked("cpu.txt")["ray"] == locked("gpu.txt")["ray"]
    check(words := shlex.split(job["spec"]["entrypoint"]))
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    gpus = 0
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "pairmill:gpu" and container["envFrom"][0]["secretRef"]["name"] == "pairmill-s3"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert "/scratch" in {mount["mountPath"] for mount in container["volumeMounts"]}
        gpus += group.get("replicas", 1) * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    assert gpus == int(settings["models.clip.replicas"]) * float(settings["models.clip.gpu_share"]) == 8


def commands_of(text: str) -> list[list[str]]:
    """Command lines in a script, without what `docker compose exec` puts before them."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.strip()
        words = re.sub(r"^(docker )?compose exec (--user root )?head ", "", words)
        if words.startswith(("pairmill ", "ray ")):
            found.append(shlex.split(words, comments=True))
    return found


def test_the_smoke_script_calls_what_there_is() -> None:
    script = DOCKER / "smoke.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    found = commands_of(script.read_text())
    assert [words[:3] for words in found] == [
        ["pairmill", "--version"], ["ray", "job", "submit"], ["pairmill", "verify", "/data/run"], ["pairmill", "status", "/data/run"],
    ]  # fmt: skip
    for words in found:
        check(words)


def test_the_commands_of_the_page_are_taken() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    found = commands_of("\n".join(re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)))
    assert {words[1] for words in found if words[0] == "pairmill"} == {
        "doctor", "plan", "run", "status", "failures", "explain", "retry", "report", "verify", "gc", "export",
    }  # fmt: skip
    assert len([words for words in found if words[0] == "ray"]) == 5
    for words in found:
        check(words)
    for name in re.findall(r"`(docker/[\w.]+|tests/[\w./]+|requirements/[\w.]+)`", page):
        assert (ROOT / name).is_file(), name
