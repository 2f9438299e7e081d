"""Where the weights of a chat model lie and what they are, without loading them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import Fatal, RecipeError
from pipeline.registry import nearest
from stages.models.rendering import Renderer

BUNDLED = "bundled:"
BUNDLED_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
BUNDLED_NOTE = "bundled model of the rendered demo world: its answers mean nothing for other images"
COMMON_KEYS = frozenset({"kind", "name", "weights", "max_pixels", "replicas", "gpu_share", "placement", "num_cpus"})
DEFAULT_MAX_PIXELS = 448 * 448
# Lowest values of options that are numbers: whole ones, and others.
_WHOLE = dict.fromkeys(
    (
        "replicas",
        "concurrency",
        "threads",
        "batch_size",
        "max_model_len",
        "max_num_seqs",
        "tensor_parallel_size",
        "block_size",
        "encoder_cache_tokens",
        "kv_cache_gb",
        "beams",
        "max_new_tokens",
    ),
    1,
) | {"retries": 0, "regions": 0}
_NUMBERS = dict.fromkeys(("num_cpus", "gpu_share", "processor_cache_gb", "requests_per_minute", "seconds", "variance"), 0.0) | dict.fromkeys(
    ("timeout_s", "gpu_memory_utilization"), 1e-9
)  # fmt: skip
_DTYPES = ("auto", "float32", "float", "bfloat16", "float16", "half")
_MAY_BE_NULL = frozenset({"requests_per_minute", "max_new_tokens", "regions", "variance"})


def check_keys(spec: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises RecipeError for a key that the kind does not have, and for a pixel cap or another number that is none or too low."""
    known = sorted({*known, *COMMON_KEYS})
    for key in spec:
        if key not in known:
            raise RecipeError(f"models: {spec['kind']} has no option {key!r}{nearest(key, known)}; there are: {', '.join(known)}")
    pixels = spec.get("max_pixels", DEFAULT_MAX_PIXELS)
    if not isinstance(pixels, int) or pixels < 1:
        raise RecipeError(f"models: max_pixels must be a whole number of pixels such as {DEFAULT_MAX_PIXELS} (448 x 448), found {pixels!r}")
    if spec.get("dtype", "auto") not in _DTYPES:
        raise RecipeError(f"models: dtype {spec['dtype']!r} is none of {', '.join(_DTYPES)}")
    for key, value in spec.items():
        whole, lowest = key in _WHOLE, _WHOLE.get(key, _NUMBERS.get(key))
        if lowest is None or (value is None and key in _MAY_BE_NULL):
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= lowest:
            what = f"{'a whole number' if whole else 'a number'} {'above 0' if lowest > 0 else 'from 0 on'}"
            raise RecipeError(f"models: {key} of a model of kind {spec['kind']} must be {what}, found {value!r}")


def local_weights(spec: Mapping[str, Any]) -> Path | None:
    """The folder that `weights` names; None for a name of the hub. Raises RecipeError where there is none, or none given."""
    weights = str(spec.get("weights") or "")
    if not weights:
        raise RecipeError(f"models: a {spec['kind']} model needs `weights`: a folder in Hugging Face's format, or a name of its hub")
    if weights.startswith(BUNDLED):
        folder = BUNDLED_FOLDER / weights.removeprefix(BUNDLED)
    else:
        folder = Path(weights).expanduser()
        if not folder.is_dir() and not weights.startswith((".", "/", "~")):
            return None
    if not (folder / "config.json").is_file():
        raise RecipeError(f"models: weights {weights!r}: {folder} has no config.json; name the folder of a model in Hugging Face's format")
    return folder


def weights_identity(spec: Mapping[str, Any]) -> str:
    """SHA-256 over all files of a local folder (weights, tokenizer, processor, template); name and revision of a hub's model."""
    folder = local_weights(spec)
    if folder is None:
        return f"{spec['weights']}@{spec.get('revision', 'main')}"
    return files_identity(folder, (file for file in folder.iterdir() if file.is_file() and file.suffix != ".md"))


def files_identity(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over files of a folder, their names in it among them; a file is read once per process and state."""
    parts = [f"{file.relative_to(folder)}{_file_digest(file, file.stat().st_mtime_ns)}" for file in sorted(files)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights are at hand, loading none: (ok or warning; what was found; what to do). Raises RecipeError as `local_weights`."""
    folder = local_weights(spec)
    if folder is not None:
        return "ok", f"{folder}: {sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6:,.1f} MB", ""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(spec["weights"]), "config.json", revision=spec.get("revision", "main"))
    if isinstance(cached, str):
        return "ok", f"{spec['weights']}: cached in {Path(cached).parent}", ""
    return "warning", f"{spec['weights']}: not cached; fetched when the stage starts", "without a network set `weights` of this model to a local folder"


def load_renderer(weights: str, revision: str) -> Renderer:
    """Template and tokenizer of a model's folder or name. Raises Fatal where they cannot be read, or put no image into a prompt."""
    from jinja2 import TemplateError
    from transformers import AutoProcessor

    try:
        renderer = Renderer(AutoProcessor.from_pretrained(weights, revision=revision))
        renderer.render("a", "a", has_image=True)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        AttributeError,
        TypeError,
        TemplateError,
    ) as error:  # what transformers raises for files that are no model's
        raise Fatal(f"models: could not load the processor of {weights}: {type(error).__name__}: {error}") from error
    return renderer


def device_of(spec: Mapping[str, Any]) -> str:
    """The torch device of a spec: `device`, by default a GPU where there is one."""
    import torch

    device = str(spec.get("device", "auto"))
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def engine_digest(spec: Mapping[str, Any], engine: str, version: str, *facts: object) -> str:
    """Short name of all that makes a model's answers: `<kind>-<hash of weights, tokenizer, pixel cap, engine, version and facts>`."""
    parts = [weights_identity(spec), str(spec.get("max_pixels", DEFAULT_MAX_PIXELS)), engine, version, *map(str, facts)]
    return f"{spec['kind']}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def model_name(spec: Mapping[str, Any]) -> str:
    """Name of a model beside its answers: as the recipe says, else that of the hub or of the folder, without its path."""
    weights = str(spec.get("weights") or "")
    return str(spec.get("name") or (Path(weights).name if Path(weights).expanduser().is_dir() else weights))


def note_of(spec: Mapping[str, Any]) -> str:
    """What must stand beside answers of this model, '' for nothing."""
    return BUNDLED_NOTE if str(spec.get("weights") or "").startswith(BUNDLED) else ""


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, changed_ns: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
