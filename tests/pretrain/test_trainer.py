"""The loop: resume, checks, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages.models.open_clip_loader import load_clip
from stages.pretrain import checkpoint
from stages.pretrain.config import TrainConfig, resolve_model
from stages.pretrain.data import ArraySamples, ShardDataset
from stages.pretrain.draws import generator
from stages.pretrain.errors import TrainError
from stages.pretrain.images import ArrayImage, eval_view, train_view
from stages.pretrain.objectives.base import TINY_CLIP, Objective, normalise
from stages.pretrain.trainer import train


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "open_clip_model.safetensors")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_writes_its_folder_and_learns(tiny_config, tmp_path: Path) -> None:
    config = tiny_config(steps=40, lr=3e-3, warmup=4)
    result = train(config, tmp_path)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == list(range(1, 41))
    assert set(log[0]) == {"step", "epoch", "loss", "lr", "logit_scale", "samples_per_s"}
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.8 * log[0]["loss"]
    assert [line["epoch"] for line in log] == [step // 3 for step in range(40)]
    assert TrainConfig(**json.loads((tmp_path / "config.json").read_text())) == config
    assert (result.steps, result.resumed_from, result.epochs) == (40, 0, pytest.approx(40 / 3))


def test_same_seed_gives_the_same_bits_and_another_does_not(tiny_config, tmp_path: Path) -> None:
    digests = [train(tiny_config(seed=seed), tmp_path / name).weights_digest
               for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert digests[0] == digests[1] != digests[2]


def test_workers_do_not_change_the_weights(tiny_config, tmp_path: Path) -> None:
    digests = {train(tiny_config(workers=workers), tmp_path / str(workers)).weights_digest for workers in (0, 1, 3)}
    assert len(digests) == 1


SLOW_TRAINING = """
import sys, time
from pathlib import Path
from stages.pretrain.config import TrainConfig
from stages.pretrain.trainer import train
train(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), on_step=lambda step, line: time.sleep(0.2))
"""


def test_killed_and_resumed_run_ends_in_the_same_bits(tiny_config, tmp_path: Path) -> None:
    config = tiny_config(steps=14, checkpoint_every=4, objective_params={"text": "random"})
    unbroken = train(config, tmp_path / "unbroken")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_TRAINING, config.model_dump_json(), str(tmp_path / "killed")],
        cwd=Path(__file__).parents[2],
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.is_file() or len(metrics.read_text().splitlines()) < 10):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # after step 10 or so, two steps or more past the checkpoint of step 8
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.steps_saved(tmp_path / "killed" / "checkpoints") == [4, 8]
    resumed = train(config, tmp_path / "killed")
    assert resumed.resumed_from == 8
    assert resumed.weights_digest == unbroken.weights_digest
    killed, whole = lines(tmp_path / "killed"), lines(tmp_path / "unbroken")
    assert [{**line, "samples_per_s": 0} for line in killed] == [{**line, "samples_per_s": 0} for line in whole]


def test_finished_run_is_not_trained_again(tiny_config, tmp_path: Path) -> None:
    first = train(tiny_config(), tmp_path)
    again = train(tiny_config(), tmp_path)
    assert (again.resumed_from, again.weights_digest, again.loss) == (6, first.weights_digest, first.loss)
    assert len(lines(tmp_path)) == 6


def test_half_written_checkpoint_is_ignored_and_removed(tiny_config, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path)
    half = tmp_path / "checkpoints" / ".step-000099.77"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path / "checkpoints")["step"] == 6
    assert not half.exists()


def test_only_the_latest_checkpoints_are_kept(tiny_config, tmp_path: Path) -> None:
    train(tiny_config(steps=7, checkpoint_every=2, keep=2), tmp_path)
    assert checkpoint.steps_saved(tmp_path / "checkpoints") == [6, 7]


def test_other_options_in_the_same_folder_are_refused(tiny_config, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path)
    with pytest.raises(TrainError, match=r"another training \(lr was 0.0005, is 0.001\)"):
        train(tiny_config(lr=1e-3), tmp_path)
    assert train(tiny_config(workers=0, log_every=3), tmp_path).resumed_from == 6


def test_checkpoints_go_with_their_dataset_not_with_its_path(write_dataset, tiny_config, tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "first")
    train(tiny_config(dataset=str(first)), tmp_path / "out")
    moved = first.rename(tmp_path / "moved")
    assert train(tiny_config(dataset=str(moved)), tmp_path / "out").resumed_from == 6
    other = write_dataset(tmp_path / "other", samples=16)
    with pytest.raises(TrainError, match="another training .dataset was"):
        train(tiny_config(dataset=str(other)), tmp_path / "out")


def test_loss_that_is_not_finite_names_step_and_samples(tiny_config, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"step [23]: not finite .*samples of this rank: [0-9a-f]{32}"):
        train(tiny_config(lr=1e30, warmup=0), tmp_path)


def test_gradient_is_clipped_to_the_norm(tiny_config, tmp_path: Path) -> None:
    # with plain steps bounded by lr, AdamW hides the norm; a clip to almost zero stops all learning but decay
    train(tiny_config(grad_clip=1e-20, weight_decay=0.0, eps=1.0, steps=2), tmp_path / "clipped")
    train(tiny_config(weight_decay=0.0, eps=1.0, steps=2), tmp_path / "free")
    torch.manual_seed(0)
    from stages.pretrain.objectives import make_objective
    start = make_objective("clip").build(TINY_CLIP).clip.state_dict()
    assert torch.equal(weights(tmp_path / "clipped")["text_projection"], start["text_projection"])
    assert not torch.equal(weights(tmp_path / "free")["text_projection"], start["text_projection"])


def test_accumulation_is_refused_by_train(tiny_config, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="option accumulate"):
        train(tiny_config(accumulate=2), tmp_path)


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_export_loads_in_open_clip_with_equal_embeddings(tiny_config, tmp_path: Path, objective: str) -> None:
    train(tiny_config(objective=objective), tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'export'}")
    model.eval()
    mine = load_clip(str(tmp_path / "export"))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    view = torch.from_numpy(eval_view(ArrayImage(pixels), mine.preprocess.size).copy())[None]
    ready = normalise({"images": view}, mine.preprocess.mean, mine.preprocess.std)["images"]
    torch.testing.assert_close(ready[0], preprocess(Image.fromarray(pixels)), atol=1e-6, rtol=0)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")(["a red square", "blue"])
    assert torch.equal(theirs, mine.tokenizer(["a red square", "blue"]))
    assert torch.equal(model.encode_image(ready), mine.model.encode_image(ready))
    assert torch.equal(model.encode_text(theirs), mine.model.encode_text(theirs))
    assert (model.logit_bias is None) == (objective == "clip")


def test_training_may_start_from_an_export(tiny_config, tmp_path: Path) -> None:
    first = train(tiny_config(), tmp_path / "first")
    train(tiny_config(init=first.export, lr=1e-12, weight_decay=0.0), tmp_path / "second")
    for name, tensor in weights(tmp_path / "first").items():
        torch.testing.assert_close(weights(tmp_path / "second")[name], tensor, atol=1e-6, rtol=0)
    wider = {**TINY_CLIP, "embed_dim": 24}
    with pytest.raises(TrainError, match="option init.*do not fit"):
        train(tiny_config(init=first.export, model=wider), tmp_path / "third")


def test_samples_in_memory_train_like_shards(tiny_config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = ArraySamples(rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), [[f"text {i}"] for i in range(16)],
                           [str(i) for i in range(16)])
    seen = []
    result = train(tiny_config(dataset="", steps=3), tmp_path, lambda step, line: seen.append(step), samples)
    assert seen == [1, 2, 3] and result.steps == 3
    with pytest.raises(TrainError, match="option dataset"):
        train(tiny_config(dataset=""), tmp_path / "none")


def test_model_option_takes_names_files_and_configs(tmp_path: Path) -> None:
    assert resolve_model(TINY_CLIP) == (TINY_CLIP, {})
    assert resolve_model("ViT-B-32")[0]["embed_dim"] == 512
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {"mean": [0, 0, 0]}}))
    assert resolve_model(str(path)) == (TINY_CLIP, {"mean": [0, 0, 0]})
    with pytest.raises(TrainError, match="Did you mean 'ViT-B-32'"):
        resolve_model("ViT-B-3")
    with pytest.raises(TrainError, match="cannot read the config"):
        resolve_model(str(tmp_path / "absent.json"))


def test_trainer_imports_neither_ray_nor_the_pipeline() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import stages.pretrain.trainer, stages.pretrain.evaluate, stages.models.open_clip_loader\n"
        "assert not [name for name in sys.modules if name == 'pipeline' or name.startswith('pipeline.')]"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.gpu
def test_training_on_a_gpu_in_bf16_learns(tiny_config, tmp_path: Path) -> None:
    train(tiny_config(steps=40, lr=3e-3, warmup=4, device="auto"), tmp_path)
    log = lines(tmp_path)
    assert np.mean([line["loss"] for line in log[-5:]]) < 0.8 * log[0]["loss"]


def test_losses_of_all_samples_are_those_of_loops_and_leave_the_training_as_it_is(tiny_config, tmp_path: Path) -> None:
    """24 samples in batches of 10: the last batch of four is filled up with the first six, whose losses are not told twice."""
    plain = train(tiny_config(batch_size=10), tmp_path / "plain")
    config = tiny_config(batch_size=10, record_losses=True)
    found = train(config, tmp_path / "run")
    assert found.weights_digest == plain.weights_digest and not (tmp_path / "plain" / "losses").exists()
    table = pq.read_table(tmp_path / "run" / "losses")
    data = ShardDataset(config.dataset)
    assert sorted(table["key"].to_pylist()) == sorted(data.key(i) for i in range(24))
    clip = load_clip(str(tmp_path / "run" / "export"))
    order = [{data.key(i): i for i in range(24)}[key] for key in table["key"].to_pylist()]
    told = iter(table["loss"].to_pylist())
    for first in (0, 10, 20):
        own = order[first : first + 10]
        rows = own + order[: 10 - len(own)]
        views = [train_view(data.image(i), 16, generator(0, 0, data.key(i), "crop:train"), (0.9, 1.0)) for i in rows]
        pixels = normalise({"images": torch.from_numpy(np.stack(views))}, clip.preprocess.mean, clip.preprocess.std)["images"]
        with torch.no_grad():
            image = torch.nn.functional.normalize(clip.model.encode_image(pixels), dim=-1).double().numpy()
            text = torch.nn.functional.normalize(clip.model.encode_text(clip.tokenizer([data.caption(i) for i in rows])), dim=-1).double().numpy()
            scale = float(clip.model.logit_scale.exp())
        for at in range(len(own)):
            across = [scale * sum(a * b for a, b in zip(image[at], text[other], strict=True)) for other in range(10)]
            down = [scale * sum(a * b for a, b in zip(image[other], text[at], strict=True)) for other in range(10)]
            wanted = sum(np.log(np.sum(np.exp(logits))) - logits[at] for logits in (across, down)) / 2
            assert next(told) == pytest.approx(wanted, abs=2e-4)


def test_losses_are_recorded_of_a_training_that_had_ended_and_refused_where_a_row_has_none(tiny_config, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path / "run")
    again = train(tiny_config(record_losses=True), tmp_path / "run")
    assert again.resumed_from == again.steps and pq.read_table(tmp_path / "run" / "losses").num_rows == 24
    with pytest.raises(TrainError, match="Toy has no loss per sample"):
        type("Toy", (Objective,), {"collate": None, "losses": None})(Objective.Config()).row_losses(None, {})
