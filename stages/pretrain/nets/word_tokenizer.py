"""A tokenizer of whole words, for a small MLLM: control tokens, the numbers 0 to 100, single characters, a word list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PAD, UNKNOWN = "<|endoftext|>", "<|unk|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
CONTROL_TOKENS = (PAD, UNKNOWN, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)
_PIECE = "##"
_PUNCTUATION = r"[!-/:-@\[-`{-~]|\p{P}"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's layout of turns and images (Qwen2-VL-Instruct's chat template) without its default system text."""
TEMPLATE_WITHOUT_SYSTEM = CHAT_TEMPLATE.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")
"""The same for a model that reads no system text."""


def word_tokenizer(words: Iterable[str], marks: Iterable[str] = ()) -> Any:
    """A transformers tokenizer that knows `words` whole and spells all others.

    Text is split at white space, punctuation and numbers (0 to 100 are one token each, longer ones are split from the
    left), and CJK characters stand alone. `marks` are strings such as '<text>' that are one token wherever they stand; they are
    words, not control tokens, which whoever renders a prompt would take apart.
    A word that is not in the list becomes pieces of one character; one with a character unknown, `<|unk|>`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = tuple(marks)
    known = [word for word in dict.fromkeys(words) if word.isalpha()]
    characters = sorted({char for word in known for char in word} - set(_LETTERS))
    entries = [*CONTROL_TOKENS, *marks, *map(str, range(101)), *(chr(code) for code in range(33, 127)), *characters]
    entries += [_PIECE + char for char in (*_LETTERS, *characters)] + sorted(known)
    whole = "|".join(re.escape(mark) for mark in marks)
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=_PIECE))
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(f"{whole}|{_PUNCTUATION}" if whole else _PUNCTUATION), "isolated"),
        pre_tokenizers.Split(Regex(r"100|[1-9]?[0-9]|[\u3040-\u30ff\u3400-\u9fff]"), "isolated"),
    ])
    backend.decoder = decoders.WordPiece(prefix=_PIECE, cleanup=True)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, unk_token=UNKNOWN, eos_token=TURN_END, padding_side="left",
        extra_special_tokens=[TURN_START, VISION_START, VISION_END, IMAGE, VIDEO],
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False, model_max_length=2048,
    )
