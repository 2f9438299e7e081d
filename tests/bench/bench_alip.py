"""ALIP's held-out R@1 against plain InfoNCE, where 30 % of the raw texts are those of other images.

    python tests/bench/bench_alip.py --steps 800 --seeds 3
    python tests/bench/bench_alip.py --steps 1600 --ways "InfoNCE on both" alip

Scenes of the rendered world, each with a noisy alt-text and a short true caption; objectives with the same model, steps and seeds: `clip`
on the raw texts, `clip` on the captions, InfoNCE on both texts (`alip` with both gammas 0), `alip`, and `alip` with `h_init` 0. R@1 among
held-out scenes, both ways, by their true alt-texts and by their captions. One JSON line per training, then the means.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from stages.models.open_clip_loader import load_clip  # noqa: E402  (a plain script: the repository is not on its path)
from stages.pretrain.config import TrainConfig  # noqa: E402
from stages.pretrain.data import ArraySamples  # noqa: E402
from stages.pretrain.evaluate import evaluate_retrieval  # noqa: E402
from stages.pretrain.trainer import train  # noqa: E402
from tests.pretrain.test_alip import MODEL, scenes_with_texts  # noqa: E402

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip, raw texts": ("clip", {"text": "noisy_only"}),
    "clip, captions": ("clip", {"text": "clean_only"}),
    "InfoNCE on both": ("alip", {"gamma_sample": 0.0, "gamma_pair": 0.0}),
    "alip": ("alip", {}),
    "alip, h_init 0": ("alip", {"h_init": 0.0}),  # its weights are not small at the start
}


def held_out(count: int) -> dict[str, ArraySamples]:
    """The same unseen scenes by their alt-texts, none of them shuffled, and by their captions."""
    samples, _ = scenes_with_texts("train_eval", count, 0.0)
    return {
        name: ArraySamples(samples._images, [[samples.texts(i)[at]] for i in range(count)], [samples.key(i) for i in range(count)])
        for at, name in enumerate(("alt_text", "caption"))
    }


def recalls(export: str, samples: dict[str, ArraySamples]) -> dict[str, float]:
    """R@1 of both directions by each kind of text, in percent."""
    clip, found = load_clip(export), {}
    for name, some in samples.items():
        result = evaluate_retrieval(clip, some)
        for way in ("image_to_text", "text_to_image"):
            found[f"{name} {way}"] = round(100 * result[f"{way}_recall@1"], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    samples, _ = scenes_with_texts("train", args.scenes, 0.3)
    unseen = held_out(args.held_out)
    options = {"steps": args.steps, "batch_size": 64, "lr": 1e-3, "warmup": args.steps // 10, "threads": 1, "checkpoint_every": args.steps, "log_every": 100}
    all_found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for seed in range(args.seeds):
        for way in args.ways:
            objective, params = WAYS[way]
            with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as out:
                start = time.perf_counter()
                train(TrainConfig(model=MODEL, objective=objective, objective_params=params, seed=seed, **options), Path(out), samples=samples)
                found = recalls(str(Path(out) / "export"), unseen)
            all_found[way].append(found)
            print(json.dumps({"objective": way, "seed": seed, "seconds": round(time.perf_counter() - start), **found}), flush=True)
    for way, rows in all_found.items():
        means = {name: round(statistics.mean(row[name] for row in rows), 2) for name in rows[0]}
        print(json.dumps({"mean of": way, "seeds": args.seeds, **means, "all": round(statistics.mean(means.values()), 2)}))


if __name__ == "__main__":
    main()
