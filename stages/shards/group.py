"""The work of one group of parts: its shards and its rejected rows, made anew only where their inputs changed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import Fatal
from pipeline.files import as_write_error, commit_bytes, commit_file, temporary_name
from pipeline.run_view import RunView
from pipeline.storage import Place
from pipeline.store import storage_field
from pipeline.view import flat
from schemas.dataset import PLACE_COLUMNS
from schemas.outcome import FailureCode, Reason, Status
from stages.shards import files, plan
from stages.shards.columns import Layout
from stages.shards.energon import tar_offsets
from stages.shards.files import EMBEDDINGS, INDEX, OFFSETS, TAR, Footer
from stages.shards.rows import PartReader, caption_of, keys_of, records, texts_of
from stages.shards.tars import TarWriter, blob_reader
from stages.shards.texts import complemented, keep_passing, rule_columns, with_captions, written_columns

_SHARD_COLUMNS = ("sample_id", "image_sha256", "tar", "offset", "size", "format")


@dataclass(frozen=True)
class CutRules:
    """Parameters of the cut. `order_seed` is None for input order."""

    max_samples: int
    max_bytes: int
    splits: dict[str, float]
    seed: int
    order_seed: int | None


@dataclass
class GroupTask:
    """One group to be written; picklable. `published`: inputs digest -> stem of the group's units that the dataset has."""

    group: int
    parts: tuple[int, ...]
    inputs: str
    exceptions: plan.Exceptions
    published: dict[str, str]
    job: str = "write_shards"


@dataclass
class ShardRecord:
    """A made shard; field names as in the manifest."""

    split: str
    inputs: str
    samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str
    embeddings_sha256: str = ""
    offsets_sha256: str = ""


@dataclass
class RejectedRecord:
    part: int
    inputs: str
    rows: int
    sha256: str


@dataclass
class GroupRecord:
    """What a group came to. Derived: when it is deleted, the group's columns are read again, and no image is."""

    group: int
    parts: list[int]
    inputs: str
    shards: list[ShardRecord] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    own: dict[str, int] = field(default_factory=dict)  # 'dropped:duplicate_row' -> rows, rejected by the shard writer itself

    @staticmethod
    def path(folder: Place, group: int) -> Place:
        return folder / f"group-{group:05d}.json"

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def load(cls, folder: Place, group: int) -> GroupRecord | None:
        """None where the group has not been written (or by another version)."""
        try:
            data: dict[str, Any] = json.loads(cls.path(folder, group).read_text())
            data["shards"] = [ShardRecord(**entry) for entry in data["shards"]]
            data["rejected"] = [RejectedRecord(**entry) for entry in data["rejected"]]
            return cls(**data)
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None


class GroupWriter:
    """Writes one group into `made`."""

    def __init__(self, run: RunView, layout: Layout, rules: CutRules, made: Place, task: GroupTask):
        self.run, self.layout, self.rules, self.made, self.task = run, layout, rules, made, task
        self.reader = PartReader(run)
        self.blobs = blob_reader(run.store.blobs(layout.images))
        self.record = GroupRecord(task.group, list(task.parts), task.inputs)
        self.shard_columns = {
            **{f"#{name}": f"{layout.images}.{name}" for name in _SHARD_COLUMNS[1:]},
            "#sample_id": "source.sample_id",
            "#alt_text": "source.alt_text",
            **{f"#caption{at}": full for at, full in enumerate(layout.captions)},
            **({"#texts": layout.texts} if layout.texts else {}),
            **({"#complement": layout.complement} if layout.complement else {}),
            **rule_columns(layout.rules),
            **written_columns(layout.writers),
            **{f"={name}": full for name, full in layout.plain.items()},
            **{f"~{name}": full for name, full in layout.vectors.items()},
        }  # marks keep these apart from each other: # the writer's own, ? what the text rules read, ! written captions, = published as they are, ~ vectors

    def write(self) -> GroupRecord:
        """Shards, rejected rows, and last the group's record."""
        self.made.mkdir(parents=True, exist_ok=True)
        try:
            names, rows = self._split_rows()
            for code, split in enumerate(names):
                here = np.flatnonzero(rows.split == code)
                for start, stop in plan.cut_shards(rows.size[here], self.rules.max_samples, self.rules.max_bytes):
                    chosen = here[start:stop]
                    self._shard(split, rows.part[chosen], rows.row[chosen])
        finally:
            self.blobs.close()
        commit_bytes(GroupRecord.path(self.made, self.task.group), self.record.to_bytes(), self.run.store.guard)
        return self.record

    def _split_rows(self) -> tuple[list[str], plan.GroupRows]:
        """One pass over the parts: writes their rejected rows, returns the splits and the rows that go into shards."""
        layout, seed = self.layout, self.rules.seed
        columns = {"id": "source.sample_id", "image": f"{layout.images}.image_sha256", "size": f"{layout.images}.size"}
        columns |= {name: full for name, full in (("component", layout.component), ("split", layout.split)) if full}
        pieces: list[tuple[np.ndarray, ...]] = []
        ids, labels = [], []
        for part in self.task.parts:
            shipped = self._fate(part)
            table = self.reader.read(columns, part, shipped)
            given = {row: label for at, row, label in self.task.exceptions.labels if at == part}
            own = [flat(table[name]) for name in ("split", "component") if name in columns]
            labels.append(plan.labels_of(own[0] if own else None, flat(table["image"]), given, shipped))
            pieces.append((np.full(len(shipped), part), shipped, table["size"].to_numpy()))
            ids.append(flat(table["id"]))
        label = pa.concat_arrays(labels)
        names, split = plan.splits_named(label) if layout.split else (list(self.rules.splits), plan.splits_of(label, self.rules.splits, seed))
        rows = plan.GroupRows(*(np.concatenate(column) for column in zip(*pieces, strict=True)), split)
        return names, plan.in_order(rows, pa.concat_arrays(ids), self.rules.order_seed)

    def _fate(self, part: int) -> np.ndarray:
        """Rows of a part that go into shards; all others into its rejected file."""
        view = self.reader.view(part)
        final = self.run.final(view)
        kept = final["status"].to_numpy() == Status.KEPT
        has_image = self.run.read(view, [f"{self.layout.images}.image_sha256"])[0].is_valid().to_numpy()
        twice = np.zeros(view.rows, bool)
        twice[[row for at, row in self.task.exceptions.duplicates if at == part]] = True
        reject = np.flatnonzero(~(kept & has_image & ~twice))
        self._rejected(part, reject, final, twice & kept, kept & ~has_image & ~twice)
        shipped = np.flatnonzero(kept & has_image & ~twice)
        if len(shipped) + len(reject) != view.rows:
            raise Fatal(f"part {part}: {len(shipped)} rows in shards and {len(reject)} rejected are not {view.rows}; this is a fault of pairmill")
        return shipped

    def _rejected(self, part: int, rows: np.ndarray, final: pa.Table, twice: np.ndarray, imageless: np.ndarray) -> None:
        table = self.reader.read({"#id": "source.sample_id", "#url": "source.url", "#alt": "source.alt_text", **self.layout.flat}, part, rows)
        taken = final.take(pa.array(rows))
        status = [Status(code).name.lower() for code in taken["status"].to_pylist()]
        stage, reason, detail = (taken[name].to_pylist() for name in ("stage", "reason", "detail"))
        own: Counter[str] = Counter()
        for place, row in enumerate(rows.tolist()):
            if twice[row]:
                status[place], reason[place], detail[place] = "dropped", str(Reason.DUPLICATE_ROW), "an earlier kept row has the same sample_id"
            elif imageless[row]:
                status[place], reason[place], detail[place] = "failed", str(FailureCode.BAD_ROW), "the row was kept but has no stored image"
            else:
                continue
            stage[place] = self.task.job
            own[f"{status[place]}:{reason[place]}"] += 1
        keys = keys_of(flat(table["#id"]))
        columns = {"sample_id": keys, "key": keys, "url": table["#url"], "alt_text": table["#alt"]}
        fate = {"status": status, "stage": stage, "reason": reason, "detail": detail}
        told = {name: pa.array(values, pa.string()) for name, values in fate.items()}
        extra = {name: table[name] for name in self.layout.flat if name not in columns}
        self._commit_rejected(part, pa.table({**columns, **told, **extra}))
        self.record.own = dict(Counter(self.record.own) + own)

    def _commit_rejected(self, part: int, table: pa.Table) -> None:
        inputs = files.inputs_digest("rejected", part, table)
        made = self.made / f"part-{part:05d}.{inputs}{INDEX}"
        stem = self.task.published.get(inputs)
        if stem is not None:
            sha256 = files.file_sha256(self.run.dataset / f"{stem}{INDEX}")
        elif files.read_footer(made):
            sha256 = files.file_sha256(made)
        else:
            sha256 = files.commit_parquet(made, table, Footer("rejected", inputs, part), self.run.store.guard)
        self.record.rejected.append(RejectedRecord(part, inputs, table.num_rows, sha256))

    def _shard(self, split: str, parts: np.ndarray, rows: np.ndarray) -> None:
        gathered = self.reader.gather(self.shard_columns, parts, rows)
        index = self._index(gathered)
        vectors = self._vectors(gathered, index["key"])
        content = index.append_column("#image", gathered["#image_sha256"])
        for name in vectors.column_names if vectors is not None else ():
            content = content.append_column(f"~{name}", vectors[name])
        inputs = files.inputs_digest("index", self.task.group, content)
        stem = self._found(inputs)
        if stem is None:
            footer, index_sha256 = self._write_shard(self.made / inputs, inputs, gathered, index, vectors)
        else:
            footer = files.read_footer(stem.with_name(stem.name + INDEX)) or Footer("index", inputs, self.task.group)
            index_sha256 = files.file_sha256(stem.with_name(stem.name + INDEX))
        place = stem or self.made / inputs
        offsets_sha256 = files.file_sha256(place.with_name(place.name + OFFSETS))
        self.record.shards.append(
            ShardRecord(split, inputs, len(rows), footer.tar_bytes, footer.tar_sha256, index_sha256, footer.embeddings_sha256, offsets_sha256)
        )

    def _found(self, inputs: str) -> Place | None:
        """Where a whole shard made of these inputs lies: in the dataset, or waiting for its place in it."""
        if inputs in self.task.published:
            return self.run.dataset / self.task.published[inputs]
        footer = files.read_footer(self.made / f"{inputs}{INDEX}")
        return self.made / inputs if footer is not None else None

    def _index(self, gathered: pa.Table) -> pa.Table:
        """The index without its offsets, which are known once the tar is written."""
        keys = keys_of(flat(gathered["#sample_id"]))
        captions = [flat(gathered[f"#caption{at}"]) for at in range(len(self.layout.captions))]
        texts = texts_of(flat(gathered["#texts"]) if self.layout.texts else None, flat(gathered["#alt_text"]), keys)
        texts, caption = keep_passing(self.layout.rules, texts, caption_of(captions), gathered)
        texts = with_captions(self.layout.writers, texts, keys, gathered)
        if self.layout.complement:
            caption = complemented(caption, flat(gathered["#complement"]))
        columns: dict[str, Any] = {"key": keys, "size": gathered["#size"], "ext": gathered["#format"], "caption": caption, "texts": texts}
        return pa.table({**columns, **{name: gathered[f"={name}"] for name in self.layout.plain}})

    def _vectors(self, gathered: pa.Table, keys: pa.ChunkedArray) -> pa.Table | None:
        """key and the vector columns, dtype and shape in their fields' metadata; None where no row has a vector."""
        columns, fields = [keys], [pa.field("key", pa.string())]
        for name, full in self.layout.vectors.items():
            column = flat(gathered[f"~{name}"])
            if column.null_count < len(column):
                columns.append(column)
                fields.append(storage_field(name, self.run.chain.type_of(self.run.chain.find_column(full)), column))
        return pa.table(columns, pa.schema(fields)) if len(columns) > 1 else None

    def _write_shard(self, stem: Place, inputs: str, gathered: pa.Table, index: pa.Table, vectors: pa.Table | None) -> tuple[Footer, str]:
        """Tar, embeddings, and last the index: its name is the commit of the shard. Returns the index's footer and SHA-256."""
        guard = self.run.store.guard
        offsets, tar_bytes, tar_sha256 = self._write_tar(stem.with_name(stem.name + TAR), gathered, index)
        commit_bytes(stem.with_name(stem.name + OFFSETS), tar_offsets(offsets, tar_bytes), guard)
        embeddings = "" if vectors is None else files.commit_parquet(stem.with_name(stem.name + EMBEDDINGS), vectors, None, guard, "none")
        footer = Footer("index", inputs, self.task.group, tar_bytes, tar_sha256, embeddings)
        whole = index.add_column(1, "offset", pa.array(offsets, pa.int64()))
        return footer, files.commit_parquet(stem.with_name(stem.name + INDEX), whole, footer, guard)

    def _write_tar(self, path: Place, gathered: pa.Table, index: pa.Table) -> tuple[list[int], int, str]:
        temporary = temporary_name(path)
        blobs = list(zip(*(gathered[f"#{name}"].to_pylist() for name in ("tar", "offset", "size")), strict=True))
        self.blobs.expect(blobs)
        writer = TarWriter(temporary, self.blobs)
        try:
            samples = zip(
                index["key"].to_pylist(), index["ext"].to_pylist(), index["caption"].to_pylist(), blobs, gathered["#image_sha256"].to_pylist(),
                records(index.drop_columns([name for name in PLACE_COLUMNS if name in index.column_names])), strict=True,
            )  # fmt: skip
            offsets = [
                writer.add(key, ext, blob, sha256, caption.encode(), record)
                for key, ext, caption, blob, sha256, record in samples
            ]
            tar_bytes, tar_sha256 = writer.close()
            commit_file(temporary, path, self.run.store.guard)
        except BaseException as error:
            writer.release()
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise as_write_error(error, path) from error
            raise
        return offsets, tar_bytes, tar_sha256
