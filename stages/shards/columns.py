"""Which columns of a run go into the dataset, and under which names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.chain import Chain, Node, Ref
from pipeline.errors import RecipeError
from pipeline.registry import nearest
from pipeline.stage import Vector
from schemas.columns import LOCATION_COLUMNS
from schemas.dataset import INDEX_COLUMNS, RESERVED_COLUMNS
from stages.attributes import Attributes
from stages.caption import Caption
from stages.caption_check import CaptionCheck
from stages.text_rules import TextRules

_SOURCE_OWN = frozenset({"url", "alt_text"})  # these names always mean the source's columns
_MAYBE = frozenset({"text"})  # columns of a caption's choices that a recipe need not have: `text|alt_text` fits any
_GATHERED = frozenset({"text", "texts"})  # earlier writers' texts stand in the last `texts`


@dataclass(frozen=True)
class Layout:
    """Name in the dataset -> full name in the chain ('<stage>.<column>').

    `images` is the stage that stores the images, `captions` are the columns of which the first that has a text is the
    caption, `texts` the column with all texts ('' where no stage makes one), `rules` the stage whose text rules say which
    of them may be published (None: all), `writers` the stages that wrote captions and the columns of their texts' fields, `complement` the column joined
    to the caption and `split` the one that names each row's split ('' for none).
    """

    images: str
    plain: dict[str, str]
    flat: dict[str, str]
    vectors: dict[str, str]
    captions: tuple[str, ...]
    texts: str
    component: str
    rules: Node | None = None
    writers: dict[str, dict[str, str]] = field(default_factory=dict)
    complement: str = ""
    split: str = ""


def make_layout(
    chain: Chain, caption: str, leave_out: Iterable[str], embeddings: bool, complement: str | None = None, split: str | None = None
) -> Layout:
    """Raises RecipeError where no stage stores images or a column named in the recipe does not exist.

    A column is published under its own name; one that a later stage writes again, or whose name has a meaning of its
    own in the dataset, as '<stage>.<column>'.
    """
    if not chain.has_column("image_sha256"):
        raise RecipeError("write_shards: no stage of this recipe stores images; put `download` (or another that does) before it")
    plain: dict[str, str] = {}
    vectors: dict[str, str] = {}
    flat: dict[str, str] = {}
    left_out = frozenset(leave_out)
    for node in chain.nodes:
        for column, resolved in [*((c, False) for c in node.writes if c not in node.resolves), *((c, True) for c in node.resolves)]:
            ref = Ref(node.index, column, resolved)
            full, last = chain.full_name(ref), chain.find_column(chain.readable_name(node, column)) == ref
            bare = node.stage is None or node.stage.bare_names
            stores = node.stage is not None and node.stage.writes_blobs
            place = column in LOCATION_COLUMNS and (stores or node.index == 0)
            if column in left_out or full in left_out or full == "source.sample_id" or place:
                continue
            if bare and column in _GATHERED and (not last or column == "texts"):
                continue
            own = node.index == 0 if column in _SOURCE_OWN else bare and last and column not in RESERVED_COLUMNS
            name, kind = column if own else full, chain.type_of(ref)
            if isinstance(kind, Vector):
                vectors[name] = full
                continue
            plain[name] = full
            if not pa.types.is_nested(kind) and not pa.types.is_null(kind):
                flat[name] = full
    images = chain.nodes[chain.find_column("image_sha256").node].name
    captions = tuple(_full(chain, choice) for choice in caption.split("|") if chain.has_column(choice))
    missing = [choice for choice in caption.split("|") if not chain.has_column(choice) and (choice not in _MAYBE or not captions)]
    if missing:
        raise RecipeError(f"write_shards.caption: no column {missing[0]!r}{nearest(missing[0], chain.available())}; there are: {', '.join(chain.available())}")
    texts = _full(chain, "texts") if chain.has_column("texts") else ""
    component = _full(chain, "dup_component") if chain.has_column("dup_component") else ""
    rules = next((node for node in reversed(chain.nodes) if isinstance(node.stage, TextRules)), None)
    for option, name in (("complement", complement), ("split_column", split)):
        if name and not chain.has_column(name):
            known = chain.available()
            raise RecipeError(f"write_shards.{option}: no column {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    joined = _full(chain, complement) if complement else ""
    return Layout(
        images, plain, flat, vectors if embeddings else {}, captions, texts, component, rules, _writers(chain), joined, _full(chain, split) if split else ""
    )


def index_schema(chain: Chain, layout: Layout) -> pa.Schema:
    """Columns of the shards' indexes, in their order."""
    return pa.schema([*INDEX_COLUMNS.items(), *((name, chain.type_of(chain.find_column(full))) for name, full in layout.plain.items())])


def _writers(chain: Chain) -> dict[str, dict[str, str]]:
    """Stages that write a caption -> full names of the columns of its text, model and prompt, and of its score where a check compared it with the image."""
    found: dict[str, dict[str, str]] = {}
    for node in chain.nodes:
        if isinstance(node.stage, Caption | Attributes):
            found[node.name] = {name: f"{node.name}.{name}" for name in ("text", "model", "prompt") if name in node.writes}
        elif isinstance(node.stage, CaptionCheck) and node.stage.params.model and node.stage.params.of in found:
            found[node.stage.params.of]["clip_score"] = f"{node.name}.s_xc"
    return found


def _full(chain: Chain, name: str) -> str:
    return chain.full_name(chain.find_column(name))


def check_left_out(chain: Chain, leave_out: Iterable[str]) -> None:
    """Raises RecipeError for a name that is no column of the recipe."""
    for name in leave_out:
        if not chain.has_column(name):
            raise RecipeError(f"write_shards.leave_out: no column {name!r}{nearest(name, chain.available())}; there are: {', '.join(chain.available())}")
