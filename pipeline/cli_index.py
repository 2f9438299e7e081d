"""Commands on index files: `pairmill index build | list | merge | remove`."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from pipeline.cli_options import Debug, Imports, Json, answers
from pipeline.console import number, plain_table, print_json, results, say
from pipeline.errors import RecipeError

app = typer.Typer(
    help="Index files: what is known of an evaluation set or of a finished run, for other runs to be tested against.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A path (with a slash, or .parquet), or a name in the folder of this user.")]
_SHOWN = 5


def _module(name: str) -> Any:
    """What knows images stands among the stages, which this package must not import."""
    return importlib.import_module(f"stages.index.{name}")


@app.command(short_help="Make an index of images, texts or a finished run.")
@answers
def build(
    name: Name,
    images: Annotated[list[str] | None, typer.Option("--images", metavar="FOLDER|TARS", help="Images, captions beside them included; repeatable.")] = None,
    texts: Annotated[list[str] | None, typer.Option("--texts", metavar="FILE", help="Texts: .txt, or a table with a column of them; repeatable.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="A finished run: hashes of what it kept, from stored columns alone.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", metavar="KEY=VALUE", help="A model that embeds the images, as in a recipe.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="With --run: also its image embeddings.")] = False,
    with_texts: Annotated[bool, typer.Option("--with-texts", help="With --run: also its texts, normalised.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="With --run: also rows that rules dropped, so that they are not fetched again.")] = False,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Make an index: of images and texts that must stay out of training, or of what a finished run has.

    \b
    Example:
      pairmill index build coco_val --images coco/val2017 --texts captions.jsonl
      pairmill index build crawl_1 --run RUN
      pairmill index build coco_val --images coco/val2017 --model name=ViT-B-32 --model weights=openai
    """
    from pipeline.run import open_run

    files = _module("files")
    path = files.index_path(name)
    notes: list[str] = []
    if bool(run) == bool(images or texts):
        raise RecipeError("index build: give either --run RUN, or --images and --texts")
    if run:
        made = _module("from_run").index_of_run(open_run(run), files.index_name(path), dropped, embeddings, with_texts)
    else:
        made = _module("build").build_index(files.index_name(path), images or [], texts or [], _spec(model), notes)
    files.write_index(made, path)
    for note in notes[:_SHOWN]:
        say(f"not compared as a picture: {note}")
    if len(notes) > _SHOWN:
        say(f"and {len(notes) - _SHOWN:,} more")
    _tell([{"path": str(path), **vars(made.facts)}], json, {"without_picture": len(notes)})
    return 0


def _spec(given: list[str] | None) -> dict[str, Any] | None:
    if not given:
        return None
    pairs = [entry.partition("=") for entry in given]
    if any(not sign for _, sign, _ in pairs):
        raise RecipeError("index build: --model takes KEY=VALUE, for example --model name=ViT-B-32 --model weights=openai")
    return {"kind": "open_clip", **{key: value for key, _, value in pairs}}


@app.command("list", short_help="List the indexes of this user, or of a folder.")
@answers
def list_(
    folder: Annotated[str | None, typer.Argument(metavar="FOLDER", help="Folder of index files; default: that of this user.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List indexes: items, what is known of them, and the digest of their contents.

    \b
    Example:
      pairmill index list
    """
    from pipeline.storage import place_of

    notes: list[str] = []
    _tell(_module("manage").listed(place_of(folder) if folder else None, notes), json)
    for note in notes:
        say(note)
    return 0


@app.command(short_help="Join several indexes into one.")
@answers
def merge(
    name: Name,
    parts: Annotated[list[str], typer.Argument(metavar="INDEX ...", help="The indexes to join.")],
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Join several indexes into one; the result does not depend on their order.

    \b
    Example:
      pairmill index merge evaluation coco_val flickr30k_test
    """
    files = _module("files")
    path = files.index_path(name)
    made = _module("manage").merged(files.index_name(path), [files.read_index(files.known_path(part)) for part in parts])
    files.write_index(made, path)
    _tell([{"path": str(path), **vars(made.facts)}], json)
    return 0


@app.command(short_help="Remove an index, or items of it.")
@answers
def remove(
    name: Name,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="ITEM", help="Take out this item (of a run: a sample_id); repeatable.")] = None,
    hashes: Annotated[list[str] | None, typer.Option("--hash", metavar="SHA256", help="Take out images with these bytes; repeatable.")] = None,
    lists: Annotated[list[str] | None, typer.Option("--list", metavar="FILE", help="Take out what a `forgotten.json` of `pairmill forget` names.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove an index file; with --id, --hash or --list only the items named.

    \b
    Example:
      pairmill index remove coco_val
      pairmill index remove crawl_1 --list RUN/forgotten.json
    """
    from pipeline.forgotten import Forgotten

    files, manage = _module("files"), _module("manage")
    path = files.known_path(name)
    if not (ids or hashes or lists):
        manage.remove_index(path)
        print_json({"removed": str(path)}) if json else results().print(f"{path}: removed", soft_wrap=True)
        return 0
    forgotten = [Forgotten.read(file) for file in lists or []]
    wanted, digests = set(ids or []), {value.lower() for value in hashes or []}

    def matches(item: dict[str, Any]) -> bool:
        digest = item["raw_sha256"].hex() if item["raw_sha256"] else ""
        named = item["item"] in wanted or (bool(digest) and digest in digests)
        return named or any(one.names(item["item"], digest, item["url_sha256"]) for one in forgotten)

    count = manage.remove_items(path, matches)
    print_json({"index": str(path), "removed_items": count}) if json else results().print(f"{count:,} items taken out of {path}", soft_wrap=True)
    return 0


def _tell(found: list[dict[str, Any]], json: bool, more: dict[str, Any] | None = None) -> None:
    if json:
        print_json({"indexes": found, **(more or {})})
        return
    table = plain_table("index", "items", "images", "texts", "embeddings", "digest", right=("items", "images", "texts", "embeddings"))
    for one in found:
        counts = one["counts"]
        cells = (number(counts.get(key, 0)) for key in ("items", "phash", "texts", "image_emb"))
        table.add_row(one["name"], *cells, one["digest"][:12])
    results().print(table)
