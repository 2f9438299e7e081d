"""Lists of class names for the tagger: one name per line, '#' begins a comment. `common_objects` are the 80 classes of COCO,
`rendered_world` colour and shape of the demo's objects."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.registry import nearest

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The lists that come with pairmill."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


@cache
def load(name: str, where: str) -> tuple[str, ...]:
    """Classes of a built-in list, or of a file where `name` is a path (it ends in .txt or has a '/'), each once, in their order.

    Raises RecipeError for an unknown list, a file that cannot be read, and a list of fewer than two classes.
    """
    path = Path(name).expanduser() if "/" in name or name.endswith(".txt") else _FOLDER / f"{name}.txt"
    if path.parent == _FOLDER and not path.is_file():
        raise RecipeError(f"{where}: no vocabulary {name!r}{nearest(name, names())}; there are: {', '.join(names())}, or name a file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: vocabulary {name!r} cannot be read: {error}") from error
    classes = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if len(classes) < 2:
        raise RecipeError(f"{where}: vocabulary {name!r} has {len(classes)} classes; scores are told apart within an image, so it needs two or more")
    return classes
