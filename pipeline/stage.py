"""What a plug-in may be: a Source makes rows, a Stage measures and judges them, a Job does work that is not row-aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Budget, RecipeError
from schemas.outcome import Drop, Failure

if TYPE_CHECKING:
    import duckdb
    import numpy as np

    from pipeline.blobs import BlobWriter
    from pipeline.models import ModelHandle
    from pipeline.run_view import RunView

Values = Mapping[str, Any]
Row = Mapping[str, Any]


class Params(BaseModel):
    """Parameters of a plug-in: typed, described, unknown keys refused. Plain fields belong to the compute fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def decides(default: Any, description: str, **kwargs: Any) -> Any:
    """A parameter that only `decide` or `resolve` reads: changing it runs no `compute`."""
    return Field(default, description=description, json_schema_extra={"affects": "decide"}, **kwargs)


def tunes(default: Any, description: str, **kwargs: Any) -> Any:
    """A parameter that changes speed or patience and never a value: it stands in no fingerprint."""
    return Field(default, description=description, json_schema_extra={"affects": "nothing"}, **kwargs)


def params_affecting(params: BaseModel, what: str) -> dict[str, Any]:
    """The parameters of one kind ('compute', 'decide', 'nothing') as plain JSON values."""
    values = params.model_dump(mode="json")
    kinds = {
        name: (field.json_schema_extra or {}).get("affects", "compute")  # type: ignore[union-attr]
        for name, field in type(params).model_fields.items()
    }
    return {name: values[name] for name in sorted(values) if kinds[name] == what}


@dataclass(frozen=True, slots=True)
class Vector:
    """Type of an embedding column: one fixed-size array per row, stored as fixed-size binary in a file of its own."""

    dtype: str = "float16"


ColumnType: TypeAlias = pa.DataType | Vector


@dataclass
class Context:
    """What a stage may use while it computes one part.

    `run`: name of the run, shared by its processes ('' outside of one); `workers` processes of the run on `nodes` machines.
    report(place in `rows`, outcome): a stage that takes many rows in one call tells the budget of each as it is done, so that
    a broken network stops the run long before the call's end. Raises BudgetExceeded, which must be let through.
    refuses(SHA-256, ...): whether an image with one of these digests was removed from this run for good, and must not be stored again.
    shared: what stages that see one batch after each other may leave for the next one, such as decoded images; empty for each batch.
    """

    stage: str
    part: int
    seed: int = 0
    workers: int = 1
    run: str = ""
    nodes: int = 1
    blobs: BlobWriter | None = None
    model: ModelHandle | None = None
    scratch: Path | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    report: Callable[[int, Values | Failure], None] = lambda place, outcome: None
    refuses: Callable[..., bool] = lambda *digests: False


class Stage:
    """A row-aligned step: `compute` measures every live row, `decide` judges it from what is stored.

    A subclass declares class facts and overrides what it needs. `reads` names columns: 'text' is the column of that
    name written last before this stage, 'caption_short.text' that of one instance, 'text|alt_text' the first there
    is, 'lang?' one that may be missing (null then), and 'image' the stored image bytes (an ImageRef in the row).
    The key in a row is the first name, without '?'. `reads_decide` are further columns for `decide`, `reads_resolve` those that
    `resolve` sees. Facts that depend on parameters may be properties.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Params: ClassVar[type[Params]] = Params
    reads: Sequence[str] = ()
    reads_decide: Sequence[str] = ()
    reads_resolve: Sequence[str] = ()
    writes: Mapping[str, ColumnType] = {}
    resolves: Mapping[str, pa.DataType] = {}
    names_rows: Sequence[str] = ()  # of reads_resolve: columns whose values name other rows, so that no stage between their writer and this one may drop any
    on_failure: Literal["drop", "keep"] = "drop"
    batch_size: int | None = 256  # None: the whole part in one call
    batch_timeout_s: float | None = None  # a call that takes longer is taken for hung
    writes_blobs: bool = False
    decodes_images: bool = False  # fails each row whose stored image cannot be decoded whole
    resources: str = "cpu"  # consecutive stages of one part with equal resources run as one task
    model_method: str = ""
    asks_each: bool = False  # `prepare` gives a list of requests that are answered, cached and sent again one by one (pipeline.asking)
    bare_names: bool = True  # False: its columns are read as '<instance>.<column>' alone, and never stand in for an earlier column of that name
    seconds_per_row: float = 1e-5  # rough cost on one core, only to choose an executor
    budget: Budget = Budget()

    def __init__(self, params: Any, instance: str = ""):
        self.params = params
        self.instance = instance or self.name

    @property
    def model_name(self) -> str | None:
        """Name in the recipe's models table, or None for a stage without a model."""
        return getattr(self.params, "model", None)

    def check(self, available: Mapping[str, ColumnType]) -> None:
        """Called once when the recipe is read, with the columns before this stage. Raises RecipeError where parameters
        name what is not there."""

    def check_makers(self, made_by: Callable[[str], tuple[Stage | None, str]]) -> None:
        """Called after `check`. made_by(column): the stage that writes a column before this one (None where none does), and the identity of its model
        (a digest, '' without one). Raises RecipeError where what is compared with the column was made otherwise."""

    def compute_facts(self) -> Any:
        """What makes the values beside parameters and model, as plain JSON values (such as a prompt's text); None for nothing."""
        return None

    def setup(self, ctx: Context) -> None:
        """Called once per process before the first `compute`; cheap, or cached in the process."""

    def compute(self, rows: Sequence[Row], ctx: Context) -> list[Values | Failure]:
        """Measure rows: one Values (every column of `writes`) or Failure per row, in order. May raise: rows are isolated."""
        raise NotImplementedError(f"{self.name} has no compute")

    def prepare(self, rows: Sequence[Row], ctx: Context) -> Any:
        """Model stages, first half: the request for the model (CPU work, picklable)."""
        raise NotImplementedError(f"{self.name} has no prepare")

    def finish(self, rows: Sequence[Row], answer: Any, ctx: Context) -> list[Values | Failure]:
        """Model stages, second half: the model's answer as values, one per row."""
        raise NotImplementedError(f"{self.name} has no finish")

    def outdated(self, column: Callable[[str], pa.Array]) -> np.ndarray | None:
        """Rows whose stored values, valid otherwise, do not serve the present parameters of `decide`: they are computed
        again (bool [N]). `column` gives a column of `writes` as stored. None: no row is."""
        return None

    def decide(self, row: Row, resolved: Mapping[str, Any]) -> Drop | None:
        """Judge one row from its stored values (`writes` and `reads_decide`); pure. None keeps it."""
        return None

    def decide_columns(self, columns: Mapping[str, pa.Array]) -> pa.Array | None:
        """`decide` over whole columns: the reason of each row, null where it is kept (string or dictionary [N], see pipeline.reason_columns).

        `columns` holds what `decide` sees of a row, those of `resolves` too, null where a row has no value. Must say what `decide` says; `decide`
        still gives the details. None, the default: each row is asked by itself.
        """
        return None

    def resolve(self, evidence: Evidence) -> duckdb.DuckDBPyRelation:
        """Corpus-wide step: columns part, row and those of `resolves` for the rows that get a value, made from `evidence`, in any order."""
        raise NotImplementedError(f"{self.name} has no resolve")

    def resolve_columns(self, evidence: ColumnEvidence) -> Mapping[str, pa.Array | OfPlaces] | None:
        """`resolve` over whole columns, for `whatif`: the columns of `evidence.wanted` with the values that `resolve` gives ([N]; of rows that are not
        alive any value), or a function that makes those of some rows, for a column that is told of a few. Texts may be dictionaries. None, the default,
        where it has no shorter way: then `resolve` is asked."""
        return None

    @property
    def has_compute(self) -> bool:
        return bool(self.writes)

    @property
    def has_resolve(self) -> bool:
        return bool(self.resolves)

    @property
    def has_decide(self) -> bool:
        return type(self).decide is not Stage.decide

    @property
    def has_decide_columns(self) -> bool:
        return type(self).decide_columns is not Stage.decide_columns

    @property
    def may_drop(self) -> bool:
        """Whether a row can end here: by `decide`, or because it could not be measured."""
        return self.has_decide or (self.has_compute and self.on_failure == "drop")

    @property
    def uses_model(self) -> bool:
        return bool(self.model_method)


def check_number(where: str, column: str, available: Mapping[str, ColumnType]) -> None:
    """Raises RecipeError, beginning with `where`, for a column that holds no numbers."""
    kind = available.get(column)
    if kind is not None and not (isinstance(kind, pa.DataType) and (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind))):
        raise RecipeError(f"{where}: {column!r} holds {kind}, not numbers")


@dataclass(frozen=True, slots=True)
class VectorBlock:
    """Vectors of some rows of one part: `rows` (place in the part, int32 [N], rising) and `vectors` [N, D] as stored."""

    part: int
    rows: np.ndarray
    vectors: np.ndarray


def _no_vectors(column: str) -> Iterator[VectorBlock]:
    raise KeyError(column)


@dataclass
class Evidence:
    """What `resolve` sees: a DuckDB connection (out of core, spilling to disk) with the table `rows`: part, row
    (place in the part), sample_id (BLOB) and the columns of `reads_resolve`, one line per row that is alive at the
    stage (that has a value, where the stage computes). `total` counts the source rows of the run.

    Vector columns of `reads_resolve` are not in the table: `vectors(key)` reads them part by part, in the order of the input, anew at each call;
    rows of the table without a vector are left out, and so is all where no stage writes the column. What needs files of its own puts them into `scratch`,
    which is removed after the resolve. What the stage found of the whole corpus (edges of levels, a table for the report) it leaves in `facts`, small plain
    JSON values that follow from the evidence alone: `RunView.facts` reads them, and the dataset's manifest holds them.
    """

    con: duckdb.DuckDBPyConnection
    total: int
    alive: int
    seed: int = 0
    vectors: Callable[[str], Iterator[VectorBlock]] = _no_vectors
    scratch: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


OfPlaces: TypeAlias = Callable[["np.ndarray"], pa.Array]  # values of some rows of the run, from their places (int64 [M])


@dataclass
class ColumnEvidence:
    """What `resolve_columns` sees: whole columns over the N rows of the run, in the order of the input.

    column(key): of `reads_resolve` or 'sample_id', also of rows that are not alive (null type where the recipe has none). `alive` bool [N] are the rows that
    `resolve` would see; `starts` int64 [parts + 1] is where each part begins. index(name, keys, make): arrays that follow from the columns
    `keys` alone, whatever rows are alive, made once and kept on disk while those columns stand. index_of(name, array, make): the same for what follows from
    an array that may be the memory of a stored column, as a field is that an earlier resolve took over whole; else it is made in memory.
    """

    column: Callable[[str], pa.Array]
    alive: np.ndarray
    starts: np.ndarray
    seed: int
    wanted: frozenset[str]
    index: Callable[[str, Sequence[str], Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]]
    index_of: Callable[[str, pa.Array, Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]]


class Source:
    """Yields the rows of the input; the machine cuts them into parts. Keeps no set of what it has seen."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Params: ClassVar[type[Params]] = Params

    def __init__(self, params: Any):
        self.params = params

    def fingerprint(self) -> str:
        """Digest of what the input is (files and sizes, options): a run refuses to go on with another input."""
        raise NotImplementedError

    def extra_columns(self) -> dict[str, pa.DataType]:
        """Columns of the input that are carried through under their own names."""
        return {}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows in a fixed order: SOURCE_COLUMNS, the extra columns, and failure, failure_detail (null where fine)."""
        raise NotImplementedError


class Job:
    """Work that is not row-aligned: `tasks` splits it, `run_task` does one piece anywhere, `finish` sums up."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    Params: ClassVar[type[Params]] = Params
    writes_dataset: ClassVar[bool] = False  # writes `dataset/` from what is stored, and asks no model: `recut` runs it

    def __init__(self, params: Any, instance: str = ""):
        self.params = params
        self.instance = instance or self.name

    def tasks(self, run: RunView) -> list[Any]:
        """Pieces of work, picklable and independent; those already done are left out."""
        return []

    def run_task(self, run: RunView, task: Any) -> Any:
        """Do one piece; safe to repeat."""
        raise NotImplementedError

    def finish(self, run: RunView, results: list[Any]) -> dict[str, Any]:
        """Called once after all tasks; returns the summary shown at the end (plain JSON values)."""
        return {}
