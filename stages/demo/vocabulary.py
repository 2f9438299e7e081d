"""The words of the rendered world: what a model of this world needs to read and write whole."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import numpy as np

from stages import prompts
from stages.demo import captions, spoiled_texts
from stages.demo.languages import LANGUAGES, translate
from stages.demo.scenes import draw_scene
from stages.demo.streams import seed_for

_WORD: Final = re.compile(r"[^\W\d_]+")
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_SCENES: Final = 3000
_OFTEN: Final = 40  # a foreign word rarer than this is a compound; it is spelled


def world_words(answers: list[str]) -> list[str]:
    """Words of captions, spoiled texts, prompts and the given answers, and the frequent ones of the other languages; sorted."""
    english: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    for name in prompts.names():
        english.update(_WORD.findall(prompts.load(name).system + " " + prompts.load(name).user))
    for text in answers:
        english.update(_WORD.findall(text))
    for index in range(_SCENES):
        scene = draw_scene(seed_for("train", index))
        rng = np.random.Generator(np.random.PCG64([scene.seed, 50]))
        spoiled = [make(rng) for make in (spoiled_texts.boilerplate, spoiled_texts.file_name, spoiled_texts.url_text, spoiled_texts.low_letters)]
        english.update(_WORD.findall(" ".join([captions.caption_for(scene), *spoiled])))
        for language in LANGUAGES:
            foreign.update(_WORD.findall(_CJK.sub(r" \g<0> ", translate(scene, rng, language))))
    english.update(_WORD.findall(spoiled_texts.REPEATED_TEXT + " " + " ".join(spoiled_texts.SHORT_WORDS)))
    english.update(("system", "user", "assistant", "yes", "no", "Yes", "No"))
    return sorted(set(english) | {word for word, count in foreign.items() if count >= _OFTEN})
