"""write_shards: the `dataset/` folder: shards, indexes, embeddings, rejected rows, card and manifest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.digests import digest_of
from pipeline.errors import Fatal, RecipeError, as_fatal
from pipeline.files import commit_bytes
from pipeline.run_view import RunView
from pipeline.stage import Job, params_affecting
from pipeline.storage import Place
from pipeline.store import RESOLVED, VALUES, VERDICTS
from schemas.dataset import CARD, CROISSANT, SIZES, Manifest, RejectedFile, Shard, Split, rejected_path, shard_stem
from stages.shards import plan
from stages.shards.about import AboutParams, about
from stages.shards.card import dataset_card
from stages.shards.columns import Layout, check_left_out, index_schema, make_layout
from stages.shards.croissant import croissant
from stages.shards.energon import energon_files
from stages.shards.files import EMBEDDINGS, INDEX, OFFSETS, TAR, read_footers
from stages.shards.group import CutRules, GroupRecord, GroupTask, GroupWriter, ShardRecord
from stages.shards.layout import Layout as Folder
from stages.shards.layout import Unit
from stages.shards.manifest import counts_of, images_checked, models_of, recipe_digest

_ROWS_PER_GROUP = 100_000
_KINDS = (VALUES, VERDICTS, RESOLVED)
_SCAN = "scan.json"
# What the stages need to judge again; `texts` holds ranks and scores.
_LEFT_OUT = ("text_measures", "text_rank", "clip_scores", "near_evidence", "semantic_evidence", "crop_evidence", "thumbnail", "phash_turned", "pdq_turned")

Digests = dict[tuple[str, str, int], str]


class WriteShardsParams(AboutParams):
    """How the dataset is cut. Shards belong to a group of parts and are split evenly within it."""

    max_samples: int = Field(10_000, description="most samples of a shard", ge=1)
    max_bytes: int = Field(1_000_000_000, description="most image bytes of a shard", ge=1)
    parts_per_group: int | None = Field(None, description="parts cut into shards together; default: as many as hold about 100,000 rows", ge=1)
    order: Literal["input", "shuffled"] = Field("input", description="order of the samples; shuffled: parts over groups, and samples within a group")
    seed: int = Field(0, description="seed of the order and of the splits")
    splits: dict[str, float] = Field(
        {"train": 1.0}, description="share of each split; rows of one duplicate component, and rows with one image, stay together"
    )
    split_column: str | None = Field(
        None, description="column that names each row's split, in place of shares; rows that must stay together go where the first of them goes"
    )
    caption: str = Field("text|alt_text", description="column that becomes the caption; of several (a|b) the first that has a text in the row")
    complement: str | None = Field(
        None, description="column joined to the caption after '; ', such as caption_short.text, where a row has both: they stand apart in `texts`"
    )
    embeddings: bool = Field(True, description="also publish the stages' embeddings, in files of their own")
    leave_out: tuple[str, ...] = Field(_LEFT_OUT, description="columns that are not published")

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        if not self.splits or abs(sum(self.splits.values()) - 1) > 1e-6 or min(self.splits.values()) <= 0:
            raise ValueError(f"splits: shares must be above 0 and add up to 1, found {self.splits}")
        if self.split_column is not None and len(self.splits) > 1:
            raise ValueError("split_column: names the splits, and so do the shares of `splits`; give one of the two")
        for name in self.splits:
            if not plan.is_split_name(name):
                raise ValueError(f"splits: {name!r} becomes part of file names; use letters, digits and _")
        return self


class WriteShards(Job):
    """Publishes what a run kept, and why it did not keep the rest.

    Files are made in `jobs/write_shards/` under names that hold the digest of their inputs, and a group is done when its
    record is committed there; `finish` gives them their final names and writes the manifest last. So the dataset of
    an earlier run stays whole until the new one is ready, and a shard whose inputs did not change is at most renamed.
    """

    name: ClassVar[str] = "write_shards"
    version: ClassVar[int] = 3
    Params = WriteShardsParams
    params: WriteShardsParams
    writes_dataset = True

    def tasks(self, run: RunView) -> list[GroupTask]:
        """Groups whose inputs changed since they were written, or whose files are gone."""
        if sum(isinstance(job, WriteShards) for job in run.chain.recipe.jobs) > 1:
            raise RecipeError("jobs: write_shards stands twice, and a run has one dataset; use `splits`, or a second recipe in a folder of its own")
        layout, made = self._layout(run), self._made(run)
        made.mkdir(parents=True, exist_ok=True)
        folder = Folder(run.dataset, made, run.store.guard)
        folder.recover()
        published = folder.published()
        digests = _digests(run)
        exceptions = self._exceptions(run, layout, digests)
        waiting = {footer.inputs for footer in read_footers([p for p in made.glob(f"*{INDEX}") if not p.name.endswith(EMBEDDINGS)]).values()}
        at_hand = waiting | {footer.inputs for footer in published.values()}
        tasks = []
        for group, parts in enumerate(self._groups(run)):
            own = exceptions.of(parts)
            inputs = self._inputs(run, layout, parts, own, digests)
            record = GroupRecord.load(made, group)
            if record is not None and record.inputs == inputs and {u.inputs for u in [*record.shards, *record.rejected]} <= at_hand:
                continue
            mine = {f.inputs: stem for stem, f in published.items() if (f.group == group if f.kind == "index" else f.group in parts)}
            tasks.append(GroupTask(group, parts, inputs, own, mine, self.instance))
        return tasks

    def run_task(self, run: RunView, task: GroupTask) -> int:
        """Write one group; returns its samples. Raises Fatal where a stored image is gone or the disk is full."""
        seed = self.params.seed
        shuffled = seed if self.params.order == "shuffled" else None
        rules = CutRules(self.params.max_samples, self.params.max_bytes, self.params.splits, seed, shuffled)
        try:
            record = GroupWriter(run, self._layout(run), rules, self._made(run), task).write()
        except OSError as error:
            raise as_fatal(error, f"{self.instance}, group {task.group}") from error
        return sum(shard.samples for shard in record.shards)

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        """Final names, card, sizes, manifest. Raises Fatal when a row is in no file or in two."""
        layout, made = self._layout(run), self._made(run)
        records = self._records(run, made)
        own = sum((Counter(record.own) for record in records), Counter())
        splits, units = _number_shards(records, self._names(records))
        rejected = sorted((entry for record in records for entry in record.rejected), key=lambda entry: entry.part)
        units += [Unit(rejected_path(r.part).removesuffix(INDEX), r.inputs, (INDEX,)) for r in rejected]
        samples = sum(split.samples for split in splits.values())
        left = sum(entry.rows for entry in rejected)
        counts = counts_of(run, own, self.instance, samples)
        if samples + left != sum(run.parts) or left != counts["dropped"] + counts["failed"]:
            raise Fatal(
                f"{self.instance}: {samples} rows in shards and {left} rejected ({counts['dropped']} dropped, {counts['failed']} failed) "
                f"are not the {sum(run.parts)} rows of the input; this is a fault of pairmill"
            )
        sizes = {shard.tar.rpartition("/")[2]: shard.samples for split in splits.values() for shard in split.shards}
        manifest = Manifest(
            splits, [RejectedFile(rejected_path(r.part), r.rows, r.sha256) for r in rejected], counts,
            images_checked(run, layout.images), recipe_digest(run, self), models_of(run), facts=run.facts(),
        )  # fmt: skip
        told = about(self.params, run.chain.recipe.name, manifest.recipe_digest, samples, sum(run.parts))
        schema = index_schema(run.chain, layout)
        files = {CARD: dataset_card(run, layout, manifest, told, schema).encode(), SIZES: (json.dumps(sizes, indent=1) + "\n").encode()}
        files |= energon_files(manifest.splits) | {CROISSANT: croissant(told, manifest, schema)}
        manifest.files.update({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        folder = Folder(run.dataset, made, run.store.guard)
        moved = folder.publish(units, files, manifest.to_bytes())
        folder.sweep_made({_SCAN, *(GroupRecord.path(made, record.group).name for record in records)})
        shards = sum(len(split.shards) for split in splits.values())
        return {"samples": samples, "rejected": left, "shards": shards, "groups_written": len(results), "files_placed": moved, "dataset": str(run.dataset)}

    def _made(self, run: RunView) -> Place:
        return run.root / "jobs" / self.instance

    def _layout(self, run: RunView) -> Layout:
        check_left_out(run.chain, (name for name in self.params.leave_out if name not in _LEFT_OUT))
        return make_layout(run.chain, self.params.caption, self.params.leave_out, self.params.embeddings, self.params.complement, self.params.split_column)

    def _names(self, records: list[GroupRecord]) -> list[str]:
        """The splits in their order; those that a column names by name."""
        named = sorted({shard.split for record in records for shard in record.shards})
        return named if self.params.split_column and named else list(self.params.splits)

    def _groups(self, run: RunView) -> list[tuple[int, ...]]:
        per_group = self.params.parts_per_group or max(1, round(_ROWS_PER_GROUP / run.chain.recipe.rows_per_part))
        return plan.cut_groups(len(run.parts), per_group, self.params.seed if self.params.order == "shuffled" else None)

    def _inputs(self, run: RunView, layout: Layout, parts: tuple[int, ...], exceptions: plan.Exceptions, digests: Digests) -> str:
        """Digest of all that a group's files are made of, from footers alone."""
        state = [[part, node.name, *(digests.get((kind, node.name, part), "") for kind in _KINDS)] for part in parts for node in run.chain.nodes]
        columns = [[name, full, str(run.chain.type_of(run.chain.find_column(full)))] for name, full in {**layout.plain, **layout.vectors}.items()]
        cut = {name: value for name, value in params_affecting(self.params, "compute").items() if name != "leave_out"}
        rules = layout.rules.decide_fingerprint if layout.rules is not None else ""
        told = [layout.captions, layout.texts, layout.component, rules, layout.writers, layout.complement]
        return digest_of("group", self.version, state, columns, told, cut, exceptions.to_json())

    def _exceptions(self, run: RunView, layout: Layout, digests: Digests) -> plan.Exceptions:
        """Found in one pass over the run, and kept with the digest of what they follow from."""
        with_labels = len(self.params.splits) > 1
        split = [layout.split] if layout.split else []
        inputs = digest_of("scan", sorted(digests.items()), layout.component, layout.images, with_labels, *split)
        path = self._made(run) / _SCAN
        try:
            stored = json.loads(path.read_text())
            if stored["inputs"] == inputs:
                return plan.Exceptions.from_json(stored)
        except (FileNotFoundError, KeyError, ValueError):
            pass
        found = plan.find_exceptions(run, layout, with_labels)
        commit_bytes(path, json.dumps({"inputs": inputs, **found.to_json()}).encode(), run.store.guard)
        return found

    def _records(self, run: RunView, made: Place) -> list[GroupRecord]:
        records = []
        for group, parts in enumerate(self._groups(run)):
            record = GroupRecord.load(made, group)
            if record is None or tuple(record.parts) != parts:
                raise Fatal(f"{self.instance}: group {group} has not been written; run the same command again")
            records.append(record)
        return records


def _digests(run: RunView) -> Digests:
    """(kind, stage, part) -> digest of every committed part file, from the footers."""
    wanted = ((RESOLVED, node.name, part) for node in run.chain.nodes if node.has_resolve for part in range(len(run.parts)))
    return {key: record.digest for key, record in {**run.records(), **run.store.records(wanted)}.items()}


def _number_shards(records: list[GroupRecord], names: list[str]) -> tuple[dict[str, Split], list[Unit]]:
    """Sequential numbers per split over the groups."""
    splits, units = {}, []
    for name in names:
        made = [shard for record in records for shard in record.shards if shard.split == name]
        placed = [_shard_entry(shard_stem(name, number), shard) for number, shard in enumerate(made)]
        for entry, shard in zip(placed, made, strict=True):
            suffixes = (TAR, OFFSETS, EMBEDDINGS, INDEX) if shard.embeddings_sha256 else (TAR, OFFSETS, INDEX)
            units.append(Unit(entry.tar.removesuffix(TAR), shard.inputs, suffixes))
        splits[name] = Split(sum(shard.samples for shard in made), placed)
    return splits, units


def _shard_entry(stem: str, shard: ShardRecord) -> Shard:
    embeddings = f"{stem}{EMBEDDINGS}" if shard.embeddings_sha256 else ""
    return Shard(
        f"{stem}{TAR}", f"{stem}{INDEX}", shard.samples, shard.tar_bytes, shard.tar_sha256, shard.index_sha256, embeddings, shard.embeddings_sha256,
        f"{stem}{OFFSETS}", shard.offsets_sha256,
    )  # fmt: skip
