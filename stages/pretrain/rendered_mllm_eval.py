"""How well an MLLM of the rendered world answers, measured on scenes that its training did not see.

`python -m stages.pretrain.rendered_mllm_eval FOLDER` prints the figures of an exported model; `--vllm` compares its greedy answers
in vLLM with those in transformers instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages import prompts
from stages.demo import alt_texts, answers
from stages.demo.captions import caption_for
from stages.demo.claims import named_objects
from stages.demo.scenes import Scene, draw_scene, render
from stages.demo.streams import seed_for
from stages.pretrain.evaluate import auc
from stages.pretrain.rendered_dialogues import RENDER_SIZE

STREAM = "train_eval"
ITM = "score_image_text_matching"
_BATCH = 16
_LONGEST = 220  # tokens of the longest answer that is meant (a dense caption of five objects has about 150)
Request = tuple[Scene, str, dict[str, str]]
"""A scene, the name of a prompt, and the prompt's fields."""


def request_text(processor: Any, prompt: str, fields: dict[str, str]) -> str:
    """A request as the model reads it, up to where the answer begins."""
    found = prompts.load(prompt)
    turns = [
        {"role": "system", "content": found.system},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": found.render(**fields)}]},
    ]
    return processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


class Answerer:
    """An exported model behind transformers: greedy answers, and the expected score over the number tokens 0 to 100."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = self.processor.tokenizer
        self._numbers = torch.tensor(tokenizer.convert_tokens_to_ids([str(n) for n in range(101)]))

    def _inputs(self, requests: Sequence[Request]) -> Any:
        images = [Image.fromarray(render(scene, RENDER_SIZE)) for scene, _, _ in requests]
        texts = [request_text(self.processor, prompt, fields) for _, prompt, fields in requests]
        return self.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request], longest: int = _LONGEST) -> list[str]:
        """The greedy answers."""
        found: list[str] = []
        for first in range(0, len(requests), _BATCH):
            inputs = self._inputs(requests[first:first + _BATCH])
            out = self.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            found += self.processor.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        return found

    @torch.inference_mode()
    def scores(self, requests: Sequence[Request]) -> tuple[np.ndarray, np.ndarray]:
        """Greedy number (-1 where the likeliest token is none) and expected number of each request, [N]."""
        greedy, expected = [], []
        for first in range(0, len(requests), _BATCH):
            logits = self.model(**self._inputs(requests[first:first + _BATCH])).logits[:, -1].float()
            shares = logits[:, self._numbers].softmax(dim=-1)
            expected += (shares * torch.arange(101)).sum(dim=-1).tolist()
            best = logits.argmax(dim=-1)
            greedy += [(self._numbers == token).nonzero().flatten().tolist() for token in best]
        return np.array([numbers[0] if numbers else -1 for numbers in greedy]), np.array(expected)


def eval_scene(index: int) -> Scene:
    """The index-th scene of the stream that watches the training."""
    return draw_scene(seed_for(STREAM, index))


def _rng(scene: Scene) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([scene.seed, 70]))


def matching(answerer: Answerer, count: int, first: int = 0) -> dict[str, Any]:
    """AUC of image_text_matching: true captions against those of the next scene, and against one attribute changed."""
    scenes = [eval_scene(first + index) for index in range(count)]
    true = [caption_for(scene) for scene in scenes]
    sets = {
        "true": true, "another_scene": [*true[1:], true[0]],
        "attribute_changed": [alt_texts.change_attribute(text, scene, _rng(scene)) or "" for text, scene in zip(true, scenes, strict=True)],
    }
    scored = {name: answerer.scores([(s, ITM, {"alt_text": t}) for s, t in zip(scenes, texts, strict=True)]) for name, texts in sets.items()}
    figures: dict[str, Any] = {"pairs": count, "answers_that_are_numbers": round(float(np.mean([g >= 0 for g, _ in scored.values()])), 4)}
    for name in ("another_scene", "attribute_changed"):
        for how, which in (("greedy", 0), ("expected", 1)):
            figures[f"auc_{name}_{how}"] = round(auc(scored["true"][which].tolist(), scored[name][which].tolist()), 4)
    return figures | {f"mean_{name}": round(float(expected.mean()), 1) for name, (_, expected) in scored.items()}


def injections(answerer: Answerer, count: int, first: int = 0) -> dict[str, Any]:
    """How far an instruction in the text moves its score: mean over half true, half foreign texts, each with its twin."""
    scenes = [eval_scene(first + 10_000 + index) for index in range(count)]
    texts = [caption_for(s if number % 2 else eval_scene(first + 20_000 + number)) for number, s in enumerate(scenes)]
    injected = [alt_texts.inject(text, _rng(scene)) for text, scene in zip(texts, scenes, strict=True)]
    moved: dict[str, Any] = {"pairs": count}
    for aspect in ("image_text_matching", "object_detail_fulfillment", "caption_text_quality", "semantic_understanding"):
        plain, with_it = (
            answerer.scores([(s, f"score_{aspect}", {"alt_text": t}) for s, t in zip(scenes, some, strict=True)]) for some in (texts, injected)
        )
        moved[aspect] = {how: round(float((with_it[i] - plain[i]).mean()), 2) for i, how in ((0, "greedy"), (1, "expected"))}
    return moved


def dense_captions(answerer: Answerer, count: int, first: int = 0) -> dict[str, Any]:
    """Dense captions, by number of objects: share of named objects that exist (precision), share of objects named (recall)."""
    figures: dict[str, Any] = {}
    for name, few in (("1_to_2_objects", (1, 2)), ("3_to_5_objects", (3, 4, 5))):
        scenes = [s for s in map(eval_scene, range(first + 30_000, first + 30_000 + 4 * count)) if len(s.objects) in few][:count]
        texts = answerer.answers([(scene, "caption_dense", {}) for scene in scenes])
        named = [named_objects(text) for text in texts]
        there = [{(o.color, o.shape) for o in scene.objects} for scene in scenes]
        right = sum(len(a & b) for a, b in zip(named, there, strict=True))
        figures[name] = {
            "scenes": len(scenes), "precision": round(right / max(1, sum(map(len, named))), 4),
            "recall": round(right / sum(map(len, there)), 4),
            "caption_equals_truth": round(sum(text == answers.dense_caption(s) for text, s in zip(texts, scenes, strict=True)) / len(scenes), 4),
        }
    return figures


def questions(answerer: Answerer, count: int, first: int = 0) -> dict[str, Any]:
    """Share of yes/no questions answered rightly; half of the right answers are yes."""
    scenes = [eval_scene(first + 40_000 + index) for index in range(count)]
    asked = [answers.question(scene, _rng(scene)) for scene in scenes]
    found = answerer.answers([(s, "question", {"question": q}) for s, (q, _) in zip(scenes, asked, strict=True)], longest=3)
    return {"questions": count, "right": round(sum(a == b for a, (_, b) in zip(found, asked, strict=True)) / count, 4)}


def evaluate(folder: Path, count: int, first: int = 0) -> dict[str, Any]:
    """All figures of an exported model, on the scenes of the stream from the `first` on."""
    answerer = Answerer(folder)
    return {
        "stream": STREAM, "first": first, "matching": matching(answerer, count, first),
        "dense_captions": dense_captions(answerer, count // 2, first),
        "injections": injections(answerer, count // 2, first), "questions": questions(answerer, count, first),
        "parameters": sum(p.numel() for p in answerer.model.parameters()),
    }


def mixed_requests(count: int) -> list[Request]:
    """Requests of several prompts in turn, about scenes of their own."""
    kinds = ("caption_dense", "caption_descriptive", "caption_short", "tags", ITM)
    scenes = [eval_scene(50_000 + index) for index in range(count)]
    return [(s, kinds[n % len(kinds)], {"alt_text": caption_for(s)} if kinds[n % len(kinds)] == ITM else {}) for n, s in enumerate(scenes)]


def compare_engines(folder: Path, count: int = 200) -> dict[str, Any]:
    """Share of greedy answers that vLLM and transformers give alike, both computing in float32."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by itself a CPU build wants nearly all memory
    from vllm import LLM, SamplingParams

    requests = mixed_requests(count)
    answerer = Answerer(folder)
    ours = answerer.answers(requests)
    engine = LLM(str(folder), dtype="float32", max_model_len=1024, limit_mm_per_prompt={"image": 1, "video": 0}, enforce_eager=True, seed=0)
    inputs = [
        {"prompt": request_text(answerer.processor, prompt, fields), "multi_modal_data": {"image": Image.fromarray(render(scene, RENDER_SIZE))}}
        for scene, prompt, fields in requests
    ]
    outputs = engine.generate(inputs, SamplingParams(temperature=0.0, max_tokens=_LONGEST))  # type: ignore[arg-type]
    theirs = [output.outputs[0].text for output in outputs]
    differing = [
        {"prompt": prompt, "transformers": a, "vllm": b} for (_, prompt, _), a, b in zip(requests, ours, theirs, strict=True) if a.strip() != b.strip()
    ]
    return {"answers": count, "equal": round(1 - len(differing) / count, 4), "differing": differing[:5]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of an exported MLLM")
    parser.add_argument("--scenes", type=int, default=400, help="scenes of the largest measurement")
    parser.add_argument("--first", type=int, default=0, help="number in their stream of the first scene: another one measures on other scenes")
    parser.add_argument("--vllm", action="store_true", help="compare engines instead")
    options = parser.parse_args(arguments)
    figures = compare_engines(options.folder) if options.vllm else evaluate(options.folder, options.scenes, options.first)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
