"""Model kind `open_clip`: image and text embeddings of any CLIP that open_clip can build.

In a recipe: `models: {clip: {kind: open_clip, name: ViT-B-32, weights: laion2b_s34b_b79k}}`. `weights` is a tag of
open_clip, the path of a checkpoint or of an exported folder, or `bundled:rendered_clip`. Further keys: device (auto,
cpu, cuda), precision (auto, fp32, fp16, bf16), batch_size (the one shape that the model sees), threads (on CPU).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Fatal, RecipeError
from pipeline.registry import nearest
from stages.models.open_clip_loader import LoadedClip, ModelLoadError, load_clip
from stages.models.weights import device_of

if TYPE_CHECKING:
    import torch

METHOD = "embed"
_KEYS = frozenset(
    {"kind", "name", "weights", "device", "precision", "batch_size", "threads", "cache_dir", "replicas", "gpu_share", "placement", "num_cpus"}
)
_PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_BUNDLED_PREFIX = "bundled:"
_BUNDLED_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
_CHECKPOINT_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz"})


def identity(spec: Mapping[str, Any]) -> str:
    """What the weights are, without loading them: SHA-256 of a local file or folder, else open_clip's name and tag.

    Raises RecipeError for an unknown key or value, and for a local file that does not exist.
    """
    _check(spec)
    path = _local_path(spec)
    if path is None:
        return f"{spec.get('name', '')}:{spec.get('weights', '')}"
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(_file_digest(file, file.stat().st_mtime_ns) for file in files).encode()).hexdigest()


def load(spec: Mapping[str, Any]) -> OpenClipModel:
    """The model of a spec. Raises Fatal where it cannot be fetched or read, RecipeError where the spec is wrong."""
    _check(spec)
    device = device_of(spec)
    try:
        loaded = load_clip(_loader_name(spec), device, spec.get("cache_dir"))
    except ModelLoadError as error:
        raise Fatal(f"models: {error}") from error
    return OpenClipModel(
        loaded, device=device, precision=spec.get("precision", "auto"), batch_size=int(spec.get("batch_size", 64)),
        threads=int(spec.get("threads", 1)),
    )  # fmt: skip


def _check(spec: Mapping[str, Any]) -> None:
    for key in spec:
        if key not in _KEYS:
            raise RecipeError(f"models: open_clip has no option {key!r}{nearest(key, sorted(_KEYS))}")
    if spec.get("precision", "auto") not in _PRECISIONS:
        raise RecipeError(f"models: precision {spec['precision']!r} is none of {', '.join(_PRECISIONS)}")
    if not spec.get("name") and not spec.get("weights"):
        raise RecipeError("models: an open_clip model needs `name` (such as ViT-B-32) and `weights` (a tag or a path)")
    path = _local_path(spec)
    if path is not None and not path.exists():
        raise RecipeError(f"models: weights {spec['weights']!r}: {path} does not exist")


def _local_path(spec: Mapping[str, Any]) -> Path | None:
    """The file or folder that `weights` names; None for a tag, which open_clip fetches."""
    weights = str(spec.get("weights") or "")
    if weights.startswith(_BUNDLED_PREFIX):
        return _BUNDLED_FOLDER / weights.removeprefix(_BUNDLED_PREFIX)
    path = Path(weights).expanduser()
    return path if weights and ("/" in weights or path.suffix in _CHECKPOINT_SUFFIXES or path.is_dir()) else None


def _loader_name(spec: Mapping[str, Any]) -> str:
    """The spec in the one-string form that `load_clip` takes."""
    path = _local_path(spec)
    if path is not None and path.is_dir():
        return str(path)
    name, weights = str(spec.get("name") or ""), str(path or spec.get("weights") or "")
    if not name:
        raise RecipeError(f"models: weights {weights!r} need `name`, the open_clip architecture they belong to")
    return f"{name}:{weights}" if weights else name


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, changed_ns: int) -> str:
    with open(path, "rb") as handle:
        return path.name + hashlib.file_digest(handle, "sha256").hexdigest()


class OpenClipModel:
    """Embeds images and texts in batches of one fixed shape, padded with zeros.

    A row's embedding then never depends on what shares its batch. Embeddings are float32 of unit length. `digest` is
    SHA-256 over the weights with the precision; `note` must stand beside scores (bundled and random weights).
    """

    def __init__(self, loaded: LoadedClip, *, device: str = "cpu", precision: str = "auto", batch_size: int = 64, threads: int = 1):
        import torch

        if precision == "auto":
            precision = "fp16" if device.startswith("cuda") else "fp32"
        self.model: Any = loaded.model
        self.device = torch.device(device)
        self.precision = precision
        self.batch_size = batch_size
        self.threads = threads
        self.tokenizer = loaded.tokenizer
        self.digest = f"{loaded.digest}-{precision}"
        self.note = loaded.note
        self.image_size = loaded.preprocess.size
        self.mean, self.std = loaded.preprocess.mean, loaded.preprocess.std
        self.interpolation, self.resize_mode = loaded.preprocess.interpolation, loaded.preprocess.resize_mode
        self.embed_dim = int(loaded.model_cfg["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        # (x / 255 - mean) / std as one multiplication and one addition per channel
        self._scale = (1.0 / (255.0 * torch.tensor(self.std, device=self.device))).view(1, 3, 1, 1)
        self._shift = (-torch.tensor(self.mean, device=self.device) / torch.tensor(self.std, device=self.device)).view(1, 3, 1, 1)

    def describe(self) -> dict[str, Any]:
        """Facts that stages need before the first call: input size, preprocessing, embedding width."""
        return {
            "digest": self.digest, "note": self.note, "image_size": self.image_size, "resize_mode": self.resize_mode,
            "interpolation": self.interpolation, "mean": self.mean, "std": self.std, "embed_dim": self.embed_dim,
            "batch_size": self.batch_size, "logit_scale": self.logit_scale,
        }  # fmt: skip

    def embed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One call for a batch: `images` uint8 [N, H, W, 3] and `texts`, M strings, to `image` [N, D] and `text` [M, D].

        Further keys of the request come back as they are.
        """
        rest = {key: value for key, value in request.items() if key not in ("images", "texts")}
        return rest | {"image": self.embed_images(request["images"]), "text": self.embed_texts(request["texts"])}

    def embed_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 [N, H, W, 3] in RGB, cropped to the model's size, to float32 [N, D] of unit length.

        Raises ValueError for another size or type.
        """
        size = self.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"images are {pixels.dtype} {pixels.shape}, the model takes uint8 [N, {size}, {size}, 3]")
        return self._in_batches(pixels, self._encode_images)

    def embed_texts(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Texts, or token ids int64 [M, context], to float32 [M, D] of unit length."""
        tokens = texts if isinstance(texts, np.ndarray) else self.tokenizer(list(texts)).numpy() if len(texts) else np.empty((0, 1), np.int64)
        return self._in_batches(tokens, self._encode_texts)

    def _encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        planes = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return self.model.encode_image(planes.mul_(self._scale).add_(self._shift), normalize=True)

    def _encode_texts(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(batch.to(self.device, non_blocking=True), normalize=True)

    def _in_batches(self, rows: np.ndarray, encode: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        """Encode rows in batches of exactly `batch_size`, the last one filled up with zeros."""
        import torch

        answers = np.empty((len(rows), self.embed_dim), np.float32)
        with self._computing():
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                batch = np.ascontiguousarray(part)
                if len(part) < self.batch_size:
                    batch = np.zeros((self.batch_size, *rows.shape[1:]), rows.dtype)
                    batch[: len(part)] = part
                elif not batch.flags.writeable:  # an array from shared memory: torch wants one it may write to
                    batch = batch.copy()
                encoded = encode(torch.from_numpy(batch))
                answers[start : start + len(part)] = encoded[: len(part)].float().cpu().numpy()
        return answers

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Inference with this model's threads and precision; the process's own setting comes back afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)  # per calling thread in OpenMP, so set it for each call
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
        lowered = torch.autocast(self.device.type, dtype=types[self.precision]) if self.precision in types else contextlib.nullcontext()
        try:
            with torch.inference_mode(), lowered:
                yield
        finally:
            torch.set_num_threads(before)


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights of a spec are at hand, loading none: (ok, warning or problem; what was found; what to do).

    Raises RecipeError where the spec is wrong or names a local file that does not exist.
    """
    _check(spec)
    if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
        return "problem", "open_clip or torch is not installed", "install pairmill[clip]"
    path = _local_path(spec)
    if path is not None:
        files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
        return "ok", f"{path}: {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB", ""
    from open_clip import pretrained

    name, tag = str(spec.get("name", "")), str(spec.get("weights", ""))
    known = pretrained.get_pretrained_cfg(name, tag)
    if not known:
        tags = pretrained.list_pretrained_tags_by_model(name)
        told = f"open_clip knows no weights {tag!r} of {name!r}{nearest(tag, tags)}"
        do = f"take one of {', '.join(tags[:8])}" if tags else "take another name (open_clip.list_models() has all)"
        return "problem", told, f"{do}, or name a local file"
    cached = _cached_weights(known, spec.get("cache_dir"))
    if cached is not None:
        return "ok", f"{name}, {tag}: cached in {cached}", ""
    told = f"{name}, {tag}: not cached; fetched when the stage starts"
    return "warning", told, "without a network set `weights` of this model to a local file"


def _cached_weights(known: Mapping[str, Any], cache_dir: str | None) -> Path | None:
    """Where open_clip would find these weights without a network; the places are those of open_clip.pretrained (3.3)."""
    hub, _, named = str(known.get("hf_hub", "")).rpartition("/")
    if hub and importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import try_to_load_from_cache

        for file in (named,) if named else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
            found = try_to_load_from_cache(hub, file, cache_dir=cache_dir)
            if isinstance(found, str):
                return Path(found)
    if known.get("url"):
        path = Path(cache_dir or Path.home() / ".cache" / "clip", str(known["url"]).rsplit("/", 1)[-1])
        return path if path.is_file() else None
    return None
