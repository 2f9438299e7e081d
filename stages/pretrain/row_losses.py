"""The loss of every sample under a trained model, by sample key, in Parquet: evidence of which pairs do not fit.

A model learns pairs that fit before it learns by heart those that do not (memorisation effect), so that after a short training the latter have
higher losses. All samples are measured by one model after the last step, as DivideMix and NLIP do after their warm-up, not as they pass by in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stages.pretrain.loader import LoadedBatch
from stages.pretrain.objectives.base import Batch

LOSSES: Final = "losses"
SCHEMA: Final = pa.schema([("key", pa.string()), ("loss", pa.float32())])


def record_losses(batches: Iterable[LoadedBatch], row_losses: Callable[[Batch], torch.Tensor], folder: Path, rank: int = 0) -> int:
    """Write `losses/part-<rank>.parquet` (columns key, loss) under `folder`; returns the number of rows.

    `row_losses` gives float [B] for a batch's tensors; rows past a batch's keys only filled it up. The file appears whole under its name.
    """
    target = folder / LOSSES / f"part-{rank:05d}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".beside")
    rows = 0
    with pq.ParquetWriter(beside, SCHEMA) as writer, torch.no_grad():
        for batch in batches:
            losses = row_losses(batch.tensors)[: len(batch.keys)].float().cpu()
            writer.write_table(pa.table([batch.keys, losses.numpy()], schema=SCHEMA))
            rows += len(batch.keys)
    beside.replace(target)
    return rows
