"""Job `pretrain`: train a model on the run's committed shards."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from pipeline.digests import digest_of
from pipeline.errors import Fatal
from pipeline.files import commit_bytes
from pipeline.run_view import RunView
from pipeline.stage import Job
from pipeline.storage import ObjectPath, Place, place_of
from stages.pretrain.config import FREE_ON_RESUME, TrainConfig
from stages.shards.local import local_dataset, local_root, upload_folder

_UPLOADED = ["config.json", "inputs.txt", "metrics.jsonl", "export", "losses"]


class PretrainParams(TrainConfig):
    """Options of the training; `dataset` is the run's own unless another folder is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pretrain(Job):
    """Trains an objective on `dataset/` and exports weights that open_clip loads and that a recipe can name as a model.

    Writes `pretrain/<name>/`: config.json, metrics.jsonl, checkpoints/, export/. A training that already ended on the
    same dataset with the same options is not repeated; an interrupted one goes on from its last checkpoint.
    Where the run lies in object storage it trains on a local copy of the shards and uploads all but the checkpoints at its end: an interrupted
    one goes on only on the machine where it began.
    """

    name = "pretrain"
    Params = PretrainParams  # type: ignore[assignment]

    def folder(self, run: RunView) -> Place:
        return run.root / "pretrain" / self.instance

    def dataset(self, run: RunView) -> Place:
        return place_of(self.params.dataset or run.dataset)

    def config(self, run: RunView) -> TrainConfig:
        return TrainConfig(**{**self.params.model_dump(), "dataset": str(local_dataset(self.dataset(run)))})

    def inputs(self, run: RunView) -> str:
        """Digest of all that decides what is learned: options and the dataset's manifest."""
        options = {k: v for k, v in self.params.model_dump(mode="json").items() if k not in FREE_ON_RESUME}
        manifest = self.dataset(run) / "manifest.json"
        try:
            content = manifest.read_bytes()
        except FileNotFoundError:
            raise Fatal(f"{self.instance}: {manifest} is missing; put write_shards before it") from None
        return digest_of("pretrain", self.version, options, hashlib.sha256(content).hexdigest())

    def tasks(self, run: RunView) -> list[Any]:
        done = read_json(self.folder(run) / "result.json")
        recorded = not self.params.record_losses or (self.folder(run) / "losses" / "part-00000.parquet").is_file()
        return [] if recorded and done.get("inputs") == self.inputs(run) else [self.inputs(run)]

    def run_task(self, run: RunView, task: str) -> dict[str, Any]:
        from stages.pretrain.errors import TrainError
        from stages.pretrain.trainer import train

        base, target = local_root(run.root), self.folder(run)
        folder = base / "pretrain" / self.instance
        begun = folder / "inputs.txt"
        if folder.exists() and (not begun.exists() or begun.read_text() != task):
            shutil.rmtree(folder)  # checkpoints of another dataset or other options
        folder.mkdir(parents=True, exist_ok=True)
        begun.write_text(task)
        try:
            result = train(self.config(run), folder)
        except TrainError as error:
            raise Fatal(f"{self.instance}: {error}") from error
        summary = {
            "inputs": task,
            "steps": result.steps,
            "epochs": round(result.epochs, 3),
            "loss": round(result.loss, 4),
            "samples_per_s": round(result.samples_per_s, 1),
            "seconds": round(result.seconds, 1),
            "export": str(Path(result.export).relative_to(base) if Path(result.export).is_relative_to(base) else result.export),
            "weights_digest": result.weights_digest,
        }
        if isinstance(target, ObjectPath):
            upload_folder(folder, target, _UPLOADED, run.store.guard)
        commit_bytes(target / "result.json", json.dumps(summary, indent=1).encode(), run.store.guard)
        return summary

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        summary = read_json(self.folder(run) / "result.json")
        return {key: value for key, value in summary.items() if key != "inputs"}


def read_json(path: Place) -> dict[str, Any]:
    """A JSON file's mapping, or an empty one where there is no file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
