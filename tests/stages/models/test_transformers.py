"""Kind transformers with a real Qwen2-VL made from a config: batches against single requests, draws, choices, numbers, bad requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import Fatal, RecipeError
from schemas.outcome import Failure, FailureCode
from stages.models.protocols import ChatAnswer, yes_share
from tests.stages.models.asking_images import request

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from stages.models import transformers as kind  # noqa: E402


@pytest.fixture(scope="module")
def chat(tiny_mllm: Path) -> kind.TransformersChat:
    return kind.load({"kind": "transformers", "weights": str(tiny_mllm), "batch_size": 4, "max_model_len": 256})


def test_answers_in_a_padded_batch_are_those_of_single_requests(chat: kind.TransformersChat) -> None:
    requests = [request(seed, "describe " * (1 + seed * 3), (32 + 16 * seed, 96)) for seed in range(4)]
    together = chat.chat(requests)
    alone = [chat.chat([one])[0] for one in requests]
    assert together == alone
    texts = [answer.text for answer in together if isinstance(answer, ChatAnswer)]
    assert len(set(texts)) > 1, "an answer depends on image and prompt"
    assert [answer.prompt_tokens for answer in together] == sorted(answer.prompt_tokens for answer in together)


def test_greedy_answer_is_the_models_own(chat: kind.TransformersChat) -> None:
    one = request(3)
    prompt = chat.renderer.render(one.system, one.text, True).text
    inputs = chat.processor(text=[prompt], images=[[one.image]], return_tensors="pt")
    with torch.inference_mode():
        made = chat.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = chat.chat([one])[0]
    assert answer.text == chat.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.finish_reason == "length" and answer.n_tokens == 12


def test_draws_follow_the_seed_of_the_request_and_not_the_batch(chat: kind.TransformersChat) -> None:
    drawn = [request(0, temperature=1.0, seed=seed) for seed in range(4)]
    first = chat.chat(drawn)
    assert first == chat.chat(drawn) == [chat.chat([one])[0] for one in drawn]
    assert len({answer.text for answer in first}) == 4


def test_draws_have_the_models_probabilities(chat: kind.TransformersChat) -> None:
    from stages.models.drawing import Draw

    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    counted = Counter(int(Draw(1.0, 1.0, [seed])(logits[:, :0].long(), logits).argmax()) for seed in range(3000))
    wanted = logits.softmax(-1)[0]
    assert all(abs(counted[token] / 3000 - float(wanted[token])) < 0.03 for token in range(4))
    nucleus = Counter(int(Draw(1.0, 0.7, [seed])(logits[:, :0].long(), logits).argmax()) for seed in range(500))
    assert set(nucleus) == {0, 1}, "0.64 + 0.24 is the first sum that reaches 0.7"


def test_numbers_are_the_softmax_of_the_first_step(chat: kind.TransformersChat) -> None:
    answer = chat.chat([request(1, "score", max_tokens=2, numbers=True)])[0]
    assert set(answer.numbers) == set(range(101)) and 0 < sum(answer.numbers.values()) < 1
    plain = chat.chat([request(1, "score", max_tokens=2)])[0]
    assert plain.numbers is None and plain.text == answer.text


def test_yes_is_the_share_of_yes_among_yes_and_no_at_the_first_step(chat: kind.TransformersChat, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {"yes": [chat.tokenizer(text)["input_ids"][0] for text in "yY"], "no": [chat.tokenizer("n")["input_ids"][0]]}
    monkeypatch.setattr(chat, "_yes_no_ids", {token: word for word, tokens in ids.items() for token in tokens})  # the tiny vocabulary has no such words
    one = request(1, "is there a dog", max_tokens=2, yes_no=True)
    answer, plain = chat.chat([one, request(1, "is there a dog", max_tokens=2)])
    prompt = chat.renderer.render(one.system, one.text, True).text
    inputs = chat.processor(text=[prompt], images=[[one.image]], return_tensors="pt")
    with torch.inference_mode():
        chances = chat.model(**inputs).logits[0, -1].softmax(-1)
    yes, no = (sum(float(chances[token]) for token in ids[word]) for word in ("yes", "no"))
    assert answer.yes == pytest.approx(yes / (yes + no), abs=2e-4) and plain.yes is None and plain.text == answer.text
    assert ChatAnswer.from_json(answer.to_json()) == answer


def test_yes_and_no_count_in_any_spelling() -> None:
    assert yes_share([(" Yes", 0.3), ("yes", 0.1), ("No", 0.1), ("maybe", 0.5)]) == 0.8
    assert yes_share([("maybe", 1.0)]) is None


def test_choices_are_kept_to(chat: kind.TransformersChat) -> None:
    choices = ("yes", "no", "not sure")
    answers = chat.chat([request(seed, choices=choices) for seed in range(6)])
    assert all(answer.text in choices and answer.finish_reason == "stop" for answer in answers)


def test_a_request_that_does_not_fit_fails_alone(chat: kind.TransformersChat) -> None:
    long, thin = request(1, "dog " * 400), request(2, side=(1, 400))
    answers = chat.chat([request(0), long, request(3), thin])
    assert isinstance(answers[1], Failure) and answers[1].code == FailureCode.MODEL_ERROR and "max_model_len 256" in answers[1].detail
    assert isinstance(answers[3], Failure) and answers[3].code == FailureCode.MODEL_ERROR and "aspect ratio" in answers[3].detail
    assert answers[0] == chat.chat([request(0)])[0] and answers[2] == chat.chat([request(3)])[0]


def test_a_wrong_spec_is_refused_before_anything_is_loaded(tmp_path: Path, tiny_mllm: Path) -> None:
    with pytest.raises(RecipeError, match="no option 'max_pixel'.*did you mean 'max_pixels'"):
        kind.identity({"kind": "transformers", "weights": str(tiny_mllm), "max_pixel": 3})
    with pytest.raises(RecipeError, match="has no config.json"):
        kind.identity({"kind": "transformers", "weights": str(tmp_path)})
    with pytest.raises(RecipeError, match="needs `weights`"):
        kind.identity({"kind": "transformers"})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Fatal, match="could not load"):
        kind.load({"kind": "transformers", "weights": str(tmp_path)})
    with pytest.raises(RecipeError, match="dtype 'float61' is none of auto, float32"):
        kind.identity({"kind": "transformers", "weights": str(tiny_mllm), "dtype": "float61"})


def test_a_folder_that_is_damaged_stops_the_run_and_is_named(tmp_path: Path, tiny_mllm: Path) -> None:
    """With a tokenizer that has no image token every row would fail alone; a broken file ended in a traceback."""
    import shutil

    def spoiled(name: str, **files: bytes | None) -> dict[str, str]:
        copy = Path(shutil.copytree(tiny_mllm, tmp_path / name))
        for file in copy.iterdir():
            given = files.get(file.name.split(".")[0], b"")
            if given is None:
                file.unlink()
            elif given:
                file.write_bytes(given)
        return {"kind": "transformers", "weights": str(copy)}

    for spec, told in (
        (spoiled("cut", model=(tiny_mllm / "model.safetensors").read_bytes()[:5000]), "could not load"),
        (spoiled("config", config=b'{"model_type": "qwen2_vl", '), "could not load"),
        (spoiled("template", chat_template=b"{{ messages[0]['role'] }}"), "one image placeholder"),
    ):
        with pytest.raises(Fatal, match=told) as raised:
            kind.load(spec)
        assert spec["weights"] in str(raised.value)


def test_identity_follows_the_files_and_not_the_folder(tiny_mllm: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_mllm, tmp_path / "copy"))
    spec = {"kind": "transformers", "weights": str(tiny_mllm)}
    assert kind.identity(spec) == kind.identity({**spec, "weights": str(copy)})
    (copy / "chat_template.jinja").write_text("another template")
    assert kind.identity(spec) != kind.identity({**spec, "weights": str(copy)})
