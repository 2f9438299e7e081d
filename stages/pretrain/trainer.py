"""The training loop: one objective, one dataset, exact resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stages.models.open_clip_loader import preprocess_from
from stages.pretrain import checkpoint, dist
from stages.pretrain.config import FREE_ON_RESUME, TrainConfig, resolve_model
from stages.pretrain.data import Samples, ShardDataset
from stages.pretrain.errors import TrainError
from stages.pretrain.loader import BatchLoader, LoadedBatch, Position, Views
from stages.pretrain.metrics import MetricsLog
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.base import Batch, Objective, normalise
from stages.pretrain.optim import learning_rate, make_optimizer
from stages.pretrain.row_losses import record_losses

OnStep = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training left behind. `loss` is that of the last logged step, `samples_per_s` of this process's steps."""

    steps: int
    epochs: float
    loss: float
    samples_per_s: float
    seconds: float
    resumed_from: int
    export: str
    weights_digest: str


def train(
    config: TrainConfig, out_dir: Path, on_step: OnStep | None = None, samples: Samples | None = None,
) -> TrainResult:
    """Train towers on a dataset's split and export them; go on from the latest checkpoint in `out_dir` if there is one.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/`, `export/` and, where asked for, `losses/` under `out_dir`. `on_step(step, metrics)` is
    called with every line logged. `samples` takes the place of `config.dataset` (samples made in memory). A run that
    was killed and started again ends, on CPU with the same number of threads, in the same bits as one never stopped.

    Raises TrainError for options that contradict each other or the checkpoint, for a loss or gradient that is not
    finite (with step and sample keys), and DataError for a dataset or sample that is not what its index says.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    joined = dist.start_from_environment()
    try:
        run = _Run(config, Path(out_dir), samples)
        return run.go(on_step)
    finally:
        if joined:
            torch.distributed.destroy_process_group()


def check_accumulation(objective: Objective, accumulate: int) -> None:
    """Refuse to split a batch whose loss is not the mean over its parts. Raises TrainError."""
    if accumulate > 1 and not objective.splittable:
        raise TrainError(
            f"option accumulate: {accumulate} micro-batches, but {type(objective).__name__} contrasts every sample "
            "with the whole batch: split up, each part would see only its own negatives and the result would be "
            "another objective. Use accumulate 1 and a smaller batch_size, or more ranks"
        )


class _Run:
    """The state of one training: model, optimizer, place in the data."""

    def __init__(self, config: TrainConfig, out_dir: Path, samples: Samples | None) -> None:
        self.config, self.out = config, out_dir
        self.objective = make_objective(config.objective, config.objective_params)
        check_accumulation(self.objective, config.accumulate)
        if samples is None and not config.dataset:
            raise TrainError("option dataset: no dataset folder is named")
        model_cfg, preprocess_cfg = resolve_model(config.model)
        self.device = dist.pick_device(config.device)
        torch.manual_seed(config.seed)
        self.model = self.objective.build(model_cfg)
        if config.init:
            self.objective.start_from(self.model, config.init)
        self.model.to(self.device)
        for parameter in self.model.parameters():
            if parameter.ndim == 4:
                # loaders give images with the channels last; convolutions in the same layout are up to twice as fast
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.preprocess = preprocess_from(preprocess_cfg, self.objective.image_size(model_cfg))
        if samples is None:
            samples = ShardDataset(config.dataset, config.split)
        if isinstance(samples, ShardDataset):
            self.objective.check_kinds(samples.all_kinds())
        self.data = samples.digest if isinstance(samples, ShardDataset) else f"{len(samples)} samples in memory"
        self.loader = self._make_loader(samples)
        self.optimizer = make_optimizer(self.model, config)
        self.step, self.position = 0, Position()

    def _make_loader(self, samples: Samples) -> BatchLoader:
        config = self.config
        views = Views(
            self.preprocess.size, self.preprocess.interpolation, self.preprocess.resize_mode, config.crop_scale,
            config.decode_margin,
        )
        source = config.model if isinstance(config.model, str) else ""
        return BatchLoader(
            samples, self.objective.collate, self.objective.tokenizer(self.model, source), self.objective.needs, views,
            config.batch_size, config.seed, config.workers, config.prefetch, dist.rank(), dist.world_size(),
        )

    def go(self, on_step: OnStep | None) -> TrainResult:
        """Resume, train to the last step, export."""
        self._restore()
        started_at, began = self.step, time.monotonic()
        log = MetricsLog(self.out / "metrics.jsonl", self.step) if dist.rank() == 0 else None
        stream = self.loader.batches(self.position)
        try:
            self._train_to_end(stream, log, on_step)
        finally:
            stream.close()  # stops the reading threads
        seconds = time.monotonic() - began
        digest = self._export() if dist.rank() == 0 else ""
        if self.config.record_losses:
            self._record_losses()
        dist.barrier()
        return TrainResult(
            steps=self.step, epochs=self.position.epoch + self.position.batch / self.loader.batches_per_epoch,
            loss=log.last_loss if log else float("nan"),
            samples_per_s=round((self.step - started_at) * self.config.batch_size / max(seconds, 1e-9), 1),
            seconds=round(seconds, 1), resumed_from=started_at, export=str(self.out / "export"), weights_digest=digest,
        )

    def _train_to_end(self, stream: Iterator[LoadedBatch], log: MetricsLog | None, on_step: OnStep | None) -> None:
        config = self.config
        self.model.train()
        since, since_step = time.monotonic(), self.step
        while self.step < config.steps:
            batch = next(stream)
            losses = self._one_step(batch)
            self.step += 1
            epoch, self.position = batch.position.epoch, self.loader.after(batch.position)
            last = self.step == config.steps
            if self.step % config.log_every == 0 or last:
                now = time.monotonic()
                rate = (self.step - since_step) * config.batch_size / (now - since)
                line = self._line(epoch, losses, rate)  # a collective: every rank takes part
                since, since_step = now, self.step
                if log:
                    log.write(line)
                    if on_step:
                        on_step(self.step, line)
            if self.step % config.checkpoint_every == 0 or last:
                self._save()

    def _one_step(self, loaded: LoadedBatch) -> dict[str, torch.Tensor]:
        """Forward, backward, checks, update. Returns this rank's losses, detached."""
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for part in _micro_batches(loaded.tensors, self.config.accumulate):
            batch = {name: value.to(self.device, non_blocking=True) for name, value in part.items()}
            with self._autocast():
                losses = self.objective.losses(
                    self.model, normalise(batch, self.preprocess.mean, self.preprocess.std)
                )
            torch.stack(list(losses.values())).sum().div(self.config.accumulate).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + loss.detach().float() / self.config.accumulate
        dist.average_gradients(self.model.parameters())
        self._check_finite(totals, loaded.keys)
        self.optimizer.step()
        self.objective.after_step(self.model)
        return totals

    def _check_finite(self, losses: dict[str, torch.Tensor], keys: list[str]) -> None:
        """Raise TrainError before the optimizer moves if a loss or the gradient is not finite; clip the gradient."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        good = torch.isfinite(torch.stack([*losses.values(), norm.float()])).all()
        # any rank's bad loss has reached every rank's gradient by now, so all ranks stop together
        if not good:
            values = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
            shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
            raise TrainError(
                f"step {self.step + 1}: not finite ({values}, gradient norm {float(norm):g}); "
                f"samples of this rank: {shown}. A lower lr, a longer warmup or grad_clip 1.0 are the usual cures"
            )
        if self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.grad_clip, norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.config.precision
        on_device = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if wanted == "bf16" or (wanted == "auto" and on_device):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _line(self, epoch: int, losses: dict[str, torch.Tensor], rate: float) -> dict[str, float]:
        parts = {name: float(dist.mean_over_ranks(loss)) for name, loss in losses.items()}
        line = {
            "step": self.step, "epoch": epoch, "loss": sum(parts.values()),
            "lr": self.optimizer.param_groups[0]["lr"], **self.objective.metrics(self.model),
            "samples_per_s": round(rate, 1),
        }
        return line | ({f"loss_{name}": value for name, value in parts.items()} if len(parts) > 1 else {})

    def _identity(self) -> dict[str, Any]:
        full = self.config.model_dump(mode="json")
        # the dataset may have moved, but it must be the same
        return {name: value for name, value in full.items() if name not in FREE_ON_RESUME} | {"dataset": self.data}

    def _save(self) -> None:
        if dist.rank() == 0:
            rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
            state = {
                "step": self.step, "position": asdict(self.position), "config": json.dumps(self._identity()),
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": rng,
            }
            checkpoint.save(self.out / "checkpoints", self.step, state, self.config.keep)
        dist.barrier()

    def _restore(self) -> None:
        state = checkpoint.load_latest(self.out / "checkpoints")
        if state is None:
            if dist.rank() == 0:
                self.out.mkdir(parents=True, exist_ok=True)
                text = json.dumps(self.config.model_dump(mode="json"), indent=2) + "\n"
                (self.out / "config.json").write_text(text, encoding="utf-8")
            dist.barrier()
            return
        saved, now = json.loads(state["config"]), self._identity()
        differing = sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
        if differing:
            told = "; ".join(f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in differing)
            raise TrainError(
                f"{self.out} holds checkpoints of another training ({told}): use another folder, or remove it"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.position = state["step"], Position(**state["position"])
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and len(state["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

    def _record_losses(self) -> None:
        """Each rank measures its share of the set."""
        self.model.eval()

        def measure(tensors: Batch) -> torch.Tensor:
            batch = {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}
            with self._autocast():
                return self.objective.row_losses(self.model, normalise(batch, self.preprocess.mean, self.preprocess.std))

        batches = self.loader.once(self.config.batch_size, dist.rank(), dist.world_size())
        record_losses(batches, measure, self.out, dist.rank())

    def _export(self) -> str:
        return self.objective.export(self.model, self.preprocess, self.out / "export")


def _micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """The batch in `count` parts along its rows."""
    if count == 1:
        yield batch
        return
    parts = {name: value.chunk(count) for name, value in batch.items()}
    for i in range(count):
        yield {name: chunks[i] for name, chunks in parts.items()}
