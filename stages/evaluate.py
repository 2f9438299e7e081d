"""Job `evaluate`: zero-shot retrieval, and classification where labels are given, of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.digests import digest_of
from pipeline.errors import Fatal
from pipeline.files import commit_bytes
from pipeline.run_view import RunView
from pipeline.stage import Job, Params
from pipeline.storage import Place
from stages.pretrain.job import read_json
from stages.shards.local import local_dataset, local_folder


class EvaluateParams(Params):
    model: str = Field("pretrain", description="name of a pretrain job of this recipe, or weights as the models table names them")
    pairs: str = Field("", description="Parquet table of evaluation pairs: image (path beside it), caption; empty: the dataset's split")
    split: str = Field("val", description="split of the run's dataset, where no pairs are given")
    label_column: str | None = Field(None, description="column of class names in `pairs`: adds zero-shot classification")
    templates: list[str] = Field(["a photo of a {}."], description="prompt templates, {} stands for the class name")
    batch_size: int = Field(256, ge=1, description="samples per forward pass")


class Evaluate(Job):
    """Recall@1, 5 and 10 from image to text and from text to image; top-1 and top-5 with prompt templates."""

    name = "evaluate"
    Params = EvaluateParams

    def weights(self, run: RunView) -> str:
        """What load_clip reads: the export of a pretrain job, or the spec as given."""
        export = run.root / "pretrain" / self.params.model / "export"
        return str(local_folder(export)) if export.is_dir() else self.params.model

    def inputs(self, run: RunView) -> str:
        trained = read_json(run.root / "pretrain" / self.params.model / "result.json")
        table: Place = Path(self.params.pairs) if self.params.pairs else run.dataset / "manifest.json"
        if not table.is_file():
            raise Fatal(f"{self.instance}: {table} is missing; name a table with {self.instance}.pairs")
        return digest_of("evaluate", self.version, self.params.model_dump(mode="json"), trained.get("weights_digest", self.params.model), table.read_bytes())

    def tasks(self, run: RunView) -> list[Any]:
        inputs = self.inputs(run)
        return [] if read_json(self._path(run)).get("inputs") == inputs else [inputs]

    def _path(self, run: RunView) -> Place:
        return run.root / "evaluate" / f"{self.instance}.json"

    def run_task(self, run: RunView, task: str) -> dict[str, Any]:
        from stages.models.open_clip_loader import load_clip
        from stages.pretrain.data import ShardDataset
        from stages.pretrain.errors import TrainError
        from stages.pretrain.evaluate import evaluate_classification, evaluate_retrieval
        from stages.pretrain.pairs import PairTable

        params = self.params
        try:
            clip = load_clip(self.weights(run))
            samples = PairTable(params.pairs, params.label_column) if params.pairs else ShardDataset(local_dataset(run.dataset), params.split)
            found: dict[str, Any] = evaluate_retrieval(clip, samples, batch_size=params.batch_size)  # type: ignore[arg-type]
            if params.label_column and isinstance(samples, PairTable):
                classes = sorted(set(samples.labels))
                labels = [classes.index(label) for label in samples.labels]
                found["classification"] = evaluate_classification(clip, samples, labels, classes, params.templates)
        except TrainError as error:
            raise Fatal(f"{self.instance}: {error}") from error
        found = {"inputs": task, **found}
        commit_bytes(self._path(run), json.dumps(found, indent=1, sort_keys=True).encode(), run.store.guard)
        return found

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        return {key: value for key, value in read_json(self._path(run)).items() if key not in ("inputs", "model")}
