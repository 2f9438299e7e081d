"""A Qwen2-VL made from a config and not trained, of a few thousand weights or as many as asked: real in shape, format and tokenizer, and quick to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "a the red blue green small large dog cat circle square on grass next to in front of image caption text describe score photo system user assistant"


def make_tokenizer(words: str = WORDS, size: int = 700, digits: bool = False) -> object:
    """A byte-level BPE of at most `size` entries: any text has tokens, 0 to 100 are one token each (with `digits` a token per digit, as Qwen's own
    tokenizers have it), Qwen2-VL's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=digits), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), special_tokens=SPECIALS, show_progress=False)
    made.train_from_iterator([words] * 20 + [str(number) for number in range(101)] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIALS[1:], chat_template=TEMPLATE
    )


def save_tiny_qwen2_vl(
    folder: Path, seed: int = 0, text: Mapping[str, int] | None = None, vision: Mapping[str, int] | None = None, words: str = WORDS, longest: int = 96,
    digits: bool = False,
) -> Path:  # fmt: skip
    """Write model, tokenizer and processor into `folder`. Hidden 64, 2 heads, 2 layers unless `text` and `vision` say otherwise; heads of 32 or 64;
    patch 8 merged 2 x 2; words: those that the tokenizer is made on; longest: side of the largest square that is not scaled down;
    digits: with a tokenizer that splits numbers, and answers that consist of digits for the most part."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = make_tokenizer(words, 700 if words == WORDS else 1500, digits)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, **(text or {})}
    shape["num_key_value_heads"] = shape["num_attention_heads"]
    rotary = {32: [4, 6, 6], 64: [8, 12, 12]}[shape["hidden_size"] // shape["num_attention_heads"]]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "max_position_embeddings": 1024, **shape,
            "rope_parameters": {"rope_type": "default", "mrope_section": rotary, "rope_theta": 10000.0},
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, **(vision or {}), "hidden_size": shape["hidden_size"], "patch_size": 8,
            "spatial_merge_size": 2, "temporal_patch_size": 1,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=not digits,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # wider than usual: logits of an untrained model lie so near that rounding would choose
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    if digits:
        _favour_digits(model, [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"], ids["<|im_end|>"])
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    pixels = {"shortest_edge": 32 * 32, "longest_edge": longest * longest}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=1, size=pixels)
    videos = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=1)
    Qwen2VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _favour_digits(model: Any, digits: list[int], end: int) -> None:
    """One direction of the hidden states is the same for all tokens, and raises the logits of the digits, and of the end among them."""
    import torch

    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[:, 0] = 3.0
        model.model.visual.merger.mlp[2].bias[0] += 3.0
        model.lm_head.weight.mul_(3.0)
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[[*digits, end], 0] = 3.0


if __name__ == "__main__":
    import sys

    print(save_tiny_qwen2_vl(Path(sys.argv[1])))
