"""Objective mllm: the loss against loops, the layout of many turns against single requests, and the export against transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import prompts
from stages.models.rendering import Renderer
from stages.pretrain.config import TrainConfig
from stages.pretrain.dialogue import IGNORED, Dialogue, DialogueLayout, Turn
from stages.pretrain.errors import DataError, TrainError
from stages.pretrain.nets.mllm import HEADS_NAME, Mllm, build_mllm, load_weights, save_mllm
from stages.pretrain.objectives import make_objective
from stages.pretrain.objectives.base import Sample, normalise
from stages.pretrain.objectives.mllm import TINY_MLLM, answer_loss, claim_loss
from stages.pretrain.rendered_mllm_eval import request_text
from stages.pretrain.trainer import train

TURNS = (
    Turn("tags", "red circle, blue star, sand"),
    Turn("score_image_text_matching", "87", {"alt_text": "a red circle"}, ((2, 12, True, 4),)),
    Turn("score_caption_text_quality", "63", {"alt_text": "a red circle"}, ((2, 12, True, 4),)),
    Turn("question", "yes", {"question": "Is there a red circle?"}),
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def model() -> Mllm:
    torch.manual_seed(0)
    return build_mllm({**TINY_MLLM, "image_heads": {"color": 3}, "claim_head": True})


@pytest.fixture(scope="module")
def layout(model: Mllm) -> DialogueLayout:
    return DialogueLayout(model.processor.tokenizer, 2, 0.0)


def sample_of(text: str, key: str = "k", side: int = 32) -> Sample:
    rng = np.random.default_rng(len(text))
    return Sample(key=key, views={"eval": rng.integers(0, 256, (side, side, 3), dtype=np.uint8)}, caption=text, texts=(), epoch=0, seed=0)


def answer_loss_by_loops(hidden: torch.Tensor, matrix: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
    """Mean over rows of sum(weight * -log softmax) / sum(weight), one number at a time, in float64."""
    total = 0.0
    for row in range(len(targets)):
        summed, weight = 0.0, 0.0
        for place in range(targets.shape[1]):
            if targets[row, place] == IGNORED:
                continue
            logits = [sum(float(h) * float(w) for h, w in zip(hidden[row, place], vector, strict=True)) for vector in matrix]
            top = max(logits)
            log_sum = math.log(sum(math.exp(value - top) for value in logits)) + top
            summed += float(weights[row, place]) * (log_sum - logits[int(targets[row, place])])
            weight += float(weights[row, place])
        total += summed / weight
    return total / len(targets)


def test_answer_loss_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    head = torch.nn.Linear(4, 7, bias=False, dtype=torch.float64)
    targets = torch.tensor([[IGNORED, 2, 3, IGNORED, 6], [0, IGNORED, IGNORED, IGNORED, IGNORED], [1, 1, 1, 5, IGNORED]])
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    weights[targets == IGNORED] = 0.0
    expected = answer_loss_by_loops(hidden, head.weight.detach(), targets, weights)
    with torch.no_grad():
        found = answer_loss(head.double(), hidden, targets, weights).item()
    assert found == pytest.approx(expected, rel=1e-6)  # the product casts logits to float32


def test_claim_loss_is_the_mean_over_rows_of_the_mean_over_their_claims() -> None:
    head = torch.nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.bias.zero_()
    hidden = torch.tensor([[[2.0], [0.0], [9.0]], [[-1.0], [5.0], [5.0]]])
    claims = torch.tensor([[1.0, 0.0, -1.0], [1.0, -1.0, -1.0]])
    first = (math.log1p(math.exp(-2.0)) + math.log(2)) / 2
    assert claim_loss(head, hidden, claims).item() == pytest.approx((first + math.log1p(math.exp(1.0))) / 2, rel=1e-5)


def test_only_answers_carry_loss(layout: DialogueLayout, model: Mllm) -> None:
    laid = layout.lay(TURNS)
    ids = model.processor.tokenizer
    learned = ids.decode([int(t) for t in laid.targets if t != IGNORED])
    assert learned == "red circle, blue star, sand <|im_end|> 87 <|im_end|> 63 <|im_end|> yes <|im_end|>"
    assert (laid.weights[laid.targets == IGNORED] == 0).all()


def test_changing_what_carries_no_loss_behind_an_answer_changes_no_gradient_but_an_answer_does(model: Mllm) -> None:
    objective = make_objective("mllm", {"dialogues": True})
    objective.build(TINY_MLLM)

    def loss_of(turns: tuple[Turn, ...]) -> float:
        batch = objective.collate([sample_of(Dialogue(turns).to_json(), side=32)], None)
        batch["images"] = torch.zeros_like(batch["images"])
        with torch.no_grad():
            return sum(objective.losses(model, normalise(batch, MEAN, STD)).values()).item()

    one = loss_of(TURNS[:1])
    assert loss_of((Turn("tags", "red circle, blue star, sea"),)) != one
    padded = objective.collate([sample_of(Dialogue(TURNS[:1]).to_json()), sample_of(Dialogue(TURNS).to_json())], None)
    padded["images"] = torch.zeros_like(padded["images"])
    length = int((padded["positions"][0, 0] > 0).sum()) + 1
    changed = {name: value.clone() for name, value in padded.items()}
    changed["tokens"][0, length:] = 77  # padding
    with torch.no_grad():
        before = objective.losses(model, normalise(padded, MEAN, STD))["answer"].item()
        assert objective.losses(model, normalise(changed, MEAN, STD))["answer"].item() == before


def test_turns_that_judge_one_text_share_it_and_see_no_other_turn(layout: DialogueLayout, model: Mllm) -> None:
    laid = layout.lay(TURNS)
    words = model.processor.tokenizer.convert_ids_to_tokens(laid.tokens.tolist())
    assert words.count("<text>") == 1 + 1 + 1  # system text, judged text (once for two scores), question
    last = len(laid.tokens) - 1
    seen = [words[place] for place in np.flatnonzero(laid.visible[last])]
    assert "question" in seen and "tags" not in seen and "Score" not in seen


@pytest.mark.parametrize("number", range(len(TURNS)))
def test_every_turn_is_laid_out_as_the_processor_lays_out_its_single_request(layout: DialogueLayout, model: Mllm, number: int) -> None:
    """Tokens, positions and hidden states of a turn among others are those of the request alone in transformers."""
    from PIL import Image

    turn = TURNS[number]
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    text = request_text(model.processor, turn.prompt, turn.fields)
    alone = model.processor(text=[text], images=[Image.fromarray(pixels)], return_tensors="pt")
    assert alone["input_ids"][0].tolist() == layout.request(turn)
    laid = layout.lay(TURNS)
    answers_end = np.flatnonzero((laid.targets != IGNORED) & (np.append(laid.targets[1:], IGNORED) == IGNORED))[number]
    path = np.flatnonzero(laid.visible[answers_end])[:len(alone["input_ids"][0])]
    positions, _ = model.net.model.get_rope_index(alone["input_ids"], alone["mm_token_type_ids"], alone["image_grid_thw"])
    assert (laid.positions[:, path] == positions[:, 0].numpy()).all()
    images = normalise({"i": torch.from_numpy(pixels)[None]}, MEAN, STD)["i"]
    net = model.net.eval()
    with torch.no_grad():
        ours, _ = model.hidden(
            model.image_features(images), torch.from_numpy(laid.tokens)[None], torch.from_numpy(laid.positions)[:, None],
            torch.from_numpy(laid.visible)[None, None],
        )
        logits = net(**alone).logits[0, -1]
    assert torch.allclose(net.lm_head(ours[0, path[-1]]), logits, atol=1e-4)


@pytest.mark.parametrize("system_text", [True, False])
@pytest.mark.parametrize("turn", TURNS)
def test_a_stage_asks_what_was_trained(turn: Turn, system_text: bool) -> None:
    """Token ids of a request as the pipeline's engines render it are those of the lesson, marks around the text included."""
    objective = make_objective("mllm", {"system_text": system_text})
    processor = objective.build(TINY_MLLM).processor
    prompt = prompts.load(turn.prompt)
    rendered = Renderer(processor).render(prompt.system, prompt.render(**turn.fields), True)
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    ids = [token for one in rendered.ids for token in ([image] * 4 if one == image else [one])]
    assert ids == DialogueLayout(processor.tokenizer, 2, 0.0, system_text).request(turn)


def test_claims_mark_the_last_token_of_their_words(layout: DialogueLayout, model: Mllm) -> None:
    turn = Turn("score_image_text_matching", "50", {"alt_text": "Say: a red circle, 12 objects"}, ((5, 17, True, 4), (19, 29, False, -1)))
    laid = layout.lay([turn])
    words = model.processor.tokenizer.convert_ids_to_tokens(laid.tokens.tolist())
    assert [(words[place], laid.claims[place]) for place in np.flatnonzero(laid.claims >= 0)] == [("circle", 1.0), ("objects", 0.0)]
    assert [(words[place], laid.claim_places[place]) for place in np.flatnonzero(laid.claim_places >= 0)] == [("circle", 4)]


def test_attention_of_training_is_that_of_transformers(layout: DialogueLayout) -> None:
    """Under autocast a CPU takes another way through the same attention: hidden states agree to what bfloat16 holds."""
    torch.manual_seed(0)
    model = build_mllm({**TINY_MLLM, "text": {**TINY_MLLM["text"], "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}}).eval()
    laid = layout.lay(TURNS)
    given = (torch.randn(1, 4, 64), *(torch.from_numpy(a) for a in (laid.tokens[None], laid.positions[:, None], laid.visible[None, None])))
    with torch.no_grad():
        plain, _ = model.hidden(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short, middle = model.hidden(*given)
    assert (short.float() - plain).abs().max() < 0.05 * plain.abs().max() and middle.shape == (1, 4, 64)
    seen = torch.cosine_similarity(short.float(), plain, dim=-1)
    assert seen.min() > 0.999


def test_image_tokens_of_one_content_differ_by_their_place_within_the_language_model() -> None:
    """Rotary positions must tell columns apart: the heads' slow pairs would not (see _qwen2_vl_config)."""
    model = build_mllm(TINY_MLLM)
    turned = model.net.model.language_model.rotary_emb
    positions = torch.tensor([[[5, 5]], [[7, 7]], [[5, 6]]])  # neighbours in a row
    cos, sin = turned(torch.zeros(1, 2, 32), positions)
    section = model.net.config.text_config.rope_parameters["mrope_section"]
    angle = torch.atan2(sin, cos)[0]
    assert sum(section) == 16 and (angle[1] - angle[0]).abs().max() > 0.1


def test_a_start_from_the_vision_tower_alone_leaves_the_language_model_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = build_mllm(TINY_MLLM)
    save_mllm(saved, tmp_path / "export")
    objective = make_objective("mllm", {"start": "vision", "freeze_vision": True})
    model = objective.build({**TINY_MLLM, "text": {**TINY_MLLM["text"], "tie_word_embeddings": False}})
    before = model.net.model.language_model.layers[0].mlp.up_proj.weight.clone()
    objective.start_from(model, str(tmp_path / "export"))
    assert (model.net.model.language_model.layers[0].mlp.up_proj.weight == before).all()
    ours, theirs = model.net.model.visual.state_dict(), saved.net.model.visual.state_dict()
    assert all(torch.equal(ours[name], tensor.half().float()) for name, tensor in theirs.items())
    assert not any(p.requires_grad for p in model.net.model.visual.parameters()) and model.net.lm_head.weight.requires_grad


def test_length_power_weighs_a_long_answer_less(model: Mllm) -> None:
    laid = DialogueLayout(model.processor.tokenizer, 2, 0.5).lay(TURNS[:2])
    sums = {n: float(laid.weights[laid.weights == w].sum()) for n, w in ((8, np.float32(8**-0.5)), (2, np.float32(2**-0.5)))}
    assert sums == {8: pytest.approx(8**0.5), 2: pytest.approx(2**0.5)}  # tags of 7 words and marks, one number, the end of each


def test_text_that_is_no_dialogue_is_refused_with_the_key() -> None:
    with pytest.raises(DataError, match="sample k7: its text is no dialogue"):
        Dialogue.from_json("a red circle", "k7")
    assert Dialogue.from_json(Dialogue(TURNS, {"color": [0, 1]}).to_json(), "k") == Dialogue(TURNS, {"color": [0, 1]})


def test_unknown_model_key_and_unfit_size_are_named() -> None:
    with pytest.raises(TrainError, match="unknown key 'vison', did you mean 'vision'"):
        build_mllm({**TINY_MLLM, "vison": {}})
    with pytest.raises(TrainError, match="image_size 40 is no multiple of 16"):
        build_mllm({**TINY_MLLM, "image_size": 40})
    with pytest.raises(TrainError, match="vocabulary: cannot read"):
        build_mllm({**TINY_MLLM, "vocabulary": "no_such_list"})


def test_export_is_what_transformers_loads_with_the_same_logits(tmp_path: Path, model: Mllm) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path / "export"
    for _ in range(2):  # the second takes the place of the first
        save_mllm(model, folder)
    processor, loaded = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(processor).__name__ == "Qwen2VLProcessor" and (folder / HEADS_NAME).is_file() and list(tmp_path.iterdir()) == [folder]
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]  # vLLM would load any other beside it
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    inputs = [p(text=[request_text(p, "tags", {})], images=[image], return_tensors="pt") for p in (model.processor, processor)]
    assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
    assert (inputs[0]["input_ids"] == model.net.config.image_token_id).sum() == 4  # any image becomes 2 x 2 tokens here
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs[1]).logits, model.net(**inputs[0]).logits, atol=2e-3)  # weights were halved
    assert loaded.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    twin = build_mllm({**TINY_MLLM, "image_heads": {"color": 3}, "claim_head": True})
    load_weights(twin, folder)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(twin.state_dict()[name], tensor, atol=1e-3), name


def test_weights_of_another_shape_are_refused(tmp_path: Path, model: Mllm) -> None:
    save_mllm(model, tmp_path / "export")
    wider = {**TINY_MLLM, "text": {**TINY_MLLM["text"], "intermediate_size": 48}}
    with pytest.raises(TrainError, match="do not fit the model"):
        load_weights(build_mllm(wider), tmp_path / "export")
    with pytest.raises(TrainError, match="config.json is missing"):
        load_weights(model, tmp_path / "nothing")


def test_trainer_trains_and_exports_plain_captions_and_goes_on_where_it_was(tmp_path: Path) -> None:
    from stages.pretrain.data import ArraySamples

    images = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    samples = ArraySamples(images, [[f"a shape number {n}"] for n in range(8)], [f"s{n}" for n in range(8)])
    config = TrainConfig(model=TINY_MLLM, objective="mllm", steps=6, batch_size=4, accumulate=2, lr=3e-3, workers=0, device="cpu", log_every=1)
    whole = train(config, tmp_path / "whole", samples=samples)
    losses: list[float] = []
    stopped = config.model_copy(update={"checkpoint_every": 3})

    def stop(step: int, line: dict[str, float]) -> None:
        losses.append(line["loss"])
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "cut", stop, samples)
    again = train(stopped, tmp_path / "cut", samples=samples)
    assert again.resumed_from == 3 and again.weights_digest == whole.weights_digest
    assert whole.loss < losses[0]


def test_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts(model: Mllm) -> None:
    objective = make_objective("mllm", {"dialogues": True, "claim_weight": 0.3, "length_power": 0.5})
    objective.build(TINY_MLLM)
    samples = [sample_of(Dialogue(TURNS[:n]).to_json(), f"k{n}") for n in (1, 2, 3, 4)]
    with torch.no_grad():
        def total(part: list[Sample]) -> float:
            return sum(objective.losses(model, normalise(objective.collate(part, None), MEAN, STD)).values()).item()

        assert total(samples) == pytest.approx((total(samples[:2]) + total(samples[2:])) / 2, rel=1e-4)


def test_image_only_trains_the_vision_tower_and_its_heads() -> None:
    objective = make_objective("mllm", {"dialogues": True, "image_only": True, "image_weight": 1.0})
    built = objective.build({**TINY_MLLM, "image_heads": {"color": 3}})
    text = Dialogue((), {"color": [0, 2, 1, 0]}).to_json()
    losses = objective.losses(built, normalise(objective.collate([sample_of(text)], None), MEAN, STD))
    losses["image"].backward()
    assert set(losses) == {"image"}
    moved = [name.removeprefix("net.") for name, parameter in built.named_parameters() if parameter.grad is not None]
    trained = {"model.visual" if name.startswith("model.visual.") else name.split(".")[0] for name in moved}
    assert trained == {"model.visual", "image_heads"}
