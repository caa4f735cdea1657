"""Nearest strings and cheapest paths, beside the plain recurrences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import edit
from tests.fusion import plain_align

words = st.text("ab▁é", max_size=12)
# On either side of every machine word, and longer than any.
LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, max_size=8), st.lists(words, min_size=1, max_size=12))
def test_nearest_is_the_first_at_the_smallest_distance(sources: list[str], targets: list[str]) -> None:
    wanted = [plain_align.nearest(source, targets) for source in sources]
    assert edit.nearest(sources, targets).tolist() == wanted


def test_nearest_of_strings_of_any_length() -> None:
    rng = np.random.default_rng(0)
    sources, targets = (["".join(rng.choice(list("ab"), n)) for n in rng.permutation(LENGTHS)] for _ in range(2))
    far = [[plain_align.distance(source, target) for target in targets] for source in sources]
    assert edit.distances(sources, targets).tolist() == far
    assert edit.nearest(sources, targets).tolist() == [row.index(min(row)) for row in far]
    # Beside one other, too: among many a wrong distance may hide.
    for i, target in enumerate(targets):
        wanted = [int(len(source) < row[i]) for source, row in zip(sources, far, strict=True)]
        assert edit.nearest(sources, [target, ""]).tolist() == wanted


def test_far_strings_do_not_overflow_and_equals_keep_their_order() -> None:
    assert edit.nearest(["x" * 1000], ["y" * 900, "z" * 900, "y"]).tolist() == [0]
    assert edit.nearest(["x" * 300], ["a", "b", ""]).tolist() == [0]
    assert edit.nearest(["ab", "zz"], ["ac", "bb", "ab", "ab"]).tolist() == [2, 0]
    assert edit.nearest([], ["a"]).tolist() == []


def test_long_targets_are_compared_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(edit, "PAIRS", 3)
    targets = ["a" * 70, "b" * 70, "ab" * 40]
    assert edit.nearest(["b" * 69, "a" * 80, "ab", "ba" * 40], targets).tolist() == [1, 0, 0, 2]


def test_distances_are_those_of_the_recurrence() -> None:
    a, b = ["", "unhappy", "Ã©"], ["happy", "", "unhapy", "é"]
    assert edit.distances(a, b).tolist() == [[plain_align.distance(x, y) for y in b] for x in a]
    assert edit.distances([], b).shape == (0, 4)


costs = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 3), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(deadline=None, max_examples=60)
@given(
    costs, st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=12)
)
def test_the_path_is_the_recurrences_ties_included(cost: list[list[int]], rows: list[int], columns: list[int]) -> None:
    rows, columns = [i % len(cost) for i in rows], [j % len(cost[0]) for j in columns]
    wanted = plain_align.warp([[cost[i][j] for j in columns] for i in rows])
    found = edit.warp(np.asarray(cost, np.int32), np.asarray(rows), np.asarray(columns))
    assert [tuple(pair) for pair in found.T.tolist()] == wanted


@pytest.mark.parametrize("cells", [1, 13, 50])
def test_a_document_that_does_not_fit_is_walked_in_blocks(cells: int, monkeypatch) -> None:
    rng = np.random.default_rng(5)
    cost = rng.integers(0, 3, (6, 5)).astype(np.int32)
    rows, columns = rng.integers(0, 6, 31), rng.integers(0, 5, 23)
    whole = edit.warp(cost, rows, columns)
    monkeypatch.setattr(edit, "CELLS", cells)
    assert edit.warp(cost, rows, columns).tolist() == whole.tolist()


def test_longer_paths_with_many_ties() -> None:
    rng = np.random.default_rng(3)
    for _ in range(4):
        cost = rng.integers(0, 2, (30, 30)).astype(np.int32)
        rows, columns = np.arange(30), np.arange(30)
        found = edit.warp(cost, rows, columns)
        assert [tuple(pair) for pair in found.T.tolist()] == plain_align.warp(cost.tolist())


def test_of_up_and_left_up_is_taken() -> None:
    # At the end both ways cost 0, and the diagonal 1.
    cost = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert plain_align.warp(cost) == [(0, 0), (0, 1), (1, 2), (2, 2)]
    found = edit.warp(np.asarray(cost, np.int32), np.arange(3), np.arange(3))
    assert found.T.tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]


def test_costs_beyond_small_numbers() -> None:
    cost = np.asarray([[1 << 27, (1 << 27) + 1], [1, 1 << 27]], np.int32)
    rows, columns = np.asarray([0, 1, 0, 0] * 10), np.asarray([0, 0, 1, 0] * 9)
    found = edit.warp(cost, rows, columns)
    wanted = plain_align.warp([[int(cost[i, j]) for j in columns] for i in rows])
    assert [tuple(pair) for pair in found.T.tolist()] == wanted


def test_no_tokens_no_path() -> None:
    nothing = np.zeros(0, np.int64)
    assert edit.warp(np.zeros((0, 2), np.int32), nothing, np.zeros(3, np.int64)).shape == (2, 0)
    assert edit.warp(np.zeros((2, 0), np.int32), np.zeros(3, np.int64), nothing).shape == (2, 0)
