"""Losses against loops in float64, and the contract of objectives."""

from __future__ import annotations

import math

import pytest
import torch

from stages.pretrain.config import TrainConfig
from stages.pretrain.errors import TrainError
from stages.pretrain.nets.towers import ClipTowers, TowerOutput, build_clip
from stages.pretrain.objectives import make_objective, names
from stages.pretrain.objectives.base import TINY_CLIP, Objective
from stages.pretrain.optim import learning_rate, parameter_groups
from stages.pretrain.trainer import check_accumulation


class FixedTowers(torch.nn.Module):
    """Towers that return given embeddings, so that a loss can be worked out by hand."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor, scale: float, bias: float | None = None) -> None:
        super().__init__()
        self.images, self.texts = images, texts
        self.scale, self.bias = torch.tensor(scale), None if bias is None else torch.tensor(bias)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> TowerOutput:
        return TowerOutput(self.images, self.texts, self.scale, self.bias)


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def clip_by_loops(similarity: list[list[float]], scale: float) -> float:
    """CLIP's loss from a square table of cosines (arXiv 2103.00020, figure 3), one number at a time."""
    count = len(similarity)
    total = 0.0
    for i in range(count):
        row = [scale * similarity[i][j] for j in range(count)]
        column = [scale * similarity[j][i] for j in range(count)]
        for logits in (row, column):
            total += math.log(sum(math.exp(value - max(logits)) for value in logits)) + max(logits) - logits[i]
    return total / (2 * count)


def siglip_by_loops(similarity: list[list[float]], scale: float, bias: float) -> float:
    """SigLIP's loss (arXiv 2303.15343, section 3.2, equation 1)."""
    count, total = len(similarity), 0.0
    for i in range(count):
        for j in range(count):
            sign = 1.0 if i == j else -1.0
            total += math.log1p(math.exp(-sign * (scale * similarity[i][j] + bias)))
    return total / count


EMPTY = {"images": torch.zeros(1), "tokens": torch.zeros(1)}


def test_clip_loss_equals_loops() -> None:
    images, texts = unit_rows(7, 5, 0), unit_rows(7, 5, 1)
    loss = make_objective("clip").losses(FixedTowers(images, texts, 14.3), EMPTY)
    expected = clip_by_loops((images @ texts.T).tolist(), 14.3)
    assert sum(loss.values()).item() == pytest.approx(expected, rel=1e-6)


def test_clip_loss_of_the_worked_example() -> None:
    # similarities [[0.3, 0.1], [0, 0.2]] at temperature 0.07: image side 0.055844, text side 0.114250
    images = torch.eye(2, dtype=torch.float64)
    texts = torch.tensor([[0.3, 0.0], [0.1, 0.2]], dtype=torch.float64)
    loss = make_objective("clip").losses(FixedTowers(images, texts, 1 / 0.07), EMPTY)["contrastive"]
    assert loss.item() == pytest.approx(0.085047, abs=1e-6)


def test_siglip_loss_equals_loops() -> None:
    images, texts = unit_rows(6, 4, 2), unit_rows(6, 4, 3)
    loss = make_objective("siglip").losses(FixedTowers(images, texts, 10.0, -10.0), EMPTY)
    expected = siglip_by_loops((images @ texts.T).tolist(), 10.0, -10.0)
    assert sum(loss.values()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", names())
def test_tiny_model_learns_its_batch(name: str) -> None:
    torch.manual_seed(0)
    objective = make_objective(name)
    model, batch = objective.tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = sum(objective.losses(model, batch).values()).item()
    for _ in range(30):
        optimizer.zero_grad()
        sum(objective.losses(model, batch).values()).backward()
        optimizer.step()
        objective.after_step(model)
    assert sum(objective.losses(model, batch).values()).item() < 0.7 * first
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_untrained_clip_starts_near_log_of_batch() -> None:
    torch.manual_seed(0)
    objective = make_objective("clip")
    model, batch = objective.tiny()
    with torch.no_grad():
        model.clip.logit_scale.zero_()
        assert objective.losses(model, batch)["contrastive"].item() == pytest.approx(math.log(8), abs=0.6)


def test_siglip_starts_at_the_papers_scale_and_bias() -> None:
    clip = make_objective("siglip").build(TINY_CLIP).clip
    assert clip.logit_scale.exp().item() == pytest.approx(10.0)
    assert clip.logit_bias.item() == -10.0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_logit_scale_stays_between_1_and_100(name: str) -> None:
    objective = make_objective(name)
    model, _ = objective.tiny()
    for value, expected in ((7.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2.0))):
        torch.nn.init.constant_(model.clip.logit_scale, value)
        objective.after_step(model)
        assert model.clip.logit_scale.exp().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_contrastive_objectives_refuse_accumulation(name: str) -> None:
    with pytest.raises(TrainError, match="accumulate: 2 micro-batches.*Use accumulate 1"):
        check_accumulation(make_objective(name), 2)
    check_accumulation(make_objective(name), 1)


def test_splittable_objective_may_accumulate() -> None:
    class Splittable(Objective):
        splittable = True

        def collate(self, samples, tokenize):
            return {}

        def losses(self, model, batch):
            return {}

    check_accumulation(Splittable(Splittable.Config()), 4)


def test_unknown_objective_and_parameter_are_named() -> None:
    with pytest.raises(TrainError, match="unknown objective 'siglp'; did you mean 'siglip'"):
        make_objective("siglp")
    with pytest.raises(TrainError, match="txt"):
        make_objective("clip", {"txt": "caption"})


@pytest.mark.parametrize("layers", [1, [1, 1, 1, 1]])
def test_decay_only_on_matrices_and_kernels(layers: object) -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": layers, "head_width": 16}
    model = ClipTowers(build_clip({**TINY_CLIP, "vision_cfg": vision}), TINY_CLIP)
    plain, decayed = parameter_groups(model, 0.2)
    group = {id(p): "decayed" for p in decayed["params"]} | {id(p): "plain" for p in plain["params"]}
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.2)
    for name, parameter in model.named_parameters():
        # open_clip's rule, by name
        exempt = any(part in name for part in (".ln_", "bn", "bias", "logit_scale")) or parameter.ndim < 2
        assert group[id(parameter)] == ("plain" if exempt else "decayed"), name
    assert len(group) == len(list(model.parameters()))


def test_warm_up_and_cosine() -> None:
    config = TrainConfig(model=TINY_CLIP, steps=110, batch_size=2, warmup=10, lr=1.0)
    assert [learning_rate(step, config) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(60, config) == pytest.approx(0.5)
    assert learning_rate(109, config) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_towers_equal_open_clip_whatever_the_padding() -> None:
    torch.manual_seed(0)
    model, batch = make_objective("clip").tiny()
    model.eval()
    tokens = batch["tokens"].clone()
    tokens[:4, 2] = tokens.max()  # end tokens at different places
    tokens[:4, 3:] = 0
    tokens[0, 1] = 0  # a lone '!' has the id of padding
    out = model(batch["images"], tokens)
    torch.testing.assert_close(out.image_global, model.clip.encode_image(batch["images"], normalize=True))
    expected = model.clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(out.text_global, expected)
    full = model(batch["images"], tokens, with_tokens=True)
    torch.testing.assert_close(full.text_global, expected)
    assert full.image_tokens.shape == (8, 4, 16) and full.text_tokens.shape[:2] == full.text_mask.shape
    assert full.text_mask[0].tolist()[:4] == [True, True, True, False]


def test_build_refuses_what_is_no_pair_of_towers() -> None:
    with pytest.raises(TrainError, match="lacks text_cfg"):
        build_clip({"embed_dim": 8, "vision_cfg": {}})
    with pytest.raises(TrainError, match="CoCa"):
        build_clip({**TINY_CLIP, "multimodal_cfg": {}})
    with pytest.raises(TrainError, match="widht"):
        build_clip({**TINY_CLIP, "vision_cfg": {"widht": 8}})


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_losses_of_rows_average_to_the_loss_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    objective = make_objective(name, {})
    model, batch = objective.tiny()
    with torch.no_grad():
        rows = objective.row_losses(model, batch)
        [whole] = objective.losses(model, batch).values()
    assert rows.shape == (8,) and float(rows.mean()) == pytest.approx(float(whole), rel=1e-5)
    assert len(set(rows.tolist())) == 8
