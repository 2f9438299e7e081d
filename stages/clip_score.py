"""clip_score: how well each text of a row fits its image, by a CLIP of the recipe's models table.

The filter of LAION-400M (Schuhmann et al. 2021, section 2: cosine of ViT-B/32 embeddings at least 0.3) and LAION-5B
(2022, section 3: 0.28 for English with the same model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import Fatal
from pipeline.reason_columns import as_stored, is_null, reason_column, rounded_above, rounded_below
from pipeline.stage import Context, Params, Row, Stage, Values, Vector, decides, tunes
from schemas.outcome import Drop, Failure, FailureCode, Reason
from schemas.sample import TEXTS, make_text
from stages.images.decoders import DecoderLimits, shared_decoders


class ClipScoreParams(Params):
    """`min` and `max` make a window: the best text's score must lie in it, ends included."""

    model: str = Field("clip", description="name of an open_clip model in the recipe's models table")
    min: float | None = decides(0.28, "lowest score of the best text; null for no limit", ge=-1, le=1)
    max: float | None = decides(None, "highest score of the best text; null for no limit", ge=-1, le=1)
    keep_without_text: bool = decides(False, "keep rows that have no text, such as images that are to be captioned; else they are dropped as low_clip")
    max_texts: int = Field(16, description="texts of a row that are scored: its first ones", ge=1)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class ClipScore(Stage):
    """Embeds the image once and every text, ranks the texts, keeps rows whose best score lies in the window."""

    name: ClassVar[str] = "clip_score"
    version: ClassVar[int] = 1
    Params = ClipScoreParams
    params: ClipScoreParams
    reads = ("image", "texts|text|alt_text", "sample_id")
    writes = {
        "clip_score": pa.float32(),
        "clip_scores": pa.list_(pa.float32()),
        "text_rank": pa.list_(pa.int32()),
        "texts": TEXTS,
        "text": pa.string(),
        "image_emb": Vector("float16"),
        "text_emb": Vector("float16"),
    }
    batch_size = 64
    model_method = "embed"
    decodes_images = True
    seconds_per_row = 0.02

    def prepare(self, rows: Sequence[Row], ctx: Context) -> dict[str, Any]:
        """Decode and crop the images in the sandbox (uint8 [N, size, size, 3], failed rows left out) and gather all texts."""
        if ctx.model is None:
            raise Fatal(f"{self.instance}: no model {self.params.model!r} at hand; name it in the recipe's models table")
        facts = ctx.model.describe()
        size = int(facts["image_size"])
        decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
        view = {"size": size, "mode": facts["resize_mode"], "filter": facts["interpolation"]}
        crops = [decoders.crop(row["image"].read(), **view) if row["image"] is not None else None for row in rows]
        pixels = np.empty((len(rows), size, size, 3), np.uint8)
        failures: dict[int, Failure] = {}
        good: list[int] = []
        for at, crop in enumerate(crops):
            made = crop.result() if crop is not None else Failure(FailureCode.BAD_ROW, "the row has no stored image")
            if isinstance(made, Failure):
                failures[at] = made
            else:
                pixels[len(good)] = made
                good.append(at)
        texts = [entry["text"] for at in good for entry in self._texts(rows[at])]
        return {"images": pixels[: len(good)], "texts": texts, "failures": failures}

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """Scores in the order of the texts, their ranking, the best text, and both embeddings in float16."""
        failures: Mapping[int, Failure] = answer["failures"]
        results: list[Values | Failure] = []
        images, texts = iter(answer["image"]), answer["text"]
        start = 0
        for at, row in enumerate(rows):
            if at in failures:
                results.append(failures[at])
                continue
            entries = self._texts(row)
            results.append(_values(next(images), texts[start : start + len(entries)], entries))
            start += len(entries)
        return results

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """low_clip below `min` or without a text (unless `keep_without_text`), high_clip above `max`."""
        score, low, high = row["clip_score"], self.params.min, self.params.max
        if score is None:
            return None if self.params.keep_without_text else Drop(Reason.LOW_CLIP, "no text")
        score = round(float(score), 4)  # stored as float32: 0.28 must not lie below 0.28
        if low is not None and score < low:
            return Drop(Reason.LOW_CLIP, f"{score:.4f} < {low:g}")
        if high is not None and score > high:
            return Drop(Reason.HIGH_CLIP, f"{score:.4f} > {high:g}")
        return None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        column, low, high = columns["clip_score"], self.params.min, self.params.max
        score = as_stored(column)
        rules = [(is_null(column) & (not self.params.keep_without_text), Reason.LOW_CLIP)]
        rules += [(rounded_below(score, 4, low), Reason.LOW_CLIP)] if low is not None else []
        rules += [(rounded_above(score, 4, high), Reason.HIGH_CLIP)] if high is not None else []
        return reason_column(len(score), rules)

    def _texts(self, row: Row) -> list[dict[str, Any]]:
        """The row's texts as TEXTS entries, empty ones left out, at most `max_texts`."""
        given = row["texts"]
        if isinstance(given, str):
            given = [make_text(given, source=row["sample_id"].hex())]
        return [entry for entry in given or () if entry["text"] and entry["text"].strip()][: self.params.max_texts]


def _values(image: np.ndarray, texts: np.ndarray, entries: list[dict[str, Any]]) -> Values:
    """Values of one row from its image [D] and text [T, D] embeddings, float32 of unit length."""
    if not entries:
        lists: dict[str, list[Any]] = {"clip_scores": [], "text_rank": [], "texts": []}
        return {**lists, "clip_score": None, "text": None, "image_emb": image.astype(np.float16), "text_emb": None}
    # Summed per text in float64 and rounded, so that equal embeddings give equal scores on every machine.
    scores = np.round((texts.astype(np.float64) * image.astype(np.float64)).sum(axis=1), 4).astype(np.float32)
    rank = np.argsort(-scores, kind="stable").tolist()
    ranked = [entries[at] | {"clip_score": float(scores[at])} for at in rank]
    return {
        "clip_score": float(scores[rank[0]]),
        "clip_scores": scores.tolist(),
        "text_rank": rank,
        "texts": ranked,
        "text": ranked[0]["text"],
        "image_emb": image.astype(np.float16),
        "text_emb": texts[rank[0]].astype(np.float16),
    }
