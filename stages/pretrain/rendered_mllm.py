"""Train the MLLM that comes with the package on rendered scenes: `python -m stages.pretrain.rendered_mllm --out DIR`.

A training that was stopped goes on from its last checkpoint when it is started again with the same recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from stages.pretrain.config import TrainConfig
from stages.pretrain.rendered_dialogues import RenderedDialogues
from stages.pretrain.rendered_mllm_eval import evaluate
from stages.pretrain.rendered_turns import MIXES
from stages.pretrain.trainer import TrainResult, train

RECIPE = Path(__file__).parent / "recipes" / "rendered_mllm.yaml"
NOTE = "trained on the rendered world and for it only: its answers and scores say nothing about real images"
LARGEST_BUNDLE = 25 * 1024 * 1024


def read_recipe(path: Path, until: str | None = None) -> dict[str, Any]:
    """The recipe with its phases up to `until`. Raises ValueError for a phase that it does not have."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = [phase["name"] for phase in recipe["phases"]]
    if until is not None and until not in names:
        raise ValueError(f"--until {until}: {path} has no such phase; it has {', '.join(names)}")
    return recipe if until is None else {**recipe, "phases": recipe["phases"][:names.index(until) + 1]}


def phase_config(recipe: dict[str, Any], number: int, out: Path) -> TrainConfig:
    """The training of phase `number`; every phase but the first starts from the export of the one before."""
    phase = recipe["phases"][number]
    before = str(out / recipe["phases"][number - 1]["name"] / "export") if number else None
    return TrainConfig(
        model=recipe["model"] | phase.get("model", {}), objective="mllm", objective_params={"dialogues": True, **phase["params"]}, init=before,
        **{**recipe["train"], **phase["train"]},
    )


def phase_samples(recipe: dict[str, Any], number: int) -> RenderedDialogues:
    """The scenes of phase `number`: those behind all that earlier phases saw."""
    counts = [phase["train"]["steps"] * phase["train"]["batch_size"] for phase in recipe["phases"]]
    phase, model = recipe["phases"][number], recipe["model"]
    side = model["image_size"] // (model["vision"]["patch_size"] * model["vision"]["spatial_merge_size"])
    turns = MIXES[phase["turns"]] if phase["turns"] else None
    return RenderedDialogues("train", sum(counts[:number]), counts[number], side, turns, phase.get("crowded", False))


def train_phases(recipe: dict[str, Any], out: Path) -> list[TrainResult]:
    """Run all phases; a finished one is only exported again."""
    results = []
    for number, phase in enumerate(recipe["phases"]):
        print(f"phase {phase['name']}", file=sys.stderr, flush=True)
        results.append(train(phase_config(recipe, number, out), out / phase["name"], _report, phase_samples(recipe, number)))
    return results


def write_bundle(export: Path, bundle: Path) -> int:
    """Copy an export without its training-only heads; returns the bytes. Raises ValueError above 25 MiB."""
    bundle.mkdir(parents=True, exist_ok=True)
    for path in export.iterdir():
        if path.is_file():  # the training-only heads lie in a folder
            (bundle / path.name).write_bytes(path.read_bytes())
    size = sum(path.stat().st_size for path in bundle.iterdir())
    if size > LARGEST_BUNDLE:
        raise ValueError(f"{bundle} has {size} bytes, more than {LARGEST_BUNDLE}: choose a smaller model")
    return size


def training_minutes(folder: Path) -> float:
    """Minutes of training that the log of a phase amounts to, over all its starts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    batch = json.loads((folder / "config.json").read_text(encoding="utf-8"))["batch_size"]
    steps = [0, *(line["step"] for line in lines)]
    return sum((b - a) * batch / line["samples_per_s"] for a, b, line in zip(steps, steps[1:], lines, strict=False)) / 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all phases, evaluate, and write `DIR/bundle` with weights, processor and evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the training and the bundle")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="recipe (YAML)")
    parser.add_argument("--until", help="last phase to train; default: all phases")
    parser.add_argument("--eval-scenes", type=int, help="scenes of the largest measurement; default: the recipe's")
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.recipe, options.until)
    results = train_phases(recipe, options.out)
    bundle = options.out / "bundle"
    size = write_bundle(Path(results[-1].export), bundle)
    began = time.monotonic()
    found = evaluate(bundle, options.eval_scenes or recipe["eval_scenes"])
    phases = [
        {"name": phase["name"], "steps": result.steps, "scenes": result.steps * phase["train"]["batch_size"],
         "minutes": round(training_minutes(options.out / phase["name"]), 1), "last_loss": round(result.loss, 4)}
        for phase, result in zip(recipe["phases"], results, strict=True)
    ]
    found |= {
        "note": NOTE, "command": "python -m stages.pretrain.rendered_mllm --out DIR", "recipe": recipe, "phases": phases,
        "weights_digest": results[-1].weights_digest, "weights_sha256": hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest(),
        "bundle_bytes": size, "evaluation_minutes": round((time.monotonic() - began) / 60, 1),
        "torch": torch.__version__.split("+")[0], "compute_threads": torch.get_num_threads(),
    }
    (bundle / "evaluation.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "recipe"}, indent=2))
    return 0


def _report(step: int, line: dict[str, float]) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
