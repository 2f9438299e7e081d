"""README.md of a dataset: what is in it, what was left out and why, how it was made."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import yaml

from pipeline.run_view import RunView
from schemas.dataset import Manifest, Split
from stages.shards.about import About
from stages.shards.columns import Layout
from stages.shards.features import tar_features

_BUNDLED = "bundled:"

_CHECKED = {
    "decoded": "Every image was decoded whole before it was stored.",
    "header": "Of every image only the header was read before it was stored.",
}

_READ = """\
```python
import datasets, webdataset
samples = datasets.load_dataset("FOLDER", split="{split}")  # the folder of this file
samples = webdataset.WebDataset("shards/{split}-{{{first}..{last}}}.tar", shardshuffle=False).decode("pil").to_tuple("{exts}", "txt", "json")
```
"""


def dataset_card(run: RunView, layout: Layout, manifest: Manifest, about: About, index: pa.Schema) -> str:
    """Markdown behind the YAML that Hugging Face reads; a function of the manifest and the recipe alone."""
    counts = manifest.counts
    lines = [
        "---",
        yaml.safe_dump(_front_matter(manifest, about, index), sort_keys=False, allow_unicode=True, width=160).rstrip(),
        "---",
        "",
        f"# {about.name}",
        "",
        about.description,
        "",
        *_not_given(about),
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
        "- `shards/*.tar.idx` and `.nv-meta/`: offsets and splits for Megatron-Energon. `croissant.json`: Croissant 1.1 metadata.",
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


def _front_matter(manifest: Manifest, about: About, index: pa.Schema) -> dict[str, Any]:
    """What `datasets.load_dataset(FOLDER)` and the hub read: where each split lies, and the types of the samples."""
    data_files = [{"split": name, "path": f"shards/{name}-*.tar"} for name, split in manifest.splits.items() if split.shards]
    known = "license" not in about.missing and re.fullmatch(r"[A-Za-z0-9.+-]+", about.license)
    licence = {"license": about.license.lower()} if known else {"license": "other", "license_name": "see-below"}
    tasks = {"task_categories": ["text-to-image", "image-to-text"]}
    if not data_files:
        return {"pretty_name": about.name, **licence, **tasks}
    configs = [{"config_name": "default", "data_files": data_files}]
    return {"pretty_name": about.name, **licence, **tasks, "configs": configs, "dataset_info": {"features": tar_features(index)}}


_ASKED = {
    "license": "Licence: {0.license}.", "url": "Page: {0.url}", "creator": "Made by: {0.creator}.", "date_published": "Published: {0.date_published}.",
}  # fmt: skip


def _not_given(about: About) -> list[str]:
    """Licence, page, maker and date; a warning where the recipe does not give them, since croissant.json must have them."""
    told = [line.format(about) for name, line in _ASKED.items() if name not in about.missing]
    absent = [name for name in _ASKED if name in about.missing]
    lines = ["  ".join(told), ""] if told else []
    if absent:
        lines += [
            f"**Not given by the recipe: {', '.join(absent)}.** What `croissant.json` says in their place (licence: {about.license}; date: "
            f"{about.date_published}) is a stand-in. Give them before the dataset is passed on, as in `--set write_shards.{absent[0]}=...`.",
            "",
        ]
    return lines


def _embeddings_note(layout: Layout) -> list[str]:
    names = ", ".join(f"`{name}`" for name in layout.vectors)
    return [f"- `shards/*.embeddings.parquet`: {names}: raw bytes, their dtype and shape in the field's metadata."] if names else []


def _stage_name(instance: str, stage: Any) -> str:
    return f"`{instance}`" if stage is None or stage.name == instance else f"`{instance}` ({stage.name})"


def _scores_note(run: RunView) -> list[str]:
    used = {node.stage.model_name for node in run.chain.nodes if node.stage is not None and node.stage.uses_model}
    models = run.chain.recipe.models
    bundled = sorted(name for name in used if name and str(models[name].get("weights", "")).startswith(_BUNDLED))
    fake = sorted(name for name in used if name and models[name]["kind"] == "fake")
    told = ", ".join(f"`{name}`" for name in fake)
    notes = [f"**What {told} says are made-up answers of a fake model, for tests. They mean nothing.**", ""] if fake else []
    if not bundled:
        return notes
    return [
        *notes,
        f"**Scores, answers and embeddings of {', '.join(f'`{name}`' for name in bundled)} come from the small model bundled with pairmill, which knows "
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
