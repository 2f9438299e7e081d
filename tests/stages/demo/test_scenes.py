from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stages.demo.backgrounds import BACKGROUNDS
from stages.demo.scenes import COLORS, POSITIONS, SHAPES, SIZES, TEXTURES, Scene, SceneObject, draw_scene, object_boxes, render
from stages.demo.streams import STREAM_LENGTH, STREAMS, seed_for

SCENES = [draw_scene(seed) for seed in range(600)]


def one_object(seed: int = 3, background: str = "gray", **changes: str) -> Scene:
    plain = SceneObject(shape="circle", color="red", texture="solid", size="large", position="center")
    return Scene(seed=seed, background=background, objects=(dataclasses.replace(plain, **changes),))


def test_a_scene_is_a_function_of_its_seed() -> None:
    assert draw_scene(12345) == draw_scene(12345)
    assert draw_scene(12345) != draw_scene(12346)
    assert np.array_equal(render(draw_scene(7), 64), render(draw_scene(7), 64))


def test_scenes_use_the_whole_vocabulary() -> None:
    objects = [item for scene in SCENES for item in scene.objects]
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4, 5}
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS) and len(BACKGROUNDS) >= 6
    assert {item.color for item in objects} == set(COLORS) and len(COLORS) >= 8
    assert {item.shape for item in objects} == set(SHAPES) and len(SHAPES) >= 6
    assert {item.texture for item in objects} == set(TEXTURES) and len(TEXTURES) >= 4
    assert {item.size for item in objects} == set(SIZES) and len(SIZES) == 3
    assert {item.position for item in objects} == set(POSITIONS)


def test_objects_of_a_scene_are_apart_and_can_be_named() -> None:
    for scene in SCENES:
        count = len(scene.objects)
        assert len({item.position for item in scene.objects}) == count
        assert len({(item.color, item.shape) for item in scene.objects}) == count
        assert not {item.color for item in scene.objects} & set(BACKGROUNDS[scene.background].hides)
    assert max(SIZES.values()) <= 1 / 6, "an object must fit its cell of the 3 x 3 grid"


@pytest.mark.parametrize("size", [64, 128])
def test_pixels_show_the_named_colour_where_the_scene_says(size: int) -> None:
    names, values = list(COLORS), np.array(list(COLORS.values()), dtype=float)
    checked = 0
    for scene in SCENES[:200]:
        image = render(scene, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        for item in scene.objects:
            if item.texture != "solid" or item.shape == "ring" or (item.size == "small" and size == 64):
                continue  # the cell's middle is not sure to be in the object's plain colour
            row, column = ((cell + 0.5) / 3 * size for cell in item.cell)
            window = image[round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2]
            seen = np.median(window.reshape(-1, 3), axis=0)
            nearest = names[int(np.argmin(((values - seen) ** 2).sum(axis=1)))]
            assert nearest == item.color, (scene.seed, item, seen)
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("field, values", [
    ("shape", SHAPES), ("color", tuple(COLORS)), ("texture", TEXTURES), ("size", tuple(SIZES)),
    ("position", tuple(POSITIONS)),
])  # fmt: skip
def test_each_attribute_changes_the_picture_at_64_pixels(field: str, values: tuple[str, ...]) -> None:
    """Same seed, so same light and noise: what differs is the attribute."""
    images = [render(one_object(**{field: value}), 64).astype(int) for value in values]
    for left in range(len(images)):
        for right in range(left):
            differing = (np.abs(images[left] - images[right]).max(axis=2) > 40).sum()
            assert differing >= 15, (values[left], values[right], differing)


def test_backgrounds_differ_and_the_seed_changes_light_and_noise() -> None:
    means = [render(one_object(background=name), 64).astype(float) for name in BACKGROUNDS]
    for left in range(len(means)):
        for right in range(left):
            assert np.abs(means[left] - means[right]).mean() > 8
    assert not np.array_equal(render(one_object(seed=1), 64), render(one_object(seed=2), 64))


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="size 8 is too small"):
        render(SCENES[0], 8)


def test_streams_are_disjoint_ranges() -> None:
    ranges = sorted((seed_for(name, 0), seed_for(name, STREAM_LENGTH - 1)) for name in STREAMS)
    assert set(STREAMS) == {"web", "heldout", "train", "train_eval"}
    for (_, last), (first, _) in zip(ranges[:-1], ranges[1:], strict=True):
        assert last < first
    assert ranges[-1][1] < 2**63


@pytest.mark.parametrize("stream, index, message", [
    ("test", 0, "'test' is not known"), ("web", -1, "index -1"), ("web", STREAM_LENGTH, "index 1099511627776"),
])  # fmt: skip
def test_a_seed_outside_its_stream_is_refused(stream: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seed_for(stream, index)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_of_an_object_ends_where_its_pixels_end(shape: str, size: int) -> None:
    for seed, position in enumerate(POSITIONS):
        scene = one_object(seed, "gray", shape=shape, position=position, size=list(SIZES)[seed % 3])
        image = render(scene, size).astype(int)
        differs = np.abs(image - np.median(image.reshape(-1, 3), axis=0)).max(axis=2) > 45
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(found - object_boxes(scene, size)[0] * size).max() <= 1.5, (shape, position, found)


def test_boxes_of_a_scene_stand_in_the_order_of_its_objects_and_never_touch() -> None:
    for scene in SCENES[:100]:
        boxes = object_boxes(scene)
        assert boxes.shape == (len(scene.objects), 4) and (boxes >= 0).all() and (boxes <= 1).all()
        for item, (left, top, right, bottom) in zip(scene.objects, boxes, strict=True):
            row, column = item.cell
            assert column / 3 - 0.01 <= left < right <= (column + 1) / 3 + 0.01 and row / 3 - 0.01 <= top < bottom <= (row + 1) / 3 + 0.01
