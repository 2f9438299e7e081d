"""Model kind `owlv2`: the open-vocabulary detector OWLv2 (Minderer et al. 2023, arXiv 2306.09683) through transformers.

In a recipe: `models: {finder: {kind: owlv2, weights: google/owlv2-large-patch14-ensemble}}`. `weights` is a folder in Hugging Face's format or
a name of its hub (`revision` with it). Further keys: device (auto, cpu, cuda), precision (auto, fp32, fp16, bf16), batch_size (images
that the model sees at once), max_pixels (a larger image is scaled down before), threads (on CPU). CLOC's VESL asks the L/14 ensemble at
448 x 448 (arXiv 2410.02746): the input size is that of the weights' processor here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import Fatal, RecipeError
from stages.models import weights as weights_files
from stages.models.detection import DEFAULT_MAX_PIXELS, Detection, checked_box

if TYPE_CHECKING:
    import torch

METHOD = "detect"
_KEYS = frozenset({"revision", "device", "precision", "batch_size", "threads", "threshold"})
_PRECISIONS = ("auto", "fp32", "fp16", "bf16")
THRESHOLD = 0.1  # CLOC keeps boxes above it


def identity(spec: Mapping[str, Any]) -> str:
    """SHA-256 over the files of a local folder, else name and revision. Raises RecipeError where the spec is wrong."""
    _check(spec)
    return weights_files.weights_identity(spec)


def load(spec: Mapping[str, Any]) -> Owlv2Detector:
    """The model of a spec. Raises Fatal where it cannot be fetched or read, RecipeError where the spec is wrong."""
    _check(spec)
    import transformers
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    device = weights_files.device_of(spec)
    precision = spec.get("precision", "auto")
    if precision == "auto":
        precision = "fp16" if device.startswith("cuda") else "fp32"
    folder = weights_files.local_weights(spec)
    source, revision = str(folder or spec["weights"]), None if folder else spec.get("revision", "main")
    try:
        processor = Owlv2Processor.from_pretrained(source, revision=revision)
        model = Owlv2ForObjectDetection.from_pretrained(source, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise Fatal(f"models: OWLv2 {source!r} could not be loaded or fetched: {error}. Name the folder of an OWLv2 saved by transformers") from error
    digest = weights_files.engine_digest(spec, "transformers", transformers.__version__, precision, spec.get("threshold", THRESHOLD))
    return Owlv2Detector(
        model, processor, digest=digest, device=device, precision=precision, batch_size=int(spec.get("batch_size", 8)),
        max_pixels=int(spec.get("max_pixels", DEFAULT_MAX_PIXELS)), threads=int(spec.get("threads", 1)), threshold=float(spec.get("threshold", THRESHOLD)),
    )  # fmt: skip


def availability(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Whether the weights are at hand, loading none, as `weights.availability`."""
    _check(spec)
    return weights_files.availability(spec)


def _check(spec: Mapping[str, Any]) -> None:
    weights_files.check_keys(spec, _KEYS)
    if spec.get("precision", "auto") not in _PRECISIONS:
        raise RecipeError(f"models: precision {spec['precision']!r} is none of {', '.join(_PRECISIONS)}")
    threshold = spec.get("threshold", THRESHOLD)
    if not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise RecipeError(f"models: threshold of an owlv2 must be from 0 to below 1, found {threshold!r}")
    weights_files.local_weights(spec)


class Owlv2Detector:
    """Boxes of phrases in images. Phrases of one image compete for each box; those of other images in its batch do not.

    The processor pads an image to a square at its right and lower edge, so what the model gives as shares of that square becomes shares
    of the image, clipped to it; a box that lies wholly in the padding is left out.
    """

    def __init__(
        self, model: Any, processor: Any, *, digest: str, device: str = "cpu", precision: str = "fp32", batch_size: int = 8,
        max_pixels: int = DEFAULT_MAX_PIXELS, threads: int = 1, threshold: float = THRESHOLD,
    ):  # fmt: skip
        import torch

        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor
        self.digest = digest
        self.precision = precision
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.threads = threads
        self.threshold = threshold

    def describe(self) -> dict[str, Any]:
        """Facts that stages need before the first call."""
        return {"digest": self.digest, "note": "", "max_pixels": self.max_pixels}

    def detect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See `Detector.detect`. Only boxes above `threshold`."""
        rest = {key: value for key, value in request.items() if key not in ("images", "phrases")}
        images, phrases = list(request["images"]), [list(asked) for asked in request["phrases"]]
        found: list[list[Detection]] = [[] for _ in images]
        asked = [at for at, texts in enumerate(phrases) if texts]
        with self._computing():
            for start in range(0, len(asked), self.batch_size):
                places = asked[start : start + self.batch_size]
                answers = self._batch([images[at] for at in places], [phrases[at] for at in places])
                for at, detections in zip(places, answers, strict=True):
                    found[at] = detections
        return rest | {"detections": found}

    def _batch(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        given = [image.copy() for image in images]  # arrays from shared memory may not be written to, which torch warns of
        pixels = self.processor.image_processor(images=given, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        tokens = self._tokens(phrases)
        outputs = self.model(pixel_values=pixels.to(self.device), **tokens)
        sizes = [image.shape[:2] for image in images]
        outputs.logits, outputs.pred_boxes = outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()
        results = self.processor.image_processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=sizes)
        return [_detections(result, size, asked) for result, size, asked in zip(results, sizes, phrases, strict=True)]

    def _tokens(self, phrases: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """Token ids and mask, [images * most phrases, context] each. Filling phrases begin with 0: the model gives them no box.

        (The processor's own filling, a blank, is a query like any other and would take boxes.)
        """
        import torch

        most = max(map(len, phrases))
        context = self.model.config.text_config.max_position_embeddings
        ids = torch.zeros(len(phrases), most, context, dtype=torch.long)
        mask = torch.zeros_like(ids)
        mask[..., 0] = 1
        for at, texts in enumerate(phrases):
            encoded = self.processor.tokenizer(list(texts), padding="max_length", truncation=True, max_length=context, return_tensors="pt")
            ids[at, : len(texts)], mask[at, : len(texts)] = encoded["input_ids"], encoded["attention_mask"]
        return {"input_ids": ids.flatten(0, 1).to(self.device), "attention_mask": mask.flatten(0, 1).to(self.device)}

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Inference with this model's threads and precision; the process's own setting comes back afterwards."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
        lowered = torch.autocast(self.device.type, dtype=types[self.precision]) if self.precision in types else contextlib.nullcontext()
        try:
            with torch.inference_mode(), lowered:
                yield
        finally:
            torch.set_num_threads(before)


def _detections(result: Mapping[str, torch.Tensor], size: tuple[int, int], phrases: Sequence[str]) -> list[Detection]:
    """What transformers' post-processing gives for one image (pixels), as shares of its width and height, best first."""
    height, width = size
    found = []
    for score, label, box in zip(result["scores"].tolist(), result["labels"].tolist(), result["boxes"].tolist(), strict=True):
        checked = checked_box((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        if checked is not None:
            found.append(Detection(checked, phrases[label], score))
    return sorted(found, key=lambda detection: -detection.score)
