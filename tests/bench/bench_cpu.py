"""Processor time per image of the download stage, in milliseconds: what a busy machine can measure too, where rates mean nothing.

    PAIRMILL_TEST_DATA=DIR python tests/bench/bench_cpu.py [--rows 3000] [--modes header,decode,resize] [--repeats 3]

One process runs the stage over photos of about 160 KB that nginx serves on loopback, commits included; its user and system time, and the time of its
decoders, are the least of the repeats. nginx's own time and start-up are left out. Linux only (/proc). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import photo_server  # noqa: E402

from pipeline.blobs import BlobWriter  # noqa: E402
from pipeline.stage import Context  # noqa: E402
from stages.download import Download  # noqa: E402

MODES: dict[str, dict[str, Any]] = {
    "header": {"check": "header"},
    "decode": {"check": "decode"},
    "resize": {"check": "decode", "resize_mode": "keep_ratio_largest", "image_size": 256, "encode_quality": 95},
}


def decoders_seconds() -> float:
    """Processor time of the descendants of this process, with that of their children which have ended; nginx's is left out."""
    facts: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if not name.endswith("(nginx"):
            facts[int(path.parent.name)] = rest.split()
    known = {os.getpid()}
    while new := {process for process, fields in facts.items() if int(fields[1]) in known} - known:
        known |= new
    ticks = sum(sum(map(int, facts[process][11:15])) for process in known - {os.getpid()})
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(mode: str, urls: list[str], folder: Path) -> dict[str, float]:
    """Milliseconds per image of one pass. Raises RuntimeError where an image is not stored."""
    stage = Download(Download.Params(concurrency=64, per_host=128, allow_private=True, **MODES[mode]))
    rows = [{"url": url, "sample_id": at.to_bytes(16, "big")} for at, url in enumerate(urls)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        blobs = BlobWriter(Path(place), 0)
        before, children = resource.getrusage(resource.RUSAGE_SELF), decoders_seconds()
        results = stage.compute(rows, Context("download", 0, blobs=blobs))
        blobs.finish()
        after = resource.getrusage(resource.RUSAGE_SELF)
        decoders = decoders_seconds() - children
    if not all(isinstance(result, dict) and result["tar"] for result in results):
        raise RuntimeError("not every image was stored")
    times = {"user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime, "decoders": decoders}
    return {name: 1000 * seconds / len(urls) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000, help="images of one pass")
    parser.add_argument("--modes", default="header,decode,resize")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos; default: photos_open in PAIRMILL_TEST_DATA")
    options = parser.parse_args()
    source = options.photos or Path(os.environ.get("PAIRMILL_TEST_DATA", "."), "photos_open")
    line: dict[str, Any] = {"bench": "cpu", "rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="pairmill-cpu-") as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        photos = photo_server.prepare_photos(source, folder / "photos")
        with photo_server.serve(folder) as port:
            urls = photo_server.photo_urls(port, photos, options.rows)
            for mode in options.modes.split(","):
                measure(mode, urls[:300], folder)
                passes = [measure(mode, urls, folder) for _ in range(options.repeats)]
                best = min(passes, key=lambda times: sum(times.values()))
                line[mode] = {**{name: round(value, 3) for name, value in best.items()}, "all": round(sum(best.values()), 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
