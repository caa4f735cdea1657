"""Scores with their uncertainty, and paired comparisons of models: pure, seeded, numpy (scipy for replicates).

A model's `Scores` are `scores[group][task]`, float64 arrays of shape (seeds, items), one row a replicate of the model;
the items of a task stand in the same order for every model. The overall score is the mean over groups of the mean over
tasks. Nothing here turns absence into a number: no items is an error, one item has no standard error.

- Intervals: percentile bootstrap over the items within each task and over the replicates, the same items for all
  models. Each level draws one fewer than it has (Rao and Wu 1988), so that three seeds do not look like too little
  variance.
- p-values: sign flips of the item differences, stratified by task (signflip.py); for one task of 0/1 scores that is
  the exact McNemar test.
- Replicates: sign flips know nothing of the seeds, so p is then at least that of a t-test on the two-level standard
  error (Satterthwaite's degrees of freedom). Resampling items and seeds independently counts what neither explains up
  to three times (Owen 2007), so the interval keeps the bootstrap's shape and takes its width from that same t.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import TaskError, UsageError
from harness.signflip import sign_flip

Array = NDArray[np.float64]
Scores = Mapping[str, Mapping[str, Array]]

DRAWS = 2000
ALPHA = 0.05
POWER = 0.80
# Rows of bootstrap counts held at once: bounds memory for tasks of 10,000 items to some 40 MB.
CHUNK = 500
_NORMAL = NormalDist()
Z = _NORMAL.inv_cdf(1 - ALPHA / 2)


@dataclass(frozen=True)
class Estimate:
    """A score with its standard error (None where it cannot be known: one item) over `n` items."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference: 95 % interval, two-sided p, and the effect that 80 % of such comparisons would detect.

    low, high are None when a task has a single item; mde is None then, and when no item differs (nothing to judge by).
    """

    value: float
    low: float | None
    high: float | None
    p: float
    mde: float | None
    n: int


class Resampled(NamedTuple):
    """Scores of several models by task, (tasks, models), and their joint bootstrap, (draws, tasks, models).

    draws is None when a task has a single item.
    """

    values: Array
    draws: Array | None


class _Task(NamedTuple):
    name: str
    weight: float
    arrays: list[Array]


class _Spread(NamedTuple):
    """Variance of a contrast: over items, and over each model's replicates, with degrees of freedom."""

    items: float
    items_df: int
    seeds: list[tuple[float, int]]

    def total(self) -> float:
        return self.items + sum(variance for variance, _ in self.seeds)

    def degrees(self) -> float:
        parts = [(self.items, self.items_df), *self.seeds]
        below = sum(variance**2 / df for variance, df in parts if variance > 0)
        return self.total() ** 2 / below if below > 0 else math.inf


# ---------------------------------------------------------------------------------------------- scores of one model


def overall(scores: Scores) -> Estimate:
    """Mean over groups of the mean over tasks; with several seeds the standard error covers items and seeds."""
    tasks = _aligned([scores])
    spread = _spread(tasks, [1.0])
    stderr = None if spread is None else math.sqrt(spread.total())
    return Estimate(_contrast_value(tasks, [1.0]), stderr, _items(tasks))


def of_group(scores: Scores, group: str) -> Estimate:
    """The mean over the tasks of one group."""
    return overall({group: scores[group]})


def of_task(array: Array) -> Estimate:
    """One task, from its (seeds, items) array."""
    return overall({"": {"": array}})


def interval(scores: Scores) -> tuple[float, float] | None:
    """The 95 % interval of the overall score, for reading (decisions are paired). None: a task has one item."""
    found = contrast([(1.0, scores)])
    return None if found.low is None or found.high is None else (found.low, found.high)


# ------------------------------------------------------------------------------------------------ comparing models


def difference(a: Scores, b: Scores) -> Difference:
    """Overall score of `a` minus that of `b`, paired on items. For one group or task, pass only that part of both."""
    return contrast([(1.0, a), (-1.0, b)])


def contrast(terms: Sequence[tuple[float, Scores]], choices: int = 1) -> Difference:
    """A weighted sum of models' overall scores, such as a candidate minus the mean of its parents.

    Replicates of different models are taken as independent. choices: among how many contrasts this one was chosen as
    the lowest; `high` is Bonferroni-corrected for that. Raises UsageError when the models were not scored on the same
    tasks and items, TaskError when a task has none.
    """
    coefficients = [coefficient for coefficient, _ in terms]
    tasks = _aligned([scores for _, scores in terms])
    value = _contrast_value(tasks, coefficients)
    spread = _spread(tasks, coefficients)
    low, high = _interval(tasks, coefficients, value, choices)
    p = _p_value(_item_terms(tasks, coefficients), value, spread)
    return Difference(value, low, high, p, _mde(spread), _items(tasks))


def against_best(candidate: Scores, others: Mapping[str, Scores]) -> tuple[str, Difference]:
    """A candidate against the best of several, where the best is chosen on these very items.

    Returns the best one's name and the difference from it. A candidate ahead must beat every one: p is the largest, and
    `low` the smallest over all pairs (intersection-union). One behind pays for the choice of the best, which looks
    better than it is: p and `high` are Bonferroni-corrected over the others.
    """
    names = list(others)
    pairs = {name: difference(candidate, others[name]) for name in names}
    best = min(names, key=lambda name: pairs[name].value)
    found = pairs[best]
    p = max(pair.p for pair in pairs.values()) if found.value >= 0 else min(1.0, found.p * len(names))
    if found.low is None:
        return best, replace(found, p=p)
    low = min(pair.low for pair in pairs.values() if pair.low is not None)
    tasks = _aligned([candidate, others[best]])
    high = _interval(tasks, [1.0, -1.0], found.value, choices=len(names))[1]
    return best, replace(found, low=low, high=high, p=p)


def resampled(models: Sequence[Scores]) -> Resampled:
    """Every task's score of every model, the same items (and of a model the same replicates) in one draw for all."""
    tasks = _aligned(models)
    values = np.array([[array.mean() for array in task.arrays] for task in tasks])
    if min(task.arrays[0].shape[1] for task in tasks) < 2:
        return Resampled(values, None)
    seed_weights = [_seed_weights(array.shape[0], model) for model, array in enumerate(tasks[0].arrays)]
    return Resampled(values, np.stack([_task_draws(task, seed_weights) for task in tasks], axis=1))


def ranks(models: Mapping[str, Scores], alpha: float = ALPHA) -> dict[str, int]:
    """1 + the number of models that are certainly better: paired tests over all pairs, Holm-corrected at `alpha`."""
    names = list(models)
    tasks = _aligned([models[name] for name in names])
    terms = [_item_terms([task._replace(arrays=[task.arrays[i]]) for task in tasks], [1.0]) for i in range(len(names))]
    pairs = list(combinations(range(len(names)), 2))
    values = [float(terms[i].sum() - terms[j].sum()) for i, j in pairs]
    ps = [_pair_p(tasks, terms, i, j, value) for (i, j), value in zip(pairs, values, strict=True)]
    rank = dict.fromkeys(names, 1)
    for (i, j), value, p in zip(pairs, values, holm(ps), strict=True):
        if p < alpha:
            rank[names[j] if value > 0 else names[i]] += 1
    return rank


def mcnemar(a: Array, b: Array) -> float:
    """Exact two-sided McNemar test (McNemar 1947, binomial form) of two models' 0/1 scores on the same items."""
    x, y = np.asarray(a).ravel(), np.asarray(b).ravel()
    if x.shape != y.shape or not np.isin(np.concatenate([x, y]), (0, 1)).all():
        raise UsageError("mcnemar compares 0/1 scores of the same items, one replicate each")
    return sign_flip(x.astype(np.float64) - y.astype(np.float64))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = largest
    return adjusted


def minimum_detectable_effect(a: Scores, b: Scores) -> float | None:
    """The smallest true difference found with 80 % power at alpha .05, from the paired variance; None if unknown."""
    return _mde(_spread(_aligned([a, b]), [1.0, -1.0]))


# ----------------------------------------------------------------------------------------------------- the machinery


def _aligned(models: Sequence[Scores]) -> list[_Task]:
    """The tasks in sorted order, each with its weight in the overall score and every model's (seeds, items)."""
    if not models or not models[0]:
        raise TaskError("no scores: there is nothing to average")
    names = {(group, task) for group in models[0] for task in models[0][group]}
    for scores in models[1:]:
        other = {(group, task) for group in scores for task in scores[group]}
        if other != names:
            unpaired = ", ".join("/".join(pair) for pair in sorted(names ^ other))
            raise UsageError(f"models are compared on the same tasks only; scored for some: {unpaired}")
    tasks = []
    for group in sorted(models[0]):
        if not models[0][group]:
            raise TaskError(f"group '{group}' has no tasks: it has no score")
        weight = 1.0 / (len(models[0]) * len(models[0][group]))
        for task in sorted(models[0][group]):
            arrays = [_checked(scores[group][task], f"{group}/{task}") for scores in models]
            tasks.append(_Task(f"{group}/{task}", weight, arrays))
    _check_shapes(tasks)
    return tasks


def _checked(array: Array, name: str) -> Array:
    found = np.atleast_2d(np.asarray(array, dtype=np.float64))
    if found.ndim != 2 or found.size == 0:
        raise TaskError(f"{name} has no scored items (shape {found.shape}): it has no score")
    if not np.isfinite(found).all():
        where = int(np.argwhere(~np.isfinite(found))[0][1])
        raise TaskError(f"{name}: the score of item {where} is not a number")
    return found


def _check_shapes(tasks: Sequence[_Task]) -> None:
    for task in tasks:
        sizes = sorted({array.shape[1] for array in task.arrays})
        if len(sizes) > 1:
            raise UsageError(f"models are compared on the same items only: {task.name} has {sizes} items")
    for model in range(len(tasks[0].arrays)):
        seeds = sorted({task.arrays[model].shape[0] for task in tasks})
        if len(seeds) > 1:
            raise UsageError(f"a model needs as many replicates in every task; found {seeds}")


def _items(tasks: Sequence[_Task]) -> int:
    return sum(task.arrays[0].shape[1] for task in tasks)


def _item_terms(tasks: Sequence[_Task], coefficients: Sequence[float]) -> Array:
    """What every item adds to the contrast, replicates averaged: (items of all tasks,)."""
    return np.concatenate([_collapsed(task, coefficients) * (task.weight / task.arrays[0].shape[1]) for task in tasks])


def _collapsed(task: _Task, coefficients: Sequence[float]) -> Array:
    rows = [c * array.mean(axis=0) for c, array in zip(coefficients, task.arrays, strict=True)]
    total: Array = np.sum(rows, axis=0)
    return total


def _contrast_value(tasks: Sequence[_Task], coefficients: Sequence[float]) -> float:
    return float(sum(task.weight * _collapsed(task, coefficients).mean() for task in tasks))


def _spread(tasks: Sequence[_Task], coefficients: Sequence[float]) -> _Spread | None:
    """Two-level variance by the random-effects decomposition score = model + seed + item + rest; None: one item."""
    sizes = [task.arrays[0].shape[1] for task in tasks]
    if min(sizes) < 2:
        return None
    items = sum(t.weight**2 * _collapsed(t, coefficients).var(ddof=1) / n for t, n in zip(tasks, sizes, strict=True))
    seeds = []
    for model, coefficient in enumerate(coefficients):
        replicates = tasks[0].arrays[model].shape[0]
        if replicates > 1:
            totals = np.sum([task.weight * task.arrays[model].mean(axis=1) for task in tasks], axis=0)
            # The replicates' totals also carry each item's rest, which the items' variance has counted already.
            rest = sum(task.weight**2 * _residual(task.arrays[model]) / n for task, n in zip(tasks, sizes, strict=True))
            variance = max(0.0, float(totals.var(ddof=1)) - rest) / replicates
            seeds.append((coefficient**2 * variance, replicates - 1))
    return _Spread(float(items), sum(sizes) - len(sizes), seeds)


def _residual(array: Array) -> float:
    """Mean square of what neither the seed nor the item explains, of (seeds, items)."""
    rest = array - array.mean(axis=1, keepdims=True) - array.mean(axis=0, keepdims=True) + array.mean()
    return float((rest**2).sum() / ((array.shape[0] - 1) * (array.shape[1] - 1)))


def _mde(spread: _Spread | None) -> float | None:
    if spread is None or spread.total() == 0:
        return None
    return (Z + _NORMAL.inv_cdf(POWER)) * math.sqrt(spread.total())


def _pair_p(tasks: Sequence[_Task], terms: Sequence[Array], i: int, j: int, value: float) -> float:
    spread = None
    if tasks[0].arrays[i].shape[0] > 1 or tasks[0].arrays[j].shape[0] > 1:
        spread = _pair_spread(tasks, i, j)
    return _p_value(terms[i] - terms[j], value, spread)


def _pair_spread(tasks: Sequence[_Task], i: int, j: int) -> _Spread | None:
    return _spread([task._replace(arrays=[task.arrays[i], task.arrays[j]]) for task in tasks], [1.0, -1.0])


def _p_value(item_terms: Array, value: float, spread: _Spread | None) -> float:
    p = sign_flip(item_terms)
    if spread is None or not any(variance > 0 for variance, _ in spread.seeds):
        return p
    from scipy.special import stdtr

    return max(p, float(2 * stdtr(spread.degrees(), -abs(value) / math.sqrt(spread.total()))))


# ---------------------------------------------------------------------------------------------------- the bootstrap


def _draws(tasks: Sequence[_Task]) -> Array:
    """Joint bootstrap of the models' overall scores: (DRAWS, models), the same items in one draw for all of them."""
    models = range(len(tasks[0].arrays))
    total = np.zeros((DRAWS, len(models)))
    seed_weights = [_seed_weights(tasks[0].arrays[model].shape[0], model) for model in models]
    for task in tasks:
        total += task.weight * _task_draws(task, seed_weights)
    return total


def _task_draws(task: _Task, seed_weights: Sequence[Array | None]) -> Array:
    n = task.arrays[0].shape[1]
    # Items with the same scores are exchangeable: drawing how many of each kind is the same bootstrap, and far cheaper.
    kinds, counts = np.unique(np.concatenate(task.arrays), axis=1, return_counts=True)
    starts = np.cumsum([0, *(array.shape[0] for array in task.arrays)])
    rng = _generator("items", task.name, n)
    out = np.empty((DRAWS, len(task.arrays)))
    for first in range(0, DRAWS, CHUNK):
        rows = slice(first, first + CHUNK)
        drawn = rng.multinomial(n - 1, counts / n, size=len(out[rows])) / (n - 1)  # (chunk, kinds)
        for model, weights in enumerate(seed_weights):
            block = kinds[starts[model] : starts[model + 1]]  # (seeds, kinds)
            out[rows, model] = drawn @ block[0] if weights is None else ((weights[rows] @ block) * drawn).sum(axis=1)
    return out


def _seed_weights(replicates: int, model: int) -> Array | None:
    """How often each replicate is drawn, as shares: (DRAWS, replicates); None for a single one."""
    if replicates == 1:
        return None
    rng = _generator("seeds", model, replicates)
    shares: Array = rng.multinomial(replicates - 1, np.full(replicates, 1 / replicates), size=DRAWS) / (replicates - 1)
    return shares


def _interval(
    tasks: Sequence[_Task], coefficients: Sequence[float], value: float, choices: int = 1
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of a contrast, its upper end corrected for a choice among `choices`."""
    spread = _spread(tasks, coefficients)
    if spread is None:
        return None, None
    draws = _draws(tasks) @ np.array(coefficients)
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2 / choices])
    width = _width(draws, spread)
    return value + (float(low) - value) * width, value + (float(high) - value) * width


def _width(draws: Array, spread: _Spread) -> float:
    """What brings the draws of a contrast to its unbiased two-level variance and to t; 1 without replicates."""
    deviation = float(draws.std())
    if not spread.seeds or deviation == 0:
        return 1.0
    from scipy.special import stdtrit

    return math.sqrt(spread.total()) / deviation * float(stdtrit(spread.degrees(), 1 - ALPHA / 2)) / Z


def _generator(*parts: object) -> np.random.Generator:
    """Seeded by what is drawn, so that neither the order of calls nor the process's hash seed matters."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "big"))
