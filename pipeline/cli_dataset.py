"""Commands on what a run wrote: export the dataset, give back space."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli_options import Debug, Imports, Json, RunFolder, answers
from pipeline.console import number, plain_table, print_json, results, say
from pipeline.errors import RecipeError
from pipeline.storage import Place, place_of


@answers
def export(
    out: RunFolder,
    to: Annotated[str, typer.Option("--out", metavar="DIR", help="Local folder for the exported files.")],
    format: Annotated[Literal["parquet"], typer.Option("--format", help="Form of the files.")] = "parquet",
    split: Annotated[str | None, typer.Option("--split", metavar="NAME", help="Only this split.")] = None,
    max_mb: Annotated[int, typer.Option("--max-mb", metavar="N", help="Most image bytes of a file, in MB.", min=1)] = 500,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Write the dataset as Parquet with the images in it, as Hugging Face lays it out. The same command goes on after a stop.

    OUT may be a run directory or a dataset folder.

    \b
    Example:
      pairmill export RUN --out EXPORT
      pairmill export RUN --out EXPORT --split train
    """
    folder = place_of(to)
    if not isinstance(folder, Path):
        raise RecipeError(f"--out {to}: files are exported to a local folder; name one, and copy them from there")
    # What knows images and shards stands among the stages, which this package must not import.
    found = importlib.import_module("stages.shards.export").export_dataset(dataset_of(out), folder, split, max_mb * 1_000_000)
    if json:
        print_json(found)
        return 0
    results().print(f"{found['rows']:,} pairs in {found['files']:,} files ({found['written']:,} written now): {to}", soft_wrap=True)
    say(f'read it with datasets.load_dataset("{to}")', whole=True)
    return 0


def dataset_of(out: str) -> Place:
    """The dataset folder of a run, or the folder itself where it is one. Raises RecipeError where there is none."""
    root = place_of(out)
    folder = root if (root / "manifest.json").is_file() else root / "dataset"
    if not (folder / "manifest.json").is_file():
        raise RecipeError(f"{out}: no dataset here (manifest.json is missing, and it is written last); finish it with `pairmill run`")
    return folder


@answers
def gc(
    out: RunFolder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    dead_rows: Annotated[bool, typer.Option("--dead-rows", help="Also remove the images of rows that are not in the dataset.")] = False,
    fetch_again: Annotated[bool, typer.Option("--fetch-again", help="Rows whose image --dead-rows removed count as not fetched.")] = False,
    imports: Imports = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Give back space: remove stored images and vectors that no committed row names, and what killed runs left half written.

    Values of rows that left the run are kept, and their images too, so that every threshold can be loosened without a download.
    --dead-rows gives these images up: then loosening needs them fetched again.

    \b
    Example:
      pairmill gc RUN --dry-run
      pairmill gc RUN --dead-rows
    """
    from pipeline.gc import collect

    if dead_rows and fetch_again:
        raise RecipeError("--dead-rows and --fetch-again: give one of the two, the second undoes the first")
    found = collect(out, dry_run, dead_rows, fetch_again).to_dict()
    if json:
        print_json(found)
        return 0
    _tell(found, dead_rows, fetch_again)
    return 0


def _tell(found: dict, dead_rows: bool, fetch_again: bool) -> None:
    console, verb = results(), "would be removed" if found["dry_run"] else "removed"
    console.print(f"{found['tars']:,} tars ({number(found['tar_bytes'])} bytes) and {found['vectors']:,} vectors files "
        f"({number(found['vector_bytes'])} bytes) {verb}")  # fmt: skip
    if found["copied_bytes"]:
        console.print(f"{number(found['copied_bytes'])} bytes of other images in these tars {'would be ' if found['dry_run'] else ''}copied to new ones")
    console.print(f"{number(found['freed_bytes'])} bytes {'would be ' if found['dry_run'] else ''}freed")
    if fetch_again:
        console.print(f"{found['forgotten']:,} rows count as not fetched: the next run fetches those that it needs, and downloads them from their addresses")
        return
    if not dead_rows:
        console.print("No change of the recipe becomes impossible: every committed value has its image still.")
        return
    if found["removed_by_reason"]:
        console.print("\nLoosening these needs a new download (`pairmill gc RUN --fetch-again` first), and what is gone from the web is lost:")
        table = plain_table("stage", "reason", "images", right=("images",))
        for entry in found["removed_by_reason"]:
            table.add_row(entry["stage"], entry["reason"], f"{entry['images']:,}")
        console.print(table)
        console.print("So does every change that measures these rows anew, such as another model. Tightening stays free.")
    if found["unfinished_parts"]:
        say(f"{found['unfinished_parts']:,} parts are not judged to the end by the recipe as last run and were left alone; finish the run first")
