"""The wheel in an empty environment: the base alone runs download, rules, deduplication and shards on the local executor."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
UV = shutil.which("uv") or str(REPOSITORY / ".uv/bin/uv")
ROWS = 60
NOT_IN_THE_BASE = ("torch", "torchvision", "open_clip", "transformers", "ray", "vllm", "pandas", "webdataset", "datasets", "obstore", "img2dataset")
STAGES = ["url_dup", "repeated_text", {"text_rules": {}}, {"download": {"allow_private": True, "min_short_side": 20}}, "exact_dup"]


def call(*command: object, **options: object) -> str:
    """Standard output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=280, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
    return done.stdout


def interpreter(version: str) -> str:
    """A Python of this version, or skip."""
    if not Path(UV).exists():
        pytest.skip("uv is not installed")
    found = subprocess.run([UV, "python", "find", "--no-python-downloads", version], capture_output=True, text=True)
    if found.returncode == 0:
        return found.stdout.strip()
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))  # those that pyenv has not put on the path
    if not others:
        pytest.skip(f"no Python {version} on this machine")
    return str(others[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the repository gets no build folders."""
    if not Path(UV).exists():
        pytest.skip("uv is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("pipeline", "stages", "schemas"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source / name)
    call(UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", source / "dist", cwd=source)
    return next((source / "dist").glob("pairmill-*.whl"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a server with images 0.png ... on loopback."""
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(ROWS):
        out = io.BytesIO()
        side = 10 if number % 10 == 9 else 40
        Image.fromarray(np.random.default_rng(number // 2 * 2 if number % 20 == 1 else number).integers(0, 256, (side, 40, 3), dtype=np.uint8)).save(out, "PNG")
        (folder / f"{number}.png").write_bytes(out.getvalue())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_base_runs_in_an_empty_environment(version: str, wheel: Path, web: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    call(UV, "venv", "-q", "--python", interpreter(version), environment)
    call(UV, "pip", "install", "-q", "--python", environment / "bin/python", "-c", REPOSITORY / "requirements/cpu.txt", wheel, cwd=tmp_path)
    asked = f"import importlib.util as u, json; print(json.dumps([n for n in {NOT_IN_THE_BASE!r} if u.find_spec(n)]))"
    assert json.loads(call(environment / "bin/python", "-c", asked, cwd=tmp_path)) == []
    here = tmp_path / "own"
    here.mkdir()
    for name in ("stages", "pipeline", "schemas"):
        (here / f"{name}.py").write_text("raise SystemExit('the module of the working folder was imported in place of the installed package')\n")
    texts = [f"A photograph of the {word} harbour number {n} in the evening light" for n, word in enumerate(["old", "new", "quiet"] * (ROWS // 3))]
    lines = [json.dumps({"url": f"{web}/{n}.png" if n else f"{web}/gone.png", "alt_text": text}) for n, text in enumerate(texts)]
    (here / "urls.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {"name": "base", "input": {"kind": "url_table", "table": "urls.jsonl"}, "stages": STAGES, "jobs": ["write_shards"]}
    (here / "base.yaml").write_text(yaml.safe_dump(recipe))

    def pairmill(*arguments: str) -> str:
        return call(environment / "bin/pairmill", *arguments, cwd=here)

    assert "download" in pairmill("stages") and "clip_score" in pairmill("stages")
    rows = json.loads(pairmill("run", "base.yaml", "--out", "RUN", "--json"))["rows"]
    why = {(entry["stage"], entry["reason"]): entry["rows"] for kind in rows["by_reason"].values() for entry in kind}
    assert why == {("download", "http_4xx"): 1, ("download", "too_small"): ROWS // 10, ("exact_dup", "exact_dup"): ROWS // 20 - 1}
    assert json.loads(pairmill("verify", "RUN", "--json"))["problems"] == []
    assert json.loads(pairmill("export", "RUN", "--out", "EXPORT", "--json"))["rows"] == rows["kept"]
    assert pairmill("--version").startswith("pairmill ")
    refused = subprocess.run([environment / "bin/pairmill", "run", "base.yaml", "--out", "RUN2", "--executor", "ray"], cwd=here, capture_output=True, text=True)
    assert refused.returncode == 2 and "install pairmill[ray]" in refused.stderr
