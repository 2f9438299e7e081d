"""Download rates of pairmill and of img2dataset 1.47 side by side: one nginx on loopback, photos of about 160 KB, tars and metadata written by both.

    PAIRMILL_TEST_DATA=DIR python tests/bench/bench_img2dataset.py [--rows 20000] [--modes header,decode,resize] [--with-shards]

Both get the same table of different URLs and 2 processes with 64 requests at a time each. Modes of pairmill: 'header' and 'decode' keep
the bytes, against img2dataset with disable_all_reencoding (which decodes nothing then); 'resize' brings the longer side
to 256 pixels at JPEG quality 95 in both. Rates 'with start-up' are over the whole command; those without count from the
first to the last moment of work that each program notes itself (img2dataset: its _stats.json; pairmill: the footers of its
part files, commits included). Prints one JSON line. Needs nginx on the PATH, and img2dataset in an environment of its own: --peer-python, or one
is made with uv in the temporary folder (--uv names the program).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import photo_server
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
PEER = "img2dataset==1.47.0"
PROCESSES, REQUESTS = 2, 64
PEER_MODES = {
    "keep": {"disable_all_reencoding": True, "resize_mode": "no"},
    "resize": {"resize_mode": "keep_ratio_largest", "image_size": 256, "encode_quality": 95},
}
OUR_MODES: dict[str, dict[str, Any]] = {
    "header": {"check": "header"},
    "decode": {"check": "decode"},
    "resize": {"check": "decode", "resize_mode": "keep_ratio_largest", "image_size": 256, "encode_quality": 95},
}
COMPARED = {"header": "keep", "decode": "keep", "resize": "resize"}


def make_peer(folder: Path, uv: str) -> Path:
    """An environment with img2dataset, made with uv. Returns its Python."""
    python = folder / "peer" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder / "peer")], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), PEER], check=True)
    return python


def run_peer(python: Path, table: Path, rows: int, mode: str, folder: Path) -> dict[str, float]:
    """Rates and written images of img2dataset."""
    arguments = {
        "url_list": str(table), "input_format": "parquet", "url_col": "url", "caption_col": "text", "output_format": "webdataset", "timeout": 10,
        "output_folder": str(folder), "processes_count": PROCESSES, "thread_count": REQUESTS, "number_sample_per_shard": -(-rows // PROCESSES),
        **PEER_MODES[mode],
    }  # fmt: skip
    program = "import json, sys\nfrom img2dataset import download\nif __name__ == '__main__':\n    download(**json.loads(sys.argv[1]))\n"
    script = folder.with_suffix(".py")
    script.write_text(program)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    environment.pop("PYTHONPATH", None)
    took = _timed([str(python), str(script), json.dumps(arguments)], environment)
    stats = [json.loads(path.read_text()) for path in folder.glob("*_stats.json")]
    working = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return _rates(rows, sum(s["successes"] for s in stats), took, working)


def run_ours(table: Path, rows: int, mode: str, folder: Path, executor: str, shards: bool) -> dict[str, Any]:
    """Rates and written images of `pairmill run`; seconds of each part, and how far apart the parts began."""
    recipe = {
        "name": "bench",
        "input": {"kind": "url_table", "table": str(table), "text": "text", "rows_per_part": -(-rows // PROCESSES)},
        "stages": [{"download": {"allow_private": True, "concurrency": REQUESTS, "per_host": PROCESSES * REQUESTS, **OUR_MODES[mode]}}],
        "jobs": ["write_shards"] if shards else [],
    }
    written = folder.with_suffix(".yaml")
    written.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(written), "--out", str(folder), "--executor", executor, "--workers", str(PROCESSES)]
    took = _timed(command, {**os.environ, "PYTHONPATH": str(ROOT)})
    parts = sorted((folder / "values" / "download").glob("*.parquet"))
    records = [json.loads(pq.read_metadata(path).metadata[b"pairmill"]) for path in parts]
    ends = [path.stat().st_mtime for path in parts]
    begins = [end - record["info"]["seconds"] for end, record in zip(ends, records, strict=True)]
    rates = _rates(rows, sum(record["counts"]["value"] for record in records), took, max(ends) - min(begins))
    return {**rates, "part_seconds": [record["info"]["seconds"] for record in records], "begun_apart": round(max(begins) - min(begins), 2)}


def _timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[:4]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.perf_counter() - started


def _rates(rows: int, written: int, took: float, working: float) -> dict[str, float]:
    return {"written": written, "seconds": round(took, 2), "rate_with_start_up": round(rows / took, 1), "rate": round(rows / working, 1)}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    python = options.peer_python or make_peer(folder, options.uv)
    photos = photo_server.prepare_photos(options.photos, folder / "photos")
    modes = options.modes.split(",")
    ours: dict[str, Any] = {}
    peers: dict[str, Any] = {}
    with photo_server.serve(folder) as port:
        table = folder / "urls.parquet"
        urls = photo_server.photo_urls(port, photos, options.rows)
        pq.write_table(pa.table({"url": urls, "text": [f"photo {n}" for n in range(options.rows)]}), table)
        for mode in dict.fromkeys(COMPARED[mode] for mode in modes):
            peers[mode] = run_peer(python, table, options.rows, mode, _fresh(folder / "theirs"))
        for mode in modes:
            for executor in options.executors.split(","):
                ours[f"{mode}_{executor}"] = run_ours(table, options.rows, mode, _fresh(folder / "ours"), executor, shards=False)
        if options.with_shards:
            executor = options.executors.split(",")[0]
            ours[f"{modes[0]}_{executor}_with_shards"] = run_ours(table, options.rows, modes[0], _fresh(folder / "ours"), executor, shards=True)
    line: dict[str, Any] = {"bench": "img2dataset", "rows": options.rows, "mean_bytes": _mean_size(folder / "photos"), "pairmill": ours, "img2dataset": peers}
    line["times_img2dataset"] = {
        name: {kind: round(found[kind] / peers[COMPARED[name.split("_")[0]]][kind], 2) for kind in ("rate", "rate_with_start_up")}
        for name, found in ours.items()
    }
    counts = {found["written"] for found in (*ours.values(), *peers.values())}
    if counts != {options.rows}:
        raise RuntimeError(f"not every image was written: {line}")
    return line


def _fresh(folder: Path) -> Path:
    """An empty place; what the run before wrote goes, for each takes gigabytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _mean_size(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return sum(sizes) // len(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--modes", default="header,decode,resize")
    parser.add_argument("--executors", default="ray,local", help="of pairmill; the plain loop has one process")
    parser.add_argument("--with-shards", action="store_true", help="also one run of the first mode that goes on to the published dataset")
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos; default: photos_open in PAIRMILL_TEST_DATA")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with img2dataset")
    parser.add_argument("--uv", default=shutil.which("uv") or "uv")
    parser.add_argument("--folder", type=Path, help="where to work (needs 4 GB for 20,000 rows); default: the system's temporary folder")
    options = parser.parse_args()
    if options.photos is None:
        data = os.environ.get("PAIRMILL_TEST_DATA")
        if not data:
            parser.error("name a folder of photos with --photos, or set PAIRMILL_TEST_DATA")
        options.photos = Path(data, "photos_open")
    with tempfile.TemporaryDirectory(prefix="pairmill-img2dataset-", dir=options.folder) as folder:
        os.chmod(folder, 0o755)
        print(json.dumps(compare(options, Path(folder))))


if __name__ == "__main__":
    main()
