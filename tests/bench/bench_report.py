"""The report of a large run: seconds and memory to make it, its size, and its first view in Chromium.

Builds a run of simulated scores whose rows share a number of real images, then writes its report in a process of its own. Prints one
JSON line; exit code 1 where a bar is missed: 60 s, 2 GiB, 20 MB, first view in 2 s (all samples that fit are asked for).
Run: python tests/bench/bench_report.py [--rows 1000000] [--images 2000] [--photos FOLDER] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import registry  # noqa: E402
from pipeline.recipe import build_recipe  # noqa: E402
from pipeline.run import RunOptions, run  # noqa: E402
from tests.e2e.browser import Browser, find_chromium  # noqa: E402

PLUGIN = Path(__file__).with_name("report_plugins.py")
BARS = {"seconds": 60, "peak_MiB": 2048, "page_MB": 20, "first_view_s": 2}

CHILD = """
import json, resource, sys, time
from pipeline import registry
from pipeline.run import open_run
from stages.report.job import write_report
registry.import_file(sys.argv[1])
started = time.perf_counter()
found = write_report(open_run(sys.argv[2]))
found["seconds"] = round(time.perf_counter() - started, 2)
unit = 1 if sys.platform == "darwin" else 1024
found["peak_MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
print(json.dumps(found))
"""


def build(options: argparse.Namespace, folder: Path) -> float:
    """The run; returns the seconds it took."""
    per_part = max(1, options.images // max(1, options.rows // 10_000))
    recipe = build_recipe(
        {
            "name": "simulated",
            "input": {"kind": "simulated_rows", "rows": options.rows},
            "stages": [{"simulated_download": {"per_part": per_part, "folder": options.photos}}, "simulated_scores"],
            "jobs": [{"report": {"kept": 400, "per_reason": 100, "nearest": 50}}],
        }
    )
    started = time.perf_counter()
    run(recipe, folder, RunOptions(executor="local", jobs=False))
    return time.perf_counter() - started


def first_view(page: Path) -> float:
    """Seconds until Chromium shows something of the page, the median of three."""
    with Browser(str(find_chromium())) as browser:
        seen = [browser.open(page, 1400) for _ in range(3)]
    assert not any(one.problems for one in seen), seen
    return sorted(one.first_paint_s for one in seen)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--photos", default="", help="folder of JPEGs; default: made ones")
    parser.add_argument("--keep", type=Path, help="build the run here, or take the one that is here")
    parser.add_argument("--no-browser", action="store_true", help="do not measure the first view")
    options = parser.parse_args()
    if find_chromium() is None and not options.no_browser:
        print("no Chromium found: install the package chromium or set CHROMIUM to the path of one; --no-browser leaves the first view out", file=sys.stderr)
        return 2
    registry.import_file(str(PLUGIN))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "run"
        built = build(options, folder)
        command = [sys.executable, "-c", CHILD, str(PLUGIN), str(folder)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2]).stdout)
        view = None if options.no_browser else first_view(folder / "report.html")
    result = {"rows": options.rows, "build_s": round(built, 1), "seconds": found["seconds"], "peak_MiB": found["peak_MiB"]}
    result |= {"page_MB": round(found["bytes"] / 1e6, 2), "samples": found["samples"], "images_left_out": found["images_left_out"]}
    result["first_view_s"] = None if view is None else round(view, 3)
    missed = [name for name, bar in BARS.items() if result[name] is not None and result[name] > bar]  # type: ignore[operator]
    print(json.dumps({**result, "missed": missed}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
