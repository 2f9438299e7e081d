"""How well caption_check tells false captions from true ones on the rendered world, with an MLLM that is asked back each claim.

One row per scene with a true caption, one with the same caption in which one attribute (colour, shape, size, texture or position) was
changed; `claims` and `caption_check` run through pairmill on them. Prints one JSON line: share of changed captions found at the trust below
which 10 % of the true ones lie, the area under the curve, both for other ways of ranking too, and how often each kind of claim is answered
rightly on true captions. Figures are those of the model named: the bundled ones know the rendered world only.
Run: python tests/bench/bench_caption_check.py --weights bundled:NAME [--scenes 1000] [--first 0] [--captions varied|plain] [--kind transformers|vllm]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.recipe import build_recipe  # noqa: E402
from pipeline.run import RunOptions, run  # noqa: E402
from stages.demo import answers, captions  # noqa: E402
from stages.demo.alt_texts import change_attribute  # noqa: E402
from stages.demo.image_bytes import encode  # noqa: E402
from stages.demo.scenes import Scene, draw_scene, render  # noqa: E402
from stages.demo.streams import seed_for  # noqa: E402
from stages.text.claims import KINDS  # noqa: E402

FALSE_ALARMS = 0.1
_TABLES = (captions.SHAPE_WORDS, captions.COLOR_WORDS, captions.TEXTURE_ADJECTIVES, captions.SIZE_WORDS, captions.POSITION_PHRASES, captions.BACKGROUND_PHRASES)


def plain_words() -> dict[str, str]:
    """Every synonym of the world's captions -> the one word that the bundled MLLM's questions were made with."""
    found = {word: name if table in _TABLES[:2] else words[0] for table in _TABLES for name, words in table.items() for word in words}
    found |= {word: name for name, words in captions.SIZE_WORDS.items() for word in words}
    return {word: plain for word, plain in found.items() if word != plain} | {"left of": "to the left of", "right of": "to the right of"}


def pairs(count: int, how: str, first: int = 0) -> list[tuple[Scene, str, str]]:
    """Scenes of the stream 'heldout' from the `first` on with a true caption and the same with one attribute changed."""
    found: list[tuple[Scene, str, str]] = []
    index = first
    while len(found) < count:
        scene = draw_scene(seed_for("heldout", index))
        index += 1
        true = captions.caption_for(scene) if how == "varied" else answers.descriptive_caption(scene)
        false = change_attribute(true, scene, np.random.Generator(np.random.PCG64([scene.seed, 80])))
        if false is not None:
            found.append((scene, true, false))
    return found


def write_rows(made: list[tuple[Scene, str, str]], folder: Path) -> None:
    for number, (scene, true, false) in enumerate(made):
        image = encode(render(scene, 96), "png")
        for kind, text in (("true", true), ("false", false)):
            (folder / f"{kind}-{number:05}.png").write_bytes(image)
            (folder / f"{kind}-{number:05}.txt").write_text(text)


def through_pairmill(options: argparse.Namespace, folder: Path, out: Path) -> list[dict[str, Any]]:
    """Text, claims and trust of every row."""
    rules = {name: None for name in ("min_chars", "min_words", "min_letters", "max_repeated_tokens", "max_repeated_ngrams")}
    claims = {"use": "claims", "of": "text_rules", "probability": True, "words": plain_words(), "kinds": options.kinds}
    check = {"use": "caption_check", "of": "text_rules", "claims": "claims", "window": [1, None], "max_repeated": 1.0}
    recipe = {
        "name": "caption_check", "input": {"kind": "image_folder", "folder": str(folder), "rows_per_part": 500},
        "models": {"mllm": {"kind": options.kind, "weights": options.weights, "max_model_len": 512}},
        "stages": ["read_images", {"text_rules": {**rules, "boilerplate": False}}, {"claims": claims}, {"check": check}],
    }  # fmt: skip
    run(build_recipe(recipe), out, RunOptions(executor="local"))
    tables = []
    wanted = {"source": ["path"], "text_rules": ["text"], "claims": ["claims", "confirmed", "weakest", "failure"], "check": ["trust", "flags"]}
    for stage, columns in wanted.items():
        files = sorted(file for file in (out / "values" / stage).glob("part-*.parquet") if ".vectors." not in file.name)
        tables.append([row for file in files for row in pq.read_table(file, columns=columns).to_pylist()])
    return [{name: value for part in rows for name, value in part.items()} for rows in zip(*tables, strict=True)]


def rankings(row: dict[str, Any]) -> dict[str, float]:
    """Ways to rank a caption; higher is truer."""
    chances = [one["yes"] for one in row["claims"] or () if one["yes"] is not None]
    said = [one["answer"] == "yes" for one in row["claims"] or () if one["answer"]]
    return {
        "trust": row["trust"],
        "share_confirmed": sum(said) / len(said) if said else 0.5,
        "none_denied": -float(len(said) - sum(said)),
        "all_true": sum(math.log(max(chance, 1e-6)) for chance in chances),
    }


def measured(true: list[float], false: list[float]) -> dict[str, float]:
    """Share found at 10 % false alarms (ties at the threshold are not found), and the area under the curve."""
    cut = float(np.quantile(true, FALSE_ALARMS, method="lower"))
    alarms = float(np.mean(np.array(true) < cut))
    above = np.array(true)[:, None] - np.array(false)[None]
    return {"found": round(float(np.mean(np.array(false) < cut)), 4), "false_alarms": round(alarms, 4),
            "auc": round(float((above > 0).mean() + 0.5 * (above == 0).mean()), 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--kind", default="transformers")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number in their stream of the first scene")
    parser.add_argument("--captions", choices=("varied", "plain"), default="varied")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows").mkdir()
        write_rows(pairs(options.scenes, options.captions, options.first), Path(folder) / "rows")
        rows = through_pairmill(options, Path(folder) / "rows", Path(folder) / "run")
    groups = {kind: [row for row in rows if Path(row["path"]).name.startswith(kind)] for kind in ("true", "false")}
    figures = {
        how: measured(*([rankings(row)[how] for row in groups[kind]] for kind in ("true", "false")))
        for how in ("trust", "share_confirmed", "none_denied", "all_true")
    }
    asked = Counter(one["kind"] for row in groups["true"] for one in row["claims"] or ())
    right = Counter(one["kind"] for row in groups["true"] for one in row["claims"] or () if one["answer"] == "yes")
    print(
        json.dumps(
            {
                "bench": "caption_check", "weights": options.weights, "kind": options.kind, "captions": options.captions, "scenes": options.scenes,
                "first": options.first, "kinds": options.kinds, "claims_per_caption": round(sum(asked.values()) / max(1, len(groups["true"])), 2), **figures,
                "confirmed_on_true": {kind: round(right[kind] / count, 3) for kind, count in sorted(asked.items())},
                "flags": Counter(flag for row in rows for flag in row["flags"]), "failed": Counter(row["failure"] for row in rows if row["failure"]),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
