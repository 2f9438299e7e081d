"""What stages that compare images with phrases by a CLIP have in common: stored or computed image embeddings, phrases embedded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.blobs import ImageRef
from pipeline.errors import Fatal
from pipeline.stage import Context, Params, Row, Stage, tunes
from schemas.outcome import Failure, FailureCode
from stages.images.decoders import DecoderLimits, Decoders, shared_decoders

_SAME_MODEL = 0.98  # cosine of a stored embedding and one computed now; other models are far below
_texts: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}  # (model digest, texts) -> embeddings, for the process
_compared: set[tuple[str, str]] = set()  # (model digest, stage of the embeddings) found to agree in this process


class ClipParams(Params):
    """Parameters of every stage that compares images with phrases."""

    model: str = Field("clip", description="name of an open_clip model in the recipe's models table")
    embeddings: str | None = Field(
        None, description="name of the stage (such as clip_score) whose image_emb, by the same model, is used; null: images are decoded and embedded here"
    )
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class ClipStage(Stage):
    """Asks a CLIP for the embeddings of `views` of each row's image. With stored embeddings no image is decoded for its whole view."""

    params: ClipParams
    on_failure = "keep"
    batch_size = 64
    model_method = "embed"
    seconds_per_row = 0.02

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The image, the row's id, and the stored embedding where one is named."""
        return ("image", "sample_id", *([self._stored] if self._stored else []))

    @property
    def _stored(self) -> str:
        return f"{self.params.embeddings}.image_emb" if self.params.embeddings else ""

    def views(self, image: ImageRef, facts: Mapping[str, Any], decoders: Decoders, whole: bool) -> Any:
        """Start to decode a stored image: what `made` needs, None for nothing. `whole`: its whole view is wanted too."""
        return decoders.crop(image.read(), **_own_view(facts)) if whole else None

    def made(self, started: Any, facts: Mapping[str, Any], whole: bool) -> list[np.ndarray] | Failure:
        """Views uint8 [size, size, 3] of an image whose decoding was started, the whole one first."""
        if started is None:
            return []
        pixels = started.result()
        return pixels if isinstance(pixels, Failure) else [pixels]

    def prepare(self, rows: Sequence[Row], ctx: Context) -> dict[str, Any]:
        """Views of all images in one array [V, size, size, 3], how many each row has, and stored embeddings."""
        facts = self._facts(ctx)
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        stored = [self._embedding(row, facts) for row in rows]
        if self._stored:
            self._compare(rows, stored, facts, decoders, ctx)
        waiting = [
            self.views(row["image"], facts, decoders, known is None) if row["image"] is not None else None
            for row, known in zip(rows, stored, strict=True)
        ]
        failures: dict[int, Failure] = {}
        pixels, counts = [], []
        for at, (started, known) in enumerate(zip(waiting, stored, strict=True)):
            views = self.made(started, facts, known is None)
            if known is None and not isinstance(views, Failure) and not views:
                views = Failure(FailureCode.BAD_ROW, "the row has neither a stored image nor a stored embedding")
            if isinstance(views, Failure):
                failures[at], views = views, []
            counts.append(len(views))
            pixels += views
        size = int(facts["image_size"])
        images = np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8)
        return {"images": images, "texts": [], "counts": counts, "stored": stored, "failures": failures}

    def embeddings_of(self, answer: Mapping[str, Any]) -> list[np.ndarray | Failure]:
        """For each row the embeddings [views, D] of its image, the whole one first, or its failure."""
        found: list[np.ndarray | Failure] = []
        start = 0
        for at, (count, known) in enumerate(zip(answer["counts"], answer["stored"], strict=True)):
            own = answer["image"][start : start + count]
            start += count
            found.append(answer["failures"].get(at) or (own if known is None else np.concatenate([known[None], own])))
        return found

    def phrases(self, texts: Sequence[str], ctx: Context) -> np.ndarray:
        """Embeddings [N, D] of texts, float32 of unit length; asked of the model once per process."""
        assert ctx.model is not None
        size, key = int(self._facts(ctx)["image_size"]), (ctx.model.digest, tuple(texts))
        if key not in _texts:
            request = {"images": np.empty((0, size, size, 3), np.uint8), "texts": list(texts)}
            _texts[key] = ctx.model.submit("embed", request).result()["text"]
        return _texts[key]

    def _facts(self, ctx: Context) -> dict[str, Any]:
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        return ctx.model.describe()

    def _embedding(self, row: Row, facts: Mapping[str, Any]) -> np.ndarray | None:
        """The row's stored embedding, float32 [D] of unit length again; None where it has none."""
        raw = row[self._stored] if self._stored else None
        if raw is None:
            return None
        vector = np.asarray(np.frombuffer(raw, np.float16) if isinstance(raw, bytes) else raw, np.float32)
        if len(vector) != facts["embed_dim"]:
            told = f"{self._stored} has {len(vector)} numbers, embeddings of model {self.params.model!r} have {facts['embed_dim']}"
            raise Fatal(f"{self.instance}.embeddings: {told}: name the stage whose model it is, or leave `embeddings` out")
        return vector / np.linalg.norm(vector)

    def _compare(self, rows: Sequence[Row], stored: Sequence[np.ndarray | None], facts: Mapping[str, Any], decoders: Decoders, ctx: Context) -> None:
        """Once per process: one stored embedding against the model's own. Raises Fatal where another model made it."""
        assert ctx.model is not None and self.params.embeddings is not None
        key = (ctx.model.digest, self.params.embeddings)
        for row, known in zip(rows, stored, strict=True):
            if key in _compared:
                return
            if known is None or row["image"] is None:
                continue
            pixels = decoders.crop(row["image"].read(), **_own_view(facts)).result()
            if isinstance(pixels, Failure):
                continue
            own = ctx.model.submit("embed", {"images": pixels[None], "texts": []}).result()["image"][0]
            if float(own @ known) < _SAME_MODEL:
                raise Fatal(
                    f"{self.instance}.embeddings: image_emb of stage {self.params.embeddings!r} was not made by model {self.params.model!r} "
                    f"(cosine {float(own @ known):.3f} for one image): name that stage's model, or leave `embeddings` out"
                )
            _compared.add(key)


def _own_view(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the crop that the model's own preprocessing makes."""
    return {"size": int(facts["image_size"]), "mode": facts["resize_mode"], "filter": facts["interpolation"]}
