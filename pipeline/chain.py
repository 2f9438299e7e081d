"""The recipe as a chain of nodes: which column comes from where, and what makes stored values valid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.digests import digest_of
from pipeline.errors import RecipeError
from pipeline.models import model_identity
from pipeline.reading import is_reading, known_or
from pipeline.recipe import Recipe
from pipeline.registry import nearest
from pipeline.stage import ColumnType, Stage, Vector, params_affecting
from schemas.columns import LOCATION_COLUMNS
from schemas.sample import SOURCE_COLUMNS

IMAGE = "image"
IMAGE_PARTS = ("tar", "offset", "size", "image_sha256")


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a column comes from: a node's values, or what its resolve returned."""

    node: int
    column: str
    resolved: bool = False


@dataclass
class Node:
    """One stage of the chain (node 0 is the source) with its reads bound to columns of earlier nodes.

    A read bound to None is an optional column that this recipe does not have. `image` reads bind four columns.
    """

    index: int
    name: str
    stage: Stage | None
    writes: Mapping[str, ColumnType]
    resolves: Mapping[str, pa.DataType] = field(default_factory=dict)
    reads: dict[str, Ref | None] = field(default_factory=dict)
    reads_decide: dict[str, Ref | None] = field(default_factory=dict)
    reads_resolve: dict[str, Ref | None] = field(default_factory=dict)
    compute_fingerprint: str = ""
    decide_fingerprint: str = ""
    resolve_fingerprint: str = ""

    @property
    def has_resolve(self) -> bool:
        return bool(self.resolves)

    @property
    def has_compute(self) -> bool:
        return bool(self.writes)

    @property
    def vectors(self) -> list[str]:
        return [name for name, kind in self.writes.items() if isinstance(kind, Vector)]

    def digest_reads(self) -> dict[str, Ref]:
        """The columns whose values make the input digest of a row: all it reads but locations and the row's own id."""
        return {
            key: ref
            for key, ref in self.reads.items()
            if ref is not None and ref.column not in LOCATION_COLUMNS and not (ref.node == 0 and ref.column == "sample_id")
        }


@dataclass(frozen=True)
class InputFacts:
    """What the chain must know of the input: its digest and the columns it carries beside SOURCE_COLUMNS."""

    fingerprint: str
    columns: Mapping[str, pa.DataType]


def input_facts(recipe: Recipe) -> InputFacts:
    """Ask the source; reads the input's schema. Raises RecipeError where the input is missing or wrong."""
    cut = digest_of(recipe.source.name, recipe.source.fingerprint(), recipe.rows_per_part, recipe.limit, recipe.sample, recipe.seed if recipe.sample else 0)
    return InputFacts(cut, recipe.source.extra_columns())


class Chain:
    """The nodes of a recipe in order, statically checked. Workers and reading commands give the input's facts as the
    driver found them, so that they need not see the input."""

    def __init__(self, recipe: Recipe, facts: InputFacts | None = None):
        self.recipe = recipe
        self.facts = facts or input_facts(recipe)
        self.nodes: list[Node] = [
            Node(0, "source", None, {**SOURCE_COLUMNS, **self.facts.columns}, compute_fingerprint=self.facts.fingerprint)
        ]
        for stage in recipe.stages:
            self._add(stage)

    def _add(self, stage: Stage) -> None:
        index = len(self.nodes)
        if stage.instance == "source" or any(node.name == stage.instance for node in self.nodes):
            raise RecipeError(f"stages: the name {stage.instance!r} is taken")
        node = Node(index, stage.instance, stage, dict(stage.writes), dict(stage.resolves))
        where = f"stages.{stage.instance}"
        node.reads = self._bind_all(stage.reads, index, where)
        node.reads_decide = self._bind_all(stage.reads_decide, index, where)
        self.nodes.append(Node(index, stage.instance, stage, node.writes))  # resolve sees the stage's own values too
        node.reads_resolve = self._bind_all(stage.reads_resolve, index + 1, where)
        self._check_named_rows(node)
        if not is_reading():
            stage.check({column: self.type_of(ref) for column in self.available(index) if (ref := self._find(column, index)) is not None})
            stage.check_makers(lambda column: self._made_by(column, index))
        self.nodes[index] = node
        if stage.uses_model and stage.model_name:
            spec = self.recipe.models[stage.model_name]
            weights = known_or(lambda: model_identity(spec), "missing")
        else:
            weights = ""
        origin = [type(stage).__name__, stage.name, stage.version, self.recipe.seed]
        facts = known_or(stage.compute_facts, "missing")
        compute, decide = params_affecting(stage.params, "compute"), params_affecting(stage.params, "decide")
        bound = {key: None if ref is None else self.full_name(ref) for key, ref in node.reads.items()}
        node.compute_fingerprint = digest_of("compute", origin, compute, weights, bound, *([facts] if facts is not None else []))
        node.decide_fingerprint = digest_of("decide", origin, compute, decide, stage.on_failure)
        node.resolve_fingerprint = digest_of("resolve", origin, compute, decide)

    def _check_named_rows(self, node: Node) -> None:
        """Raises RecipeError where rows that the node's evidence names may be gone before it sees them."""
        assert node.stage is not None
        for ref in (ref for key in node.stage.names_rows if (ref := node.reads_resolve.get(key)) is not None):
            writer = self.nodes[ref.node].name
            for between in self.nodes[ref.node + 1 : node.index]:
                if between.stage is not None and between.stage.may_drop:
                    raise RecipeError(
                        f"stages.{between.name}: may drop rows that {writer} names for {node.name}, which would then miss duplicates; "
                        f"put it before {writer} or behind {node.name}"
                    )

    def _bind_all(self, specs: Iterable[str], before: int, where: str) -> dict[str, Ref | None]:
        bound: dict[str, Ref | None] = {}
        for spec in specs:
            optional = spec.endswith("?")
            choices = [choice.rstrip("?") for choice in spec.split("|")]
            key = choices[0]
            if key == IMAGE:
                owner = self._find("image_sha256", before)
                if owner is None:
                    raise RecipeError(f"{where}: reads the stored image, but no stage before it stores one; put `download` before it")
                for part in IMAGE_PARTS:
                    bound[f"image.{part}"] = Ref(owner.node, part)
                continue
            ref = next((found for choice in choices if (found := self._find(choice, before))), None)
            if ref is None and not optional:
                available = self.available(before)
                raise RecipeError(
                    f"{where}: reads column {spec!r}, which no stage before it writes{nearest(choices[0], available)}; there are: {', '.join(available)}"
                )
            bound[key] = ref
        return bound

    def _find(self, name: str, before: int) -> Ref | None:
        instance, dot, column = name.rpartition(".")
        for node in reversed(self.nodes[:before]):
            if dot and node.name != instance:
                continue
            if not dot and node.stage is not None and not node.stage.bare_names:
                continue
            if column in node.resolves:
                return Ref(node.index, column, True)
            if column in node.writes:
                return Ref(node.index, column)
        return None

    def _made_by(self, column: str, before: int) -> tuple[Stage | None, str]:
        """The stage that writes a column, and the digest of its model's identity."""
        ref = self._find(column, before)
        stage = None if ref is None else self.nodes[ref.node].stage
        spec = self.recipe.models.get(stage.model_name or "") if stage is not None and stage.uses_model else None
        return stage, digest_of(model_identity(spec)) if spec else ""

    def available(self, before: int | None = None) -> list[str]:
        """Column names that a stage at place `before` may read, each once; full names of columns that have no other."""
        nodes = self.nodes[:before]
        return list(dict.fromkeys(self.readable_name(node, column) for node in nodes for column in [*node.writes, *node.resolves]))

    @staticmethod
    def readable_name(node: Node, column: str) -> str:
        """Name under which a node's column is read: its own, or '<instance>.<column>' where the stage's columns have no other."""
        return column if node.stage is None or node.stage.bare_names else f"{node.name}.{column}"

    def find_column(self, name: str) -> Ref:
        """The column a name means at the end of the chain. Raises RecipeError with the nearest name."""
        ref = self._find(name, len(self.nodes))
        if ref is None:
            raise RecipeError(f"no column {name!r}{nearest(name, self.available())}; there are: {', '.join(self.available())}")
        return ref

    def has_column(self, name: str) -> bool:
        return self._find(name, len(self.nodes)) is not None

    def type_of(self, ref: Ref) -> ColumnType:
        node = self.nodes[ref.node]
        return node.resolves[ref.column] if ref.resolved else node.writes[ref.column]

    def full_name(self, ref: Ref) -> str:
        return f"{self.nodes[ref.node].name}.{ref.column}"

    def node(self, name: str) -> Node:
        """The node of a stage's instance name. Raises RecipeError with the nearest name."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = [node.name for node in self.nodes]
        raise RecipeError(f"no stage {name!r}{nearest(name, known)}; this recipe has {', '.join(known)}")
