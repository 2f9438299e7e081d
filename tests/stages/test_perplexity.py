"""Perplexity of texts: against loops in float64 on a small GPT-2 made from a config, its window at the edges, in a run, and the mistakes of a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import registry
from pipeline.errors import Fatal, RecipeError
from pipeline.recipe import build_recipe
from pipeline.run import RunOptions, run
from schemas.outcome import Drop
from stages.perplexity import Perplexity

transformers = pytest.importorskip("transformers")
WORDS = "the dog cat boat runs sleeps on in a red park house and 19".split()
TEXTS = ["the dog runs in the park", "a red boat", "cat", "park park park and the red cat sleeps on a boat in the park 19 19 19", "the dog runs in the park"]


def save_language_model(folder: Path, start: bool) -> Path:
    """A GPT-2 of random weights over whole words, which begins texts with <s> or with nothing."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    names = ["<unk>", "<s>", *WORDS]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **({"bos_token": "<s>"} if start else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1))
        for weights in model.parameters():
            weights.data.normal_(std=0.3)  # as initialised, all words are nearly equally likely
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {start: save_language_model(tmp_path_factory.mktemp(f"lm_{start}"), start) for start in (True, False)}


def perplexity_of(folder: Path, text: str, start: bool, most: int = 15) -> tuple[float | None, int]:
    """One text by itself, token after token, in float64."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = ([1] if start else []) + AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:most]
    total, count = 0.0, 0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].tolist()
        total -= logits[ids[place]] - math.log(sum(math.exp(value) for value in logits))
        count += 1
    return (math.exp(total / count), count) if count else (None, 0)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_is_that_of_loops_whatever_stands_beside_a_text(weights: dict[bool, Path], start: bool, batch_size: int) -> None:
    model: Any = registry.load_model({"kind": "causal_lm", "weights": str(weights[start]), "batch_size": batch_size})
    found = model.perplexity([*TEXTS, ""])
    for text, (value, count) in zip([*TEXTS, ""], found, strict=True):
        wanted, tokens = perplexity_of(weights[start], text, start)
        assert count == tokens and (value is None) == (wanted is None)
        assert wanted is None or value == pytest.approx(wanted, rel=1e-4)
    assert found[0] == pytest.approx(found[4]) and found[3][1] == (15 if start else 14), "what lies beyond the model's places is not read"
    assert found[2][0] is None if not start else found[2][1] == 1
    assert model.perplexity([]) == []


def decide(value: float | None, **params: Any) -> Drop | None:
    return Perplexity(Perplexity.Params(**params)).decide({"perplexity": value, "perplexity_tokens": 3}, {})


def test_window_at_its_edges() -> None:
    assert decide(30.0) is None and decide(200.0) is None
    assert decide(29.9) == Drop("perplexity", "29.9 < 30") and decide(200.5) == Drop("perplexity", "200.5 > 200")
    assert decide(1e6, max=None) is None and decide(1.0, min=None) is None and decide(None) is not None
    with pytest.raises(ValueError, match="min 50 is above max 40"):
        decide(1.0, min=50, max=40)


def test_rows_of_a_run_have_their_perplexity_and_a_moved_window_reads_nothing_again(tmp_path: Path, weights: dict[bool, Path]) -> None:
    texts = [TEXTS[nth % 4] for nth in range(40)]
    texts[7] = " "
    pq.write_table(pa.table({"url": [f"https://one.example/{nth}" for nth in range(40)], "alt_text": texts}), tmp_path / "t.parquet")
    values = sorted(perplexity_of(weights[True], text, True)[0] or 0.0 for text in TEXTS[:4])

    def go(low: float, high: float) -> Any:
        recipe = {
            "input": {"kind": "url_table", "table": str(tmp_path / "t.parquet"), "rows_per_part": 15},
            "models": {"lm": {"kind": "causal_lm", "weights": str(weights[True])}},
            "stages": [{"perplexity": {"min": low, "max": high}}],
        }
        return run(build_recipe(recipe), tmp_path / "run", RunOptions(executor="local", jobs=False))

    result = go(values[0] * 1.01, values[2] * 1.01)
    rows = [row for part in range(3) for row in result.view.final(result.view.view(part)).to_pylist()]
    for row, text in zip(rows, texts, strict=True):
        wanted = perplexity_of(weights[True], text, True)[0] if text.strip() else None
        assert (row["reason"] is None) == (wanted is not None and values[0] * 1.01 <= wanted <= values[2] * 1.01)
    assert {row["reason"] for row in rows} == {None, "perplexity"}
    again = go(1.0, 1e9)
    assert again.tally.calls == {"perplexity": 0}
    assert sum(row["reason"] is None for part in range(3) for row in again.view.final(again.view.view(part)).to_pylist()) == 39


def test_mistakes_in_the_models_table_say_what_is_wrong(tmp_path: Path, weights: dict[bool, Path]) -> None:
    folder = str(weights[True])
    for spec, said in (
        ({"weights": folder, "dtype": "int8"}, "dtype 'int8' is none of"),
        ({"weights": folder, "max_tokens": 1}, "max_tokens of a causal_lm must be a whole number of at least 2"),
        ({"weights": folder, "batchsize": 1}, "has no option 'batchsize'.*batch_size"),
        ({}, "needs `weights`"),
    ):
        with pytest.raises(RecipeError, match=said):
            registry.load_model({"kind": "causal_lm", **spec})
    wrong = "stages.perplexity.model: .lm. is of kind open_clip, which answers .embed..*.perplexity.: name a model of kind causal_lm"
    with pytest.raises(RecipeError, match=wrong):
        build_recipe({"input": {"kind": "url_table", "table": "t"}, "models": {"lm": {"kind": "open_clip"}}, "stages": ["perplexity"]})
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(Fatal, match="could not load a language model from"):
        registry.load_model({"kind": "causal_lm", "weights": str(tmp_path)})
