"""Probabilities of numbers of one token and of several: against sequences scored one by one in float64, between engines, and the bound on what is left out."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pipeline.errors import Fatal  # noqa: E402
from pipeline.models import local_model  # noqa: E402
from stages.mllm_score import expectation  # noqa: E402
from stages.models import numbers as counted  # noqa: E402
from stages.models import transformers as kind  # noqa: E402
from stages.models.numbers import LEFT_OUT, TokenTree, Walk, number_tree  # noqa: E402
from stages.models.rendering import number_ids  # noqa: E402
from tests.stages.models.asking_images import request  # noqa: E402
from tests.stages.models.tiny_qwen2_vl import make_tokenizer, save_tiny_qwen2_vl  # noqa: E402

CHOICES = tuple(map(str, range(101)))


@pytest.fixture(scope="module")
def digits_mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen2_vl(tmp_path_factory.mktemp("digits") / "tiny-digits", digits=True)


@pytest.fixture(scope="module")
def chat(digits_mllm: Path) -> kind.TransformersChat:
    return kind.load({"kind": "transformers", "weights": str(digits_mllm), "batch_size": 4, "max_model_len": 256})


def by_loops(tree: TokenTree, after: Callable[[tuple[int, ...]], dict[int, float]]) -> dict[int, float]:
    """Each spelling of each number by itself: the product over its tokens, times what does not go on to another number."""
    found = dict.fromkeys(range(101), 0.0)
    for path, number in tree.spelled.items():
        chance = 1.0
        for at in range(len(path)):
            chance *= after(path[:at])[path[at]]
        longer = {other[len(path)] for other in tree.spelled if len(other) > len(path) and other[: len(path)] == path}
        found[number] += chance * (1.0 - sum(after(path)[token] for token in longer)) if longer else chance
    return found


def mean(found: dict[int, float]) -> float:
    return sum(number * chance for number, chance in found.items()) / sum(found.values())


def scored(model: Any, chat: kind.TransformersChat, one: Any) -> Callable[[tuple[int, ...]], dict[int, float]]:
    """What a float64 model says after the prompt and some tokens."""
    prompt = chat.renderer.render(one.system, one.text, True).text
    inputs = chat.processor(text=[prompt], images=[[one.image]], return_tensors="pt")

    @functools.cache
    def after(path: tuple[int, ...]) -> dict[int, float]:
        more = torch.tensor([path], dtype=torch.long)
        ids = torch.cat([inputs["input_ids"], more], 1)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
        rest = {"pixel_values": inputs["pixel_values"].double(), "image_grid_thw": inputs["image_grid_thw"]}
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **rest).logits[0, -1]
        return dict(enumerate(logits.softmax(-1).tolist()))

    return after


def test_digits_give_what_each_numbers_sequence_scores_in_float64(chat: kind.TransformersChat, digits_mllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(digits_mllm, dtype=torch.float64).eval()
    requests = [request(at, "score " * (1 + 3 * at), (32 + 16 * at, 96), max_tokens=4, numbers=True) for at in range(3)]
    wanted = [by_loops(chat._numbers_tree, scored(model, chat, one)) for one in requests]
    torch.set_num_threads(threads)
    assert max(expectation(one) for one in wanted) - min(expectation(one) for one in wanted) > 1, "the score depends on the request"
    quick = chat.chat(requests)
    monkeypatch.setattr(counted, "LEFT_OUT", 0.0)
    whole = chat.chat(requests)
    for one, few, all_of_them in zip(wanted, quick, whole, strict=True):
        assert all_of_them.numbers == pytest.approx(one, rel=1e-3, abs=1e-7)
        assert abs(mean(few.numbers) - mean(one)) <= 100 * LEFT_OUT
        assert few.text == all_of_them.text and few.n_tokens < all_of_them.n_tokens == 4 + 21, "a space, and 1 to 10 with and without it"


def test_tokens_of_further_requests_count(chat: kind.TransformersChat) -> None:
    plain, asked = chat.chat([request(1, "score", max_tokens=4), request(1, "score", max_tokens=4, numbers=True)])
    calls = asked.n_tokens - plain.n_tokens
    assert calls > 5 and plain.prompt_tokens * (calls + 1) + calls <= asked.prompt_tokens <= plain.prompt_tokens * (calls + 1) + 3 * calls
    assert asked.text == plain.text and plain.numbers is None


def test_rows_do_not_depend_on_each_other_nor_on_a_guided_answer(chat: kind.TransformersChat) -> None:
    requests = [request(at, "score " * (1 + 5 * (at % 3)), max_tokens=4, numbers=True) for at in range(5)]
    together = chat.chat([*requests, request(9, "describe"), request(0, "score ", max_tokens=4, numbers=True, choices=CHOICES)])
    for one, answer in zip(requests, together, strict=False):
        assert answer.numbers == pytest.approx(chat.chat([one])[0].numbers, rel=1e-3)
    guided = together[-1]
    assert guided.text in CHOICES and guided.numbers == pytest.approx(together[0].numbers, rel=1e-3)


def digits_of(tokenizer: Any) -> TokenTree:
    """The tree of the same vocabulary, split into digits."""
    from tokenizers import pre_tokenizers

    digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(digits)
    return number_tree(tokenizer)


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("choices", [(), CHOICES])
def test_vllm_gives_the_probabilities_of_transformers(
    vllm_spec: dict[str, Any], tiny_mllm: Path, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...]
) -> None:
    ours, theirs = local_model(vllm_spec).model, kind.load({"kind": "transformers", "weights": str(tiny_mllm)})
    for engine in (ours, theirs):  # the engine of all tests has whole numbers; its vocabulary has the digits
        monkeypatch.setattr(engine, "_numbers_tree", digits_of(make_tokenizer()))
    asked = [request(at, f"score {at}", max_tokens=4, numbers=True, choices=choices) for at in range(4)]
    for one, other in zip(ours.chat(asked), theirs.chat(asked), strict=True):
        assert expectation(one.numbers) == pytest.approx(expectation(other.numbers), abs=0.5) and (one.text in choices or not choices)
        both = {number for number in one.numbers if number in other.numbers}  # a place near the edge may be asked by one engine alone
        assert len(both) > 5 and all(one.numbers[number] == pytest.approx(other.numbers[number], rel=0.02, abs=1e-6) for number in both)
        assert one.n_tokens > 5 and one.prompt_tokens > 5 * 20


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_tells_more_first_tokens_than_it_takes_at_a_time(vllm_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.models import vllm

    engine, asked = local_model(vllm_spec).model, request(2, "score", max_tokens=2, numbers=True)
    plain = engine.chat([asked])[0]
    monkeypatch.setattr(vllm, "MOST_TOKEN_IDS", 40)
    parted = engine.chat([asked])[0]
    assert parted.numbers == pytest.approx(plain.numbers, rel=0.02) and set(plain.numbers) == set(range(101))
    assert parted.n_tokens == plain.n_tokens + 3 and parted.text == plain.text


def test_whole_numbers_are_known_after_the_prompt() -> None:
    tokenizer = make_tokenizer()
    tree = number_tree(tokenizer)
    assert tree.whole and tree.spelled == {(token,): number for token, number in number_ids(tokenizer).items()}
    walk = Walk(tree)
    walk.put((), [(token, 0.001 * token) for token in tree.tokens_after(())])
    assert walk.due() == [] and walk.found == {number: pytest.approx(0.001 * token) for token, number in number_ids(tokenizer).items()}


def test_digits_stand_with_and_without_a_space_before_them() -> None:
    tokenizer = make_tokenizer(digits=True)
    tree = number_tree(tokenizer)
    ids = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in ("Ġ", "8", "7", "1", "0")}
    assert {path for path, number in tree.spelled.items() if number == 87} == {(ids["8"], ids["7"]), (ids["Ġ"], ids["8"], ids["7"])}
    assert {path for path, number in tree.spelled.items() if number == 100} == {(ids["1"], ids["0"], ids["0"]), (ids["Ġ"], ids["1"], ids["0"], ids["0"])}
    assert not tree.whole and len(tree.spelled) == 202


def test_digits_of_a_tokenizer_that_puts_a_space_before_a_text() -> None:
    """As Llama's: a text begins with a piece for a space, which an answer after a line break has not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: at for at, piece in enumerate(["<unk>", "▁", "\n", *"0123456789", "a"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    digits = [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Digits(individual_digits=True)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(digits), decoders.Metaspace()
    tree = number_tree(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"))
    spelled = {path for path, number in tree.spelled.items() if number == 42}
    assert spelled >= {(vocabulary["4"], vocabulary["2"]), (vocabulary["▁"], vocabulary["4"], vocabulary["2"])}


def test_a_tokenizer_that_cannot_tell_numbers_apart_is_refused(chat: kind.TransformersChat, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text.strip())}

    assert not number_tree(Blind()).spelled
    monkeypatch.setattr(chat, "_numbers_tree", number_tree(Blind()))
    with pytest.raises(Fatal, match="switch `expectation` off"):
        chat.chat([request(0, numbers=True)])


def test_what_is_left_out_moves_the_mean_by_half_a_point_at_most() -> None:
    tree = number_tree(make_tokenizer(digits=True))
    draw, asked = random.Random(0), 0
    for trial in range(200):

        @functools.cache
        def after(path: tuple[int, ...], sharp: float = draw.choice((0.5, 2.0, 6.0))) -> dict[int, float]:
            weights = {token: draw.random() ** (2 * sharp) * 10 ** -draw.choice((0, 0, 1, 3)) for token in [*tree.tokens_after(path), -1]}
            return {token: weight / sum(weights.values()) for token, weight in weights.items()}

        walk = Walk(tree)
        while due := walk.due():
            asked += len(due)
            for path in due:
                walk.put(path, after(path).items())
        assert abs(mean(walk.found) - mean(by_loops(tree, after))) <= 100 * LEFT_OUT, trial
    assert asked < 200 * 20, "of 22 places"
