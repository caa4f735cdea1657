"""What was gained over the models a candidate is made of, and whether their kinship told it.

Candidates share models: an average, a TIES merge and a SLERP of the same two parents are three candidates and one fact
about kinship. So intervals resample models, not candidates, and no p-value is given under 8 independent models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.stats import Difference, Scores

Array = NDArray[np.float64]

MODELS_FOR_P = 8
ROWS_FOR_R = 3
DRAWS = 2000
# Below this share of bootstrap draws with a defined correlation an interval would describe the lucky ones only.
USABLE = 0.8
NO_DEV = "no dev split: ahead, it must beat every parent (largest p); behind, p pays for choosing the best on test"


def gains(
    candidate: str,
    parents: Sequence[str],
    base: str | None = None,
    control: str | None = None,
    target: str | None = None,
    *,
    test: Mapping[str, Scores],
    dev: Mapping[str, Scores] | None = None,
) -> dict[str, dict[str, Any]]:
    """The gains of a candidate, by name of model in `test` (and `dev`): the keys of contract 4 that can be known.

    Each is {"value", "low", "high", "p", "against"[, "note"]}, paired on test items. `best` is against the parent that
    is best on dev; without dev scores of every parent, the candidate must beat them all. A gain over a model without
    test scores is left out, and `best` and `mean` are where any parent has none: the best of the rest is not the best.
    """
    found: dict[str, dict[str, Any]] = {}
    mine = test.get(candidate)
    if mine is None:
        return found
    if parents and all(name in test for name in parents):
        found["best"] = _gain_best(mine, parents, test, dev)
        share = -1.0 / len(parents)
        mean = stats.contrast([(1.0, mine), *((share, test[name]) for name in parents)])
        found["mean"] = gain_entry(mean, "mean of the parents")
    for key, name in (("base", base), ("control", control), ("target", target)):
        if name is not None and name in test:
            found[key] = gain_entry(stats.difference(mine, test[name]), name)
    return found


def _gain_best(
    mine: Scores, parents: Sequence[str], test: Mapping[str, Scores], dev: Mapping[str, Scores] | None
) -> dict[str, Any]:
    if dev is not None and all(name in dev for name in parents):
        best = max(parents, key=lambda name: stats.overall(dev[name]).value)
        return gain_entry(stats.difference(mine, test[best]), best)
    best, found = stats.against_best(mine, {name: test[name] for name in parents})
    return {**gain_entry(found, best), "note": NO_DEV}


def gain_entry(found: Difference, against: str) -> dict[str, Any]:
    """A paired difference as results.json has it."""
    values = {"value": found.value, "low": found.low, "high": found.high, "p": found.p, "mde": found.mde}
    return {**{key: value for key, value in values.items() if value is not None}, "against": against}


def estimate_entry(found: stats.Estimate) -> dict[str, Any]:
    """A score with its uncertainty as results.json has it."""
    values = {"value": found.value, "stderr": found.stderr, "n": found.n}
    return {key: value for key, value in values.items() if value is not None}


# ------------------------------------------------------------------------------------------------- kinship and gain


class _Points(NamedTuple):
    """One measure against one gain: x, y of shape (rows,), and which models each row is made of, (rows, models)."""

    x: Array
    y: Array
    made_of: NDArray[np.bool_]


def kinship_vs_gain(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Correlation of kinship with gain over the candidates of a suite.

    A row is {"name", "parents": [names], "kinship": {measure: {"mean"}}, "gain": {"best": {"value"}, "mean": ...}}. A
    parent that is itself a row counts as the models it is made of.

    Returns {"models", "measures": {measure: {"best": {"signed", "absolute"}, "mean": ...}}, "says"}, each leaf
    {"n", "models", "pearson", "spearman"[, "reason"]} and each coefficient {"value", "low", "high", "p"} as far as they
    are defined, with "reason" saying why the rest is absent.
    """
    measures = sorted({measure for row in rows for measure in row.get("kinship") or {}})
    lineage = {str(row["name"]): [str(parent) for parent in row["parents"]] for row in rows}
    table = {
        measure: {gain: _both(_points(rows, lineage, measure, gain)) for gain in ("best", "mean")}
        for measure in measures
    }
    models = len({root for row in rows for root in _roots(str(row["name"]), lineage)})
    return {"models": models, "measures": table, "says": _says(table)}


def _roots(name: str, lineage: Mapping[str, Sequence[str]], above: tuple[str, ...] = ()) -> list[str]:
    """The models that a name comes down to, in sorted order."""
    if name not in lineage or name in above:
        return [name]
    return sorted({root for parent in lineage[name] for root in _roots(parent, lineage, (*above, name))})


def _points(
    rows: Sequence[Mapping[str, Any]], lineage: Mapping[str, Sequence[str]], measure: str, gain: str
) -> _Points:
    found = []
    for row in rows:
        x = ((row.get("kinship") or {}).get(measure) or {}).get("mean")
        y = ((row.get("gain") or {}).get(gain) or {}).get("value")
        if x is not None and y is not None and np.isfinite([x, y]).all():
            found.append((float(x), float(y), _roots(str(row["name"]), lineage)))
    models = sorted({root for _, _, roots in found for root in roots})
    made_of = np.array([[model in roots for model in models] for _, _, roots in found], dtype=bool)
    x, y = np.array([row[0] for row in found]), np.array([row[1] for row in found])
    return _Points(x, y, made_of.reshape(len(found), len(models)))


def _both(points: _Points) -> dict[str, Any]:
    return {"signed": _relation(points), "absolute": _relation(points._replace(y=np.abs(points.y)))}


def _relation(points: _Points) -> dict[str, Any]:
    n, models = points.made_of.shape
    found: dict[str, Any] = {"n": n, "models": models}
    if n < ROWS_FOR_R:
        return {**found, "reason": f"{n} candidates with this kinship and gain; a correlation needs {ROWS_FOR_R}"}
    for name, values in (("kinship", points.x), ("gain", points.y)):
        if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
            return {**found, "reason": f"the {name} is the same for all {n} candidates"}
    weights = _row_weights(points.made_of)
    reasons: list[str] = []
    for name, correlate in (("pearson", _pearson), ("spearman", _spearman)):
        value = float(correlate(points.x, points.y, np.ones((1, n)))[0])
        found[name] = {"value": value, **_bootstrapped(correlate(points.x, points.y, weights), models, reasons)}
    return {**found, "reason": "; ".join(dict.fromkeys(reasons))} if reasons else found


def _bootstrapped(draws: Array, models: int, reasons: list[str]) -> dict[str, float]:
    """Interval and p from the draws that have a correlation; why something is absent goes to `reasons`."""
    usable = draws[np.isfinite(draws)]
    if models < MODELS_FOR_P:
        reasons.append(f"no p-value: {models} independent models, {MODELS_FOR_P} needed")
    if len(usable) < USABLE * len(draws):
        reasons.append(f"no interval: {models} independent models are too few to resample")
        return {}
    low, high = np.quantile(usable, [0.025, 0.975])
    found = {"low": float(low), "high": float(high)}
    if models >= MODELS_FOR_P:
        tail = min(int((usable <= 0).sum()), int((usable >= 0).sum()))
        found["p"] = min(1.0, 2 * (tail + 1) / (len(usable) + 1))
    return found


def _row_weights(made_of: NDArray[np.bool_]) -> Array:
    """How often each row occurs when models are drawn with replacement: (DRAWS, rows).

    A row is in the sample as often as its models are together: the product of their counts (the vertex bootstrap of
    Snijders and Borgatti 1999, for any number of parents).
    """
    models = made_of.shape[1]
    counts = np.random.default_rng(models).multinomial(models, np.full(models, 1 / models), size=DRAWS)
    weights = [counts[:, row].prod(axis=1) for row in made_of]
    return np.stack(weights, axis=1).astype(np.float64)


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    """Weighted correlation, one a row of `weights` (draws, rows); NaN where it is undefined."""
    return _correlation(np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape), weights)


def _spearman(x: Array, y: Array, weights: Array) -> Array:
    """Weighted correlation of mid-ranks, each draw ranked by itself."""
    return _correlation(_ranks(x, weights), _ranks(y, weights), weights)


def _ranks(x: Array, weights: Array) -> Array:
    below = (x[:, None] < x[None, :]) + 0.5 * (x[:, None] == x[None, :])  # (rows, rows)
    ranks: Array = weights @ below
    return ranks


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = x - (weights * x).sum(axis=1, keepdims=True) / total
        dy = y - (weights * y).sum(axis=1, keepdims=True) / total
        xx, yy = (weights * dx**2).sum(axis=1), (weights * dy**2).sum(axis=1)
        r: Array = (weights * dx * dy).sum(axis=1) / np.sqrt(xx * yy)
    # Two distinct rows always correlate perfectly, and constants not at all: neither says anything of the relation.
    r[((weights > 0).sum(axis=1) < ROWS_FOR_R) | (xx <= 1e-18 * total[:, 0]) | (yy <= 1e-18 * total[:, 0])] = np.nan
    return np.clip(r, -1, 1)


def _says(table: Mapping[str, Mapping[str, Any]]) -> str:
    """What may be concluded, in one sentence, from the first measure against the headline gain."""
    if not table:
        return "Kinship was not measured, so nothing can be said of it and gain."
    measure = "pcc" if "pcc" in table else next(iter(table))
    found = table[measure]["best"]["signed"]
    if "pearson" not in found:
        return f"Nothing can be concluded of {measure} of the parents and gain over the best parent: {found['reason']}."
    r = found["pearson"]
    span = f" (95 % interval {r['low']:+.2f} to {r['high']:+.2f})" if "low" in r else ""
    seen = f"r = {r['value']:+.2f}{span} over {found['n']} candidates made of {found['models']} independent models"
    what = f"{measure} of the parents and gain over the best parent"
    if "p" not in r:
        return f"No conclusion on {what}: {seen} ({found['reason']})."
    if r["low"] <= 0 <= r["high"]:
        return f"No relation is shown between {what}: {seen}, p = {r['p']:.2g}."
    more = "more" if r["value"] > 0 else "less"
    return (
        f"A higher {measure} of the parents goes with {more} gain over the best parent: {seen}, p = {r['p']:.2g}; "
        "a correlation, not a cause."
    )
