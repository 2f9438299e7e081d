"""decontaminate: images and texts of evaluation sets are kept out of the training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.reason_columns import as_floats, is_null, is_true, reason_column, rounded
from pipeline.stage import ColumnType, Context, Params, Row, Stage, Values, decides, tunes
from schemas.outcome import Drop, Failure, FailureCode, Reason
from stages.images.decode import DEFAULT_PIXEL_LIMIT
from stages.images.decoders import DecoderLimits, shared_decoders
from stages.images.leaks import Look
from stages.index.evaluation import EvaluationSets, digests_of, evaluation_sets, facts_of


class DecontaminateParams(Params):
    """Which evaluation sets, what is compared, and from where on it is a match."""

    against: tuple[str, ...] = Field(
        description="evaluation sets: names or paths of indexes (`pairmill index build`), folders of images, tars, files of texts (.txt, .jsonl, .csv)"
    )
    mirrored: bool = Field(False, description="also compare the left-right mirror image of each row")
    embeddings: bool = Field(False, description="also compare the rows' image_emb with those of the indexes, which must be of the same model")
    search_distance: int = Field(10, description="evaluation pictures whose 64-bit hash is up to this many bits away are looked at closely", ge=0, le=16)
    min_words: int = Field(8, description="texts with fewer words are not compared: they say too little", ge=1)
    pixel_limit: int = Field(DEFAULT_PIXEL_LIMIT, description="most pixels by the header, before decoding", ge=1)
    min_agreement: float | None = decides(0.6, "a picture that agrees so well (0 to 1) with an evaluation picture is one of it; null: not compared", ge=0, le=1)
    min_cosine: float | None = decides(0.95, "an image embedding that near to an evaluation image's is one of it; null: not compared", ge=-1, le=1)
    min_overlap: float | None = decides(1.0, "share of an evaluation text's runs of eight words that a text of the row has; null: not compared", gt=0, le=1)
    decoders: int | None = tunes(None, "decoder processes per worker; null: its share of the cores, at most 8", ge=1)


class Decontaminate(Stage):
    """Drops rows whose image or text is in an evaluation set: equal bytes, a picture made of it, an equal embedding, or its text.

    Evaluation pictures are indexed in many windows, so that crops of up to a tenth, with a border and a line of text, are found; what the hashes bring
    together is laid over each other before it counts. Every row gets the nearest evaluation item of each kind, `<set>/<item>`, and how near it is, whatever
    the thresholds: `contam_bytes`; `contam_image` with `contam_distance` (bits) and `contam_agreement`; `contam_emb` with `contam_cosine`; `contam_text`
    with `contam_overlap`. Put it behind `clip_score` where embeddings are compared, before it otherwise.
    """

    name: ClassVar[str] = "decontaminate"
    version: ClassVar[int] = 2  # letters of scripts without spaces are words
    Params = DecontaminateParams
    params: DecontaminateParams
    batch_size = 64
    decodes_images = True
    seconds_per_row = 0.01

    @property
    def reads(self) -> Sequence[str]:  # type: ignore[override]
        return ("image", "raw_sha256", "texts|text|alt_text", *(("image_emb",) if self.params.embeddings else ()))

    @property
    def writes(self) -> Mapping[str, ColumnType]:  # type: ignore[override]
        columns: dict[str, ColumnType] = {"contam_bytes": pa.string()}
        columns |= {"contam_image": pa.string(), "contam_distance": pa.int16(), "contam_agreement": pa.float32()}
        columns |= {"contam_text": pa.string(), "contam_overlap": pa.float32()}
        return columns | ({"contam_emb": pa.string(), "contam_cosine": pa.float32()} if self.params.embeddings else {})

    def check(self, available: Mapping[str, Any]) -> None:
        """Raises RecipeError where an evaluation set is not there, or has no embeddings where they are compared."""
        if not self.params.against:
            raise RecipeError(f"stages.{self.instance}.against: name at least one evaluation set")
        digests_of(self.params.against, self.params.embeddings)

    def check_makers(self, made_by: Callable[[str], tuple[Stage | None, str]]) -> None:
        """Raises RecipeError where embeddings of another model would be compared."""
        for facts in facts_of(self.params.against) if self.params.embeddings else ():
            facts.check_model(made_by("image_emb")[1], f"stages.{self.instance}")

    def compute_facts(self) -> Any:
        """The contents of the evaluation sets, whatever their paths."""
        return digests_of(self.params.against, self.params.embeddings)

    def setup(self, ctx: Context) -> None:
        self._sets(ctx)

    def _sets(self, ctx: Context | None = None) -> EvaluationSets:
        return evaluation_sets(self.params.against, self.params.search_distance, self.params.min_words, self.params.embeddings)

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Hashes in the sandbox; look-ups for all rows of the batch at once."""
        sets = self._sets(ctx)
        looked: list[list[Look] | Failure | None] = [None] * len(rows)
        if sets.pictures:
            decoders = shared_decoders(DecoderLimits(self.params.decoders), ctx.workers)
            waiting = [decoders.looks(row["image"].read(), self.params.mirrored, self.params.pixel_limit) if row["image"] is not None else None for row in rows]
            looked = [future.result() if future is not None else Failure(FailureCode.BAD_ROW, "the row has no stored image") for future in waiting]
        near = sets.nearest_pictures([[] if one is None or isinstance(one, Failure) else one for one in looked])
        cosines = sets.nearest_embeddings([row["image_emb"] for row in rows]) if self.params.embeddings else [None] * len(rows)
        return [
            one if isinstance(one, Failure) else self._values(sets, row, picture, cosine)
            for row, one, picture, cosine in zip(rows, looked, near, cosines, strict=True)
        ]

    def _values(self, sets: EvaluationSets, row: Row, picture: tuple[str, int, float] | None, cosine: tuple[str, float] | None) -> Values:
        item, distance, agrees = picture or (None, None, None)
        given = row["texts"]
        text = sets.texts.best([given] if isinstance(given, str) else [entry["text"] for entry in given or () if entry["text"]])
        values: dict[str, Any] = {"contam_bytes": sets.bytes.get(row["raw_sha256"])}
        values |= {"contam_image": item, "contam_distance": distance, "contam_agreement": agrees}
        values |= {"contam_text": text[0] if text else None, "contam_overlap": text[1] if text else None}
        if self.params.embeddings:
            values |= {"contam_emb": cosine[0] if cosine else None, "contam_cosine": cosine[1] if cosine else None}
        return values

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """The first kind that matches: bytes, image, embedding, text."""
        if row["contam_bytes"]:
            return Drop(Reason.CONTAMINATED, f"bytes of {row['contam_bytes']}")
        checks = (
            ("image", "contam_agreement", self.params.min_agreement, "agrees"),
            ("emb", "contam_cosine", self.params.min_cosine, "cosine"),
            ("text", "contam_overlap", self.params.min_overlap, "overlaps"),
        )
        for kind, measure, least, word in checks:
            value = row.get(measure)
            if least is not None and value is not None and round(float(value), 4) >= least:
                bits = f", {row['contam_distance']} bits" if kind == "image" else ""
                return Drop(Reason.CONTAMINATED, f"{kind} of {row[f'contam_{kind}']}: {word} {float(value):.4f}{bits}")
        return None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        found = is_true(pc.greater(pc.binary_length(columns["contam_bytes"]), 0))
        limits = {"contam_agreement": self.params.min_agreement, "contam_overlap": self.params.min_overlap}
        limits |= {"contam_cosine": self.params.min_cosine} if self.params.embeddings else {}
        for measure, least in limits.items():
            if least is not None:
                found |= ~is_null(columns[measure]) & (rounded(as_floats(columns[measure]), 4) >= least)
        return reason_column(len(found), [(found, Reason.CONTAMINATED)])
