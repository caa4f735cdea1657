import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest

from harness import stats
from harness.errors import TaskError, UsageError
from harness.signflip import sign_flip


def one(values) -> dict:
    """Scores of one task."""
    return {"g": {"t": np.atleast_2d(np.asarray(values, dtype=float))}}


def coin(rng, *shape, p=0.5):
    return (rng.random(shape) < p).astype(float)


# --- scores


def test_overall_is_the_mean_over_groups_of_the_mean_over_tasks():
    scores = {
        "big": {"a": np.array([[1.0, 1, 0, 0]]), "b": np.array([[1.0, 0]])},
        "small": {"c": np.array([[1.0, 1, 1, 0]])},
    }
    found = stats.overall(scores)
    assert found.value == pytest.approx(((0.5 + 0.5) / 2 + 0.75) / 2)
    assert found.n == 10
    variance = (1 / 16) * (np.var([1, 1, 0, 0], ddof=1) / 4 + np.var([1, 0], ddof=1) / 2)
    variance += (1 / 4) * np.var([1, 1, 1, 0], ddof=1) / 4
    assert found.stderr == pytest.approx(math.sqrt(variance))
    assert stats.of_group(scores, "big").value == 0.5
    assert stats.of_group(scores, "big").n == 6
    task = stats.of_task(scores["small"]["c"])
    assert (task.value, task.n) == (0.75, 4)
    assert task.stderr == pytest.approx(np.std([1, 1, 1, 0], ddof=1) / 2)


def test_no_items_is_an_error_and_never_zero():
    for empty in ({}, {"g": {}}, one(np.empty((1, 0)))):
        with pytest.raises(TaskError, match=r"no score|no tasks"):
            stats.overall(empty)


def test_one_item_has_no_standard_error_and_no_interval():
    assert stats.of_task(np.array([[1.0]])) == stats.Estimate(1.0, None, 1)
    assert stats.interval(one([1.0])) is None
    found = stats.difference(one([1.0]), one([0.0]))
    assert (found.value, found.low, found.high, found.mde, found.p) == (1.0, None, None, None, 1.0)


def test_a_score_that_is_not_a_number_is_named():
    with pytest.raises(TaskError, match="g/t: the score of item 1 is not a number"):
        stats.overall(one([0.0, math.nan, 1.0]))


def test_models_must_have_the_same_tasks_items_and_replicates():
    with pytest.raises(UsageError, match=r"scored for some: g/other, g/t"):
        stats.difference(one([0.0, 1]), {"g": {"other": np.zeros((1, 2))}})
    with pytest.raises(UsageError, match=r"same items only: g/t has \[2, 3\] items"):
        stats.difference(one([0.0, 1]), one([0.0, 1, 1]))
    with pytest.raises(UsageError, match=r"as many replicates in every task; found \[1, 2\]"):
        stats.overall({"g": {"t": np.zeros((1, 4)), "u": np.zeros((2, 4))}})


def test_two_level_standard_error_is_unbiased_for_seeds_and_items():
    """Known variances of seed, item and rest: the mean estimate is the variance of the score."""
    rng = np.random.default_rng(3)
    seeds, items, sd_seed, sd_item, sd_rest, runs = 4, 30, 0.3, 1.0, 0.7, 1500
    squares = []
    for _ in range(runs):
        y = sd_seed * rng.normal(size=(seeds, 1)) + sd_item * rng.normal(size=(1, items))
        squares.append(stats.of_task(y + sd_rest * rng.normal(size=(seeds, items))).stderr ** 2)
    truth = sd_seed**2 / seeds + sd_item**2 / items + sd_rest**2 / (seeds * items)
    # The seed part, truncated at zero, is nearly never so here; three standard errors of the simulation bound the rest.
    assert abs(np.mean(squares) - truth) < 3 * np.std(squares) / math.sqrt(runs)


# --- p-values


def enumerated(d) -> float:
    sums = np.array(list(itertools.product([-1, 1], repeat=len(d)))) @ d
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_sign_flip_is_the_enumeration_of_all_flips(n):
    rng = np.random.default_rng(n)
    for d in (rng.normal(size=n), rng.integers(-2, 3, size=n).astype(float), coin(rng, n) / 3 - coin(rng, n) / 7):
        assert sign_flip(d) == pytest.approx(enumerated(d), abs=1e-12)


def test_sign_flip_of_no_difference_is_one():
    assert sign_flip(np.zeros(7)) == 1.0
    assert sign_flip(np.array([0.1, -0.1])) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 71), (400, 300), (0, 60)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    from scipy.stats import binomtest

    a = np.array([1.0] * gained + [0.0] * lost + [1.0] * 25)
    b = np.array([0.0] * gained + [1.0] * lost + [1.0] * 25)
    expected = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert stats.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert stats.difference(one(a), one(b)).p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_what_is_not_0_or_1():
    with pytest.raises(UsageError, match="0/1 scores"):
        stats.mcnemar(np.array([0.5, 1]), np.array([0.0, 1]))


@pytest.mark.parametrize("shift", [0.5, 2.0, 3.2])
def test_saddlepoint_agrees_with_many_random_flips(shift):
    rng = np.random.default_rng(8)
    n, flips = 80, 400_000
    d = rng.exponential(size=n) * rng.choice([-1, 1], size=n)
    d += (shift * math.sqrt((d**2).sum()) - d.sum()) / n
    hits = 0
    for _ in range(8):
        signs = rng.integers(0, 2, size=(flips // 8, n), dtype=np.int8) * 2.0 - 1
        hits += int((np.abs(signs @ d) >= abs(d.sum())).sum())
    sampled = hits / flips
    error = math.sqrt(sampled * (1 - sampled) / flips)
    assert abs(sign_flip(d) - sampled) < 4 * error + 0.01 * sampled


def test_saddlepoint_meets_the_enumeration_far_in_the_tail(monkeypatch):
    d = np.concatenate([np.ones(60), -np.ones(14), np.full(50, 0.37), np.full(9, -0.37)])
    exact = sign_flip(d)
    monkeypatch.setattr("harness.signflip.ENUMERATED", 1)
    assert 1e-16 < exact < 1e-8
    assert sign_flip(d) == pytest.approx(exact, rel=0.05)


def test_all_in_one_direction_is_the_smallest_p_there_is():
    rng = np.random.default_rng(0)
    assert sign_flip(rng.random(40) + 0.1) == pytest.approx(2.0**-39)


def test_p_values_are_uniform_when_models_are_alike():
    """The share of p <= .05 under no difference, within the binomial error of 1,500 simulations."""
    rng = np.random.default_rng(11)
    runs, below = 1500, 0
    for _ in range(runs):
        skill = rng.normal(size=(3, 30))
        d = [coin(rng, 30, p=1 / (1 + np.exp(-s))) - coin(rng, 30, p=1 / (1 + np.exp(-s))) for s in skill]
        below += sign_flip(np.concatenate(d) * np.repeat([1 / 3, 1 / 4, 1 / 6], 30)) <= 0.05
    assert below / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert below / runs >= 0.03


def plain_holm(ps):
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    return [
        max(min(1.0, (len(ps) - rank) * ps[j]) for rank, j in enumerate(order) if order.index(i) >= rank)
        for i in range(len(ps))
    ]


def test_holm_is_the_plain_reference():
    rng = np.random.default_rng(2)
    assert stats.holm([]) == []
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    for n in (1, 2, 7, 40):
        ps = np.round(rng.random(n) ** 3, 2).tolist()
        assert stats.holm(ps) == pytest.approx(plain_holm(ps))


# --- intervals


def test_intervals_and_p_cover_and_agree_with_t_on_plain_data():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(4)
    a, b = rng.normal(0.25, 1, 150), rng.normal(0, 1, 150)
    found, expected = stats.difference(one(a), one(b)), ttest_rel(a, b)
    low, high = expected.confidence_interval()
    width = high - low
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * width)
    assert found.p == pytest.approx(expected.pvalue, rel=0.1)
    assert found.value == pytest.approx(np.mean(a - b))


def test_single_model_interval_covers():
    """95 % intervals of a known mean: misses within the binomial error of the simulations, plus 1 point for n = 60."""
    rng = np.random.default_rng(5)
    runs, missed = 400, 0
    for _ in range(runs):
        scores = {"a": {"x": coin(rng, 1, 60, p=0.7), "y": coin(rng, 1, 60, p=0.4)}, "b": {"z": coin(rng, 1, 60)}}
        low, high = stats.interval(scores)
        missed += not low <= (0.55 + 0.5) / 2 <= high
    assert missed / runs <= 0.06 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_level_interval_covers_the_difference_of_recipes_with_few_seeds(seeds):
    """Seeds that differ by more than items: an interval over items alone would miss most of the time."""
    rng = np.random.default_rng(6)
    runs, items, missed, false = 300, 40, 0, 0
    for _ in range(runs):
        skill = rng.normal(size=(1, items))
        a, b = (skill + 0.4 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, items)) for _ in range(2))
        found = stats.difference(one(a), one(b))
        missed += not found.low <= 0 <= found.high
        false += found.p <= 0.05
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert missed / runs <= bound + 0.02
    assert false / runs <= bound + 0.02


def test_the_bootstrap_is_the_same_in_another_process_and_order():
    code = (
        "import numpy as np; from harness import stats; r = np.random.default_rng(1)\n"
        "a = {'g': {'t': r.random((1, 50)), 'u': r.random((1, 20))}}\n"
        "b = {'g': {'u': r.random((1, 20)), 't': r.random((1, 50))}}\n"
        "print(stats.difference(a, b), 'torch' in __import__('sys').modules, 'scipy' in __import__('sys').modules)"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert out[0] == out[1]
    assert out[0].endswith("False False\n")


def test_a_contrast_with_the_mean_of_the_parents():
    rng = np.random.default_rng(9)
    a, b, c = (one(coin(rng, 200)) for _ in range(3))
    found = stats.contrast([(1.0, a), (-0.5, b), (-0.5, c)])
    means = [stats.overall(x).value for x in (a, b, c)]
    assert found.value == pytest.approx(means[0] - (means[1] + means[2]) / 2)
    assert found.low < found.value < found.high


def test_minimum_detectable_effect_has_the_power_it_promises():
    rng = np.random.default_rng(10)
    a, b = one(rng.normal(size=400)), one(rng.normal(size=400))
    effect = stats.minimum_detectable_effect(a, b)
    assert effect == pytest.approx(2.8016 * math.sqrt(np.var(a["g"]["t"] - b["g"]["t"], ddof=1) / 400), rel=1e-4)
    runs = 400
    found = sum(sign_flip(rng.normal(effect, math.sqrt(2), size=400)) < 0.05 for _ in range(runs))
    assert abs(found / runs - 0.8) < 3 * math.sqrt(0.8 * 0.2 / runs) + 0.03
    assert stats.minimum_detectable_effect(a, a) is None


# --- several models


def planted(rng, skills, tasks=(("a", "x", 250), ("a", "y", 150), ("b", "z", 200)), seeds=1):
    ease = {task: rng.normal(size=n) for _, task, n in tasks}
    models = {}
    for name, skill in skills.items():
        models[name] = {}
        for group, task, n in tasks:
            p = 1 / (1 + np.exp(-(skill + ease[task])))
            models[name].setdefault(group, {})[task] = coin(rng, seeds, n, p=p)
    return models


def test_ranks_on_planted_differences():
    models = planted(np.random.default_rng(12), {"low": -1.5, "twin": 1.5, "high": 1.6, "middle": 0.0})
    assert stats.ranks(models) == {"low": 4, "twin": 1, "high": 1, "middle": 3}


def test_ranks_of_equal_models_are_all_one():
    rng = np.random.default_rng(13)
    models = {f"m{i}": one(coin(rng, 300)) for i in range(8)}
    models["copy"] = models["m0"]
    assert set(stats.ranks(models).values()) == {1}
    assert stats.ranks({"alone": models["m0"]}) == {"alone": 1}


def test_ranks_with_replicates_need_more_than_one_lucky_seed():
    rng = np.random.default_rng(14)
    skill = rng.normal(size=(1, 300))
    steady = one(skill)
    lucky = one(skill + np.array([[0.9], [0.0], [-0.2]]) + 0.1 * rng.normal(size=(3, 300)))
    assert sign_flip(lucky["g"]["t"].mean(axis=0) - steady["g"]["t"][0]) < 1e-6
    assert stats.ranks({"steady": steady, "lucky": lucky}) == {"steady": 1, "lucky": 1}


def test_ranks_are_fast_and_can_tell_pairs_apart_after_holm_over_190():
    rng = np.random.default_rng(15)
    tasks = [(group, f"{group}{i}", 225) for group, k in (("a", 4), ("b", 2), ("c", 2)) for i in range(k)]
    models = planted(rng, {f"m{i}": 0.0 if i < 19 else 0.6 for i in range(20)}, tasks)
    start = time.process_time()
    found = stats.ranks(models)
    assert time.process_time() - start < 2
    assert found["m19"] == 1
    assert all(found[f"m{i}"] > 1 for i in range(19))


def test_against_the_best_of_several_takes_the_largest_p_when_ahead():
    models = planted(np.random.default_rng(16), {"candidate": 0.9, "good": 0.2, "weak": -1.0})
    best, found = stats.against_best(models["candidate"], {k: models[k] for k in ("weak", "good")})
    pairs = {k: stats.difference(models["candidate"], models[k]) for k in ("weak", "good")}
    assert best == "good"
    assert found.value == pairs["good"].value > 0
    assert found.p == max(pair.p for pair in pairs.values())
    assert found.low == min(pair.low for pair in pairs.values())
    assert found.low < found.value < pairs["good"].high < found.high


def test_against_the_best_of_several_pays_for_the_choice_when_behind():
    models = planted(np.random.default_rng(17), {"candidate": 0.0, "good": 0.4, "weak": -1.0})
    best, found = stats.against_best(models["candidate"], {k: models[k] for k in ("weak", "good")})
    assert best == "good"
    assert found.value < 0
    assert found.p == pytest.approx(min(1.0, 2 * stats.difference(models["candidate"], models["good"]).p))


def test_the_interval_against_the_best_of_equals_covers():
    """Four parents of one skill and a candidate no better: the chosen best looks better than it is."""
    rng = np.random.default_rng(18)
    runs, missed = 250, 0
    for _ in range(runs):
        parents = {f"p{i}": one(coin(rng, 150)) for i in range(4)}
        _, found = stats.against_best(one(coin(rng, 150)), parents)
        missed += not found.low <= 0 <= found.high
    assert missed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
