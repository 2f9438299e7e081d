"""`pairmill doctor`: each check tells ok from wrong, with what to do; it works where optional packages are missing."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from pipeline import doctor, doctor_machine
from pipeline.cli import app
from pipeline.doctor_machine import OK, PROBLEM, WARNING, Check
from tests.stages.conftest import Web

REPOSITORY = Path(__file__).parents[2]


def told(*arguments: str) -> tuple[int, dict[str, dict]]:
    result = CliRunner().invoke(app, ["doctor", *arguments, "--json"])
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)}


def test_every_check_of_a_whole_machine(tmp_path: Path) -> None:
    code, found = told("demo", "--set", "input.table=none.csv", "--out", str(tmp_path / "not" / "there"))
    assert {"python", "memory", "resolver", "tls", "proxy", "open files", "disk", "commits", "packages", "versions", "ray", "gpu", "model clip"} <= set(found)
    assert all(check["state"] in (OK, WARNING, PROBLEM) and check["found"] for check in found.values())
    assert all(check["do"] for check in found.values() if check["state"] == PROBLEM)
    assert code == any(check["state"] == PROBLEM for check in found.values())
    assert found["packages"]["state"] == OK and found["model clip"]["state"] == OK
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "torch", "open_clip"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util as util
plain = util.find_spec
util.find_spec = lambda name, *more: None if name in {"ray", "torch", "open_clip"} else plain(name, *more)
from pipeline.cli import main
main()
"""


def test_without_torch_open_clip_and_ray(tmp_path: Path) -> None:
    arguments = ["doctor", "web_pairs", "--out", str(tmp_path), "--json"]
    done = subprocess.run([sys.executable, "-c", BLOCKER, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert "not installed" in found["ray"]["found"] and found["ray"]["state"] == WARNING
    assert "torch is not installed" in found["gpu"]["found"]
    assert found["model clip"]["state"] == PROBLEM and done.returncode == 1
    assert "recipe" in found and "input.table" in found["recipe"]["found"]


@pytest.mark.parametrize(
    ("spec", "state", "words"),
    [
        ({"kind": "open_clip", "name": "ViT-B-32", "weights": "laion2b_s34b_b79"}, PROBLEM, "did you mean 'laion2b_s34b_b79k'?"),
        ({"kind": "open_clip", "name": "ViT-B-33", "weights": "openai"}, PROBLEM, "knows no weights"),
        ({"kind": "open_clip", "name": "ViT-B-32", "weights": "weights/none.safetensors"}, PROBLEM, "does not exist"),
        ({"kind": "open_clip", "name": "ViT-B-32", "weights": "laion2b_s34b_b79k", "cache_dir": "{folder}"}, WARNING, "not cached"),
        ({"kind": "open_clap", "name": "x"}, PROBLEM, "did you mean 'open_clip'?"),
        ({"kind": "open_clip", "weights": "bundled:rendered_clip"}, OK, "rendered_clip"),
    ],
)
def test_models(tmp_path: Path, spec: dict, state: str, words: str) -> None:
    pytest.importorskip("open_clip")
    given = {key: value.format(folder=tmp_path) for key, value in spec.items()}
    (check,) = list(doctor._models({"models": {"clip": given}}))
    assert (check.state, check.name) == (state, "model clip") and words in check.found
    assert bool(check.do) == (state != OK)


def test_the_resolver_that_does_not_know_a_name() -> None:
    (check,) = list(doctor_machine.resolver("https://no-such-host.invalid/"))
    assert check.state == PROBLEM and "no-such-host.invalid does not resolve" in check.found and "resolv.conf" in check.do
    (fine,) = list(doctor_machine.resolver("http://localhost:1/"))
    assert fine.state in (OK, WARNING) and "127.0.0.1" in fine.found


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    check = doctor_machine.tls()
    assert check.state == PROBLEM and str(empty) in check.found and "ca-certificates" in check.do


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor_machine.PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert doctor_machine.proxies().state == OK
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")
    check = doctor_machine.proxies()
    assert check.state == WARNING and "proxy.example:3128" in check.found and "secret" not in check.found
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    assert doctor_machine.proxies().state == PROBLEM


def test_a_real_request(new_web_url: str) -> None:
    assert doctor_machine.online(new_web_url + "/here").state == OK
    refused = doctor_machine.online(new_web_url + "/gone")
    assert refused.state == WARNING and "status 404" in refused.found
    closed = doctor_machine.online("http://127.0.0.1:1/")
    assert closed.state == PROBLEM and "refused" in closed.found


def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web = Web(tls=context)
    try:
        check = doctor_machine.online(web.url("/"))
    finally:
        web.close()
    assert check.state == PROBLEM and "certificate" in check.do and "proxies that open TLS" in check.do


@pytest.fixture
def new_web_url():
    web = Web()
    web.answers["/here"] = web.http(b"hello")
    yield web.url("")
    web.close()


def test_too_few_open_files() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))
    try:
        check = doctor_machine.open_files(200)
        assert doctor_machine.open_files(10).state == OK
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert check.state == PROBLEM and "limit 300" in check.found and "ulimit -n 456" in check.do


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert list(doctor_machine.disk(tmp_path))[-1].state == PROBLEM


def test_the_open_files_of_a_recipe_are_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "many.yaml"
    (tmp_path / "pairs.csv").write_text("url,alt_text\nhttps://example.org/1.jpg,A red car\n")
    data = {"name": "many", "input": {"kind": "url_table", "table": str(tmp_path / "pairs.csv")}, "stages": [{"download": {"concurrency": 777}}]}
    recipe.write_text(yaml.safe_dump(data))
    built, _, (check,) = doctor._recipe(str(recipe), [])
    assert check.state == OK and doctor._concurrency(built) == 777


def test_mistakes() -> None:
    for arguments, words in ((["web_pair"], "did you mean 'web_pairs'?"), (["--online", "example"], "--online example")):
        result = CliRunner().invoke(app, ["doctor", *arguments])
        assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_nothing_is_cut_in_narrow_and_wide_terminals(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("open files", PROBLEM, "limit 300 per process; " * 6, "ulimit -n 456, " * 8 + "END"), Check("tls", OK, "/etc/" + "x" * 200)]
    doctor.print_checks(checks, Console(width=columns))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns and "…" not in out
    assert out.count("ulimit") == 8 and out.count("x") == 200 and "END" in out and "problem" in out
