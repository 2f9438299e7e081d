"""20 SIGKILLs of driver, worker and Ray node on a run over the rendered web, started again each time.

Prints one JSON line: kills per phase, whether the final dataset equals that of an unbroken run byte for byte, and how
many committed part files were written again (none may be).
Run: python tests/bench/bench_kills.py [--rows 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.demo.world import build_world
from stages.demo.world_server import WorldServer, free_port
from tests.e2e.killing import committed, kill_at, run_to_the_end, start, tree_digest, twenty_moments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pairmill-kills-") as folder:
        root = Path(folder)
        world = build_world(root / "world", arguments.rows, base_url=f"http://127.0.0.1:{free_port()}")
        rewritten: list[str] = []
        done: Counter[str] = Counter()
        with WorldServer(world.folder, world.port):
            for moment in twenty_moments(arguments.seed):
                before = committed(root / "killed")
                outcome = kill_at(start(world.urls, root / "killed"), moment)
                after = committed(root / "killed")
                rewritten += [str(p) for p, stamp in before.items() if after.get(p) != stamp]
                done[f"{moment.what} in {moment.phase}" if outcome == "killed" else f"{moment.phase} not reached"] += 1
                print(f"[{time.perf_counter() - began:.0f} s] {moment}: {outcome}, {len(after)} committed files", file=sys.stderr, flush=True)
            before = committed(root / "killed")
            run_to_the_end(world.urls, root / "killed")
            rewritten += [str(p) for p, stamp in before.items() if committed(root / "killed").get(p) != stamp]
            run_to_the_end(world.urls, root / "unbroken", "local")
        equal = tree_digest(root / "killed" / "dataset") == tree_digest(root / "unbroken" / "dataset")
    found = {"bench": "kills", "rows": arguments.rows, "parts": -(-arguments.rows // 250), "kills": dict(done), "equal_dataset": equal}
    print(json.dumps({**found, "committed_files_rewritten": len(rewritten), "seconds": round(time.perf_counter() - began)}))
    return 0 if equal and not rewritten and not any("not reached" in key for key in done) else 1


if __name__ == "__main__":
    sys.exit(main())
