"""How well noise_prob tells swapped texts from true ones: a short training on rendered scenes, a fifth of whose texts were swapped.

    .venv/bin/python tests/bench/bench_noise_prob.py [--scenes 6000] [--steps 240] [--out FOLDER]

One core. Renders the scenes, swaps exactly 20 % of the texts by a seeded derangement, trains the architecture of the bundled CLIP from random weights, has the
trainer write each sample's loss, and gives them to the stage. Prints the AUC of noise_prob and of the loss, precision and recall at 0.5, and of the
highest rows, as many as were swapped, the share that was. Ends with 1 below an AUC of 0.85.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import yaml

from pipeline.stage import Evidence
from stages.noise_prob import NoiseProb, NoiseProbParams
from stages.pretrain.config import TrainConfig
from stages.pretrain.data import ArraySamples
from stages.pretrain.evaluate import auc
from stages.pretrain.rendered import RECIPE, rendered_samples
from stages.pretrain.trainer import train

LEAST_AUC = 0.85
CAPTIONS = 4


def swapped(samples: ArraySamples, share: float, seed: int = 0) -> tuple[ArraySamples, np.ndarray]:
    """The samples under hex keys with that share of their texts swapped among themselves, none with its own; and which ones (bool [N])."""
    count = len(samples)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(count)[: int(share * count)]
    texts = [samples.texts(i) for i in range(count)]
    for own, other in zip(chosen, np.roll(chosen, 1), strict=True):  # a cycle: nobody keeps his own
        texts[own] = samples.texts(int(other))
    noisy = np.zeros(count, bool)
    noisy[chosen] = True
    return ArraySamples(samples._images, texts, [f"{i:032x}" for i in range(count)]), noisy


def probabilities(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """noise_prob and loss of each sample, float64 [N] both, and the mixture, as the stage's resolve gives them."""
    con = duckdb.connect()
    ids = pa.array([bytes.fromhex(f"{i:032x}") for i in range(count)], pa.binary())
    con.register("incoming", pa.table({"part": np.zeros(count, np.int32), "row": np.arange(count, dtype=np.int32), "sample_id": ids}))
    con.execute("CREATE TABLE rows AS SELECT * FROM incoming")
    evidence = Evidence(con, count, count)
    found = NoiseProb(NoiseProbParams(losses=str(folder))).resolve(evidence).to_arrow_table()
    made = np.full((2, count), np.nan)
    made[:, found["row"].to_numpy()] = found["noise_prob"].to_numpy(), found["pair_loss"].to_numpy()
    assert not np.isnan(made).any()
    return made[0], made[1], evidence.facts["noise_prob"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.2, help="of the texts that are swapped")
    parser.add_argument("--out", type=Path, help="keeps the rendered scenes and the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        result = measure(out, options)
    print(json.dumps(result, indent=1))
    return int(result["auc"] < LEAST_AUC)


def measure(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    began = time.process_time()
    settings = yaml.safe_load(RECIPE.read_text())["train"]
    size = settings["model"]["vision_cfg"]["image_size"]
    samples, noisy = swapped(rendered_samples("train", options.scenes, CAPTIONS, size, 1, out / "scenes"), options.share)
    settings |= {"steps": options.steps, "batch_size": options.batch, "warmup": options.steps // 10, "record_losses": True, "checkpoint_every": options.steps}
    trained = train(TrainConfig(**settings), out / "training", on_step=lambda step, line: print(step, round(line["loss"], 3), file=sys.stderr), samples=samples)
    found, losses, mixture = probabilities(out / "training", len(samples))
    above, highest = found > 0.5, np.lexsort((losses, found))[-int(noisy.sum()) :]  # those that the stage makes 1 are told apart by their loss
    return {
        "scenes": len(samples), "swapped": int(noisy.sum()), "steps": trained.steps, "batch": options.batch,
        "auc": round(auc(found[noisy].tolist(), found[~noisy].tolist()), 4), "precision_at_0.5": round(float(noisy[above].mean()), 4),
        "recall_at_0.5": round(float(above[noisy].mean()), 4), "mean_of_swapped": round(float(found[noisy].mean()), 4),
        "mean_of_others": round(float(found[~noisy].mean()), 4), "auc_of_loss": round(auc(losses[noisy].tolist(), losses[~noisy].tolist()), 4),
        "swapped_among_as_many_of_the_highest": round(float(noisy[highest].mean()), 4), "above_0.5": int(above.sum()),
        "means": [round(mean, 2) for mean in mixture["means"]], "weights": [round(weight, 2) for weight in mixture["weights"]],
        "processor_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
