"""Optimizers and schedules: what Muon moves and how, that it resumes in the same bits, and the linear decay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from stages.pretrain.config import TrainConfig
from stages.pretrain.nets.mllm import build_mllm
from stages.pretrain.objectives.mllm import TINY_MLLM
from stages.pretrain.optim import hidden_matrices, learning_rate, make_optimizer
from stages.pretrain.trainer import train


def test_muon_moves_matrices_between_embeddings_and_heads() -> None:
    model = build_mllm({**TINY_MLLM, "image_heads": {"color": 3}, "claim_head": True})
    chosen = {id(parameter) for parameter in hidden_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    assert any(name.endswith("q_proj.weight") for name in names) and any(".visual." in name for name in names)
    assert not any("embed" in name or "head" in name or name.endswith("bias") or "norm" in name for name in names)


def test_a_step_of_muon_is_orthogonal_and_scaled_like_adamw() -> None:
    """All singular values of the first step are alike (five Newton-Schulz rounds leave them between 0.5 and 1.5 of each other's mean),
    and its root mean square is about 0.2 of the rate; what AdamW moves has the rate of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96))
    before = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    optimizer = make_optimizer(model, TrainConfig(model="x", steps=10, batch_size=2, lr=0.1, other_lr=0.02, weight_decay=0, optimizer="muon"))
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group.get("rate_share", 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    step = model[0].weight.detach() - before[0]
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.5 * values.mean() and values.max() < 1.5 * values.mean()
    assert 0.1 < step.square().mean().sqrt() / 0.1 < 0.3
    assert (model[0].bias.detach() - before[1]).abs().max() == pytest.approx(0.02, rel=1e-3)


def test_a_training_with_muon_resumes_in_the_same_bits(tiny_config, tmp_path: Path) -> None:
    config = tiny_config(steps=6, checkpoint_every=3, optimizer="muon", keep=2)
    whole = train(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000006")
    shutil.rmtree(tmp_path / "export")
    resumed = train(config, tmp_path)
    assert (resumed.resumed_from, resumed.weights_digest) == (3, whole.weights_digest)


def test_linear_decay_is_constant_first() -> None:
    config = TrainConfig(model="x", steps=110, batch_size=2, lr=1.0, warmup=10, decay="linear", decay_share=0.25)
    rates = [learning_rate(step, config) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:86]) == {1.0} and rates[86:] == pytest.approx([(110 - step) / 25 for step in range(86, 110)])
