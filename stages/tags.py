"""tags: class names that fit an image, by a CLIP without training, as the CLIP branch of SIC-CADS scores them (AAAI 2024, mala-lab/SIC-CADS).

Each class is the text 'there is a {class}'. The image is seen whole and in 2 x 2 crops that overlap, each 2/3 of the sides; a class's
score is the mean over both levels of its highest cosine within the level. The scores of an image are standardised and put through a
sigmoid, so that images with other offsets compare. The paper's second, trained branch is left out; `fuse_with` joins another stage's
scores by the paper's formula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from pipeline.blobs import ImageRef
from pipeline.stage import ColumnType, Context, Row, Values
from schemas.outcome import Failure
from stages import vocabularies
from stages.clip_rows import ClipParams, ClipStage
from stages.images.decoders import Decoders

TAG = pa.struct([("name", pa.string()), ("score", pa.float32())])
_CROP = 2 / 3  # side of a crop of the second level
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class TagsParams(ClipParams):
    """Scores of a vocabulary; those of the best classes are stored."""

    vocabulary: str = Field("common_objects", description="common_objects, rendered_world, or the path of a text file with one class per line")
    template: str = Field("there is a {}", description="text of a class; {} stands for its name", pattern=r"\{\}")
    multi_crop: bool = Field(True, description="see the image whole and in four overlapping crops; false: whole only, where stored embeddings suffice")
    top_k: int = Field(10, description="tags of an image that are kept: its best ones", ge=1)
    min_score: float = Field(0.5, description="lowest score of a tag, 0 to 1; 0.5 is the mean over the vocabulary", ge=0, le=1)
    fuse_with: str | None = Field(None, description="stage whose tags (name, score) are joined: score = other ** fuse_weight * own ** (1 - fuse_weight)")
    fuse_weight: float = Field(0.2, description="weight of the other stage's scores, 0 to 1; a class that it does not list counts 0", ge=0, le=1)


class Tags(ClipStage):
    """Tags each image with names from a vocabulary, by CLIP over the whole image and crops of it.

    Adds `tags`, a list of name and score, best first. Made for merging into captions and for counting concepts.
    """

    name: ClassVar[str] = "tags"
    version: ClassVar[int] = 1
    Params = TagsParams
    params: TagsParams
    writes = {"tags": pa.list_(TAG)}
    seconds_per_row = 0.1

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().reads, *([self._other] if self._other else []))

    @property
    def _other(self) -> str:
        return f"{self.params.fuse_with}.tags" if self.params.fuse_with else ""

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Raises RecipeError for a vocabulary that cannot be read."""
        self._classes()

    def compute_facts(self) -> Any:
        """The classes: a changed file makes the tags anew."""
        return list(self._classes())

    def _classes(self) -> tuple[str, ...]:
        return vocabularies.load(self.params.vocabulary, f"stages.{self.instance}.vocabulary")

    def views(self, image: ImageRef, facts: Mapping[str, Any], decoders: Decoders, whole: bool) -> Any:
        """The whole view as the model's own preprocessing makes it, and the pixels that the crops are cut from."""
        size = int(facts["image_size"])
        first = super().views(image, facts, decoders, whole)
        return first, decoders.fit(image.read(), 4 * size * size) if self.params.multi_crop else None

    def made(self, started: Any, facts: Mapping[str, Any], whole: bool) -> list[np.ndarray] | Failure:
        """The whole view (where it is wanted) and four crops."""
        if started is None:
            return []
        first, rest = started
        views = super().made(first, facts, whole)
        if rest is None or isinstance(views, Failure):
            return views
        pixels = rest.result()
        return pixels if isinstance(pixels, Failure) else views + overlapping_crops(pixels, int(facts["image_size"]), facts["interpolation"])

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """The best classes of each row."""
        classes = self._classes()
        texts = self.phrases([self.params.template.replace("{}", name) for name in classes], ctx)
        results: list[Values | Failure] = []
        for row, views in zip(rows, self.embeddings_of(answer), strict=True):
            if isinstance(views, Failure):
                results.append(views)
                continue
            scores = tag_scores(views.astype(np.float64) @ texts.T.astype(np.float64))
            if self._other:
                others = {entry["name"]: entry["score"] for entry in row[self._other] or ()}
                scores = fused(scores, np.array([others.get(name, 0.0) for name in classes]), self.params.fuse_weight)
            results.append({"tags": self._best(np.round(scores, 4), classes)})
        return results

    def _best(self, scores: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
        order = np.argsort(-scores, kind="stable")[: self.params.top_k].tolist()
        return [{"name": classes[at], "score": float(scores[at])} for at in order if scores[at] >= self.params.min_score]


def overlapping_crops(pixels: np.ndarray, size: int, filter: str) -> list[np.ndarray]:
    """The 2 x 2 crops of an image [H, W, 3], each 2/3 of its sides, scaled to [size, size, 3]."""
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    corners = [(left, top) for top in (0.0, 1 - _CROP) for left in (0.0, 1 - _CROP)]
    boxes = [(left * width, top * height, (left + _CROP) * width, (top + _CROP) * height) for left, top in corners]
    return [np.asarray(image.resize((size, size), _FILTERS[filter], box=box)) for box in boxes]


def tag_scores(cosines: np.ndarray) -> np.ndarray:
    """Cosines [views, classes], the whole view first, to scores [classes] from 0 to 1: the highest of each level, their mean,
    standardised over the classes of the image, sigmoid. All 0.5 where the classes do not differ."""
    levels = [cosines[:1], *([cosines[1:]] if len(cosines) > 1 else [])]
    merged = np.mean([level.max(axis=0) for level in levels], axis=0)
    spread = merged.std()
    return 1 / (1 + np.exp(-(merged - merged.mean()) / spread)) if spread > 0 else np.full(len(merged), 0.5)


def fused(own: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    """Geometric mean of two branches' scores, `weight` on `other` (SIC-CADS: 0.8 on the branch that knows the class, 0.2 on the other one)."""
    return other**weight * own ** (1 - weight)
