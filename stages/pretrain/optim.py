"""Optimizers with their parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from stages.pretrain.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two AdamW groups: matrices and kernels decay, vectors and scalars do not.

    Biases, the gains of all norms, the class embedding and the logit scale and bias have fewer than two dimensions:
    the rule that open_clip applies (CLIP, section 2.5: decay 'on all weights that are not gains or biases').
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
    ]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers between the first and the last: no embedding, no kernel, nothing that is called a head."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = []
    for name, module in model.named_modules():
        is_head = any(part.endswith(("head", "heads")) for part in name.split("."))
        if isinstance(module, nn.Linear) and not is_head and module.weight.requires_grad and id(module.weight) not in embeddings:
            found.append(module.weight)
    return found


class MuonAndAdamW:
    """Muon for hidden matrices, AdamW for the rest; to the training loop one optimizer.

    Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982, whose scaling to AdamW's size of step is used) moves each
    matrix by its momentum made orthogonal, which takes small models to the same loss in about half the samples.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        matrices = hidden_matrices(model)
        taken = {id(parameter) for parameter in matrices}
        groups = parameter_groups(model, config.weight_decay)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in taken]  # type: ignore[attr-defined]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=config.lr, momentum=0.95, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True),
        ]
        for group in self._parts[1].param_groups:
            group["rate_share"] = config.other_lr / config.lr if config.other_lr else 1.0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW | MuonAndAdamW:
    """The optimizer that the config names."""
    if config.optimizer == "muon":
        return MuonAndAdamW(model, config)
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up to `lr`, then what `decay` says, as a share of the steps behind the warm-up.

    cosine: half a cosine to zero, as in open_clip. linear: constant, then linearly to zero over the last `decay_share`.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    if config.decay == "linear":
        return config.lr * min(1.0, (1 - progress) / config.decay_share)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
