"""An OWLv2 made from a config with seeded random weights and CLIP's real vocabulary, saved as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path


def save_tiny_owlv2(folder: Path, image_size: int = 64) -> Path:
    """64 boxes per image at the default size; three text layers of width 32."""
    import torch
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    words = SimpleTokenizer()
    vocabulary = {word: at for word, at in words.encoder.items() if word not in ("<start_of_text>", "<end_of_text>")}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(words.bpe_ranks), model_max_length=16, pad_token="!")
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    config = Owlv2Config(
        text_config={**layers, "max_position_embeddings": 16}, vision_config={**layers, "image_size": image_size, "patch_size": 8}, projection_dim=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Owlv2ForObjectDetection(config)
        for head, spread in ((model.class_head.dense0, 0.5), (model.class_head.logit_shift, 0.5), (model.box_head.dense2, 0.1)):
            head.weight.data.normal_(std=spread)  # as initialised, all boxes and scores are nearly equal
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": image_size, "width": image_size}), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
