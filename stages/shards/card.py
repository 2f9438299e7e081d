"""README.md of a dataset: what is in it, what was left out and why, how it was made."""

from __future__ import annotations

from typing import Any

from pipeline.run_view import RunView
from schemas.dataset import Manifest, Split
from stages.shards.columns import Layout

_BUNDLED = "bundled:"

_CHECKED = {
    "decoded": "Every image was decoded whole before it was stored.",
    "header": "Of every image only the header was read before it was stored.",
}

_READ = """\
```python
import webdataset
samples = webdataset.WebDataset("shards/{split}-{{{first}..{last}}}.tar", shardshuffle=False).decode("pil").to_tuple("{exts}", "txt", "json")
```
"""


def dataset_card(run: RunView, layout: Layout, manifest: Manifest) -> str:
    """Markdown; a function of the manifest and the recipe alone."""
    counts = manifest.counts
    lines = [
        f"# {run.chain.recipe.name}",
        "",
        f"{counts['kept']:,} image-text pairs from {counts['input']:,} input rows, made by pairmill. "
        f"{counts['dropped']:,} rows were dropped by a rule and {counts['failed']:,} failed; each stands in `rejected/` with its reason.",
        "",
        *_scores_note(run),
        "## Contents",
        "",
        "| Split | Samples | Shards |",
        "|---|---|---|",
        *(f"| {name} | {split.samples:,} | {len(split.shards):,} |" for name, split in manifest.splits.items()),
        "",
        "- `shards/*.tar`: webdataset tars; a sample is `<key>.jpg`, `.png` or `.webp` (the image), `<key>.txt` (the chosen caption) "
        "and `<key>.json` (all texts, scores and carried columns). Keys are the hex of the row's id.",
        "- `shards/*.parquet`: one index per tar: `key`, place (`offset`, `size`) of the image in the tar, `ext`, and the columns below.",
        *_embeddings_note(layout),
        "- `shards/sizes.json`: samples per tar. `rejected/*.parquet`: every other row with `stage`, `reason`, `detail`.",
        "- `manifest.json`: what belongs to the dataset, with the SHA-256 of every file. Check it with `pairmill verify`.",
        "",
        _CHECKED[manifest.images],
        "",
        *_how_to_read(manifest.splits),
        "## Rows left out",
        "",
        "| Stage | Outcome | Reason | Rows |",
        "|---|---|---|---|",
        *(
            f"| {stage} | {status} | {reason} | {n:,} |"
            for stage, told in counts["stages"].items()
            for status in ("dropped", "failed")
            for reason, n in told[status].items()
        ),
        "",
        "## Columns",
        "",
        ", ".join(f"`{name}`" for name in ("caption", "texts", *layout.plain)),
        "",
        "## Recipe",
        "",
        f"Digest `{manifest.recipe_digest}`. Stages in order: {', '.join(_stage_name(node.name, node.stage) for node in run.chain.nodes[1:]) or 'none'}.",
        "",
        *_models(manifest),
    ]
    return "\n".join(lines)


def _embeddings_note(layout: Layout) -> list[str]:
    names = ", ".join(f"`{name}`" for name in layout.vectors)
    return [f"- `shards/*.embeddings.parquet`: {names}: raw bytes, their dtype and shape in the field's metadata."] if names else []


def _stage_name(instance: str, stage: Any) -> str:
    return f"`{instance}`" if stage is None or stage.name == instance else f"`{instance}` ({stage.name})"


def _scores_note(run: RunView) -> list[str]:
    used = {node.stage.model_name for node in run.chain.nodes if node.stage is not None and node.stage.uses_model}
    bundled = sorted(name for name in used if name and str(run.chain.recipe.models[name].get("weights", "")).startswith(_BUNDLED))
    if not bundled:
        return []
    return [
        f"**Scores and embeddings of {', '.join(f'`{name}`' for name in bundled)} come from the small model bundled with pairmill, which knows "
        "nothing but its rendered demo world. They mean nothing for other images.**",
        "",
    ]


def _how_to_read(splits: dict[str, Split]) -> list[str]:
    named = [(name, split) for name, split in splits.items() if split.shards]
    if not named:
        return []
    name, split = named[0]
    return [_READ.format(split=name, first="00000", last=f"{len(split.shards) - 1:05d}", exts="jpg;png;webp")]


def _models(manifest: Manifest) -> list[str]:
    if not manifest.models:
        return []
    rows = [
        f"| {name} | {spec['kind']} | {spec.get('name', '')} {spec.get('weights', '')} | `{spec.get('digest', spec['identity'])}` |"
        for name, spec in manifest.models.items()
    ]
    return ["| Model | Kind | Weights | Digest |", "|---|---|---|---|", *rows, ""]
