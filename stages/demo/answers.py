"""What a good MLLM would answer about a rendered scene: captions in several formats, tags, and yes/no questions.

Objects are named in reading order, place before attributes, in one fixed wording: a small model that learns these texts
spends its effort on what it sees. Everything said is true of the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from stages.demo.backgrounds import BACKGROUNDS
from stages.demo.captions import BACKGROUND_PHRASES, NUMBERS, POSITION_PHRASES, TEXTURE_ADJECTIVES
from stages.demo.claims import mentions
from stages.demo.scenes import COLORS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

_SIZE_ORDER: Final = {name: number for number, name in enumerate(SIZES)}


def in_reading_order(scene: Scene) -> list[SceneObject]:
    """The objects row by row, from the left."""
    return sorted(scene.objects, key=lambda item: item.cell)


def short_caption(scene: Scene) -> str:
    """The main subjects in one phrase: 10 to 15 tokens of CLIP's."""
    items = sorted(in_reading_order(scene), key=lambda item: -_SIZE_ORDER[item.size])  # stable: ties in reading order
    ground = _ground(scene)
    if len(items) == 1:
        return f"{_full(items[0])} {_place(items[0], short=True)} {ground}"
    if len(items) == 2:
        return f"{_sized(items[0])} and {_sized(items[1])} {ground}"
    return f"{_sized(items[0])} and {NUMBERS[len(items) - 1]} other objects {ground}"


def descriptive_caption(scene: Scene, first: Sequence[SceneObject] = ()) -> str:
    """Subject and key elements: 40 to 60 tokens of CLIP's. `first`: objects to be named before the others."""
    items = [*first, *(item for item in in_reading_order(scene) if item not in first)]
    ground = _ground(scene)
    if len(items) == 1:
        item = items[0]
        return (f"This picture shows {_full(item)} {_place(item)} {ground}. It is the only object in the image, and nothing "
                f"else can be seen around the {_name(item)}. The rest of the picture is empty.")
    opening = f"This picture shows {NUMBERS[len(items)]} objects {ground}."
    if len(items) == 2:
        both = ", and ".join(f"{_full(item)} is {_place(item)}" for item in items)
        return f"{opening} {_capital(both)}. Nothing else can be seen in the rest of the picture."
    say = _full if len(items) == 3 else _sized if len(items) == 4 else _bare
    parts = [f"{say(item)} {_place(item, short=True)}" for item in items]
    ending = " Nothing else can be seen." if len(items) == 3 else ""
    return f"{opening} There is {', '.join(parts[:-1])} and {parts[-1]}.{ending}"


def dense_caption(scene: Scene, relations: bool = True) -> str:
    """Every object with all its attributes, relations and background: over 100 tokens of CLIP's for four objects or more."""
    items = in_reading_order(scene)
    counted = "one single object" if len(items) == 1 else f"{NUMBERS[len(items)]} different objects"
    sentences = [f"This image shows {counted} {_ground(scene)}"]
    sentences += [f"{_capital(_place(item))} there is {_full(item)}" for item in items]
    pairs = list(zip(items, items[1:], strict=False)) + ([(items[0], items[-1])] if len(items) > 2 else [])
    sentences += [f"The {_name(a)} is {_relation(a, b)} the {_name(b)}" for a, b in pairs if relations]
    sentences.append("Nothing else can be seen in the rest of the picture")
    return ". ".join(sentences) + "."


def fused_caption(scene: Scene, alt_text: str) -> str:
    """The descriptive caption, with the objects first that the alt-text rightly names, in its order."""
    named = [mention.meant(scene) for mention in mentions(alt_text)]
    return descriptive_caption(scene, list(dict.fromkeys(item for item in named if item is not None)))


def merged_caption(scene: Scene, alt_text: str) -> str:
    """One sentence with every object, those of the raw caption first."""
    named = [mention.meant(scene) for mention in mentions(alt_text)]
    first = list(dict.fromkeys(item for item in named if item is not None))
    parts = [f"{_bare(item)} {_place(item)}" for item in [*first, *(i for i in in_reading_order(scene) if i not in first)]]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{_capital(listed)} can be seen {_ground(scene)}."


def tag_list(scene: Scene) -> str:
    """Colour and shape of every object, then the background, separated by commas."""
    return ", ".join([*(_name(item) for item in in_reading_order(scene)), scene.background])


def question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about the scene and its answer, 'yes' or 'no', each in half of the draws."""
    true = bool(rng.random() < 0.5)
    asked = (_ask_object, _ask_object, _ask_attribute, _ask_attribute, _ask_relation, _ask_whole)[int(rng.integers(6))]
    return asked(scene, true, rng), "yes" if true else "no"


def attribute_question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about size, texture or place of one object and its answer, each in half of the draws."""
    true = bool(rng.random() < 0.5)
    return _ask_attribute(scene, true, rng), "yes" if true else "no"


def _ask_object(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    """'Is there a large red circle in the image?'; a false one differs from an object that is there by one word or more."""
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    form = ("Is there {}?", "Is there {} in the image?", "Does the image show {}?")[int(rng.integers(3))]
    words = {"size": item.size, "color": item.color, "texture": item.texture, "shape": item.shape}
    kept = [kind for kind, chance in (("size", 0.3), ("color", 1), ("texture", 0.3), ("shape", 1)) if rng.random() < chance]
    if not true:
        kind = kept[int(rng.integers(len(kept)))] if rng.random() < 0.5 else ("color", "shape")[int(rng.integers(2))]
        words[kind] = _other(words[kind], _TABLES[kind], rng)
        if any(all(getattr(o, name) == words[name] for name in kept) for o in scene.objects):
            return _ask_object(scene, true, rng)
    said = [_texture(words[k]) if k == "texture" else words[k] for k in kept]
    return form.format(_article(" ".join(said)))


def _ask_attribute(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    kind = ("size", "texture", "position")[int(rng.integers(3))]
    value = getattr(item, kind) if true else _other(getattr(item, kind), _TABLES[kind], rng)
    said = {"size": value, "texture": _texture(value) if kind == "texture" else "", "position": ""}[kind] or POSITION_PHRASES[value][0]
    return f"Is the {_name(item)} {said}?"


def _ask_relation(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    if len(scene.objects) == 1:
        return _ask_whole(scene, true, rng)
    a, b = (scene.objects[int(n)] for n in rng.choice(len(scene.objects), size=2, replace=False))
    (row, column), (other_row, other_column) = a.cell, b.cell
    sides = []
    if column != other_column:
        sides.append("to the left of" if (column < other_column) == true else "to the right of")
    if row != other_row:
        sides.append("above" if (row < other_row) == true else "below")
    return f"Is the {_name(a)} {sides[int(rng.integers(len(sides)))]} the {_name(b)}?"


def _ask_whole(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        count = len(scene.objects)
        if not true:
            count = int(rng.choice([n for n in range(1, 6) if n != count]))
        return f"Are there {NUMBERS[count]} objects in the image?" if count > 1 else "Is there only one object in the image?"
    ground = scene.background if true else _other(scene.background, BACKGROUNDS, rng)
    return f"Is this picture {BACKGROUND_PHRASES[ground][0]}?"


_TABLES: Final = {"color": COLORS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES, "position": POSITIONS}


def _other(value: str, table: object, rng: np.random.Generator) -> str:
    names = [name for name in table if name != value]  # type: ignore[attr-defined]
    return names[int(rng.integers(len(names)))]


def _ground(scene: Scene) -> str:
    return BACKGROUND_PHRASES[scene.background][0]


def _place(item: SceneObject, short: bool = False) -> str:
    return POSITION_PHRASES[item.position][1 if short and " " in item.position else 0]


def _texture(name: str) -> str:
    return TEXTURE_ADJECTIVES[name][0] if name in TEXTURE_ADJECTIVES else name


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _name(item: SceneObject) -> str:
    return f"{item.color} {item.shape}"


def _bare(item: SceneObject) -> str:
    return _article(_name(item))


def _sized(item: SceneObject) -> str:
    return f"a {item.size} {_name(item)}"


def _full(item: SceneObject) -> str:
    return f"a {item.size} {item.color} {_texture(item.texture)} {item.shape}"


def _relation(first: SceneObject, second: SceneObject) -> str:
    (row, column), (other_row, other_column) = first.cell, second.cell
    sides = [] if row == other_row else ["above" if row < other_row else "below"]
    if column != other_column:
        sides.append("to the left of" if column < other_column else "to the right of")
    return " and ".join(sides)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
