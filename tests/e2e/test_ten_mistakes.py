"""Ten mistakes that a new user makes: each ends at once with one short message that names the next step, and exit code 2.

The real command line runs in a process of its own. A disk that fills while a run is under way is no mistake of the command: that run
stops with exit code 1 (tests/pipeline/test_full_disk.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RULES = "name: rules\ninput: {kind: url_table, table: null}\nstages: [url_dup, text_rules: {preset: datacomp_basic}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of two rows and a recipe of two stages."""
    (tmp_path / "pairs.csv").write_text("url,alt_text\nhttp://127.0.0.1:9/1.jpg,A red car\nhttp://127.0.0.1:9/2.jpg,A dog on the beach\n")
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def pairmill(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80", **environment}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=250)


def assert_one_message(told: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, nothing on standard output, no traceback, at most five lines of 80 columns with all words in them."""
    assert told.returncode == 2, (told.returncode, told.stdout, told.stderr)
    assert told.stdout == "" and "Traceback" not in told.stderr
    lines = [line for whole in told.stderr.splitlines() for line in textwrap.wrap(whole, 80) or [""]]
    assert 1 <= len(lines) <= 5, told.stderr
    assert told.stderr.count("error:") + told.stderr.count("no Chromium found") == 1, told.stderr
    for word in words:
        assert word in told.stderr, (word, told.stderr)


def run_table(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return pairmill(folder, "run", "web_pairs", "--set", "input.table=pairs.csv", "--out", "run", *more)


def test_no_input_file(folder):
    named = pairmill(folder, "run", "web_pairs", "--set", "input.table=none.parquet", "--out", "run")
    assert_one_message(named, "input.table: no file matches 'none.parquet'", "give a path")
    left_out = pairmill(folder, "run", "web_pairs", "--out", "run")
    assert_one_message(left_out, "input.table: is required", "path, glob")
    assert not (folder / "run").exists()


def test_wrong_column_name(folder):
    assert_one_message(run_table(folder, "--set", "input.text=caption"), "input.text: ", "no column 'caption'", "it has url, alt_text")
    columns = [f"measured_column_{number}" for number in range(500)]
    (folder / "pairs.csv").write_text(",".join(["URL", "alt_text", *columns]) + "\n" + ",".join(["x"] * 502) + "\n")
    assert_one_message(run_table(folder), "no column 'url' (did you mean 'URL'?)", " more")


def test_unknown_stage(folder):
    (folder / "mine.yaml").write_text(RULES.replace("url_dup", "url_dupes"))
    mine = pairmill(folder, "run", "mine.yaml", "--set", "input.table=pairs.csv", "--out", "run")
    assert_one_message(mine, "unknown stage 'url_dupes' (did you mean 'url_dup'?)", "`pairmill stages` lists all")
    assert_one_message(run_table(folder, "--set", "clip_scor.min=0.3"), "this recipe has no 'clip_scor' (did you mean 'clip_score'?)")
    assert_one_message(run_table(folder, "--set", "stages.clip_scor.min=0.3"), "(did you mean 'clip_score'?)")


@pytest.mark.parametrize("key", ["clip_score.mim", "stages.clip_score.mim"])
def test_unknown_key(folder, key):
    assert_one_message(run_table(folder, "--set", f"{key}=0.3"), "stages.clip_score: unknown key 'mim' (did you mean 'min'?)", "pairmill stages clip_score")


def test_unknown_keys_of_a_stage_with_many(folder):
    """However many keys are wrong, and however many the stage takes, the message stays short."""
    wrong = [item for number in range(9) for item in ("--set", f"download.wrong_key_{number}=1")]
    assert_one_message(run_table(folder, *wrong), "stages.download: unknown key 'wrong_key_0'", "and 7 more", "pairmill stages download")


def test_threshold_out_of_range(folder):
    assert_one_message(run_table(folder, "--set", "clip_score.min=30"), "stages.clip_score.min (found 30)", "less than or equal to 1", "pairmill stages")
    assert_one_message(run_table(folder, "--sample", "20"), "input.sample", "at most 1", "found 20")


def test_run_folder_of_another_recipe(folder):
    first = pairmill(folder, "run", "rules.yaml", "--set", "input.table=pairs.csv", "--out", "run", "--executor", "local")
    assert first.returncode == 0, first.stderr
    (folder / "other.csv").write_text("url,alt_text\nhttp://127.0.0.1:9/3.jpg,Another table\n")
    before = (folder / "run" / "run.json").read_bytes()
    other = pairmill(folder, "run", "web_pairs", "--set", "input.table=other.csv", "--out", "run")
    assert_one_message(other, "run: this folder holds a run of another input (recipe 'rules'", "name a new folder with --out")
    assert (folder / "run" / "run.json").read_bytes() == before


def test_no_chromium(folder):
    """Only tests and benchmarks of the page need a browser, and say what to do; the page itself is written without one."""
    nowhere = {"CHROMIUM": str(folder / "none"), "PYTHONPATH": str(REPOSITORY)}
    bench = [sys.executable, str(REPOSITORY / "tests" / "bench" / "bench_report.py")]
    told = subprocess.run(bench, cwd=folder, env={**os.environ, **nowhere}, capture_output=True, text=True, timeout=250)
    assert_one_message(told, "no Chromium found", "install the package chromium", "--no-browser")
    pairmill(folder, "run", "rules.yaml", "--set", "input.table=pairs.csv", "--out", "run", "--executor", "local", "--no-jobs")
    report = pairmill(folder, "report", "run", **nowhere)
    assert report.returncode == 0 and (folder / "run" / "report.html").is_file(), report.stderr


@pytest.mark.parametrize("place", ["models.clip.device", "pretrain.device"])
def test_no_gpu(folder, place):
    """Found before anything is read, not after hours of download."""
    (folder / "training.yaml").write_text(
        "input: {kind: url_table, table: pairs.csv}\nmodels: {clip: {kind: open_clip, weights: 'bundled:rendered_clip'}}\n"
        "stages: [text_rules, download, clip_score]\njobs: [write_shards: {}, pretrain: {model: ViT-B-32, steps: 1, batch_size: 2}]\n"
    )
    arguments = ("run", "training.yaml", "--set", f"{place}=cuda", "--out", "run", "--executor", "local")
    told = pairmill(folder, *arguments, CUDA_VISIBLE_DEVICES="")
    assert_one_message(told, f"{place}: cuda is asked for and torch finds no GPU on this machine", f"--set {place}=auto", "pairmill doctor")
    assert not (folder / "run").exists()
    assert_one_message(pairmill(folder, "run", "training.yaml", "--set", f"{place}=gpu", "--out", "run"), f"{place}: must be auto, cpu, cuda or cuda:N")


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk of 64 KB without a free byte."""
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 64 << 10)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk(folder, full_disk):
    told = pairmill(folder, "run", "rules.yaml", "--set", "input.table=pairs.csv", "--out", str(full_disk), "--executor", "local")
    assert_one_message(told, "disk full", str(full_disk), "0 of 65,536 bytes are free", "make space, then run the same command again", "another disk")
    assert [path.name for path in full_disk.iterdir() if path.name not in ("ballast", "lock.turn")] == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_ray_address_down(folder, address):
    """Told at once; Ray itself would ask for minutes."""
    told = run_table(folder, "--executor", "ray", "--address", address)
    assert_one_message(told, f"--address {address}: no Ray cluster answers", "refused", "ray start --head", "leave --address out")
    assert not (folder / "run").exists()


def test_no_ray_cluster_on_this_machine_and_an_address_that_is_none(folder):
    assert_one_message(run_table(folder, "--address", "head"), "--address head: write HOST:PORT")


def test_ray_address_of_a_server_that_is_no_ray_is_told_by_the_doctor(folder):
    told = pairmill(folder, "doctor", "--address", "127.0.0.1:1")
    assert told.returncode == 1 and "no Ray cluster answers" in told.stdout and "Traceback" not in told.stderr
