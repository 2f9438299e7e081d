"""One way to load a CLIP: by open_clip name and tag, from local files, or the one that comes with the package."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.models.tokenize import Tokenizer, tokenizer_for

if TYPE_CHECKING:
    import torch

BUNDLED = "rendered_clip"
_BUNDLED_DIR = Path(__file__).parent.parent / "demo" / "weights" / BUNDLED
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_HELP = (
    f"Name a model as '{BUNDLED}' (comes with the package, for the rendered world only), as NAME:TAG of open_clip "
    "('ViT-B-32:laion2b_s34b_b79k'), as NAME:PATH of a local checkpoint ('ViT-B-32:weights.safetensors'), or as the "
    "path of a folder with open_clip_config.json and its weights (what a training exports)."
)


class ModelLoadError(RuntimeError):
    """A model that cannot be loaded; the message says what was missing and how to name a local file instead."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a model wants its images: side in pixels, mean and spread per channel (of 0 to 1), filter, resize mode."""

    size: int
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(slots=True)
class LoadedClip:
    """A CLIP ready to embed; `digest` is SHA-256 over its tensors by name, `note` must stand beside its scores."""

    name: str
    model: torch.nn.Module
    model_cfg: dict[str, Any]
    preprocess: Preprocess
    tokenizer: Tokenizer
    digest: str
    note: str = ""


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over all tensors in the order of their names: name, type, shape, values; no matter the file format."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(_bytes_type()).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def load_clip(spec: str, device: str = "cpu", cache_dir: str | None = None) -> LoadedClip:
    """The CLIP that `spec` names, in evaluation mode on `device`.

    `spec`: 'rendered_clip', 'NAME:TAG', 'NAME:PATH', a folder, 'local-dir:FOLDER', 'hf-hub:ORG/REPO', or
    'NAME:random' (seeded random weights of an open_clip config, for benchmarks; its note says so).
    Raises ModelLoadError where nothing of that name exists or it cannot be fetched.
    """
    if spec == BUNDLED:
        return _from_folder(_BUNDLED_DIR, spec, device)
    if spec.startswith("local-dir:") or Path(spec).is_dir():
        return _from_folder(Path(spec.removeprefix("local-dir:")), spec, device)
    if spec.startswith("hf-hub:"):
        return _from_open_clip(spec, spec, None, device, cache_dir)
    name, _, weights = spec.partition(":")
    if not weights:
        raise ModelLoadError(f"model {spec!r} names no weights and is no folder. {_HELP}")
    if weights == "random":
        return _random(name, spec, device)
    return _from_open_clip(spec, name, weights, device, cache_dir)


def preprocess_from(config: Mapping[str, Any], size: int | tuple[int, int]) -> Preprocess:
    """The preprocessing an open_clip `preprocess_cfg` asks for, at the image size of the tower.

    Raises ModelLoadError for sides that differ, which no model of open_clip's list has.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelLoadError(f"images of {size} pixels: only square inputs are supported")
    return Preprocess(
        size=sides.pop(), mean=tuple(config.get("mean", _CLIP_MEAN)), std=tuple(config.get("std", _CLIP_STD)),
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        resize_mode=config.get("resize_mode") or "shortest",
    )


def expand_rows(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `compact_rows`: one embedding row per token id again. Leaves every other state as it is."""
    import torch

    if "token_embedding.rows" not in state:
        return state
    state = dict(state)
    rows, ids = state.pop("token_embedding.rows"), state.pop("token_embedding.ids")
    other, count = state.pop("token_embedding.other"), int(state.pop("token_embedding.count"))
    full = other.to(torch.float32).repeat(count, 1)
    full[ids.long()] = rows.to(torch.float32)
    state["token_embedding.weight"] = full
    return state


def compact_rows(state: dict[str, torch.Tensor], token_ids: list[int]) -> dict[str, torch.Tensor]:
    """The state with the embedding rows of `token_ids` only; all other tokens share the mean of those rows.

    For a model that never saw the other tokens: their rows hold noise, and would be most of its file.
    """
    import torch

    state = dict(state)
    full = state.pop("token_embedding.weight")
    ids = torch.tensor(sorted(set(token_ids)), dtype=torch.int32)
    rows = full[ids.long()]
    state |= {
        "token_embedding.rows": rows, "token_embedding.ids": ids, "token_embedding.other": rows.mean(dim=0),
        "token_embedding.count": torch.tensor(len(full), dtype=torch.int32),
    }
    return state


def _from_folder(folder: Path, spec: str, device: str) -> LoadedClip:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path = folder / "open_clip_config.json"
    if not config_path.is_file():
        raise ModelLoadError(f"model {spec!r}: {config_path} does not exist. {_HELP}")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    weights = folder / "open_clip_model.safetensors"
    if not weights.is_file():  # another layout (.bin, other names): open_clip knows where to look
        return _from_open_clip(spec, f"local-dir:{folder}", None, device, None)
    try:
        read = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"model {spec!r}: {weights} cannot be read: {error}. {_HELP}") from error
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in expand_rows(read).items()}
    model = _build(config["model_cfg"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelLoadError(f"model {spec!r}: {weights} does not fit its config: {error}") from error
    return _loaded(spec, f"local-dir:{folder}", model, config["model_cfg"], config.get("preprocess_cfg", {}), device,
                   note=config.get("note", ""))


def _from_open_clip(spec: str, name: str, weights: str | None, device: str, cache_dir: str | None) -> LoadedClip:
    import open_clip
    from safetensors import SafetensorError

    # EOFError and the rest: what torch's unpickler and safetensors raise for a file that holds no weights.
    wrong = (RuntimeError, OSError, ValueError, EOFError, LookupError, pickle.UnpicklingError, SafetensorError)
    try:
        model = open_clip.create_model(name, pretrained=weights, cache_dir=cache_dir, require_pretrained=True)
        model_cfg = open_clip.get_model_config(name)
    except wrong as error:
        told = f"{type(error).__name__}: {error}".rstrip(".")
        raise ModelLoadError(f"model {spec!r} could not be loaded or fetched: {told}. {_HELP}") from error
    return _loaded(spec, name, model, model_cfg, model.visual.preprocess_cfg, device)


def _random(name: str, spec: str, device: str) -> LoadedClip:
    import open_clip
    import torch

    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise ModelLoadError(f"model {spec!r}: open_clip has no config {name!r}. {_HELP}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _build(model_cfg)
    return _loaded(spec, name, model, model_cfg, {}, device, note="random weights: scores mean nothing")


def _loaded(
    spec: str, source: str, model: torch.nn.Module, model_cfg: dict[str, Any], preprocess_cfg: Mapping[str, Any],
    device: str, note: str = "",
) -> LoadedClip:
    size = getattr(model.visual, "image_size", None) or model_cfg["vision_cfg"].get("image_size", 224)
    return LoadedClip(
        name=spec, model=model.eval().to(device), model_cfg=model_cfg, preprocess=preprocess_from(preprocess_cfg, size),
        tokenizer=tokenizer_for(model_cfg, source), digest=weights_digest(model.state_dict()), note=note,
    )


def _build(model_cfg: dict[str, Any]) -> torch.nn.Module:
    from stages.pretrain.nets.towers import build_clip

    return build_clip(model_cfg)


def _bytes_type() -> torch.dtype:
    import torch

    return torch.uint8
