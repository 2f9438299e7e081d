"""Components against a walk over the graph, and chains that are split where only a weak link holds them."""

from __future__ import annotations

import numpy as np

from stages.dups.components import components, split_weak_chains


def walked(rows: int, edges: list[tuple[int, int]]) -> list[int]:
    beside: dict[int, set[int]] = {row: set() for row in range(rows)}
    for one, other in edges:
        beside[one].add(other)
        beside[other].add(one)
    least = [-1] * rows
    for start in range(rows):
        todo = [start] if least[start] < 0 else []
        while todo:
            row = todo.pop()
            if least[row] < 0:
                least[row] = start
                todo += beside[row]
    return least


def test_components_are_those_of_a_walk() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        edges = draw.integers(0, 300, (draw.integers(0, 400), 2))
        assert components(300, edges[:, 0], edges[:, 1]).tolist() == walked(300, edges.tolist())
    path = np.random.default_rng(0).permutation(2000)
    assert set(components(2000, path[:-1], path[1:]).tolist()) == {0}


def on_a_line(places: list[int], near: int, reach: int) -> list[int]:
    """Components of rows that lie `places` bits along a line; links are all pairs at most `near` apart."""
    at = np.array(places)
    left, right = np.nonzero(np.triu(np.abs(at[:, None] - at[None]) <= near, 1))
    distance = np.abs(at[left] - at[right])

    def spread(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.array([np.ptp(some) for some in np.split(at[rows], starts[1:])])

    return split_weak_chains(len(at), left, right, distance, reach, lambda a, b: abs(int(at[a]) - int(at[b])), spread).tolist()


def test_a_group_within_reach_stays_whole() -> None:
    assert on_a_line([0, 8, 12], near=8, reach=12) == [0, 0, 0]
    assert on_a_line([0, 8, 100, 104], near=8, reach=12) == [0, 0, 2, 2]


def test_a_chain_is_split_at_its_weak_link() -> None:
    # two tight groups of three, joined by one link of 8 bits; their centres are 12 bits apart
    places = [0, 2, 4, 12, 14, 16]
    assert on_a_line(places, near=8, reach=8) == [0, 0, 0, 3, 3, 3]
    assert on_a_line(places, near=8, reach=12) == [0] * 6


def test_a_long_chain_of_equal_links_does_not_join_its_ends() -> None:
    found = on_a_line(list(range(0, 200, 8)), near=8, reach=12)
    groups = [np.flatnonzero(np.array(found) == label) for label in set(found)]
    assert len(groups) > 5 and all(np.ptp(group) * 8 <= 24 for group in groups)


def test_edits_on_both_sides_of_an_original_stay_with_it() -> None:
    """The edits are up to 16 bits from each other; the original, with the strongest links, is their centre."""
    assert on_a_line([8, 0, 16], near=8, reach=12) == [0] * 3
    assert on_a_line([8, 0, 16, 3, 13], near=8, reach=12) == [0] * 5
