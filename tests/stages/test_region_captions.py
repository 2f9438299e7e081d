"""region_captions: what the model is shown, and one entry per region whatever becomes of its request."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.models import LocalModel
from pipeline.stage import Context
from schemas.outcome import Failure, FailureCode
from stages.models.protocols import ChatAnswer, ChatRequest
from stages.region_captions import RegionCaptions, cut_out


class Stored:
    place = ("tar", 0, 1)

    def __init__(self, data: bytes, at: int):
        self.data, self.place = data, ("tar", at, 1)

    def read(self) -> bytes:
        return self.data


class Planned:
    """A captioner that tells the mean colour of what it is shown, refuses black and has no answer for white."""

    digest = "planned"

    def describe(self) -> dict[str, Any]:
        return {"max_pixels": 64 * 64}

    def chat(self, requests: Sequence[ChatRequest | Failure | None]) -> list[Any]:
        return [self._answer(request) if isinstance(request, ChatRequest) else request for request in requests]

    def _answer(self, request: ChatRequest) -> ChatAnswer | Failure:
        assert request.image is not None and "cut out" in request.text
        red, green, _ = request.image.reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
        if red == 0:
            return ChatAnswer("no", 1, "refused")
        return Failure(FailureCode.MODEL_ERROR, "white") if red == 255 == green else ChatAnswer(f" {red}\n{green} ", 2, "stop")


def quarters() -> bytes:
    """Upper left (200, 10), upper right (100, 20), lower left black, lower right white."""
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30, :30, :2], pixels[:30, 30:, :2], pixels[30:, 30:] = (200, 10), (100, 20), 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def region(*box: float, phrase: str = "a thing") -> dict[str, Any]:
    return {"box": list(box), "phrase": phrase, "score": 0.5}


def through(rows: list[dict[str, Any]], **params: Any) -> list[Any]:
    stage, model = RegionCaptions(RegionCaptions.Params(**params)), Planned()
    ctx = Context("region_captions", 0, model=LocalModel(model))
    return stage.finish(rows, model.chat(stage.prepare(rows, ctx)), ctx)  # type: ignore[arg-type]


def test_regionblip_acceptance_each_box_gives_one_row_of_box_phrase_and_caption() -> None:
    """RegionBLIP (28), second half: the part cut out is what the captioner sees, and the entry stands in its parent's row."""
    boxes = [region(0, 0, 0.5, 0.5, phrase="a star"), region(0.5, 0, 1, 0.5), region(0, 0.5, 0.5, 1), region(0.5, 0.5, 1, 1), region(0, 0, 0.1, 0.1)]
    first, second = through([{"image": Stored(quarters(), 0), "regions.regions": boxes}, {"image": Stored(b"", 1), "regions.regions": []}])
    assert [(one["caption"], one["failure"]) for one in first["region_captions"]] == [
        ("200 10", None), ("100 20", None), (None, "refusal"), (None, "model_error"), (None, "too_small")]  # fmt: skip
    assert first["region_captions"][0]["phrase"] == "a star" and first["region_captions"][1]["box"] == [0.5, 0, 1, 0.5]
    assert second == {"region_captions": []}


def test_an_image_that_cannot_be_decoded_fails_its_row_alone_and_only_the_best_regions_are_asked() -> None:
    boxes = [region(0, 0, 0.5, 0.5)] * 3
    rows = [{"image": Stored(data, at), "regions.regions": boxes} for at, data in enumerate((b"no image", quarters()))]
    bad, good = through(rows, max_regions=2)
    assert isinstance(bad, Failure) and [one["caption"] for one in good["region_captions"]] == ["200 10"] * 2


def test_a_margin_shows_what_lies_around_a_box_and_ends_at_the_image() -> None:
    image = np.arange(100 * 50 * 3).reshape(50, 100, 3)
    assert cut_out(image, (0.2, 0.2, 0.4, 0.6)).shape == (20, 20, 3)
    assert (cut_out(image, (0.2, 0.2, 0.4, 0.6)) == image[10:30, 20:40]).all()
    assert cut_out(image, (0.2, 0.2, 0.4, 0.6), 0.5).shape == (40, 40, 3)
    assert cut_out(image, (0.0, 0.0, 1.0, 1.0), 1.0).shape == image.shape
    assert cut_out(image, (0.5, 0.5, 0.5001, 0.5001)).shape == (1, 1, 3)
