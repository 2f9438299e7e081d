"""MacCap: its acceptance in a toy joint space, losses against loops, and a captioner from training to the captions of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.recipe import build_recipe
from schemas.outcome import Failure, FailureCode
from stages.demo.scenes import draw_scene, render
from stages.demo.streams import seed_for
from stages.models import maccap
from stages.models.open_clip_loader import load_clip
from stages.models.protocols import ChatRequest, Sampling, image_digest
from stages.models.sub_regions import sub_regions
from stages.pretrain.config import TrainConfig
from stages.pretrain.data import ArraySamples
from stages.pretrain.errors import TrainError
from stages.pretrain.nets.text_captioner import IGNORED, CaptionerConfig, LanguageModelConfig, TextCaptioner, build_captioner, language_model, with_noise
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.maccap import TINY_CAPTIONER, VARIANCE
from stages.pretrain.trainer import train

COLORS = ("red", "blue", "green", "pink", "white", "black", "brown", "cyan")
SHAPES = ("circle", "square", "star", "heart", "ring", "cross", "box", "disc")
TEXTS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
LM = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
      "max_position_embeddings": 32, "dropout": 0.0}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text(" ".join(("a", *COLORS, *SHAPES)))
    return str(path)


def toy_space() -> torch.Tensor:
    """Embeddings of the texts, [64, 16]: a direction for each colour and each shape."""
    colors, shapes = torch.randn(8, 16), torch.randn(8, 16)
    return F.normalize((colors[:, None] + shapes[None]).reshape(64, 16), dim=-1)


def toy_decoder(words: str, seed: int, variance: float) -> float:
    """Share of colours and shapes that a decoder, trained with so much noise, tells from embeddings of images (text plus Gaussian)."""
    torch.manual_seed(seed)
    lm, tokenizer = language_model(LanguageModelConfig(vocabulary=words, config=LM))
    config = CaptionerConfig(clip="none", lm=LanguageModelConfig(vocabulary=words, config=LM), regions=1, queries=4, heads=4)
    model = TextCaptioner(16, config, lm, tokenizer)
    texts, tokens = toy_space()[:, None], model.encode(TEXTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(500):
        optimizer.zero_grad()
        model.row_losses(with_noise(texts, variance, torch.randn_like(texts)), tokens).mean().backward()
        optimizer.step()
    images = with_noise(texts.repeat(16, 1, 1), VARIANCE, torch.randn(1024, 1, 16))
    with torch.no_grad():
        right = model.logits(images, tokens.repeat(16, 1)).argmax(-1) == tokens.repeat(16, 1)
    return float(right[:, 1:3].float().mean())


def test_a_decoder_trained_with_noise_reads_images_better_than_one_without(words: str) -> None:
    assert toy_decoder(words, 0, VARIANCE) > toy_decoder(words, 0, 0.0) + 0.1


@pytest.mark.parametrize("name", ["rendered_clip", "ViT-S-32-alt:random"])
def test_sub_regions_are_the_patches_weighted_by_their_centres_attention(name: str) -> None:
    visual = load_clip(name).model.visual
    side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, everywhere = sub_regions(visual, images, 3), sub_regions(visual, images, 10**6)
        torch.testing.assert_close(found.image, F.normalize(visual(images), dim=-1), rtol=1e-4, atol=1e-5)
    assert found.regions.shape[1] == 3 and found.weights.min() >= 0
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3, 3))
    torch.testing.assert_close(found.regions.norm(dim=-1), torch.ones(3, 3))
    torch.testing.assert_close(everywhere.regions[:, :3], found.regions)  # the most looked at come first
    assert everywhere.weights.shape[1] == everywhere.weights.shape[2]


def test_the_last_blocks_attention_is_that_which_makes_its_output() -> None:
    visual = load_clip("ViT-S-32-alt:random").model.visual
    block, (height, width) = visual.transformer.resblocks[-1], visual.image_size
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Any] = {}
    hook = block.attn.register_forward_hook(lambda _, given, options, out: seen.update(x=(given or (options["query"],))[0], out=out[0]), with_kwargs=True)
    with torch.no_grad():
        found = sub_regions(visual, images, 10**6)
    hook.remove()
    x, attn = seen["x"], block.attn
    q, k, _ = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    each = x.shape[-1] // attn.num_heads
    q, k = (part.reshape(*part.shape[:2], attn.num_heads, each).transpose(1, 2) for part in (q, k))
    shares = (q @ k.transpose(-1, -2) * each**-0.5).softmax(-1).mean(1)
    first = int(shares[0, 0, 1:].argmax())
    row = shares[0, 1 + first, 1:]
    torch.testing.assert_close(found.weights[0, 0], row / row.sum(), rtol=1e-3, atol=1e-5)


def test_losses_of_rows_equal_loops() -> None:
    torch.manual_seed(0)
    objective = make_objective("maccap", {"variance": 0.0})
    model, batch = objective.tiny()
    model.eval()
    with torch.no_grad():
        rows = objective.row_losses(model, batch)
        text = objective._clip.model.encode_text(batch["clip_tokens"], normalize=True)
        for row in range(2):
            tokens = [token for token in batch["tokens"][row].tolist() if token != IGNORED]
            total = 0.0
            for place, token in enumerate(tokens):  # each token by the prefix and the tokens before it alone
                before = model.prefix(text[row : row + 1, None].expand(-1, 4, -1))
                given = model.lm.get_input_embeddings()(torch.tensor([tokens[:place]], dtype=torch.int64))
                logits = model.lm(inputs_embeds=torch.cat([before, given], dim=1)).logits[0, -1].double()
                total += math.log(float((logits - logits.max()).exp().sum())) - float(logits[token] - logits.max())
            assert float(rows[row]) == pytest.approx(total / len(tokens), rel=1e-4)


def test_noise_has_the_variance_and_leaves_unit_length() -> None:
    plain = F.normalize(torch.randn(400, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    noisy = with_noise(plain, 0.016, torch.randn(400, 512, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(noisy.norm(dim=-1), torch.ones(400))
    # the cosine of a unit vector and itself plus noise of squared length 512 * 0.016
    assert float((plain * noisy).sum(-1).mean()) == pytest.approx(1 / math.sqrt(1 + 512 * 0.016), abs=0.01)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, words: str) -> Path:
    """A captioner of four texts, learned by heart."""
    texts = ["a red circle", "a blue square", "a green star", "a black ring"] * 8
    samples = ArraySamples(np.zeros((32, 1, 1, 3), np.uint8), [[text] for text in texts], [f"{index:032x}" for index in range(32)])
    model = {**TINY_CAPTIONER, "lm": {"vocabulary": words, "config": LM}}
    folder = tmp_path_factory.mktemp("maccap")
    options: dict[str, Any] = {"steps": 200, "batch_size": 16, "lr": 1e-2, "warmup": 10, "weight_decay": 0.0, "checkpoint_every": 1000}
    config = TrainConfig(model=model, objective="maccap", objective_params={"variance": 0.001}, **options, workers=0, threads=1)
    result = train(config, folder, samples=samples)
    assert result.loss < 0.1  # without a look at the embedding it would be 0.35: which of four colours, one of four tokens
    return Path(result.export)


def requests(count: int, **sampling: Any) -> list[ChatRequest]:
    images = [render(draw_scene(seed_for("train_eval", 90_000 + index)), 64) for index in range(count)]
    return [ChatRequest("", "Describe it.", image, image_digest(image), Sampling(**{"max_tokens": 12, **sampling})) for image in images]


def test_a_caption_does_not_depend_on_what_shares_its_batch_and_draws_differ(export: Path) -> None:
    model = maccap.load({"kind": "maccap", "weights": str(export), "batch_size": 4, "device": "cpu"})
    answers = model.chat(requests(6))
    assert all(answer.finish_reason == "stop" and answer.text.startswith("a ") for answer in answers)
    assert [model.chat([request])[0] for request in requests(6)] == answers
    loud = maccap.load({"kind": "maccap", "weights": str(export), "batch_size": 4, "device": "cpu", "variance": 0.1})
    drawn = {seed: [a.text for a in loud.chat(requests(6, temperature=1.0, seed=seed))] for seed in (1, 2, 3)}
    assert drawn[1] == [a.text for a in loud.chat(requests(6, temperature=1.0, seed=1))]
    assert len({tuple(texts) for texts in drawn.values()}) > 1
    cut = model.chat(requests(1, max_tokens=2))[0]
    assert cut.finish_reason == "length" and cut.n_tokens == 2
    assert loud.digest != model.digest
    none, score = model.chat([ChatRequest("", "", None, b"", Sampling(8)), requests(1, yes_no=True)[0]])
    assert isinstance(none, Failure) and none.code == FailureCode.BAD_ROW and isinstance(score, Failure)
    narrow = np.zeros((1, 20_000, 3), np.uint8)
    assert model.chat([ChatRequest("", "", narrow, image_digest(narrow), Sampling(12))])[0].text


def test_only_captions_may_be_asked_of_it_and_its_folder_is_checked(export: Path, tmp_path: Path) -> None:
    models = {"w": {"kind": "maccap", "weights": str(export)}}
    recipe: dict[str, Any] = {"name": "r", "input": {"kind": "image_folder", "folder": str(tmp_path)}, "models": models}
    build_recipe({**recipe, "stages": [{"caption": {"model": "w"}}]})
    with pytest.raises(RecipeError, match=r"stages.mllm_score.model: 'w' is of kind maccap, which is for caption only: name a model of kind"):
        build_recipe({**recipe, "stages": [{"mllm_score": {"model": "w"}}]})
    with pytest.raises(RecipeError, match="pretrain/NAME/export.*is no such folder"):
        maccap.identity({"kind": "maccap", "weights": str(tmp_path)})
    with pytest.raises(RecipeError, match="beams of a model of kind maccap must be a whole number above 0, found 0"):
        maccap.identity({"kind": "maccap", "weights": str(export), "beams": 0})
    with pytest.raises(RecipeError, match="beems"):
        maccap.identity({"kind": "maccap", "weights": str(export), "beems": 2})
    assert maccap.availability({"kind": "maccap", "weights": str(export)})[0] == "ok"


def test_wrong_models_are_named() -> None:
    with pytest.raises(TrainError, match="option model"):
        build_captioner({"clip": "rendered_clip", "lm": {"config": {"model_type": "opt"}}})
    with pytest.raises(TrainError, match=r"option model.clip: model 'nothing'"):
        build_captioner({**TINY_CAPTIONER, "clip": "nothing"})
    with pytest.raises(TrainError, match="heads: 3 heads do not divide"):
        build_captioner({**TINY_CAPTIONER, "heads": 3})
    with pytest.raises(TrainError, match=r"option model.lm.weights .*/no/such"):
        build_captioner({**TINY_CAPTIONER, "lm": {"weights": "/no/such"}})
