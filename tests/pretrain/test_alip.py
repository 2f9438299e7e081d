"""ALIP: losses and running means against scalar loops, and its acceptance on scenes of the rendered world."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.demo import answers
from stages.demo.captions import caption_for
from stages.demo.scenes import draw_scene, render
from stages.demo.streams import seed_for
from stages.models.open_clip_loader import load_clip
from stages.pretrain.config import TrainConfig
from stages.pretrain.data import ArraySamples
from stages.pretrain.loader import Views, read_sample
from stages.pretrain.nets.towers import TowerOutput
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.alip import AlipObjective, AlipTowers, similarities, weigh
from stages.pretrain.objectives.base import Sample, normalise
from stages.pretrain.trainer import train

SCALE = 9.0


class FixedTowers(torch.nn.Module):
    """Towers that return what they are given as images and texts, with running means as ALIP keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("history", torch.ones(3, dtype=torch.float64))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> TowerOutput:
        return TowerOutput(images, tokens, torch.tensor(SCALE, dtype=torch.float64), None)


def unit_rows(rng: np.random.Generator, count: int, width: int) -> torch.Tensor:
    rows = torch.from_numpy(rng.standard_normal((count, width)))
    return rows / rows.norm(dim=1, keepdim=True)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cross_entropy(logits: list[float], own: int) -> float:
    most = max(logits)
    return most + math.log(sum(math.exp(value - most) for value in logits)) - logits[own]


def replay(image: list[list[float]], text: list[list[float]], caption: list[list[float]], history: list[float]) -> tuple[float, float]:
    """Both losses of a batch by scalar loops; `history` (text-caption, image-text, image-caption) moves in place."""
    count = len(image)
    rows = [(dot(t, c), dot(x, t), dot(x, c)) for x, t, c in zip(image, text, caption, strict=True)]
    for place in range(3):
        history[place] = 0.99 * history[place] + 0.01 * sum(row[place] for row in rows) / count
    losses = [0.0, 0.0]
    for i, (s_tc, s_xt, s_xc) in enumerate(rows):
        raw = math.exp(2 * (s_tc - history[0]))
        sample = min(raw, 1.0)
        pair = [math.exp(2 * (s_xt - history[1])), math.exp(2 * (s_xc - history[2]))] if raw < 1 else [1.0, 1.0]
        for place, other in enumerate((text, caption)):
            to_text = cross_entropy([SCALE * dot(image[i], one) for one in other], i)
            to_image = cross_entropy([SCALE * dot(other[i], one) for one in image], i)
            losses[place] += sample * pair[place] * (to_text + to_image) / 2 / count
    return losses[0], losses[1]


def test_fifty_batches_equal_a_scalar_replay_of_running_means_and_weights() -> None:
    rng, objective, towers, history = np.random.default_rng(0), make_objective("alip"), FixedTowers(), [1.0, 1.0, 1.0]
    for _ in range(50):
        image, noise = unit_rows(rng, 6, 8), unit_rows(rng, 12, 8)
        # every second row's caption agrees with its text, so that both sides of the raw weight's edge occur
        text, other = image + noise[:6], noise[6:]
        text = text / text.norm(dim=1, keepdim=True)
        other[::2] = text[::2]
        found = objective.losses(towers, {"images": image, "tokens": text, "caption_tokens": other})
        expected = replay(image.tolist(), text.tolist(), other.tolist(), history)
        assert [found["raw_text"].item(), found["caption"].item()] == pytest.approx(expected, rel=1e-12)
        assert towers.history.tolist() == pytest.approx(history, rel=1e-12)


def test_equal_text_and_caption_weigh_one_and_give_clips_loss_twice() -> None:
    rng, towers = np.random.default_rng(1), FixedTowers()
    image, text = unit_rows(rng, 7, 5), unit_rows(rng, 7, 5)
    weights = weigh(similarities(image, text, text), towers.history, 2.0, 2.0)
    for weight in (weights.sample, weights.text, weights.caption):
        torch.testing.assert_close(weight, torch.ones(7, dtype=torch.float64), atol=1e-12, rtol=0)
    found = make_objective("alip").losses(towers, {"images": image, "tokens": text, "caption_tokens": text})
    clip = make_objective("clip").losses(towers, {"images": image, "tokens": text})["contrastive"]
    assert sum(found.values()).item() == pytest.approx(2 * clip.item(), rel=1e-6)


def test_running_means_rest_while_a_model_is_evaluated_and_no_gradient_reaches_a_weight() -> None:
    torch.manual_seed(0)
    objective = make_objective("alip")
    model, batch = objective.tiny()
    before = model.history.clone()
    objective.losses(model.eval(), batch)
    assert torch.equal(model.history, before)
    objective.losses(model.train(), batch)
    assert not torch.equal(model.history, before) and not objective.weights(model, batch).text.requires_grad


def test_each_sample_gives_its_alt_text_and_one_of_the_captions_asked_for() -> None:
    def sample(texts: list[str], kinds: list[str]) -> Sample:
        return Sample(key="a", views={"train": np.zeros((4, 4, 3), np.uint8)}, caption=texts[0], texts=texts, kinds=kinds, epoch=0, seed=0)

    def seen(texts: list[str], kinds: list[str], **params) -> tuple[str, str]:
        read: list[str] = []
        make_objective("alip", params).collate([sample(texts, kinds)], lambda some: read.extend(some) or torch.zeros(len(some), 1))
        return read[0], read[1]

    three = (["long", "raw", "short"], ["caption_dense", "alt_text", "caption_short"])
    assert seen(*three, captions=["caption_short"]) == ("raw", "short")
    assert seen(*three)[1] in ("long", "short")
    assert seen(["raw"], ["alt_text"]) == ("raw", "raw") and seen(["short"], ["caption_short"]) == ("short", "short")


class TwoTexts(ArraySamples):
    """Alt-text and caption of each image."""

    def kinds(self, index: int) -> list[str]:
        return ["alt_text", "caption_short"]


MODEL = {
    "embed_dim": 32, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}  # fmt: skip


def scenes_with_texts(stream: str, count: int, shuffled: float) -> tuple[TwoTexts, np.ndarray]:
    """Scenes with a noisy alt-text, which in a share of rows is that of another scene, and a short true caption; the rows that were shuffled."""
    scenes = [draw_scene(seed_for(stream, 500_000 + place)) for place in range(count)]
    raw, wrong = [caption_for(scene) for scene in scenes], np.zeros(count, bool)
    chosen = np.random.default_rng(5).permutation(count)[: round(shuffled * count)]
    for place, donor in zip(chosen, np.roll(chosen, 1), strict=True):
        raw[place] = caption_for(scenes[donor])
    wrong[chosen] = True
    images = np.stack([render(scene, 48) for scene in scenes])
    texts = [[text, answers.short_caption(scene)] for text, scene in zip(raw, scenes, strict=True)]
    return TwoTexts(images, texts, [f"{stream}:{place}" for place in range(count)]), wrong


def trained(samples: TwoTexts, out: Path, **params) -> tuple[AlipObjective, AlipTowers]:
    options = {"steps": 200, "batch_size": 32, "lr": 2e-3, "warmup": 20, "threads": 1, "log_every": 50, "checkpoint_every": 200}
    config = TrainConfig(model=MODEL, objective="alip", objective_params=params, **options)
    train(config, out, samples=samples)
    objective = make_objective("alip", params)
    model = objective.build(MODEL)
    model.load_state_dict(torch.load(next((out / "checkpoints").glob("step-*/state.pt")), weights_only=False)["model"])
    return objective, model.eval()


def test_alip_acceptance_after_200_steps_shuffled_texts_weigh_less(tmp_path: Path) -> None:
    samples, wrong = scenes_with_texts("train", 800, 0.3)
    objective, model = trained(samples, tmp_path / "alip")
    clip = load_clip(str(tmp_path / "alip" / "export"))
    views = Views(clip.preprocess.size)
    read = [read_sample(samples, place, 0, 0, objective.needs, views) for place in range(len(samples))]
    products = []
    for first in range(0, len(read), 100):
        batch = normalise(objective.collate(read[first:first + 100], clip.tokenizer), clip.preprocess.mean, clip.preprocess.std)
        weights = objective.weights(model, batch)
        products.append(weights.sample * weights.text)
    product = torch.cat(products).numpy()
    assert product[wrong].mean() < 0.9 * product[~wrong].mean()
