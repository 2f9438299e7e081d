"""Every benchmark, one after the other; each prints one JSON line, kept in the file named by --out.

Run: python tests/bench/all.py [--out bench.jsonl]   (more than an hour on 2 cores; the last four need vLLM)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = [
    ["bench_orchestration.py"],
    ["bench_orchestration.py", "--rows-per-part", "10000", "--repeats", "1"],
    ["bench_memory.py"],
    ["bench_kills.py"],
    ["bench_shards.py"],
    ["bench_reading.py"],
    ["bench_image_table.py"],
    ["bench_clip.py"],
    ["bench_alip.py"],
    ["bench_maccap.py", "--steps", "600"],
    ["bench_download.py"],
    ["bench_report.py"],
    ["bench_sandbox.py"],
    ["bench_sandbox.py", "--processes", "2"],
    ["bench_captions.py"],
    ["bench_prefix.py"],
    ["bench_expectation.py"],
    ["bench_mllm_memory.py"],
    ["bench_mllm_kills.py"],
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"))
    arguments = parser.parse_args()
    failed = 0
    for command in COMMANDS:
        print(" ".join(command), file=sys.stderr, flush=True)
        found = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True)
        failed += found.returncode != 0
        print(found.stdout, end="", flush=True)
        with arguments.out.open("a") as file:
            file.write(found.stdout)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
