"""Model kind `maccap`: captions from a CLIP's embedding of the image, by a small decoder that was trained on texts alone.

For machines where no MLLM can run: MacCap (Qiu et al. 2024, arXiv 2401.02347). In a recipe: `models: {writer: {kind: maccap, weights: FOLDER}}` with the
folder that a training by objective `maccap` exported. It sees the image only: a prompt's text, its system text and its format do not reach it.
Further keys: beams (4), max_new_tokens (null: as many as the stage asks for; the released code stops at 16), regions (sub-regions of the image; 0: the
whole image's embedding alone; null: as in training), variance (of the noise on the features; null: as in training), batch_size (32), device, threads
(on CPU: 1), max_pixels.

A stage with temperature 0 has one draw of the noise per image; above 0 each stage has draws of its own (its temperature says no more than that), which
`best_caption` ranks by the CLIP, as the paper does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Fatal, RecipeError
from schemas.outcome import Failure, FailureCode
from stages.models.protocols import ChatAnswer, ChatRequest
from stages.models.weights import DEFAULT_MAX_PIXELS, check_keys, device_of, files_identity

if TYPE_CHECKING:
    import torch

METHOD = "chat"
ONLY_STAGES = ("caption",)
MACHINE_KEYS = frozenset({"batch_size"})
_KEYS = frozenset({"batch_size"})
_NUMBERS = {"beams": (4, 1), "max_new_tokens": (None, 1), "regions": (None, 0), "variance": (None, 0), "batch_size": (32, 1), "threads": (1, 1)}
_KEYS = frozenset({"beams", "max_new_tokens", "regions", "variance", "batch_size", "threads", "device"})


def identity(spec: Mapping[str, Any]) -> str:
    """SHA-256 over all files of the folder, without loading them. Raises RecipeError for an unknown key, a wrong value, and another folder."""
    check_keys(spec, _KEYS)
    folder = _folder(spec)
    return files_identity(folder, (path for path in folder.rglob("*") if path.is_file()))


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the folder is at hand, loading nothing: (ok; what was found; what to do). Raises RecipeError as `identity`."""
    identity(spec)
    folder = _folder(spec)
    return "ok", f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.1f} MB", ""


def load(spec: Mapping[str, Any]) -> MaccapWriter:
    """Raises Fatal where the folder cannot be read, RecipeError where the spec is wrong."""
    return MaccapWriter(spec, identity(spec))


def _folder(spec: Mapping[str, Any]) -> Path:
    weights = str(spec.get("weights") or "")
    folder = Path(weights).expanduser()
    if not weights or not (folder / "decoder.safetensors").is_file():
        told = f"weights {weights!r} is no such folder" if weights else "`weights` is missing"
        raise RecipeError(f"models: a maccap model needs the folder that a training by objective maccap exported (pretrain/NAME/export): {told}")
    return folder


class MaccapWriter:
    """Captions of images, in batches of one shape, padded, so that what shares a batch with an image moves nothing."""

    def __init__(self, spec: Mapping[str, Any], weights: str):
        from safetensors import SafetensorError

        from stages.pretrain.errors import TrainError
        from stages.pretrain.nets.text_captioner import load_captioner

        self.spec = spec
        self.version = metadata.version("transformers")
        try:
            model, clip, facts = load_captioner(_folder(spec))
        except (TrainError, OSError, RuntimeError, SafetensorError) as error:
            raise Fatal(f"models: the captioner could not be loaded: {error}") from error
        self.model, self.clip = model.to(device_of(spec)), clip
        self.beams, self.batch_size, self.threads = (spec.get(key, usual) for key, usual in (("beams", 4), ("batch_size", 32), ("threads", 1)))
        self.most = spec.get("max_new_tokens")
        self.regions = facts["regions"] if spec.get("regions") is None else int(spec["regions"])
        self.variance = facts["variance"] if spec.get("variance") is None else float(spec["variance"])
        self.note = facts["note"]
        made_by = "\0".join(map(str, (weights, self.version, self.beams, self.most, self.regions, self.variance, spec.get("max_pixels", DEFAULT_MAX_PIXELS))))
        self.digest = f"maccap-{hashlib.sha256(made_by.encode()).hexdigest()[:32]}"

    def describe(self) -> dict[str, Any]:
        max_pixels = int(self.spec.get("max_pixels", DEFAULT_MAX_PIXELS))
        folder = _folder(self.spec)  # pretrain/NAME/export: every training's ends alike
        name = self.spec.get("name") or (folder.resolve().parent.name if folder.name == "export" else folder.name)
        facts = {"kind": "maccap", "name": str(name), "engine": "maccap", "engine_version": self.version}
        return facts | {"max_pixels": max_pixels, "note": self.note}

    def chat(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer | Failure]:
        """A caption for each request's image; a request without one, or for anything but a text, is its Failure."""
        answers: list[ChatAnswer | Failure] = [_unfit(request) or Failure(FailureCode.MODEL_ERROR, "not answered") for request in requests]
        groups: dict[tuple[int, int], list[int]] = {}
        for at, request in enumerate(requests):
            if _unfit(request) is None:
                most = min(self.most or request.sampling.max_tokens, request.sampling.max_tokens)
                groups.setdefault((most, request.sampling.min_tokens), []).append(at)
        for (most, fewest), places in groups.items():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                for at, answer in zip(batch, self._write([requests[place] for place in batch], most, min(fewest, most)), strict=True):
                    answers[at] = answer
        return answers

    def _write(self, requests: list[ChatRequest], most: int, fewest: int) -> list[ChatAnswer]:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                made = self.model.write(self._features(requests), most, self.beams, fewest)[: len(requests)]
        finally:
            torch.set_num_threads(threads)
        return [ChatAnswer(text, n_tokens, "stop" if ended else "length") for text, n_tokens, ended in made]

    def _features(self, requests: list[ChatRequest]) -> torch.Tensor:
        """What the decoder reads of each image, [batch_size, K, C] of unit length: its sub-regions plus the whole, with noise by the image and the seed."""
        from torch.nn.functional import normalize

        from stages.models.sub_regions import sub_regions
        from stages.pretrain.nets.text_captioner import with_noise

        found = sub_regions(self.clip.model.visual, self._images(requests), max(1, self.regions))
        whole = found.image[:, None]
        features = normalize(found.regions + whole, dim=-1) if self.regions else whole.expand(-1, self.model.config.regions, -1)
        noise = np.zeros(features.shape, np.float32)
        for row, request in zip(noise, requests, strict=False):
            row[:] = _noise(request, features.shape[1:])
        return with_noise(features.float(), self.variance, self._on_device(noise))

    def _images(self, requests: list[ChatRequest]) -> torch.Tensor:
        """The images as the CLIP takes them, float [batch_size, 3, S, S], filled up with black ones."""
        from stages.images.crop import crop_pixels
        from stages.pretrain.objectives.base import normalise

        how = self.clip.preprocess
        views = np.zeros((self.batch_size, how.size, how.size, 3), np.uint8)
        for view, request in zip(views, requests, strict=False):
            view[:] = crop_pixels(request.image, how.size, how.resize_mode, how.interpolation)  # type: ignore[arg-type]
        return normalise({"images": self._on_device(views)}, how.mean, how.std)["images"]

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        import torch

        return torch.from_numpy(values).to(self.model.queries.device)


def _unfit(request: ChatRequest) -> Failure | None:
    if request.image is None:
        return Failure(FailureCode.BAD_ROW, "a maccap model writes captions of images; this request has none")
    sampling = request.sampling
    if sampling.numbers or sampling.yes_no or sampling.choices:
        return Failure(FailureCode.MODEL_ERROR, "a maccap model writes captions and nothing else")
    return None


def _noise(request: ChatRequest, shape: Sequence[int]) -> np.ndarray:
    """Standard normal values that follow from the image and the request's seed alone."""
    seed = hashlib.sha256(request.image_digest + str(request.sampling.seed or 0).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little"))).standard_normal(tuple(shape), np.float32)
