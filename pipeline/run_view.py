"""A finished (or half finished) run as jobs and reading commands see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chain import Chain, Ref
from pipeline.digests import digest_of
from pipeline.storage import Place
from pipeline.store import RESOLVED, VALUES, VERDICTS, Store
from pipeline.view import PartView
from schemas.outcome import Status
from schemas.record import PartRecord


class RunView:
    """Reads a run through its chain. `parts` holds the row count of each part."""

    def __init__(self, chain: Chain, store: Store, parts: list[int]):
        self.chain = chain
        self.store = store
        self.parts = parts

    @property
    def root(self) -> Place:
        return self.store.root

    @property
    def dataset(self) -> Place:
        return self.root / "dataset"

    def view(self, part: int) -> PartView:
        """A fresh view of one part; let it go to free its columns."""
        return PartView(self.chain, self.store, part, self.parts[part])

    def blob_path(self, tar: str, writer: str | None = None) -> Place:
        """Path of a tar of stored images; `writer` is the stage instance that wrote it (default: the last that stores images)."""
        if writer is None:
            writer = self.chain.nodes[self.chain.find_column("image_sha256").node].name
        return self.store.blobs(writer) / tar

    def final(self, view: PartView) -> pa.Table:
        """What became of each row of a part: status (int8), stage, reason, detail of the stage where it left (null if kept)."""
        n = view.rows
        status = view.verdict(len(self.chain.nodes) - 1).status.copy()
        stage, reason, detail = (np.full(n, None, object) for _ in range(3))
        left = status != Status.KEPT
        for node in self.chain.nodes:
            verdict = view.verdict(node.index)
            here = left & np.isin(verdict.status, (Status.DROPPED, Status.FAILED))
            if here.any():
                status[here] = verdict.status[here]
                stage[here] = node.name
                for row in np.flatnonzero(here):
                    reason[row], detail[row] = verdict.reason[row].as_py(), verdict.detail[row].as_py()
        columns = {"status": pa.array(status), "stage": pa.array(stage, pa.string())}
        return pa.table({**columns, "reason": pa.array(reason, pa.string()), "detail": pa.array(detail, pa.string())})

    def read(self, view: PartView, columns: list[str], rows: np.ndarray | None = None) -> pa.Table:
        """Named columns of a part (all rows, or some), null where a row was dead at the column's stage."""
        refs: dict[str, Ref | None] = {name: self.chain.find_column(name) for name in columns}
        return view.table(refs, np.arange(view.rows) if rows is None else rows, masked=True)

    @lru_cache(maxsize=1)  # noqa: B019 - a RunView lives as long as its command
    def records(self) -> dict[tuple[str, str, int], PartRecord]:
        """Footers of all values and verdicts."""
        wanted = [(kind, node.name, part) for node in self.chain.nodes for part in range(len(self.parts)) for kind in (VALUES, VERDICTS)]
        return self.store.records(wanted)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What the resolves of the stages found of the whole corpus (`Evidence.facts`), by stage; those that left nothing are missing."""
        wanted = [(RESOLVED, node.name, 0) for node in self.chain.nodes if node.has_resolve and self.parts]
        found = self.store.records(wanted)
        return {stage: record.info["facts"] for (_, stage, _), record in found.items() if record.info.get("facts")}

    def counts(self) -> dict[str, Counter[str]]:
        """Per stage: rows kept, dropped, failed, skipped and each reason ('dropped:low_clip')."""
        counts: dict[str, Counter[str]] = {node.name: Counter() for node in self.chain.nodes}
        for (kind, stage, _), record in self.records().items():
            if kind == VERDICTS:
                counts[stage].update(record.counts)
        return counts

    def check_counts(self) -> Iterator[str]:
        """Problems where the counts do not add up: at each stage kept + dropped + failed + skipped = rows of the input,
        and what reaches a stage is what the one before kept."""
        counts, total = self.counts(), sum(self.parts)
        before = total
        for node in self.chain.nodes:
            c = counts[node.name]
            if sum(c[k] for k in ("kept", "dropped", "failed", "skipped")) != total:
                yield f"{node.name}: kept {c['kept']} + dropped {c['dropped']} + failed {c['failed']} + skipped {c['skipped']} is not {total}"
            if c["kept"] + c["dropped"] + c["failed"] != before:
                yield f"{node.name}: {before} rows reached it, {c['kept'] + c['dropped'] + c['failed']} have an outcome there"
            before = c["kept"]

    def state_digest(self) -> str:
        """Digest of every verdict and value: equal for equal runs."""
        return digest_of(*([list(key), record.digest] for key, record in sorted(self.records().items())))
