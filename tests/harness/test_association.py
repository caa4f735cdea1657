import itertools
import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control, pearsonr, rankdata, spearmanr

from harness import association as stats
from harness.association import Half
from harness.prediction import prediction

WORLDS = 200
BOUND = 0.05 + 3 * math.sqrt(0.05 * 0.95 / WORLDS)


def half(y, z=None, pairs=None, units: int = 0) -> Half:
    rows = np.shape(y)[-1]
    empty_z, empty_pairs = np.empty((0, rows)), np.empty((0, units, units))
    return Half(np.atleast_2d(y), empty_z if z is None else z, empty_pairs if pairs is None else pairs)


def all_pairs(units: int, times: int = 1):
    """Every pair of units, `times` over: ends a and b, made_of, and a square of values of pairs."""
    a, b = np.array(list(itertools.combinations(range(units), 2)) * times).T
    made_of = np.zeros((len(a), units), dtype=bool)
    made_of[np.arange(len(a)), a] = made_of[np.arange(len(a)), b] = True

    def square(values):
        found = np.full((units, units), np.nan)
        found[a, b] = found[b, a] = values
        return found

    return a, b, made_of, square


def rest(values, *fixed):
    """What a regression on `fixed` leaves of values."""
    columns = np.column_stack([np.ones(len(values)), *fixed])
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


# --- correlations


def test_weighted_correlations_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(2, 12)), rng.normal(size=(3, 12)), rng.normal(size=(2, 12))
    x[0, 3:6] = x[0, 2]  # ties
    weights = rng.integers(0, 4, size=(5, 12)).astype(float)
    same = np.zeros(12, dtype=np.int64)
    for ranked in (False, True):
        plain = stats.correlations(x, y, np.empty((0, 12)), same, weights, ranked)
        partial = stats.correlations(x, y, z, same, weights, ranked)
        for d, i, j in itertools.product(range(5), range(2), range(3)):
            often = np.repeat(np.arange(12), weights[d].astype(int))
            a, b, c, e = (one[often] for one in (x[i], y[j], *z))
            if ranked:
                a, b, c, e = (rankdata(one) for one in (a, b, c, e))
            assert plain[d, i, j] == pytest.approx(pearsonr(a, b).statistic)
            assert partial[d, i, j] == pytest.approx(pearsonr(rest(a, c, e), rest(b, c, e)).statistic)


def test_strata_are_dummies_and_ranks_are_within_them():
    rng = np.random.default_rng(1)
    strata = np.repeat([0, 1, 2], [5, 7, 6])
    x, y = rng.normal(size=18) + 3 * strata, rng.normal(size=18) + 5 * strata
    dummies = [strata == 1, strata == 2]
    once = np.ones((1, 18))
    found = stats.correlations(x[None], y[None], np.empty((0, 18)), strata, once)[0, 0, 0]
    assert found == pytest.approx(pearsonr(rest(x, *dummies), rest(y, *dummies)).statistic)
    ranked = stats.correlations(x[None], y[None], np.empty((0, 18)), strata, once, True)[0, 0, 0]
    a, b = (np.concatenate([rankdata(v[strata == s]) / (strata == s).sum() for s in range(3)]) for v in (x, y))
    assert ranked == pytest.approx(pearsonr(rest(a, *dummies), rest(b, *dummies)).statistic)
    assert pearsonr(x, y).statistic > 0.8 > abs(found)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2], [3, 4]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [0.1 + 0.2, 0.3, 0.3, 0.3])],
)
def test_the_undefined_is_nan(x, y):
    x, y = np.array([x], dtype=float), np.array([y], dtype=float)
    same = np.zeros(x.shape[1], dtype=np.int64)
    assert np.isnan(stats.correlations(x, y, np.empty((0, x.shape[1])), same, np.ones((1, x.shape[1])))).all()


def test_what_the_covariates_determine_has_no_partial_correlation_and_a_constant_covariate_costs_nothing():
    rng = np.random.default_rng(2)
    x, y, same = rng.normal(size=(1, 9)), rng.normal(size=(1, 9)), np.zeros(9, dtype=np.int64)
    assert np.isnan(stats.correlations(x, y, 2 * x + 1, same, np.ones((1, 9)))).all()
    found = stats.correlations(x, y, np.full((1, 9), 0.7), same, np.ones((1, 9)))
    assert found[0, 0, 0] == pytest.approx(pearsonr(x[0], y[0]).statistic)


def test_draws_in_chunks_are_the_same_draws(monkeypatch):
    rng = np.random.default_rng(3)
    _, _, made_of, _ = all_pairs(6)
    x, y, same = rng.normal(size=(2, 15)), rng.normal(size=(2, 15)), np.zeros(15, dtype=np.int64)
    whole = stats.related(x, [half(y)], made_of, same, [None, None])
    monkeypatch.setattr(stats, "HELD", 500)
    parts = stats.related(x, [half(y)], made_of, same, [None, None])
    assert np.allclose(whole.low, parts.low) and np.allclose(whole.high, parts.high)


# --- intervals


def test_the_interval_resamples_units_and_a_row_needs_all_of_its_own():
    rng = np.random.default_rng(4)
    _, _, made_of, _ = all_pairs(7)
    x, y, same = rng.normal(size=21), rng.normal(size=21), np.zeros(21, dtype=np.int64)
    found = stats.related(x[None], [half(y)], made_of, same, [None])
    counts = np.random.default_rng(7).multinomial(7, np.full(7, 1 / 7), size=stats.DRAWS)
    drawn = []
    for count in counts:
        often = [i for i in range(21) for _ in range(math.prod(count[made_of[i]].tolist()))]
        if len(set(often)) >= 3:
            drawn.append(np.corrcoef(x[often], y[often])[0, 1])
    assert np.allclose([found.low[0, 0], found.high[0, 0]], np.quantile(drawn, [0.025, 0.975]))
    assert np.isnan(found.p).all()


def test_the_interval_of_two_halves_is_that_of_their_mean():
    rng = np.random.default_rng(5)
    _, _, made_of, _ = all_pairs(8)
    x, y, z = rng.normal(size=(1, 28)), rng.normal(size=(2, 28)), rng.normal(size=(2, 2, 28))
    same = np.zeros(28, dtype=np.int64)
    found = stats.related(x, [half(y[0], z[0]), half(y[1], z[1])], made_of, same, [None])
    draws = [stats.correlations(x, y[k][None], z[k], same, stats.row_weights(made_of)) for k in (0, 1)]
    assert found.low[0, 0] == pytest.approx(np.nanquantile(np.mean(draws, axis=0), 0.025))
    ones = np.ones((1, 28))
    assert found.value[0, 0] == pytest.approx(
        np.mean([stats.correlations(x, y[k][None], z[k], same, ones) for k in (0, 1)])
    )


def test_few_units_have_no_interval():
    rng = np.random.default_rng(6)
    made_of = np.repeat(np.eye(4, dtype=bool), 5, axis=0)
    found = stats.related(rng.normal(size=(1, 20)), [half(rng.normal(size=20))], made_of, np.zeros(20, int), [None])
    assert np.isfinite(found.value).all() and np.isnan(found.low).all() and np.isnan(found.high).all()


def test_the_interval_covers_where_models_carry_effects_into_their_merges():
    """The figure of the module's docstring, on fewer worlds: 96 to 98 %."""
    a, b, made_of, _ = all_pairs(10)
    rng, missed = np.random.default_rng(7), 0
    true = 0.7 / math.sqrt(0.7**2 + 1)
    for _ in range(80):
        u, v = rng.normal(size=(2, 10))
        x = u[a] + u[b] + rng.normal(size=45)
        y = 0.7 * x + v[a] + v[b] + rng.normal(size=45)
        found = stats.related(x[None], [half(y)], made_of, np.zeros(45, dtype=np.int64), [None])
        missed += not found.low[0, 0] <= true <= found.high[0, 0]
    assert missed / 80 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 80)


def test_the_line_and_its_band():
    rng = np.random.default_rng(8)
    _, _, made_of, _ = all_pairs(9)
    x, same = rng.normal(size=36), np.zeros(36, dtype=np.int64)
    y = 2 - 0.5 * x + 0.1 * rng.normal(size=36)
    at = np.linspace(x.min(), x.max(), 5)
    slope, intercept, low, high = stats.fitted(x, y, made_of, same, at)
    assert [slope, intercept] == pytest.approx(np.polyfit(x, y, 1))
    assert (low < intercept + slope * at).all() and (intercept + slope * at < high).all()
    strata = (np.arange(36) % 2).astype(np.int64)
    slope, intercept, _, _ = stats.fitted(x, y + 7 * strata, made_of, strata, at)
    assert slope == pytest.approx(np.polyfit(rest(x, strata), rest(y, strata), 1)[0])
    assert intercept + slope * x.mean() == pytest.approx((y + 7 * strata).mean())


# --- permutations


def orders(units: int, permutations: int):
    drawn = np.random.default_rng(units).permuted(np.tile(np.arange(units), (permutations, 1)), axis=1)
    return np.concatenate([np.arange(units)[None], drawn])


@pytest.mark.parametrize("ranked", [False, True])
def test_the_p_of_mantel_and_mrqap_is_that_of_plain_loops(monkeypatch, ranked):
    monkeypatch.setattr(stats, "PERMUTATIONS", 60)
    rng = np.random.default_rng(9)
    a, b, made_of, square = all_pairs(9)
    x, y, z = rng.normal(size=36), rng.normal(size=(2, 36)), rng.normal(size=(2, 36))
    y += z[0] - z[1]
    y[0] += 0.4 * x
    same = np.zeros(36, dtype=np.int64)
    rank = rankdata if ranked else np.asarray
    for fixed in (z[:0], z):
        pairs = np.array([square(one) for one in fixed]).reshape(len(fixed), 9, 9)
        found = stats.permutation_p(square(x), [half(y, fixed, pairs)], made_of, same, ranked)
        left = square(rest(rank(x), *(rank(one) for one in fixed)))
        for j in range(2):
            outcome = rest(rank(y[j]), *(rank(one) for one in fixed))
            r = []
            for order in orders(9, 60):
                permuted = left[np.ix_(order, order)][a, b]
                r.append(abs(np.corrcoef(rest(permuted, *(rank(one) for one in fixed)), outcome)[0, 1]))
            assert found[j] == pytest.approx(np.mean(np.array(r) >= r[0] - 1e-9))


def test_rows_that_are_their_own_units_permute_as_ever(monkeypatch):
    monkeypatch.setattr(stats, "PERMUTATIONS", 400)
    rng = np.random.default_rng(10)
    x = rng.normal(size=12)
    y = x + 2 * rng.normal(size=12)
    matrix = np.full((12, 12), np.nan)
    np.fill_diagonal(matrix, x)
    p = stats.permutation_p(matrix, [half(y, units=12)], np.eye(12, dtype=bool), np.zeros(12, dtype=np.int64), False)
    r = np.array([abs(pearsonr(x[order], y).statistic) for order in orders(12, 400)])
    assert p[0] == pytest.approx(np.mean(r >= r[0] - 1e-9))


def test_merges_of_three_have_the_mean_over_their_pairs():
    _, _, _, square = all_pairs(4)
    matrix = square(np.array([1.0, 2, 3, 4, 5, 6]))  # 01 02 03 12 13 23
    made_of = np.array([[1, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    assert stats.of_rows(matrix, made_of) == pytest.approx([(1 + 2 + 4) / 3, 6])


def test_without_a_relation_labels_are_right_and_rows_are_wrong(monkeypatch):
    """Kinship and gain both carry effects of the models. Permuting rows finds relations there are not."""
    monkeypatch.setattr(stats, "PERMUTATIONS", 199)
    rng = np.random.default_rng(11)
    a, b, made_of, square = all_pairs(10, times=2)
    strata = np.repeat([0, 1], 45).astype(np.int64)
    shuffled = np.array([rng.permutation(90) for _ in range(199)])
    labels, ranks, rows = 0, 0, 0
    for _ in range(WORLDS):
        u, v = rng.normal(size=(2, 10))
        x = (u[a] + u[b])[:45] + rng.normal(size=45)
        y = v[a] + v[b] + rng.normal(size=90)
        outcome = half(y, units=10)
        labels += stats.permutation_p(square(np.tile(x, 2)), [outcome], made_of, strata, False)[0] <= 0.05
        ranks += stats.permutation_p(square(np.tile(x, 2)), [outcome], made_of, strata, True)[0] <= 0.05
        scaled = [(v - v.mean()) / v.std() / math.sqrt(90) for v in (np.tile(x, 2), y)]
        observed, drawn = abs(scaled[0] @ scaled[1]), np.abs(scaled[0][shuffled] @ scaled[1])
        rows += (1 + (drawn >= observed).sum()) / 200 <= 0.05
    assert labels / WORLDS <= BOUND and ranks / WORLDS <= BOUND
    assert rows / WORLDS > 2 * BOUND


def test_given_covariates_that_go_with_both_no_relation_is_found(monkeypatch):
    """Parents' scores drive kinship and gain; kinship itself does nothing. Without the covariates it seems to."""
    monkeypatch.setattr(stats, "PERMUTATIONS", 199)
    rng = np.random.default_rng(12)
    a, b, made_of, square = all_pairs(10)
    same = np.zeros(45, dtype=np.int64)
    given, alone = 0, 0
    for _ in range(WORLDS):
        u, v, score = rng.normal(size=(3, 10))
        z = np.stack([(score[a] + score[b]) / 2, np.abs(score[a] - score[b])])
        x = u[a] + u[b] + 2 * z[0] - z[1] + rng.normal(size=45)
        y = v[a] + v[b] - 2 * z[0] + z[1] + rng.normal(size=45)
        controlled = half(y, z, np.stack([square(one) for one in z]))
        given += stats.permutation_p(square(x), [controlled], made_of, same, False)[0] <= 0.05
        alone += stats.permutation_p(square(x), [half(y, units=10)], made_of, same, False)[0] <= 0.05
    assert given / WORLDS <= BOUND
    assert alone / WORLDS > 3 * BOUND


def test_a_relation_is_found_given_covariates_too():
    rng = np.random.default_rng(13)
    a, b, made_of, square = all_pairs(10)
    score = rng.normal(size=10)
    z = np.stack([(score[a] + score[b]) / 2, np.abs(score[a] - score[b])])
    x = rng.normal(size=45) + z[0]
    y = -x + z[0] + 0.3 * rng.normal(size=45)
    controlled = half(y, z, np.stack([square(one) for one in z]))
    found = stats.related(x[None], [controlled], made_of, np.zeros(45, dtype=np.int64), [square(x)])
    assert found.p[0, 0] <= 0.001 and found.high[0, 0] < 0


# --- what it rests on


def test_without_a_row_or_a_unit():
    rng = np.random.default_rng(14)
    _, _, made_of, _ = all_pairs(6)
    x, y, same = rng.normal(size=15), rng.normal(size=15), np.zeros(15, dtype=np.int64)
    rows = stats.without(x[None], [half(y)], same, np.eye(15, dtype=bool))[:, 0, 0]
    units = stats.without(x[None], [half(y)], same, made_of.T)[:, 0, 0]
    assert rows == pytest.approx([pearsonr(np.delete(x, i), np.delete(y, i)).statistic for i in range(15)])
    kept = [~made_of[:, unit] for unit in range(6)]
    assert units == pytest.approx([pearsonr(x[keep], y[keep]).statistic for keep in kept])


@pytest.mark.parametrize(("r", "n"), [(0.3, 85), (-0.4, 47), (0.5, 30), (-0.6, 20), (0.0, None)])
def test_merges_needed_for_power(r, n):
    assert stats.needed(r) == n


def test_a_perfect_correlation_needs_no_more_than_a_correlation_does():
    assert stats.needed(1.0) == stats.needed(-1.0) == 4


def test_false_discovery_is_that_of_benjamini_and_hochberg():
    ps = [0.03, 0.001, 0.04, 0.8, 0.03, 1.0]
    assert stats.false_discovery(ps) == pytest.approx(false_discovery_control(ps))
    assert stats.false_discovery([]) == []


# --- prediction of models that were not seen


def plain_errors(x, z, y, folds, kept):
    """Mean squared errors by mean, covariates, and kinship too: leave one unit out, refit, predict its rows."""
    errors = {0: [], 1: [], 2: []}
    for unit in range(folds.shape[1]):
        train, test = kept & ~folds[:, unit], kept & folds[:, unit]
        for i, columns in enumerate(([], [*z], [*z, x])):
            design = np.column_stack([np.ones(len(y)), *columns])
            slopes = np.linalg.lstsq(design[train], y[train], rcond=None)[0]
            errors[i] += ((design @ slopes - y)[test] ** 2).tolist()
    return [float(np.mean(one)) for one in errors.values()]


def test_a_prediction_leaves_a_unit_out_and_its_interval_is_a_jackknife():
    from scipy.stats import t

    rng = np.random.default_rng(15)
    _, _, made_of, _ = all_pairs(8)
    x, z = rng.normal(size=28), rng.normal(size=(2, 28))
    y = z[0] + 0.8 * x + rng.normal(size=28)
    found = prediction(x, [half(y, z)], made_of, np.zeros(28, dtype=np.int64))
    mean, covariates, kinship = plain_errors(x, z, y, made_of, np.ones(28, dtype=bool))
    assert found.rmse == pytest.approx([math.sqrt(covariates), math.sqrt(kinship)])
    assert found.r2 == pytest.approx([1 - covariates / mean, 1 - kinship / mean])
    assert (found.predicted, found.folds) == (56, 8)
    falls = []
    for unit in range(8):
        _, without, with_kinship = plain_errors(x, z, y, np.delete(made_of, unit, axis=1), ~made_of[:, unit])
        falls.append(1 - math.sqrt(with_kinship / without))
    assert found.fall == pytest.approx(1 - math.sqrt(kinship / covariates))
    half_width = t.ppf(0.975, 7) * math.sqrt(7 / 8 * np.sum((np.array(falls) - np.mean(falls)) ** 2))
    assert [found.low, found.high] == pytest.approx([found.fall - half_width, found.fall + half_width])


def test_kinship_that_tells_lowers_the_error_and_noise_does_not():
    rng = np.random.default_rng(16)
    _, _, made_of, _ = all_pairs(12)
    x, z, same = rng.normal(size=66), rng.normal(size=(2, 66)), np.zeros(66, dtype=np.int64)
    told = prediction(x, [half(2 * x + z[0] + 0.5 * rng.normal(size=66), z)], made_of, same)
    noise = prediction(x, [half(z[0] + rng.normal(size=66), z)], made_of, same)
    assert 0.5 < told.low < told.fall < told.high
    assert noise.low < 0 < noise.high


def test_too_few_rows_or_units_predict_nothing():
    rng = np.random.default_rng(17)
    x, z, y = rng.normal(size=4), rng.normal(size=(2, 4)), rng.normal(size=4)
    assert prediction(x, [half(y, z)], np.eye(4, dtype=bool), np.zeros(4, dtype=np.int64)) is None
    folds = np.repeat(np.eye(2, dtype=bool), 10, axis=0)
    x, z, y = rng.normal(size=20), rng.normal(size=(1, 20)), rng.normal(size=20)
    two = prediction(x, [half(y, z)], folds, np.zeros(20, dtype=np.int64))
    assert two.folds == 2 and math.isfinite(two.fall) and math.isnan(two.low)


def test_a_method_of_one_fold_alone_is_not_predicted():
    rng = np.random.default_rng(18)
    folds = np.repeat(np.eye(3, dtype=bool), 8, axis=0)
    strata = np.repeat([0, 0, 1], 8).astype(np.int64)
    x, z, y = rng.normal(size=24), rng.normal(size=(1, 24)), rng.normal(size=24)
    found = prediction(x, [half(y, z)], folds, strata)
    assert (found.predicted, found.folds) == (16, 2)


def test_spearman_is_scipys():
    rng = np.random.default_rng(19)
    x, y = rng.integers(0, 4, size=15).astype(float), rng.integers(0, 4, size=15).astype(float)
    found = stats.correlations(x[None], y[None], np.empty((0, 15)), np.zeros(15, int), np.ones((1, 15)), True)
    assert found[0, 0, 0] == pytest.approx(spearmanr(x, y).statistic)
