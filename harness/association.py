"""How two quantities go together over rows that share what they are made of: arrays in, arrays out, seeded.

A row is a merge; `made_of` (rows, units) says which units are in it: models, or lineages, or each row itself. Rows that
share a unit are not independent. So intervals resample units: a row is in a draw as often as its units are together,
the product of their counts (the vertex bootstrap of Snijders and Borgatti 1999, for any number of parents). And
p-values permute the units' labels (Mantel 1967; with covariates Dekker, Krackhardt and Snijders 2007).

`strata` (rows,) is the method of each row: x, y and covariates are taken as deviations from their method's mean, and
ranks within their method, so that a method that gains more everywhere makes no relation, and hides none.

Measured on all pairs of 10 models, each of which carries an effect of its own into all its merges, in 400 worlds
without a relation: the permutation of labels has p <= .05 in 4 to 7 % of them, with one method or two, and given
covariates that go with both; one of rows has it in 18 to 39 %. The 95 % interval of Pearson's r holds the true value in
96 to 98 % of 300 worlds with 8 to 20 models and r of 0 or .57, and in all worlds whose models carry no effect: it is
too wide rather than too narrow.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

DRAWS = 2000
PERMUTATIONS = 9999
# Below this share of bootstrap draws with a defined correlation an interval would describe the lucky ones only.
USABLE = 0.8
UNITS_FOR_INTERVAL = 5
# Of a variable scaled to unit variance: what is below is rounding.
TINY = 1e-12
# Numbers held at once for a chunk of draws: some 100 MB.
HELD = 1 << 22
_NORMAL = NormalDist()


class Half(NamedTuple):
    """Outcomes y (outcomes, rows), what is held fixed z (covariates, rows), and that of all pairs of units.

    pairs: (covariates, units, units), NaN where two units (or a unit and itself) are no pair.
    """

    y: Array
    z: Array
    pairs: Array


class Coefficients(NamedTuple):
    """Correlations (measures, outcomes) with 95 % intervals and two-sided p; NaN where undefined."""

    value: Array
    low: Array
    high: Array
    p: Array


# ------------------------------------------------------------------------------------------------------ correlations


def correlations(x: Array, y: Array, z: Array, strata: Ints, weights: Array, ranked: bool = False) -> Array:
    """Weighted correlation of every x with every y given all z, within strata: (draws, measures, outcomes).

    x: (measures, rows), y: (outcomes, rows), z: (covariates, rows); weights: (draws, rows). ranked: of mid-ranks, each
    draw ranked by itself. NaN where x or y does not vary once z is known, or with fewer than two degrees of freedom:
    two distinct rows always correlate perfectly, which says nothing of the relation.
    """
    values = np.stack([scaled(one) for one in (*x, *y, *z)])
    step = max(1, HELD // values.size)
    parts = [
        _correlations(values, len(x), len(z), strata, weights[i : i + step], ranked)
        for i in range(0, len(weights), step)
    ]
    return np.concatenate(parts)


def scaled(values: Array) -> Array:
    """Values with mean 0 and variance 1; all 0 where they do not vary."""
    if np.ptp(values) <= TINY * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / values.std())


def _correlations(values: Array, first: int, fixed: int, strata: Ints, weights: Array, ranked: bool) -> Array:
    free = len(values) - fixed
    total = weights.sum(axis=1)
    least = TINY * np.maximum(total, 1.0)
    found = _covariances(values, strata, weights, ranked)
    for j in range(free, len(values)):  # what z explains is taken out, one covariate after another
        pivot = found[:, j, j]
        scale = np.divide(1.0, pivot, out=np.zeros_like(pivot), where=pivot > least)
        found = found - found[:, :, j, None] * found[:, None, j, :] * scale[:, None, None]
    spread = np.diagonal(found, axis1=1, axis2=2)[:, :free].copy()  # (draws, measures + outcomes)
    spread[spread <= least[:, None]] = np.nan
    present = weights > 0
    groups = (present.astype(np.float64) @ members_of(strata).T > 0).sum(axis=1)
    spread[present.sum(axis=1) - groups - fixed < 2] = np.nan
    r = found[:, :first, first:free] / np.sqrt(spread[:, :first, None] * spread[:, None, first:])
    return np.clip(r, -1, 1)


def members_of(strata: Ints) -> Array:
    """Which rows a stratum has, (strata, rows)."""
    return np.equal.outer(np.unique(strata), strata).astype(np.float64)


def _covariances(values: Array, strata: Ints, weights: Array, ranked: bool) -> Array:
    """Weighted sums of products of deviations within strata: (draws, variables, variables)."""
    members = members_of(strata)
    place = np.unique(strata, return_inverse=True)[1]
    total = weights @ members.T
    total[total == 0] = 1.0
    root, columns = np.sqrt(weights), []
    for one in values:
        spread = _ranks(one, strata, weights) / total[:, place] if ranked else np.broadcast_to(one, weights.shape)
        columns.append((spread - ((weights * spread) @ members.T / total)[:, place]) * root)
    stacked = np.stack(columns, axis=1)
    found: Array = stacked @ stacked.transpose(0, 2, 1)
    return found


def _ranks(values: Array, strata: Ints, weights: Array) -> Array:
    """Weighted mid-ranks, (draws, rows), counted on through the strata."""
    order = np.lexsort((values, strata))
    step = (np.diff(values[order]) != 0) | (np.diff(strata[order]) != 0)
    starts = np.flatnonzero(np.concatenate([[True], step]))
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    place = np.empty(len(values), dtype=np.int64)
    place[order] = np.cumsum(np.concatenate([[0], step]))
    ranks: Array = (np.cumsum(mass, axis=1) - mass / 2)[:, place]
    return ranks


def midranks(values: Array, strata: Ints) -> Array:
    """Ranks within strata, tied values sharing their mean rank, as shares of the stratum: (variables, rows)."""
    once = np.ones((1, len(strata)))
    size = (once @ members_of(strata).T)[:, np.unique(strata, return_inverse=True)[1]]
    return np.array([(_ranks(one, strata, once) / size)[0] for one in values]).reshape(values.shape)


def related(
    x: Array,
    halves: Sequence[Half],
    made_of: Bools,
    strata: Ints,
    matrices: Sequence[Array | None],
    ranked: bool = False,
) -> Coefficients:
    """Correlation of every x (measures, rows) with every outcome given the covariates, the mean over `halves`.

    matrices: for every measure the kinship of all pairs of units (units, units), NaN where two are no pair; None where
    labels cannot be permuted: no p. An interval is NaN below UNITS_FOR_INTERVAL units, or with too few defined draws.
    """

    def over_halves(weights: Array) -> Array:
        return np.mean([correlations(x, half.y, half.z, strata, weights, ranked) for half in halves], axis=0)

    value = over_halves(np.ones((1, len(strata))))[0]
    low, high = _interval(over_halves(row_weights(made_of)), made_of.shape[1])
    p = np.full(value.shape, np.nan)
    for i, matrix in enumerate(matrices):
        if matrix is not None:
            p[i] = permutation_p(matrix, halves, made_of, strata, ranked)
    p[np.isnan(value)] = np.nan
    return Coefficients(value, low, high, p)


# ------------------------------------------------------------------------------------------------------ the bootstrap


def row_weights(made_of: Bools) -> Array:
    """How often each row occurs when units are drawn with replacement: (DRAWS, rows)."""
    units = made_of.shape[1]
    counts = np.random.default_rng(units).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    return np.stack([counts[:, row].prod(axis=1) for row in made_of], axis=1).astype(np.float64)


def _interval(draws: Array, units: int) -> tuple[Array, Array]:
    """The 2.5 and 97.5 % quantiles of the defined draws along the first axis, NaN where they are too few."""
    defined = np.isfinite(draws)
    draws = np.where(defined.mean(axis=0) < USABLE, 0.0, draws)
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    absent = (defined.mean(axis=0) < USABLE) | (units < UNITS_FOR_INTERVAL)
    low[absent], high[absent] = np.nan, np.nan
    return low, high


def fitted(x: Array, y: Array, made_of: Bools, strata: Ints, at: Array) -> tuple[float, float, Array, Array]:
    """The least-squares line of y on x, both (rows,): slope within strata, intercept, and its 95 % band at `at`.

    The line goes through the mean of all rows. The band is NaN where an interval would be.
    """
    weights = np.concatenate([np.ones((1, len(x))), row_weights(made_of)])
    found = _covariances(np.stack([x, y]), strata, weights, False)
    total = weights.sum(axis=1)
    total[total == 0] = np.nan
    least = TINY * total * float(x.var())
    with np.errstate(invalid="ignore"):
        slope = np.where(found[:, 0, 0] > least, found[:, 0, 1], np.nan) / found[:, 0, 0].clip(np.finfo(float).tiny)
    intercept = (weights @ y - slope * (weights @ x)) / total
    low, high = _interval(intercept[1:, None] + slope[1:, None] * at, made_of.shape[1])
    return float(slope[0]), float(intercept[0]), low, high


# ---------------------------------------------------------------------------------------------- permutations of labels


def permutation_p(matrix: Array, halves: Sequence[Half], made_of: Bools, strata: Ints, ranked: bool) -> Array:
    """Two-sided p of the correlation with each outcome when the units' labels are permuted: (outcomes,).

    matrix: (units, units), kinship of all pairs of units. What the covariates explain of it is taken out over all
    pairs, the rest is permuted, and each row has the mean over its pairs; the statistic is the partial correlation of
    that with the outcome, meaned over halves (double semi-partialing; without covariates it is Mantel's test).
    """
    first, second, share = _pairs_of(made_of)
    places = _permuted_places(made_of.shape[1], tuple(first.tolist()), tuple(second.tolist()), PERMUTATIONS)
    statistic = 0.0
    for half in halves:
        y, z = (midranks(half.y, strata), midranks(half.z, strata)) if ranked else (half.y, half.z)
        basis = _basis(np.concatenate([members_of(strata), z]))
        rest = _residual(matrix, half.pairs, ranked)
        permuted = rest.ravel()[places]  # (permutations, pairs)
        apart = share - basis @ (basis.T @ share)
        spread = np.einsum("bp,bp->b", permuted @ (apart.T @ apart), permuted)[:, None]
        outcome = np.stack([scaled(one) for one in y], axis=1)
        outcome = outcome - basis @ (basis.T @ outcome)
        size = np.sqrt(spread.clip(0) * (outcome**2).sum(axis=0))
        least = TINY * max(1.0, float(size.max()))
        statistic = statistic + np.divide(
            permuted @ (share.T @ outcome), size, out=np.zeros_like(size), where=size > least
        )
    size = np.abs(np.asarray(statistic))
    p: Array = (size >= size[:1] - 1e-9).mean(axis=0)
    return p


def of_rows(matrix: Array, made_of: Bools) -> Array:
    """The mean over the pairs of units that each row is made of: (rows,)."""
    first, second, share = _pairs_of(made_of)
    means: Array = share @ matrix[first, second]
    return means


def _pairs_of(made_of: Bools) -> tuple[Ints, Ints, Array]:
    """The pairs of units that rows are made of, as positions, and each row's shares of them (rows, pairs).

    A row of one unit is the pair of that unit and itself.
    """
    places: dict[tuple[int, int], int] = {}
    entries = []
    for row, units in enumerate(made_of):
        members = np.flatnonzero(units).tolist()
        pairs = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]] or [(members[0], members[0])]
        entries += [(row, places.setdefault(pair, len(places)), 1 / len(pairs)) for pair in pairs]
    share = np.zeros((len(made_of), len(places)))
    for row, place, part in entries:
        share[row, place] = part
    ends = np.array(list(places), dtype=np.int64)
    return ends[:, 0], ends[:, 1], share


@lru_cache(maxsize=2)
def _permuted_places(units: int, first: tuple[int, ...], second: tuple[int, ...], permutations: int) -> Ints:
    """Where in a flat (units, units) matrix every pair is under every order of the units, the given order first."""
    given = np.arange(units)
    drawn = np.random.default_rng(units).permuted(np.tile(given, (permutations, 1)), axis=1)
    orders = np.concatenate([given[None], drawn])
    places: Ints = orders[:, first] * units + orders[:, second]
    return places


def _basis(columns: Array) -> Array:
    """Orthonormal columns that span the given rows: (rows, dimensions)."""
    scaled = columns / np.maximum(np.linalg.norm(columns, axis=1, keepdims=True), np.finfo(float).tiny)
    u, s, _ = np.linalg.svd(scaled.T, full_matrices=False)
    return np.asarray(u[:, s > 1e-9])


def _residual(matrix: Array, fixed: Array, ranked: bool) -> Array:
    """What the covariates of all pairs do not explain of the pairs' kinship, symmetric, NaN where there is no pair."""
    where = np.nonzero(np.triu(np.isfinite(matrix)))
    entries = np.stack([scaled(one[where]) for one in (matrix, *fixed)])
    if ranked:
        entries = midranks(entries, np.zeros(entries.shape[1], dtype=np.int64))
    basis = _basis(np.concatenate([np.ones((1, entries.shape[1])), entries[1:]]))
    found = np.full(matrix.shape, np.nan)
    found[where] = entries[0] - basis @ (basis.T @ entries[0])
    found.T[where] = found[where]
    return found


# ------------------------------------------------------------------------------------- what it rests on, and what for


def without(x: Array, halves: Sequence[Half], strata: Ints, left_out: Bools) -> Array:
    """Pearson's (partial) r, the mean over halves, without some rows: (cases, rows) -> (cases, measures, outcomes)."""
    kept = (~left_out).astype(np.float64)
    return np.mean([correlations(x, half.y, half.z, strata, kept) for half in halves], axis=0)


def needed(r: float) -> int | None:
    """Independent rows for 80 % power to find a correlation of this size at alpha .05 (Fisher's z); None for none."""
    size = min(abs(r), 1 - 1e-9)
    if size < 1e-6:
        return None
    z = _NORMAL.inv_cdf(0.975) + _NORMAL.inv_cdf(0.8)
    return math.ceil((z / math.atanh(size)) ** 2 + 3)


def false_discovery(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values of Benjamini and Hochberg (1995), in the order given."""
    found = [0.0] * len(ps)
    least = 1.0
    for place, index in reversed(list(enumerate(sorted(range(len(ps)), key=lambda i: ps[i]), start=1))):
        least = min(least, ps[index] * len(ps) / place)
        found[index] = least
    return found
