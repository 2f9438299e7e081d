"""20 SIGKILLs of driver, worker and Ray node on a run over the rendered web, started again each time.

A run that comes to its end is compared with an unbroken one, byte for byte, and a new one begun. Prints one JSON line:
kills per kind and phase, how many finished runs gave the unbroken run's dataset, and how many committed part files were
written again (none may be).
Run: python tests/bench/bench_kills.py [--rows 5000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stages.demo.world import build_world
from stages.demo.world_server import WorldServer, free_port
from tests.e2e.killing import committed, kill_at, run_to_the_end, start, tree_digest, twenty_moments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", help="only the kills of this phase: resolve, download, clip_score, write_shards")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pairmill-kills-") as folder:
        root = Path(folder)
        world = build_world(root / "world", arguments.rows, base_url=f"http://127.0.0.1:{free_port()}")
        found = Found()
        with WorldServer(world.folder, world.port):
            run_to_the_end(world.urls, root / "unbroken", "local")
            wanted = tree_digest(root / "unbroken" / "dataset")
            out = root / "run-0"
            moments = [m for m in twenty_moments(arguments.seed) if arguments.phase in (None, m.phase)]
            for moment in moments:
                # A run that ended (nothing was left to reach, or only a worker died) is judged, and a new one begun.
                for _ in range(2):
                    before = committed(out)
                    process = start(world.urls, out)
                    outcome = kill_at(process, moment)
                    found.rewritten += [str(p) for p, stamp in before.items() if committed(out).get(p) != stamp]
                    if process.returncode == 0:
                        found.judge(out, wanted)
                        out = root / f"run-{len(found.equal)}"
                    print(f"[{time.perf_counter() - began:.0f} s] {moment}: {outcome}", file=sys.stderr, flush=True)
                    if outcome == "killed":
                        found.kills[f"{moment.what} in {moment.phase}"] += 1
                        break
            before = committed(out)
            run_to_the_end(world.urls, out)
            found.rewritten += [str(p) for p, stamp in before.items() if committed(out).get(p) != stamp]
            found.judge(out, wanted)
    kills = sum(found.kills.values())
    line = {"bench": "kills", "rows": arguments.rows, "parts": -(-arguments.rows // 250), "kills": kills, "where": dict(found.kills)}
    line |= {"runs": len(found.equal), "equal_datasets": sum(found.equal), "committed_files_rewritten": len(found.rewritten)}
    print(json.dumps({**line, "seconds": round(time.perf_counter() - began)}))
    return 0 if all(found.equal) and not found.rewritten and kills == len(moments) else 1


@dataclass
class Found:
    """What the kills did: how many where, which finished runs were equal to the unbroken one, committed files changed."""

    kills: Counter[str] = field(default_factory=Counter)
    equal: list[bool] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)

    def judge(self, out: Path, wanted: dict[str, str]) -> None:
        self.equal.append(tree_digest(out / "dataset") == wanted)


if __name__ == "__main__":
    sys.exit(main())
