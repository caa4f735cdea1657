"""Kinship from representations: debiased CKA, and data kernels with their test of each text."""

from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
from jaxtyping import Float

from fusion.kinship import data_kernel
from fusion.kinship.probed import Probed
from fusion.kinship.representation import REPRESENTATION, cka_by_layer, linear_cka, matched_layers


def features(n: int, width: int, seed: int) -> Float[np.ndarray, "n width"]:
    return np.random.default_rng(seed).normal(size=(n, width))


def rotation(width: int, seed: int) -> Float[np.ndarray, "width width"]:
    return np.linalg.qr(features(width, width, seed))[0]


# ------------------------------------------------------------------------------------------------------------------ CKA


def plain_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The U-statistic that the unbiased HSIC is: the mean over all ordered quadruples of different texts."""
    first, second = x @ x.T, y @ y.T
    quadruples = list(permutations(range(len(x)), 4))
    return sum(first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q]) for i, j, q, r in quadruples) / len(
        quadruples
    )


def test_cka_is_the_ratio_of_unbiased_hsics() -> None:
    for n, p, q in ((4, 3, 2), (6, 2, 9), (7, 5, 5)):
        x, y = features(n, p, 1) + 3.0, features(n, q, 2) - 5.0
        y[:, 0] += x[:, 0]
        expected = plain_hsic(x, y) / np.sqrt(plain_hsic(x, x) * plain_hsic(y, y))
        assert linear_cka(x, y) == pytest.approx(expected, abs=1e-10)


def test_over_all_pairings_of_texts_cka_has_mean_0_and_the_stated_deviation() -> None:
    x, y = features(5, 3, 1), features(5, 4, 2)
    values = [linear_cka(x, y[list(order)]) for order in permutations(range(5))]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert np.mean(np.square(values)) == pytest.approx(2 / (5 * (5 - 3)), abs=1e-12)


def test_many_features_that_have_nothing_in_common_are_no_kin() -> None:
    n = 40
    x, y = features(n, 2000, 1), features(n, 3000, 2)
    centred = x - x.mean(0), y - y.mean(0)
    kernels = [own @ own.T for own in centred]
    plain = np.vdot(*kernels) / (np.linalg.norm(kernels[0]) * np.linalg.norm(kernels[1]))
    debiased = linear_cka(x, y)
    assert plain > 0.95
    assert debiased is not None and abs(debiased) < 4 * np.sqrt(2 / (n * (n - 3)))


def test_cka_sees_neither_rotation_nor_scale_nor_place() -> None:
    x, y = features(12, 6, 1), features(12, 4, 2)
    y += x[:, :4]
    value = linear_cka(x, y)
    assert value == pytest.approx(linear_cka(1e-20 * x @ rotation(6, 3) + 1e-19, y), abs=1e-9)
    assert value == pytest.approx(linear_cka(x, 1e20 * (y @ rotation(4, 4) + 2)), abs=1e-9)
    assert value == pytest.approx(linear_cka(y, x), abs=1e-12)
    # Another scale for each direction is another representation.
    assert value != pytest.approx(linear_cka(x * np.arange(1, 7), y), abs=1e-3)
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)


def test_a_big_offset_in_float32_costs_few_digits() -> None:
    x, y = features(30, 8, 1), features(30, 8, 2)
    y += x
    far = (x + 1000).astype(np.float32)
    assert linear_cka(far, y) == pytest.approx(linear_cka(x, y), abs=1e-4)


def test_cka_is_undefined_of_too_few_texts_and_of_constant_features() -> None:
    x = features(9, 3, 1)
    constant = np.full((9, 3), 0.1, np.float32)
    almost = constant * np.float32(1 + 6e-8)
    almost[::2] = constant[::2]
    assert linear_cka(x[:3], x[:3]) is None
    assert linear_cka(x, constant) is None
    assert linear_cka(almost, x) is None
    assert linear_cka(np.zeros((9, 2)), x) is None


def test_layers_meet_at_their_relative_depth() -> None:
    assert matched_layers(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert matched_layers(2, 6) == [(0, 2), (1, 5)]
    assert matched_layers(6, 2) == [(2, 0), (5, 1)]
    assert matched_layers(4, 6) == [(0, 1), (1, 2), (2, 4), (3, 5)]
    assert matched_layers(1, 5) == [(0, 4)]
    for first in range(1, 12):
        for second in range(1, 12):
            matched = matched_layers(first, second)
            assert len(matched) == min(first, second) and matched[-1] == (first - 1, second - 1)
            assert all(len({pair[side] for pair in matched}) == len(matched) for side in (0, 1))


def test_cka_of_models_is_the_mean_over_matched_layers_or_nothing() -> None:
    deep, flat = np.stack([features(9, 4, seed) for seed in range(4)]), np.stack([features(9, 3, 9)] * 2)
    layers = cka_by_layer(deep, flat)
    assert layers == [linear_cka(deep[1], flat[0]), linear_cka(deep[3], flat[1])]
    facts = Probed({(0, 1): layers, (0, 2): [0.5, None]}, [], {}, np.zeros((0, 0)))
    cka = REPRESENTATION["cka"].value
    assert cka(facts, 0, 1) == cka(facts, 1, 0) == np.mean(layers)
    assert cka(facts, 0, 2) is None


# ---------------------------------------------------------------------------------------------------------- data kernel


def test_a_graph_holds_each_texts_nearest() -> None:
    x = features(21, 4, 1)
    directed = np.zeros((21, 21))
    for i in range(21):
        near = [(-(x[i] @ x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j]), j) for j in range(21) if j != i]
        for _, j in sorted(near)[:5]:
            directed[i, j] = 1
    graph = data_kernel.knn_graph(x)
    assert graph is not None and np.array_equal(graph, (directed + directed.T) / 2)
    # Another length of a text's vector is not another place.
    longer = data_kernel.knn_graph(x * np.arange(1, 22)[:, None])
    assert longer is not None and np.array_equal(graph, longer)


def test_of_texts_as_near_the_first_are_taken() -> None:
    graph = data_kernel.knn_graph(np.ones((8, 3)))
    expected = np.zeros((8, 8))
    for i in range(8):
        expected[i, [j for j in range(8) if j != i][:2]] = 1
    assert graph is not None and np.array_equal(graph, (expected + expected.T) / 2)


def test_there_is_no_graph_of_few_texts_or_of_one_without_direction() -> None:
    x = features(20, 4, 1)
    assert data_kernel.knn_graph(x[:7]) is None
    x[3] = 0
    assert data_kernel.knn_graph(x) is None


def blocks(kinds: np.ndarray, inside: float, outside: float) -> Float[np.ndarray, "n n"]:
    return np.where(kinds[:, None] == kinds[None, :], inside, outside)


def draw(likely: np.ndarray, rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    upper = np.triu(rng.random(likely.shape) < likely, 1)
    return (upper | upper.T).astype(np.float64)


def test_the_omnibus_embedding_is_that_of_a_plain_decomposition() -> None:
    rng = np.random.default_rng(1)
    likely = blocks(np.arange(24) % 2, 0.8, 0.2)
    first, second = draw(likely, rng), draw(likely, rng)
    mean = (first + second) / 2
    values, vectors = np.linalg.eigh(np.vstack([np.hstack([first, mean]), np.hstack([mean, second])]))
    places = vectors[:, -2:] * np.sqrt(values[-2:])
    ours = np.vstack(data_kernel.omnibus(first, second, 2))
    assert np.allclose(ours @ ours.T, places @ places.T, atol=1e-9)
    norms = [np.linalg.svd(own)[1][0] for own in (places[:24] - places[24:], places[:24], places[24:])]
    assert data_kernel.dimensions(first, second) == 2
    assert data_kernel.distance(first, second) == pytest.approx(norms[0] / min(norms[1:]), rel=1e-9)


@pytest.mark.parametrize("kinds", [1, 2, 3, 4])
def test_the_embedding_has_as_many_dimensions_as_the_graph_has_blocks(kinds: int) -> None:
    rng = np.random.default_rng(kinds)
    likely = blocks(np.arange(120) % kinds, 0.7, 0.15)
    assert data_kernel.dimensions(draw(likely, rng), draw(likely, rng)) == kinds


def test_the_distance_is_of_neighbours_alone() -> None:
    value = REPRESENTATION["data_kernel"].value
    x, y = features(40, 5, 1), features(40, 9, 2)
    x[:20] += 4
    facts = Probed({}, [x, 7 * x @ rotation(5, 3), y], {}, np.zeros((0, 0)))
    assert value(facts, 0, 1) == pytest.approx(0, abs=1e-9)
    far = value(facts, 0, 2)
    assert far is not None and far > 0.3 and value(facts, 2, 0) == pytest.approx(far, rel=1e-9)
    assert value(Probed({}, [x[:6], x[:6]], {}, np.zeros((0, 0))), 0, 1) is None


def test_the_item_test_finds_what_moved_and_little_else() -> None:
    rng = np.random.default_rng(5)
    kinds = np.arange(100) % 3
    moved = kinds.copy()
    moved[:6] = (moved[:6] + 1) % 3
    first, second = draw(blocks(kinds, 0.8, 0.1), rng), draw(blocks(moved, 0.8, 0.1), rng)
    found = data_kernel.item_test(first, second, seed=1, draws=20)
    assert (found.q[:6] <= 0.05).all()
    assert (found.q[6:] <= 0.05).sum() <= 2
    again = data_kernel.item_test(first, second, seed=1, draws=20)
    assert np.array_equal(found.p, again.p) and not np.array_equal(
        found.p, data_kernel.item_test(first, second, seed=2, draws=20).p
    )


def test_the_item_test_keeps_its_level_where_nothing_moved() -> None:
    """In 24 draws of one graph against another of the same, one text each, and whether any text at all is found."""
    rng = np.random.default_rng(7)
    likely = blocks(np.arange(60) % 2, 0.7, 0.2)
    tests = [data_kernel.item_test(draw(likely, rng), draw(likely, rng), seed, draws=20) for seed in range(24)]
    # More than this has a probability under .001 if the level is .05 or less.
    most = next(k for k in range(25) if sum(comb(24, j) * 0.05**j * 0.95 ** (24 - j) for j in range(k + 1)) > 0.999)
    assert sum(test.p[0] <= 0.05 for test in tests) <= most
    assert sum((test.q <= 0.05).any() for test in tests) <= most
    everything = np.concatenate([test.p for test in tests])
    assert 0.02 < (everything <= 0.05).mean() < 0.09
    assert 0.4 < (everything <= 0.5).mean() < 0.6


def test_the_same_graph_twice_has_no_text_that_moved() -> None:
    graph = draw(blocks(np.arange(40) % 2, 0.7, 0.2), np.random.default_rng(1))
    found = data_kernel.item_test(graph, graph, seed=1, draws=10)
    assert found.p.min() == found.q.min() == 1 and np.allclose(found.distance, 0, atol=1e-9)


def test_q_values_are_benjamini_and_hochbergs() -> None:
    rng = np.random.default_rng(3)
    likely = blocks(np.arange(30) % 2, 0.9, 0.1)
    found = data_kernel.item_test(draw(likely, rng), draw(likely, rng), seed=3, draws=10)
    for level in (0.05, 0.2, 0.5, 0.9):
        ranked = np.sort(found.p)
        passed = [i for i in range(30) if ranked[i] <= level * (i + 1) / 30]
        threshold = ranked[max(passed)] if passed else -1.0
        assert np.array_equal(found.q <= level, found.p <= threshold)


def test_pairs_that_are_nearer_in_kind_are_nearer_in_both_measures() -> None:
    kind = np.repeat(np.eye(4), 12, axis=0)
    near = kind @ features(4, 6, 1) + 0.1 * features(48, 6, 2)
    same = kind @ features(4, 7, 3) + 0.1 * features(48, 7, 4)
    other = kind[np.random.default_rng(5).permutation(48)] @ features(4, 6, 6) + 0.1 * features(48, 6, 7)
    last = [near, same, other]
    layers = {(a, b): [linear_cka(last[a], last[b])] for a, b in combinations(range(3), 2)}
    facts = Probed(layers, last, {}, np.zeros((0, 0)))
    for name, sign in (("cka", 1), ("data_kernel", -1)):
        of = {pair: REPRESENTATION[name].value(facts, *pair) for pair in layers}
        assert sign * of[0, 1] > sign * of[0, 2] and sign * of[0, 1] > sign * of[1, 2]
