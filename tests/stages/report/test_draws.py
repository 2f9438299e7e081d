"""Draws: the smallest keys, whatever the parts; random keys are spread evenly and depend on the row and the seed alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from stages.report.draws import Draw, random_keys


def test_a_draw_is_the_smallest_keys_of_all_parts_and_ties_go_by_place() -> None:
    keys = np.random.default_rng(0).integers(0, 50, 400)
    draw = Draw(30)
    for part in (2, 0, 3, 1):
        draw.offer(part, np.arange(100), keys[part * 100 : part * 100 + 100])
    order = sorted((int(key), place // 100, place % 100) for place, key in enumerate(keys))[:30]
    assert draw.places() == [(part, row) for _, part, row in order]


def test_a_draw_takes_all_where_there_are_few_and_none_where_it_has_no_room() -> None:
    few, none = Draw(5), Draw(0)
    for draw in (few, none):
        draw.offer(0, np.array([4, 2]), np.array([0.5, 0.25]))
        draw.offer(1, np.array([], int), np.array([]))
    assert few.places() == [(0, 2), (0, 4)] and none.places() == []


def test_random_keys_are_uniform_and_follow_from_id_and_seed() -> None:
    raw = np.random.default_rng(1).bytes(16 * 4000)
    ids = pa.array([raw[i : i + 16] for i in range(0, len(raw), 16)], pa.binary(16))
    keys = random_keys(ids, 0)
    assert np.array_equal(random_keys(ids.slice(1000, 500), 0), keys[1000:1500])
    assert not np.array_equal(random_keys(ids, 1), keys)
    shares = np.histogram(keys / 2.0**64, 10, (0, 1))[0] / len(keys)
    assert abs(shares - 0.1).max() < 0.02
    # Ids that count up, as a user's own might, are spread too.
    counting = random_keys(pa.array([i.to_bytes(16, "little") for i in range(4000)], pa.binary(16)), 0)
    assert abs(np.histogram(counting / 2.0**64, 10, (0, 1))[0] / 4000 - 0.1).max() < 0.02
