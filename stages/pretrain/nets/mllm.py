"""A small Qwen2-VL from a config, with its processor, and the training-only heads beside it.

Shapes: B samples, L tokens, P image tokens (after merging), W width of the language model.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from stages import prompts
from stages.pretrain.checkpoint import whole_folder
from stages.pretrain.errors import TrainError
from stages.pretrain.nets.word_tokenizer import IMAGE, PAD, TURN_END, VIDEO, VISION_END, VISION_START, word_tokenizer

# in a folder of their own: vLLM takes every safetensors file beside config.json for weights of the model
HEADS_NAME = "training/heads.safetensors"
_VOCABULARIES = Path(__file__).parent.parent / "recipes"
_MODEL_KEYS = ("image_size", "vocabulary", "text", "vision", "image_heads", "place_heads", "claim_head", "claim_place_head")
PLACE_LAYER = 2
"""Image tokens are asked where they are behind this layer of the language model: early enough for the texts behind them to use it."""


class Mllm(nn.Module):
    """The model (`net`, a Qwen2VLForConditionalGeneration), its processor, and heads that only the training uses.

    `image_heads` classify image tokens as the vision tower gives them (name -> number of classes), `place_heads` those behind
    layer PLACE_LAYER of the language model, which alone knows places; `claim_head` says whether a claim of a text is true, `claim_place_head` in which cell
    stands the object that it means.
    """

    def __init__(self, net: Any, processor: Any, model_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.net: Any = net
        self.processor, self.model_cfg = processor, model_cfg
        width = net.config.text_config.hidden_size
        self.image_heads, self.place_heads = (
            nn.ModuleDict({name: nn.Linear(width, n) for name, n in model_cfg.get(key, {}).items()}) for key in ("image_heads", "place_heads")
        )
        self.claim_head = nn.Linear(width, 1) if model_cfg.get("claim_head") else None
        self.claim_place_head = nn.Linear(width, model_cfg["claim_place_head"]) if model_cfg.get("claim_place_head") else None

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """Image tokens [B, P, W] of images float [B, 3, S, S], normalised."""
        vision = self.net.config.vision_config
        patches, side = patchify(images, vision.patch_size, vision.spatial_merge_size)
        grid = torch.tensor([[1, side, side]] * len(images), device=images.device)
        return self.net.model.visual(patches, grid_thw=grid).pooler_output.view(len(images), -1, self.net.config.text_config.hidden_size)

    def hidden(
        self, features: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states [B, L, W] of token ids [B, L] in which each image placeholder is one row of `features`, and those of
        the image tokens behind layer PLACE_LAYER, [B, P, W].

        `positions` int64 [3, B, L] (time, height, width), `mask` bool [B, 1, L, L]: True where a token sees another.
        """
        embedded = self.net.get_input_embeddings()(tokens)
        image = tokens == self.net.config.image_token_id
        embedded = embedded.masked_scatter(image[..., None].expand_as(embedded), features.to(embedded.dtype))
        middle: list[torch.Tensor] = []
        layers = self.net.model.language_model.layers
        hook = layers[min(PLACE_LAYER, len(layers)) - 1].register_forward_hook(lambda _, __, out: middle.append(out[0] if isinstance(out, tuple) else out))
        try:
            out = self.net.model.language_model(inputs_embeds=embedded, position_ids=positions, attention_mask=mask, use_cache=False)
        finally:
            hook.remove()
        return out.last_hidden_state, middle[0][image].view(features.shape)


def _short_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of training on a CPU: plain batched products. At a few hundred tokens and 32 channels per head they take half the
    time of PyTorch's fused kernels, whose backward pass in bfloat16 is several times slower still."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    batch, heads, length, width = query.shape
    scale = options.get("scaling") or width**-0.5
    q, k, v = (x.to(torch.bfloat16).reshape(batch * heads, -1, width) for x in (query * scale, key, value))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, heads, length, -1)
    if attention_mask is not None:
        scores.add_(torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill(~attention_mask, -1e4))
    shares = scores.softmax(dim=-1, dtype=scores.dtype).view(batch * heads, length, -1)
    out = torch.bmm(shares, v).view(batch, heads, length, width)
    return out.transpose(1, 2).contiguous().to(query.dtype), None


class _FlatPatchEmbed(nn.Module):
    """Qwen2-VL's patch embedding as the matrix product that it is: a convolution whose kernel covers its whole input is
    several times slower on a CPU. Parameters keep their names."""

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


def patchify(images: torch.Tensor, patch: int, merge: int) -> tuple[torch.Tensor, int]:
    """Images [B, 3, S, S] as Qwen2-VL's image processor lays them out: [B * N, 3 * patch * patch], and patches per side.

    Patches that are merged later stand together, block after block, row by row (temporal patch 1).
    """
    batch, channels, side, _ = images.shape
    blocks = side // (patch * merge)
    split = images.reshape(batch, channels, blocks, merge, patch, blocks, merge, patch)
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
    return ordered.reshape(-1, channels * patch * patch), blocks * merge


def build_mllm(model_cfg: dict[str, Any]) -> Mllm:
    """A randomly initialised Qwen2-VL with its processor.

    `model_cfg`: `image_size` (pixels, square), `vocabulary` (name of a list that comes with the package, or path of a text
    file, one word a line), `text` and `vision` (transformers' Qwen2VLTextConfig and Qwen2VLVisionConfig), and for the
    training-only heads `image_heads`, `place_heads`, `claim_head` and `claim_place_head`.
    Raises TrainError for an unknown key or sizes that do not fit.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, Qwen2VLForConditionalGeneration
    from transformers.masking_utils import sdpa_mask

    for key in model_cfg:
        if key not in _MODEL_KEYS:
            near = difflib.get_close_matches(key, _MODEL_KEYS, n=1)
            raise TrainError(f"option model: unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}; there are {', '.join(_MODEL_KEYS)}")
    tokenizer = word_tokenizer(read_vocabulary(model_cfg["vocabulary"]), marks=(prompts.OPENING, prompts.CLOSING))
    config = _qwen2_vl_config(model_cfg, tokenizer)
    unit = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    if model_cfg["image_size"] % unit:
        raise TrainError(f"option model: image_size {model_cfg['image_size']} is no multiple of {unit} (patch_size x spatial_merge_size)")
    net = Qwen2VLForConditionalGeneration(config)
    _start_matrices(net)
    net.generation_config.update(eos_token_id=config.text_config.eos_token_id, pad_token_id=config.text_config.pad_token_id, bos_token_id=None, do_sample=False)
    AttentionInterface.register("short", _short_attention)
    AttentionMaskInterface.register("short", sdpa_mask)
    net.set_attn_implementation("short")
    net.model.visual.patch_embed = _FlatPatchEmbed(net.model.visual.patch_embed.proj)
    return Mllm(net, make_processor(tokenizer, config, model_cfg["image_size"]), model_cfg)


def _start_matrices(net: Any) -> None:
    """Random matrices whose outputs are as large as their inputs; transformers starts all at 0.02, which suits wide models only.

    Words are as large as what the vision tower makes of an image: in one stream with them, small ones would be drowned.
    """
    for parameter in net.model.visual.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=(parameter[0].numel()) ** -0.5 * 0.8)
    layers = net.model.language_model.layers
    for name, parameter in layers.named_parameters():
        if parameter.ndim >= 2:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * 0.8 * ((2 * len(layers)) ** -0.5 if into_stream else 1.0))
    if not net.config.tie_word_embeddings:
        nn.init.normal_(net.get_input_embeddings().weight, std=1.0)


def read_vocabulary(name: str) -> list[str]:
    """The words of a list that comes with the package, or of a text file. Raises TrainError where there is none."""
    path = Path(name) if "/" in name else _VOCABULARIES / f"{name}_words.txt"
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise TrainError(f"option model.vocabulary: cannot read {path}: {error}") from error


def _qwen2_vl_config(model_cfg: Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig

    ids = tokenizer.convert_tokens_to_ids
    text = {"tie_word_embeddings": True, "max_position_embeddings": 2048, **model_cfg["text"]}
    text |= {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": ids(TURN_END), "pad_token_id": ids(PAD)}
    head = text["hidden_size"] // text["num_attention_heads"]
    # Qwen2-VL's shares of the rotary pairs (time a quarter, height and width three eighths each, width the slowest) suit heads of
    # 64 pairs. With 16 of them neighbouring columns would differ by 0.003 radians at most, and no token could tell left from right
    pairs = head // 2
    shares = [pairs // 16, pairs // 8, pairs - pairs // 16 - pairs // 8]
    text.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": shares})
    vision = {"temporal_patch_size": 1, **model_cfg["vision"], "hidden_size": text["hidden_size"]}
    return Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids(IMAGE), video_token_id=ids(VIDEO),
        vision_start_token_id=ids(VISION_START), vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def make_processor(tokenizer: Any, config: Any, image_size: int) -> Any:
    """Qwen2VLProcessor that brings square images to `image_size` pixels."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    vision = config.vision_config
    pixels = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size, "merge_size": vision.spatial_merge_size}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **sizes), tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **sizes), chat_template=tokenizer.chat_template,
    )


def save_mllm(model: Mllm, folder: Path, heads: bool = True) -> None:
    """Write model (float16), processor and generation config into `folder`; transformers and vLLM load it.

    `heads`: also the training-only heads, from which a further training can go on. The folder appears complete or not at
    all; an earlier one is replaced. Raises TrainError where the disk refuses.
    """
    with whole_folder(folder) as beside:
        _write(model, beside, heads)


def _write(model: Mllm, folder: Path, heads: bool) -> None:
    state = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.net.state_dict().items()}
    model.net.save_pretrained(folder, state_dict=state)
    model.processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # float16 holds the weights exactly enough; computed with in float32 both engines give the same greedy answers
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if heads:
        kept = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if not name.startswith("net.")}
        (folder / HEADS_NAME).parent.mkdir(exist_ok=True)
        save_file(kept, folder / HEADS_NAME)


def load_weights(model: Mllm, folder: Path, vision_only: bool = False) -> None:
    """Start `model`, or its vision tower alone, from what `save_mllm` wrote. Raises TrainError where the weights do not fit."""
    from transformers import Qwen2VLForConditionalGeneration

    if not (folder / "config.json").is_file():
        raise TrainError(f"option init: {folder} is no folder of an exported MLLM (config.json is missing)")
    saved = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    try:
        if vision_only:
            model.net.model.visual.load_state_dict(saved.model.visual.state_dict())
        else:
            model.net.load_state_dict(saved.state_dict())
        if (folder / HEADS_NAME).is_file():
            model.load_state_dict(load_file(folder / HEADS_NAME), strict=False)
    except RuntimeError as error:
        raise TrainError(f"option init: the weights of {folder} do not fit the model: {error}") from error
