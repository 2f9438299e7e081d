"""Curation of real photos with known noise, from web server to recall: the experiment of docs/real_input.md.

Every (photo, caption) of 4,500 photos of PAIRMILL_TEST_DATA/flickr8k_train is one row, fetched over loopback; 500 photos are held out; every
bad image and near duplicate of the data folder is mixed in; the texts of 30 % of the rows are swapped by the stage `corrupt`. Two CLIPs trained on
one half of the noisy rows each score the half that they did not see. All trainings have the same steps and begin from random weights.
Stopped and started again it goes on: each finished step leaves a JSON file in OUT/steps.
Run: python tests/bench/real_input.py --out FOLDER [--seeds 3] [--photos 4500 --steps 500]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import registry  # noqa: E402
from pipeline.recipe import build_recipe  # noqa: E402
from pipeline.run import RunOptions, RunResult, run  # noqa: E402

PLUGINS = Path(__file__).with_name("real_input_plugins.py")
HELD_OUT_SEED = 20240601
KEEPS = (0.9, 0.7, 0.5)
TRAINED_KEEP = 0.7
WAYS = ("image_to_text", "text_to_image")
MEASURES = tuple(f"{way}_{what}" for way in WAYS for what in ("recall@1", "recall@5", "recall@10", "median_rank"))
TOWERS = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 48, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def prepare(out: Path, data: Path, photos: int, held_out: int) -> None:
    """The folder that is served, the tables of rows, and the table of evaluation pairs. The URLs hold the port, so it is chosen once."""
    if (out / "world.json").is_file():
        return
    web = out / "web"
    web.mkdir(parents=True, exist_ok=True)
    for name in ("flickr8k_train", "bad_images", "near_dups"):
        (web / name).is_symlink() or (web / name).symlink_to((data / name).resolve())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entries = [json.loads(line) for line in (data / "flickr8k_train" / "captions.jsonl").read_text().splitlines()]
    drawn = random.Random(HELD_OUT_SEED).sample(sorted(entries, key=lambda entry: entry["file"]), held_out + photos)
    made = partial(_row, f"http://127.0.0.1:{port}")
    train = [made("photo", f"flickr8k_train/{entry['file']}", text, at % 2) for at, entry in enumerate(drawn[held_out:]) for text in entry["captions"]]
    train += [made(kind, f"{kind}/{file}", Path(file).stem.replace("_", " "), at % 2) for kind in ("bad_images", "near_dups")
              for at, file in enumerate(_mixed_in(data / kind, kind))]  # fmt: skip
    random.Random(HELD_OUT_SEED).shuffle(train)
    held = [made("held_out", f"flickr8k_train/{entry['file']}", text, 0) for entry in drawn[:held_out] for text in entry["captions"]]
    pq.write_table(pa.Table.from_pylist(train), out / "train.parquet")
    pq.write_table(pa.Table.from_pylist(held), out / "held_out.parquet")
    pairs = [{"image": f"web/flickr8k_train/{entry['file']}", "caption": entry["captions"][0]} for entry in drawn[:held_out]]
    pq.write_table(pa.Table.from_pylist(pairs), out / "pairs.parquet")
    (out / "world.json").write_text(json.dumps({"port": port, "rows": len(train), "held_out_rows": len(held)}))


def _row(base: str, kind: str, path: str, text: str, half: int) -> dict[str, Any]:
    return {"url": f"{base}/{quote(path)}", "alt_text": text, "origin": kind, "half": half}


def _mixed_in(folder: Path, kind: str) -> list[str]:
    """Every file that the folder's index names."""
    index = folder / ("index.jsonl" if kind == "bad_images" else "pairs.jsonl")
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    return sorted({line[key] for line in lines for key in ("file", "a", "b") if key in line})


@contextmanager
def served(out: Path) -> Iterator[None]:
    """The folder `web` on the port that the URLs name, by Python's own server in a process of its own."""
    port = json.loads((out / "world.json").read_text())["port"]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(out / "web")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if server.poll() is None and probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        if server.poll() is not None:
            raise SystemExit(f"port {port}, which the URLs of this folder name, is taken by another program; end it, or begin in a new folder")
        yield
    finally:
        server.terminate()
        server.wait()


class Experiment:
    """The runs of one seed. All recipes share one run directory: images are fetched once, and each recipe re-judges what is stored."""

    def __init__(self, out: Path, seed: int, steps: int, batch_size: int, threads: int):
        self.out, self.seed, self.steps, self.batch_size, self.threads = out, seed, steps, batch_size, threads
        self.models = {letter: {"kind": "open_clip", "weights": str(self.export(f"scorer_{letter}")), "threads": threads} for letter in "ab"}

    def export(self, name: str) -> Path:
        return self.out / "run" / "pretrain" / f"{name}_{self.seed}" / "export"

    def run(self, stages: list[Any], jobs: list[Any], table: str = "train", eta: float = 0.3, models: bool = False) -> RunResult:
        download = {"allow_private": True, "retries": 3, "timeout_s": 120, "resize_mode": "keep_ratio", "image_size": 80, "only_if_bigger": True}
        recipe = {
            "name": f"real_input_{table}",
            "input": {"kind": "url_table", "table": str(self.out / f"{table}.parquet"), "rows_per_part": 5000},
            "models": self.models if models else {},
            "stages": [{"download": download}, {"corrupt": {"eta": eta, "seed": self.seed}}, *stages],
            "jobs": jobs,
        }
        folder = self.out / ("run" if table == "train" else f"run_{table}")
        return run(build_recipe(recipe), folder, RunOptions(executor="local"))

    def training(self, name: str, share: float = 1.0) -> list[Any]:
        """Jobs that write the shards, train for `share` of the steps from random weights, and measure on the held-out pairs."""
        steps = max(2, round(self.steps * share))
        options = {
            "use": "pretrain", "model": TOWERS, "steps": steps, "batch_size": self.batch_size, "lr": 0.002, "weight_decay": 0.2, "warmup": steps // 10,
            "crop_scale": [0.6, 1.0], "precision": "bf16", "threads": self.threads, "workers": 1, "checkpoint_every": 200, "seed": self.seed,
        }  # fmt: skip
        evaluate = {"use": "evaluate", "model": f"{name}_{self.seed}", "pairs": str(self.out / "pairs.parquet")}
        return [{"write_shards": {}}, {f"{name}_{self.seed}": options}, {f"evaluate_{name}_{self.seed}": evaluate}]

    def train(self, name: str, stages: list[Any], share: float = 1.0, **options: Any) -> dict[str, Any]:
        """Recalls and facts of one training, and what the dataset that it saw was made of."""
        done = self.run(stages, self.training(name, share), **options)
        measured = done.jobs[f"evaluate_{name}_{self.seed}"]
        facts = {key: done.jobs[f"{name}_{self.seed}"][key] for key in ("steps", "epochs", "loss", "seconds")}
        return {**{key: measured[key] for key in MEASURES}, **facts, **self.dataset()}

    def dataset(self) -> dict[str, Any]:
        """Rows in the shards, by kind, and the share of photos whose text was swapped."""
        indexes = sorted((self.out / "run" / "dataset" / "shards").glob("train-*[0-9].parquet"))
        tables = [pq.read_table(path, columns=["origin", "corrupted"]) for path in indexes]
        rows = pa.concat_tables(tables).to_pylist()
        photos = [row for row in rows if row["origin"] == "photo"]
        kinds = {kind: sum(row["origin"] == kind for row in rows) for kind in sorted({row["origin"] for row in rows})}
        return {"rows": len(rows), "kinds": kinds, "swapped_share": round(statistics.fmean(row["corrupted"] for row in photos), 4)}

    def scored(self, keep: float) -> list[Any]:
        scores = [{f"score_{letter}": {"use": "clip_score", "model": letter, "min": None}} for letter in "ab"]
        return [*scores, "cross_score", {"select": {"top_fraction": {"column": "cross_score", "fraction": keep}}}]

    def curated(self, keep: float) -> dict[str, Any]:
        """Which rows a keep ratio leaves, and the AUC of the cross-fitted scores on the rows of the training table."""
        quality = {"score_quality": {"columns": ["cross_score"], "keep_ratio": keep}}
        done = self.run(self.scored(keep), [{"write_shards": {}}, *([quality] if keep == TRAINED_KEEP else [])], models=True)
        return {**self.dataset(), **({"auc_cross_fitted": done.jobs["score_quality"]["cross_score"]["auc"]} if keep == TRAINED_KEEP else {})}

    def held_out(self) -> dict[str, Any]:
        """AUC of both models on the swapped flag, on photos that neither saw."""
        quality = {"score_quality": {"columns": ["score_a.clip_score", "score_b.clip_score"]}}
        found = self.run(self.scored(1.0)[:2], [quality], table="held_out", models=True).jobs["score_quality"]
        return {f"auc_{letter}": found[f"score_{letter}.clip_score"]["auc"] for letter in "ab"} | {"rows": found["score_a.clip_score"]["rows"]}

    def steps_in_order(self) -> dict[str, Callable[[], dict[str, Any]]]:
        half = {letter: [{"select": {"where": f"half == {place}"}}] for place, letter in enumerate("ab")}
        return {
            "scorer_a": lambda: self.train("scorer_a", half["a"], 0.5),
            "scorer_b": lambda: self.train("scorer_b", half["b"], 0.5),
            "held_out": self.held_out,
            **{f"keep_{keep}": partial(self.curated, keep) for keep in KEEPS},
            "kept": lambda: self.train("kept", self.scored(TRAINED_KEEP), models=True),
            "raw": lambda: self.train("raw", []),
            "true": lambda: self.train("true", [{"select": {"where": "origin == 'photo'"}}], eta=0.0),
        }


def table(found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Markdown: mean and standard deviation over the seeds."""
    whole = [steps for steps in found.values() if "true" in steps]
    lines = [f"seeds: {len(whole)}", "", "| measured | mean | spread |", "|---|---|---|"]
    facts: dict[str, Callable[[dict[str, Any]], float]] = {
        "AUC on held-out photos": lambda s: statistics.fmean((s["held_out"]["auc_a"], s["held_out"]["auc_b"])),
        "AUC of the cross-fitted scores on the rows to curate": lambda s: s[f"keep_{TRAINED_KEEP}"]["auc_cross_fitted"],
        "swapped among all photos": lambda s: s["raw"]["swapped_share"],
        **{f"swapped among the kept photos, keep {keep}": (lambda s, keep=keep: s[f"keep_{keep}"]["swapped_share"]) for keep in KEEPS},  # type: ignore[misc]
    }
    lines += [f"| {name} | {_spread([read(steps) for steps in whole])} |" for name, read in facts.items()]

    def cell(key: str, side: str) -> str:
        return _spread([steps[side][key] for steps in whole]).replace(" | ", " ± ")

    lines += ["", f"| held-out pairs | raw | kept {TRAINED_KEEP} | true texts |", "|---|---|---|---|"]
    lines += [f"| {key} | {' | '.join(cell(key, side) for side in ('raw', 'kept', 'true'))} |" for key in MEASURES]
    return "\n".join(lines) if whole else "no seed is through yet"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} | {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f} | -"


def note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; what is finished there is not done again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=4500, help="photos to curate")
    parser.add_argument("--held-out", type=int, default=500, help="photos to measure on")
    parser.add_argument("--steps", type=int, default=500, help="steps of a training; those of a half take half as many")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    data = os.environ.get("PAIRMILL_TEST_DATA")
    if not data or not Path(data, "flickr8k_train").is_dir():
        print("PAIRMILL_TEST_DATA names no folder with flickr8k_train, bad_images and near_dups in it", file=sys.stderr)
        return 2
    out = options.out.resolve()
    prepare(out, Path(data), options.photos, options.held_out)
    registry.import_file(str(PLUGINS))
    (out / "steps").mkdir(exist_ok=True)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    with served(out):
        for seed in range(options.seeds):
            steps = found.setdefault(seed, {})
            for name, work in Experiment(out, seed, options.steps, options.batch_size, options.threads).steps_in_order().items():
                path = out / "steps" / f"{seed}-{name}.json"
                if not path.is_file():
                    started = time.perf_counter()
                    result = {**work(), "step_seconds": round(time.perf_counter() - started, 1)}
                    path.write_text(json.dumps(result, indent=1))
                steps[name] = json.loads(path.read_text())
                note(f"seed {seed}, {name}: {json.dumps(steps[name])}")
    (out / "table.md").write_text(table(found) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
