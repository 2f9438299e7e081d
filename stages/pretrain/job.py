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
from stages.pretrain.config import FREE_ON_RESUME, TrainConfig


class PretrainParams(TrainConfig):
    """Options of the training; `dataset` is the run's own unless another folder is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pretrain(Job):
    """Trains an objective on `dataset/` and exports weights that open_clip loads and that a recipe can name as a model.

    Writes `pretrain/<name>/`: config.json, metrics.jsonl, checkpoints/, export/. A training that already ended on the
    same dataset with the same options is not repeated; an interrupted one goes on from its last checkpoint.
    """

    name = "pretrain"
    Params = PretrainParams  # type: ignore[assignment]

    def folder(self, run: RunView) -> Path:
        return run.root / "pretrain" / self.instance

    def config(self, run: RunView) -> TrainConfig:
        values = self.params.model_dump()
        values["dataset"] = values["dataset"] or str(run.dataset)
        return TrainConfig(**values)

    def inputs(self, run: RunView) -> str:
        """Digest of all that decides what is learned: options and the dataset's manifest."""
        options = {k: v for k, v in self.params.model_dump(mode="json").items() if k not in FREE_ON_RESUME}
        manifest = Path(self.config(run).dataset) / "manifest.json"
        if not manifest.is_file():
            raise Fatal(f"{self.instance}: {manifest} is missing; put write_shards before it")
        return digest_of("pretrain", self.version, options, hashlib.sha256(manifest.read_bytes()).hexdigest())

    def tasks(self, run: RunView) -> list[Any]:
        done = read_json(self.folder(run) / "result.json")
        return [] if done.get("inputs") == self.inputs(run) else [self.inputs(run)]

    def run_task(self, run: RunView, task: str) -> dict[str, Any]:
        from stages.pretrain.errors import TrainError
        from stages.pretrain.trainer import train

        folder = self.folder(run)
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
            "export": str(Path(result.export).relative_to(run.root) if Path(result.export).is_relative_to(run.root) else result.export),
            "weights_digest": result.weights_digest,
        }
        commit_bytes(folder / "result.json", json.dumps(summary, indent=1).encode(), run.store.guard)
        return summary

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        summary = read_json(self.folder(run) / "result.json")
        return {key: value for key, value in summary.items() if key != "inputs"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping, or an empty one where there is no file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
